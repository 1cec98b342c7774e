"""What a process may not do: leave a core dump, which holds patients, or take memory without end.

Linux knows both; elsewhere nothing happens but RLIMIT_CORE.
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

PR_SET_DUMPABLE = 4  # linux/prctl.h


def forbid_core_dumps() -> None:
    """From now on nobody gets this process' memory: no core file, and no pipe of core_pattern.

    Other processes of the same user cannot attach to it either (prctl(2), ptrace(2)).
    """
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


class Memory:
    """A bound on the private memory of this process, beside what it has when this is made.

    RLIMIT_DATA counts what is private and written to (Linux 4.7): neither libraries' code nor
    shared memory. Where the bound is met, allocations fail and nothing else happens.
    """

    def __init__(self) -> None:
        self._start = _private_bytes()

    def allow(self, nbytes: int) -> None:
        """Sets the bound, below what whoever started the process has set."""
        if self._start is None:
            return
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = self._start + nbytes
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def _private_bytes() -> int | None:
    """What RLIMIT_DATA counts of this process (proc(5): VmData)."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return None
