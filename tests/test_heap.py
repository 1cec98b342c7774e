from __future__ import annotations

import subprocess
import sys

import pytest

THREADS = """
import ctypes, platform, sys, threading
from comit import heap

if platform.libc_ver()[0] != "glibc":
    sys.exit("not glibc")
if sys.argv[1] == "share":
    heap.share()
# A barrier keeps the threads alive together: no arena is used again.
together = threading.Barrier(8)
kept = []

def allocate():
    kept.append(ctypes.create_string_buffer(4096))
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
stream = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, stream)
libc.fflush(stream)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_threads_share_one_arena() -> None:
    def arenas(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", THREADS, how], capture_output=True, text=True, check=True
        )
        return done.stdout.count("<heap nr=")

    assert arenas("share") == 1 < arenas("as it is")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_is_freed_is_used_again() -> None:
    code = """
import platform, resource, sys
import pyarrow
from comit import heap
if platform.libc_ver()[0] != "glibc":
    sys.exit("not glibc")
if sys.argv[1] == "reuse":
    heap.reuse()
for _ in range(50):
    arrays = [b"x" * 1_000_000 for _ in range(10)]
    del arrays
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(faults, pyarrow.default_memory_pool().backend_name)
"""

    def faults(how: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", code, how], capture_output=True, text=True, check=True
        )
        number, pool = done.stdout.split()
        return int(number), pool

    (few, pool), (many, _) = faults("reuse"), faults("as it is")
    assert few < many - 50_000 and pool == "system"  # 122,000 pages of 4 KiB


def test_trimming_gives_free_memory_back() -> None:
    code = """
from comit import heap
import pyarrow
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
kept = [b"x" * 50_000 for _ in range(2000)]  # below what malloc maps apart
kept = kept[-1:]  # the last one pins the top of the heap
before = resident()
heap.trim()
print(before - resident())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 50_000_000
