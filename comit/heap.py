"""The heap of the main process, which glibc grows for every thread and gives back late.

Rows are made by several threads and merged by another. Each with an arena of its own keeps what
it once took, and a run's memory would grow for as long as threads find new ones to fill. The
command line makes them share one; a program that calls the library decides for itself.
"""

from __future__ import annotations

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
KEPT = 32 * 2**20  # bytes


def share() -> None:
    """All threads of this process allocate from one arena from now on: for the whole process."""
    _glibc("mallopt", M_ARENA_MAX, 1)


def reuse() -> None:
    """What is freed is used again from now on, by Arrow too, and not faulted in anew each time.

    For a command that goes through many arrays of a size; :func:`trim` still gives back.
    """
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    for bound in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        _glibc("mallopt", bound, KEPT)


def trim() -> None:
    """Gives back what is free, Arrow's memory first."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    _glibc("malloc_trim", 0)


def _glibc(name: str, *arguments: int) -> None:
    """Calls a function of glibc's allocator; of another C library there is nothing to call."""
    import ctypes

    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
