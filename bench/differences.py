"""How long ``comit compare`` takes, and how much memory, where all rows have masks."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from comit.errors import ComitError, UsageError

EVERY = 0.02  # seconds between looks
MASKS = ("lung_rle", "disease_rle")


@dataclass(frozen=True)
class Compared:
    """One comparison, by a process of its own."""

    masks: str  # of the second results: the same, or another row's
    rows: int
    seconds: float  # from the start of the process to its end
    cpu_seconds: float  # of all its threads, which other programs lengthen less
    peak_bytes: int  # of its memory in RAM, with libraries (proc(5), VmHWM)


def measure(results: Path, rows: int, repeat: int) -> list[Compared]:
    """Compares ``rows`` rows, those of ``results`` with masks in turn, with two others.

    The one has the same masks; in the other each row has the masks of the next one, so that hardly
    two are alike. Needs Linux. Raises UsageError where no row has masks, ComitError where a
    comparison fails.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from comit.results import read
    from comit.run.target import ROW_GROUP

    table = read(results)
    table = table.filter(pc.and_(*(table[name].is_valid() for name in MASKS)))
    if not len(table):
        raise UsageError(f"{results} has no rows with masks")
    ids = pa.array([f"{i:032}" for i in range(rows)])
    many = table.take(list(islice(cycle(range(len(table))), rows))).set_column(0, "row_id", ids)
    found = []
    with tempfile.TemporaryDirectory(prefix="comit-bench-") as folder:
        files = {name: Path(folder) / f"{name}.parquet" for name in ("same", "another")}
        for name, file in files.items():
            if name == "another":
                next_one = np.roll(np.arange(rows), -1)
                for mask in MASKS:
                    at = many.schema.get_field_index(mask)
                    many = many.set_column(at, mask, many[mask].take(next_one))
            pq.write_table(many, file, ROW_GROUP, compression="zstd")
        for name, file in files.items():
            for _ in range(repeat):
                found.append(Compared(name, rows, *_timed(files["same"], file)))
    return found


def _timed(a: Path, b: Path) -> tuple[float, float, int]:
    """Seconds, seconds of CPU and bytes of one ``comit compare``."""
    peak = 0
    started, before = time.perf_counter(), _cpu_seconds()
    command = [sys.executable, "-m", "comit", "compare", str(a), str(b)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as run:
        while run.poll() is None:
            with suppress(OSError, StopIteration):  # it has just ended
                lines = Path(f"/proc/{run.pid}/status").read_text().splitlines()
                highest = next(line for line in lines if line.startswith("VmHWM:"))
                peak = int(highest.split()[1]) * 1024
            time.sleep(EVERY)
        if run.returncode:
            raise ComitError(run.communicate()[1].strip())
    return round(time.perf_counter() - started, 2), round(_cpu_seconds() - before, 2), peak


def _cpu_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
