"""Real DICOM, PNG and JPEG files with bytes changed, cut out, put in and swapped."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from comit.bench.faults.process import run

LARGEST = 1_500_000  # bytes of a file to start from
BATCH = 1000
EXTREMES = (b"\x00" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\x01\x00\x00\x00")


@dataclass
class Fuzzed:
    """What screening mutated files gave."""

    files: int = 0
    rows: int = 0
    aborts: int = 0  # runs that did not end with 0 or 3, or said anything
    reasons: Counter[str] = field(default_factory=Counter)
    peak_bytes: int = 0


def seeds(folders: list[Path]) -> list[bytes]:
    """The files to start from, at most 60 of a folder."""
    found: list[bytes] = []
    for folder in folders:
        paths = sorted(p for p in folder.rglob("*") if p.is_file())
        small = [p for p in paths if 0 < p.stat().st_size <= LARGEST]
        found += [p.read_bytes() for p in small[:: max(1, len(small) // 60)]]
    return found


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One to three changes, half of them in the first two thousand bytes, where headers are."""
    for _ in range(chance.randint(1, 3)):
        data = chance.choice(CHANGES)(data, _place(data, chance), chance)
    return data


def _place(data: bytes, chance: random.Random) -> int:
    return chance.randrange(max(1, min(len(data), 2000 if chance.random() < 0.5 else len(data))))


def _flip(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]


def _extreme(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at] + chance.choice(EXTREMES) + data[at + 4 :]


def _cut(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at] + data[at + chance.randint(1, 64) :]


def _insert(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at] + chance.randbytes(chance.randint(1, 64)) + data[at:]


def _repeat(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at] + data[at : at + chance.randint(1, 256)] * chance.randint(2, 9) + data[at:]


def _end(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at]


CHANGES: tuple[Callable[[bytes, int, random.Random], bytes], ...] = (
    _flip,
    _flip,
    _extreme,
    _cut,
    _insert,
    _repeat,
    _end,
)


def fuzz(work: Path, folders: list[Path], files: int, seed: int = 0) -> Fuzzed:
    """Screens ``files`` mutated files in batches; the same seed makes the same files."""
    chance, total, start = random.Random(seed), Fuzzed(), seeds(folders)  # noqa: S311
    while total.files < files:
        folder, out = work / "mutated", work / "mutated.parquet"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        count = min(BATCH, files - total.files)
        for i in range(count):
            (folder / f"{i:04d}").write_bytes(mutated(chance.choice(start), chance))
        ended = run(["screen", folder, "--out", out, "--quiet", "--timeout", 30])
        total.files += count
        total.aborts += ended.exit_code not in (0, 3) or bool(ended.said)
        total.peak_bytes = max(total.peak_bytes, ended.peak_bytes)
        if ended.exit_code in (0, 3):
            table = pq.read_table(out, columns=["status", "reason"])
            total.rows += table.num_rows
            total.reasons.update(r or "ok" for r in table["reason"].to_pylist())
    return total
