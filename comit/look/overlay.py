"""PNG pictures of rows in their own size, with lungs and disease over the X-ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from comit.errors import ItemError, UsageError
from comit.results import read

NEEDED = (
    "row_id",
    "path",
    "status",
    "rows",
    "cols",
    "score_unhealthy",
    "score_covid",
    "score_other",
    "flag_unhealthy",
    "flag_covid",
    "sop_instance_uid",
    "lung_rle",
    "disease_rle",
    "disease_fraction",
)


@dataclass
class Made:
    """What was written, and why for some rows nothing was."""

    files: list[Path] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)  # row_id, code of comit.reasons
    without: int = 0  # rows that have no masks, or are of another kind


def overlay(
    results: Path,
    images: Path,
    out: Path,
    *,
    fill: bool = False,
    flagged: bool = False,
    on_row: Callable[[int], None] = lambda rows: None,
) -> Made:
    """Writes a PNG for every row of ``results`` with masks, from its file under ``images``.

    ``flagged`` leaves the other rows out. Raises UsageError; the trouble of one picture is noted
    and the others are made.
    """
    import cv2

    from comit.look.picture import Pictures, draw, file_stem, masks

    pictures = Pictures(images)
    table = read(results, NEEDED)
    make_folder(out)
    made = Made()
    for batch in table.to_batches(max_chunksize=256):
        for row in batch.to_pylist():
            on_row(1)
            wanted = row["status"] == "ok" and (
                not flagged or row["flag_unhealthy"] or row["flag_covid"]
            )
            try:
                found = masks(row) if wanted else None
                if found is None:
                    made.without += 1
                    continue
                rgb = draw(pictures.show(row), found, fill=fill)
            except ItemError as error:
                made.problems.append((row["row_id"], str(error.reason)))
                continue
            to = out / f"{file_stem(row)}.png"
            encoded = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1]
            write(to, encoded.tobytes())
            made.files.append(to)
    return made


def make_folder(out: Path) -> None:
    """Makes the folder ``out``; raises UsageError where it cannot be one."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out} cannot be made a folder: {error.strerror}") from error


def write(to: Path, data: bytes) -> None:
    """Writes a file; raises UsageError."""
    try:
        to.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{to} cannot be written: {error.strerror}") from error
