"""From files to Parquet, beside the same engine alone in the same run: what the rest costs."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comit.bench.latency import rate
from comit.console import Console
from comit.engine import load_engine
from comit.errors import UsageError
from comit.screen import Options, screen


@dataclass(frozen=True)
class Throughput:
    """One run of the whole pipeline between two of the engine alone."""

    source: str
    rows: int
    screened: int  # images that went through the engine
    seconds: float  # first file to last row, start of the decoding processes included
    wall_seconds: float  # and loading the model, listing the files, merging the results
    images_per_second: float  # screened / seconds
    alone_before: float  # images a second, the engine alone on random images
    alone_after: float
    ratio: float  # pipeline / mean of the two
    stage_seconds: dict[str, float]
    engine: dict[str, Any]
    workers: int | None  # decoding processes; None: usable cores


def measure(
    source: Path, options: Options, seconds: float = 5.0, console: Console | None = None
) -> Throughput:
    """Screens ``source`` into a temporary folder, as ``comit screen`` does.

    The engine alone runs before and after, ``seconds`` each: where the two differ, others used
    the machine and the ratio is worth as little. Raises UsageError where no image was screened.
    """
    engine = load_engine(
        options.model, options.engine, options.device, options.precision, options.batch_size
    )
    before = rate(engine, seconds)
    with tempfile.TemporaryDirectory(prefix="comit-bench-") as folder:
        started = time.perf_counter()
        report = screen(source, Path(folder) / "results.parquet", options, console=console)
        wall = time.perf_counter() - started
    after = rate(engine, seconds)
    engine.close()
    if not report.screened:
        raise UsageError(f"{source} holds no image that can be screened")
    return Throughput(
        source=str(source),
        rows=report.rows,
        screened=report.screened,
        seconds=report.seconds,
        wall_seconds=round(wall, 3),
        images_per_second=report.images_per_second,
        alone_before=round(before, 3),
        alone_after=round(after, 3),
        ratio=round(report.images_per_second / ((before + after) / 2), 4),
        stage_seconds=report.stage_seconds,
        engine=report.engine,
        workers=options.workers,
    )
