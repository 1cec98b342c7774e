"""The command line as a process: started, watched, killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from comit.bench.memory import family, proportional

NULL = (sys.executable, "-m", "comit.bench.null")
COMIT = (sys.executable, "-m", "comit")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    exit_code: int
    said: str  # standard error
    seconds: float
    peak_bytes: int  # proportional set size with all children, at its highest
    child_bytes: int  # resident set size of the largest child, at its highest


def run(
    arguments: Sequence[object],
    program: Sequence[str] = NULL,
    kill_after: float | None = None,
    kill_when: Callable[[], bool] | None = None,
    signal: int = 9,
    env: dict[str, str] | None = None,
) -> Ended:
    """Runs a command to its end, or sends it ``signal``: after seconds, or when it is time."""
    started, peak, largest = time.monotonic(), 0, 0
    with subprocess.Popen(
        [*program, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    ) as process:
        try:
            said = process.communicate(timeout=kill_after)[1] if kill_after is not None else None
        except subprocess.TimeoutExpired:
            process.send_signal(signal)
            said = None
        while process.poll() is None and kill_after is None:
            processes = family(process.pid)
            peak = max(peak, sum(map(proportional, processes)))
            largest = max([largest, *map(high_water, processes[1:])])
            for _ in range(10):
                if kill_when is not None and kill_when():
                    process.send_signal(signal)
                    kill_when = None
                time.sleep(0.01)
        if said is None:
            said = process.communicate()[1]
    return Ended(process.returncode, said, time.monotonic() - started, peak, largest)


def high_water(pid: int) -> int:
    """The most memory that a process has had resident, in bytes; 0 once it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def orphans(marker: str) -> int:
    """Processes that go on with ``marker`` in their command line or environment."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                found += marker.encode() in (entry / "environ").read_bytes()
            except OSError:
                continue
    return found
