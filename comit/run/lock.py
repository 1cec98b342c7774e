"""The lock of a run: one at a time may write to a place."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from comit.errors import UsageError
from comit.run.target import LOCK

LOCK_TRIES = 100  # each lost to a run that removed its folder just then


def lock(out: Path, staging: Path) -> int:
    """Makes the staging folder and takes its lock; raises UsageError where another run has it."""
    path = staging / LOCK
    for _ in range(LOCK_TRIES):
        try:
            staging.mkdir(mode=0o700, parents=staging.parent == out, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            if out.parent.exists():  # the run that had it removed the folder just now
                continue
            raise UsageError(f"{out} cannot be written: there is no {out.parent}") from None
        except OSError as error:
            raise UsageError(f"{out} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its folder may have been removed, and made anew by another run, before we got it.
            if path.exists() and path.stat().st_ino == os.fstat(fd).st_ino:
                return fd
            os.close(fd)
        except FileNotFoundError:
            os.close(fd)
        except BlockingIOError:
            os.close(fd)
            raise UsageError(f"another run is writing {out}; wait for it to end") from None
        except OSError as error:
            os.close(fd)
            raise UsageError(
                f"{out} cannot be locked: {error.strerror}; give a file system that has flock"
            ) from error
    raise UsageError(f"{out} cannot be written: its folder takes no files")
