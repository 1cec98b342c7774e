"""``python -m comit.bench``."""

from comit.bench.cli import bench

bench(prog_name="python -m comit.bench")
