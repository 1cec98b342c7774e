"""``python -m comit``."""

from comit.cli import main

main(prog_name="comit")
