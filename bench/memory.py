"""How much memory a run takes, with all its processes, as the number of rows grows."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from comit.errors import ComitError, UsageError

EVERY = 0.2  # seconds between looks


@dataclass(frozen=True)
class Memory:
    """One run of ``comit screen`` over a manifest."""

    rows: int
    seconds: float
    peak_bytes: int  # proportional set size, summed over the run's processes, at its highest
    ratio: float  # to the first run's


def measure(
    source: Path, rows: list[int], arguments: list[str], network: bool = True
) -> list[Memory]:
    """Screens manifests of ``rows`` rows each over the files of ``source``, repeated in turn.

    Each run is a process of its own; without ``network`` it is :mod:`comit.bench.null`. Needs
    Linux, which tells shared memory apart. Raises UsageError without files, ComitError where a
    run fails.
    """
    files = sorted(p for p in source.rglob("*") if p.is_file())
    if not files:
        raise UsageError(f"{source} holds no files")
    found: list[Memory] = []
    with tempfile.TemporaryDirectory(prefix="comit-bench-") as folder:
        for n in rows:
            rows_of = manifest(files, n, Path(folder))
            screen = ["comit" if network else "comit.bench.null", "screen", str(rows_of)]
            seconds, peak = _run([*screen, "--out", f"{rows_of}.parquet", *arguments])
            first = found[0].peak_bytes if found else peak
            found.append(Memory(n, round(seconds, 1), peak, round(peak / first, 3)))
    return found


def manifest(paths: Sequence[Path], rows: int, folder: Path) -> Path:
    """Writes a manifest of ``rows`` rows, the same files again and again, into ``folder``."""
    to = folder / f"{rows}.csv"
    with to.open("w") as file:
        file.write("id,path\n")
        for i, path in enumerate(islice(cycle(paths), rows)):
            quoted = str(path.absolute()).replace('"', '""')
            file.write(f'{i},"{quoted}"\n')
    return to


def _run(arguments: list[str]) -> tuple[float, int]:
    started = time.perf_counter()
    peak = 0
    with subprocess.Popen(
        [sys.executable, "-m", *arguments, "--quiet"],
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        while run.poll() is None:
            peak = max(peak, sum(map(proportional, family(run.pid))))
            time.sleep(EVERY)
        if run.returncode not in (0, 3):
            raise ComitError(run.communicate()[1].strip())
    return time.perf_counter() - started, peak


def family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(p for child in below for p in family(int(child)))]


def proportional(pid: int) -> int:
    """Proportional set size in bytes; 0 once the process has gone.

    Decoding processes show theirs to root alone (prctl(2), PR_SET_DUMPABLE): to others what is
    private to them, without their share of libraries and of the ring.
    """
    for file, key in (("smaps_rollup", "Pss:"), ("status", "RssAnon:")):
        try:
            lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
        except OSError:
            continue
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
    return 0
