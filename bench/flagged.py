"""What ``--masks flagged`` saves, by the share of images that are flagged."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from comit.card import OperatingPoint, card_path, read_card
from comit.console import Console
from comit.errors import ComitError, UsageError
from comit.options import Options
from comit.results import RUN
from comit.screening import screen

MASKS = ("lung_rle", "disease_rle", "lung_fraction", "disease_fraction")


@dataclass(frozen=True)
class Saving:
    """Two ways to screen the same files, in turn."""

    share: float  # of the images that are flagged
    images: int
    flagged_images: int
    all_per_second: float  # images a second with --masks all: median
    flagged_per_second: float  # with --masks flagged: median
    ratio: float  # of the medians
    lowest: float  # ratio of neighbouring runs
    highest: float


def measure(source: Path, options: Options, shares: list[float], repeat: int) -> list[Saving]:
    """Screens ``source`` with thresholds that flag these shares of it.

    Raises ComitError where a row with masks differs from that of ``--masks all``, UsageError
    where nothing was screened.
    """
    with tempfile.TemporaryDirectory(prefix="comit-bench-") as folder:
        model = Path(folder) / "model.onnx"
        shutil.copy(options.model, model)
        card = read_card(options.model)
        options = replace(options, model=model)
        card.write(card_path(model))
        _, rows = _screen(source, Path(folder), options)
        scores = sorted(s for s in rows["score_unhealthy"].to_pylist() if s is not None)
        if not scores:
            raise UsageError(f"{source} holds no image that can be screened")
        found = []
        for share in shares:
            lowest = scores[min(round((1 - share) * len(scores)), len(scores) - 1)]
            point = OperatingPoint(unhealthy=0.0 if share >= 1 else lowest, covid=1.001)
            replace(card, operating_points={"90": point}).write(card_path(model))
            found.append(_compare(source, Path(folder), options, share, repeat))
        return found


def _compare(source: Path, folder: Path, options: Options, share: float, repeat: int) -> Saving:
    rates: list[tuple[float, float]] = []
    for _ in range(repeat):
        whole, rows = _screen(source, folder, replace(options, masks="all"))
        part, some = _screen(source, folder, replace(options, masks="flagged"))
        rates.append((whole.images_per_second, part.images_per_second))
        flags = pc.fill_null(rows["flag_unhealthy"], False)
        if rows.filter(flags) != some.filter(flags):
            raise ComitError("a row with masks differs from that of --masks all")
        if rows.drop_columns(list(MASKS)) != some.drop_columns(list(MASKS)):
            raise ComitError("a row differs from that of --masks all")
    every, flagged = (statistics.median(r) for r in zip(*rates, strict=True))
    ratios = [b / a for a, b in rates]
    return Saving(
        share,
        whole.screened,
        part.flagged["unhealthy"],
        round(every, 2),
        round(flagged, 2),
        round(flagged / every, 3),
        round(min(ratios), 3),
        round(max(ratios), 3),
    )


def _screen(source: Path, folder: Path, options: Options) -> tuple[Any, pa.Table]:
    out = folder / "results.parquet"
    report = screen(source, out, options, console=Console(quiet=True))
    return report, pq.read_table(out).drop_columns(list(RUN))
