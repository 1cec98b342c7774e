"""PNG pictures of rows in their own size, with lungs and disease over the X-ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from comit.console import Console
from comit.errors import ItemError
from comit.look.output import Made, make_folder, write
from comit.results import provenance, read

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NEEDED = (
    "row_id",
    "path",
    "rows",
    "cols",
    "flag_unhealthy",
    "flag_covid",
    "sop_instance_uid",
    "file_crc32",
    "lung_rle",
    "disease_rle",
)


def overlay(
    results: Path,
    images: Path | None,
    out: Path,
    *,
    fill: bool = False,
    flagged: bool = False,
    explain: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
    console: Console | None = None,
) -> Made:
    """Writes a PNG into ``out`` for every row of ``results`` with masks.

    ``images`` is the folder that was screened; None is the one that the results name. ``flagged``
    leaves the other rows out; ``explain`` makes of the network's input a heat map of (224, 224) in
    [0, 1] to lay beneath the masks. Raises UsageError; the trouble of one picture is noted and the
    others are made.
    """
    import cv2

    from comit.look.picture import Pictures, draw, file_stem, masks

    table = read(results, NEEDED)
    found = Pictures(images, provenance(table))
    make_folder(out)
    made = Made()
    progress = (console or Console(quiet=True)).progress("drawing", len(table))
    with found as pictures, progress as step:
        for row in (r for b in table.to_batches(max_chunksize=256) for r in b.to_pylist()):
            step()
            if row["lung_rle"] is None or (
                flagged and not (row["flag_unhealthy"] or row["flag_covid"])
            ):
                made.without += 1
                continue
            try:
                heat = explain(pictures.pixels(row)) if explain else None
                rgb = draw(pictures.shown(row), masks(row), fill=fill, heat=heat)
            except ItemError as error:
                made.failed(row, error)
                continue
            to = out / f"{file_stem(row)}.png"
            encoded = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1]
            write(to, encoded.tobytes())
            made.files.append(to)
    return made
