"""A large archive: how long a night without news takes, and whether memory grows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from comit.bench.faults.kills import archive
from comit.bench.faults.process import run
from comit.errors import ComitError


@dataclass(frozen=True)
class Nights:
    """An archive of tiny files, screened by an engine that costs nothing."""

    files: int
    first_seconds: float
    unchanged_seconds: float
    ratio: float  # of the two
    new_files: int
    new_seconds: float  # a night that has these
    peak_bytes: int
    small_files: int
    small_peak_bytes: int
    memory_ratio: float


def nights(work: Path, files: int, small: int = 1000, new: int = 100) -> Nights:
    """Screens ``files`` tiny files, then nothing new, then ``new`` ones; and ``small`` alone."""
    large, few, out = work / "large", work / "few", work / "results"
    archive(few, small)
    archive(large, files)
    little = _screen(few, work / "few-results")
    first = _screen(large, out)
    unchanged = _screen(large, out)
    archive(large / "new", new, seed=1)
    third = _screen(large, out)
    rows = pq.read_table(out, columns=["row_id"])["row_id"]
    if len(rows) != files + new or len(rows.unique()) != files + new:
        raise ComitError(f"{files + new} files gave {len(rows)} rows")
    return Nights(
        files=files,
        first_seconds=round(first[0], 2),
        unchanged_seconds=round(unchanged[0], 2),
        ratio=round(unchanged[0] / first[0], 4),
        new_files=new,
        new_seconds=round(third[0], 2),
        peak_bytes=first[1],
        small_files=small,
        small_peak_bytes=little[1],
        memory_ratio=round(first[1] / little[1], 3),
    )


def _screen(source: Path, out: Path) -> tuple[float, int]:
    ended = run(["screen", source, "--out", f"{out}/", "--quiet"])
    if ended.exit_code not in (0, 3):
        raise ComitError(ended.said)
    return ended.seconds, ended.peak_bytes
