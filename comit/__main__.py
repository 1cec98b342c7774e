"""The program ``comit``, and ``python -m comit``."""

import atexit
import os
import sys
from contextlib import suppress


def run() -> None:
    """Runs the command line and ends the process with its exit code.

    The process ends without destructors of libraries. A thread of Arrow that still lets go of a
    Python object while the interpreter ends aborts the process (apache/arrow#34314): after about
    one night of thirty whose results are in place, the exit code was 134.
    """
    code = 1  # of an exception that Python itself reports

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(code)

    atexit.register(leave)  # registered first, called last
    from comit.cli import main

    try:
        main(prog_name="comit")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise


if __name__ == "__main__":
    run()
