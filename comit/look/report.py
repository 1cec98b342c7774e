"""One page to look at results: opens offline, runs nothing but its own script.

Whatever a results file holds reaches the page as JSON and is shown as text, never as markup. The
page's policy allows the one script by its hash, pictures only from the page itself and no network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from comit import __version__
from comit.card import BUNDLED
from comit.console import Console
from comit.errors import ItemError, UsageError
from comit.look.output import Made, refuse_input, write
from comit.look.picture import RAMP, Pictures, masks, outline
from comit.look.worklist import triage
from comit.reasons import Caution, Fail, Skip
from comit.results import CHEST, SCORES, batches, provenance, read

if TYPE_CHECKING:
    from comit.look.heat import Heat

COLUMNS = (  # of the table, in the order in which the page gets them
    "row_id",
    "path",
    "status",
    "reason",
    "view",
    *SCORES,
    CHEST,
    "flag_unhealthy",
    "flag_covid",
    "disease_fraction",
    "lung_fraction",
    "warnings",
    "rows",
    "cols",
    "voi",
    "sop_instance_uid",
)
PICTURED = (  # what drawing needs beside
    "row_id",
    "path",
    "status",
    "rows",
    "cols",
    "sop_instance_uid",
    "file_crc32",
    "lung_rle",
    "disease_rle",
)
LONGEST = 640  # pixels of a picture's longer side
BINS = 40
FEW = 4  # rows that share a value, in the mean, where a column is written by its distinct values;
PIECE = 2048  # rows of a piece of another column: what is parsed to show one of them


def write_report(
    results: Path,
    images: Path | None,
    out: Path,
    *,
    by: str = "score_unhealthy",
    top: int = 200,
    extra: Sequence[str] = (),
    model: Path | None = None,
    run: Path | None = None,
    console: Console | None = None,
) -> Made:
    """Writes ``results`` as a page with the pictures of the ``top`` rows by ``by``.

    It has the pictures of ``top`` rows that the gate rejected too, so that one sees what it did.
    ``images`` is the folder that was screened; None is the one that the results name. ``extra``
    are columns of the manifest to show, ``run`` is what ``comit screen --report`` wrote.
    ``model`` draws the heat maps; without one the bundled model does, if the results are of it.
    Raises UsageError; pictures that cannot be shown are noted, their rows are in the table.
    """
    console = console or Console(quiet=True)
    columns = list(dict.fromkeys((*COLUMNS, *extra)))
    table = read(results, columns)
    refuse_input(out, results)
    said, order = provenance(table), triage(table, by)
    shown: dict[int, dict[str, str]] = {}
    made = Made([out])
    places = np.concatenate(order)
    if top:
        found, heat = Pictures(images, said), _heat(model, said, console)
        rejected = len(order.ok) + len(order.failed)  # of these the first, on the page
        first = [*range(len(order.ok[:top]))]
        first += range(rejected, rejected + len(order.rejected[:top]))
        rows = _rows(results, places[first])
        with found as pictures, console.progress("drawing", len(first)) as step:
            for i in first:
                step()
                row = rows[places[i]]
                try:
                    shown[i] = _picture(pictures, row, heat)
                except ItemError as error:
                    made.failed(row, error)
    data = {
        "summary": summary(table, said, _run(run)),
        "by": by,
        "rows": len(table),
        "piece": PIECE,
        "heat": any("heat" in picture for picture in shown.values()),
        "ramp": RAMP,
        "columns": columns,
        "meanings": {str(c): c.meaning for c in (*Skip, *Fail, *Caution)},
    }
    write(out, page(data, table.take(places), shown).encode())
    return made


def _rows(results: Path, places: NDArray[np.int64]) -> dict[int, dict[str, Any]]:
    """What pictures need of the rows at these places."""
    places = np.sort(places)
    found = (r for t in batches(results, PICTURED, rows=places) for r in t.to_pylist())
    return dict(zip(places.tolist(), found, strict=True))


def _heat(model: Path | None, said: dict[str, Any], console: Console) -> Heat | None:
    """What draws the heat maps; None, and a line why, where nobody asked for this model."""
    from comit.look.heat import Heat

    try:
        return Heat(model or BUNDLED, said)
    except UsageError as error:
        if model is not None:
            raise
        console.line(f"no heat maps: {error}")
        return None


def _picture(pictures: Pictures, row: dict[str, Any], heat: Heat | None) -> dict[str, str]:
    """The X-ray and its heat map as JPEG in base64, the outlines of its masks as SVG paths."""
    grey = pictures.shown(row)
    scale = min(1.0, LONGEST / max(grey.shape))
    if scale < 1:
        size = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    found = {"jpeg": _jpeg(grey)}
    if row["lung_rle"] is not None:
        lungs, disease = masks(row)
        found |= {"lungs": outline(lungs), "disease": outline(disease)}
    if heat is not None and row["status"] == "ok":
        found["heat"] = _jpeg(heat.disease(pictures.pixels(row)))
    return found


def _jpeg(grey: NDArray[np.uint8]) -> str:
    encoded = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, 82])[1]
    return base64.b64encode(encoded.tobytes()).decode()


def summary(table: pa.Table, said: dict[str, Any], run: dict[str, Any] | None) -> dict[str, Any]:
    """Counts, histograms of :data:`BINS` bins over [0, 1] with their thresholds, provenance."""
    thresholds = said.get("thresholds") or {}
    histograms = []
    has_gate = table[CHEST].null_count < len(table)
    for name in (*SCORES, CHEST) if has_gate else SCORES:
        values = np.asarray(pc.drop_null(table[name]))
        bins = np.clip((values * BINS).astype(np.int64), 0, BINS - 1)
        counts = np.bincount(bins, minlength=BINS).tolist()
        threshold = thresholds.get(name.removeprefix("score_"))
        above = "kept" if name == CHEST else "flagged"
        found = {"name": name, "counts": counts, "threshold": threshold, "above": above}
        histograms.append(found)
    flagged = {n: pc.fill_null(table[f"flag_{n}"], False) for n in ("unhealthy", "covid")}
    flagged["either"] = pc.or_(*flagged.values())
    facts = {k: str(v) for k, v in said.items() if k != "thresholds" and v is not None}
    if run:
        rate, screened, seconds = (run.get(k) for k in ("images_per_second", "screened", "seconds"))
        facts["throughput"] = f"{rate} images/s: {screened} in {seconds} s"
        facts["device"] = str((run.get("engine") or {}).get("device"))
    return {
        "rows": len(table),
        "status": dict(_counted(table["status"])),
        "reasons": _counted(table["reason"]),
        "warnings": _counted(pc.list_flatten(table["warnings"])),
        "flagged": {n: pc.sum(flags).as_py() or 0 for n, flags in flagged.items()},
        "histograms": histograms,
        "facts": facts,
        "written_by": __version__,
    }


def _counted(column: pa.ChunkedArray) -> list[tuple[str, int]]:
    """How often each value is there, the most frequent first."""
    counts = ((c["values"], c["counts"]) for c in pc.value_counts(column).to_pylist())
    return sorted(((v, n) for v, n in counts if v is not None), key=lambda c: (-c[1], c[0]))


def page(data: dict[str, Any], table: pa.Table, shown: dict[int, dict[str, str]]) -> str:
    """The page; no block of JSON in it holds a character that could end it."""
    template = files("comit.look").joinpath("report.html").read_text(encoding="utf-8")
    script = template.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    head, rest = template.replace("SCRIPT-HASH", digest).split("<!--DATA-->")
    blocks = [_block("data", data)]
    # Each apart, so that one is parsed when it is looked at.
    for i, column in enumerate(table.columns):
        blocks += [_block(f"column{i}{part}", value) for part, value in _column(column)]
    blocks += [_block(f"picture{i}", picture) for i, picture in shown.items()]
    return "".join((head, *blocks, rest))


def _block(name: str, value: Any) -> str:
    return f'<script type="application/json" id="{name}">{_json(value)}</script>\n'


def _column(column: pa.ChunkedArray) -> Iterator[tuple[str, Any]]:
    """A column as the page reads it, in one part or in pieces of :data:`PIECE` rows.

    Numbers of 32 bits are {"float32": base64}, null being NaN; what many rows share is {"values":
    [...], "at": [...]}, by its place among the distinct values; all else lists, -0, -1 and so on.
    """
    if pa.types.is_float32(column.type):
        numbers = column.combine_chunks().to_numpy(zero_copy_only=False).astype("<f4")
        yield "", {"float32": base64.b64encode(numbers.tobytes()).decode()}
        return
    values = [_plain(v) for v in column.to_pylist()]
    keys = [tuple(v) if isinstance(v, list) else v for v in values]
    distinct = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    if len(distinct) * FEW <= len(keys):
        yield "", {"values": list(distinct), "at": [distinct[key] for key in keys]}
        return
    for piece, start in enumerate(range(0, len(values), PIECE)):
        yield f"-{piece}", values[start : start + PIECE]


def _json(value: Any) -> str:
    """ASCII JSON without <, > and &: inside a script element it is data to the end."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _plain(value: Any) -> Any:
    """A value that JSON has: floats to 5 digits, other types as text."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return [str(v) for v in value] if isinstance(value, list) else str(value)


def _run(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"{path} does not exist; comit screen --report {path} writes it"
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not what comit screen --report writes") from error
    return found if isinstance(found, dict) else None
