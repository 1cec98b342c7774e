"""One page to look at results: opens offline, runs nothing but its own script.

Whatever a results file holds reaches the page as JSON and is shown as text, never as markup. The
page's policy allows the one script by its hash, pictures only from the page itself and no network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from comit import __version__
from comit.card import BUNDLED
from comit.console import Console
from comit.errors import ItemError, UsageError
from comit.look.output import Made, refuse_input, write
from comit.look.picture import RAMP, Pictures, masks, outline
from comit.look.worklist import triage
from comit.reasons import Caution, Fail, Skip
from comit.results import CHEST, SCORES, provenance, read

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
NOT_A_CHEST = str(Skip.NOT_A_CHEST)
LONGEST = 640  # pixels of a picture's longer side
BINS = 40


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
    said = provenance(table)
    rows = triage(table.to_pylist(), by)
    shown: dict[int, dict[str, str]] = {}
    made = Made([out])
    if top:
        found, heat = Pictures(images, said), _heat(model, said, console)
        runs = read(results, ("row_id", "file_crc32", "lung_rle", "disease_rle"))
        place = {row_id: i for i, row_id in enumerate(runs["row_id"].to_pylist())}
        first = [(i, row) for i, row in enumerate(rows[:top]) if row["status"] == "ok"]
        first += [(i, row) for i, row in enumerate(rows) if row["reason"] == NOT_A_CHEST][:top]
        with found as pictures, console.progress("drawing", len(first)) as step:
            for i, row in first:
                step()
                (of_row,) = runs.slice(place[row["row_id"]], 1).to_pylist()
                try:
                    shown[i] = _picture(pictures, row | of_row, heat)
                except ItemError as error:
                    made.failed(row, error)
    data = {
        "summary": summary(rows, said, _run(run)),
        "by": by,
        "heat": any("heat" in picture for picture in shown.values()),
        "ramp": RAMP,
        "columns": columns,
        "rows": [[_plain(row[c]) for c in columns] for row in rows],
        "meanings": {str(c): c.meaning for c in (*Skip, *Fail, *Caution)},
    }
    write(out, page(data, shown).encode())
    return made


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


def summary(
    rows: list[dict[str, Any]], said: dict[str, Any], run: dict[str, Any] | None
) -> dict[str, Any]:
    """Counts, histograms of :data:`BINS` bins over [0, 1] with their thresholds, provenance."""
    thresholds = said.get("thresholds") or {}
    histograms = []
    known = any(row[CHEST] is not None for row in rows)
    for name in (*SCORES, CHEST) if known else SCORES:
        counts = [0] * BINS
        for row in rows:
            value = row[name]
            if value is not None and math.isfinite(value):
                counts[min(BINS - 1, max(0, int(value * BINS)))] += 1
        threshold = thresholds.get(name.removeprefix("score_"))
        above = "kept" if name == CHEST else "flagged"
        found = {"name": name, "counts": counts, "threshold": threshold, "above": above}
        histograms.append(found)
    facts = {k: str(v) for k, v in said.items() if k != "thresholds" and v is not None}
    if run:
        rate, screened, seconds = (run.get(k) for k in ("images_per_second", "screened", "seconds"))
        facts["throughput"] = f"{rate} images/s: {screened} in {seconds} s"
        facts["device"] = str((run.get("engine") or {}).get("device"))
    return {
        "rows": len(rows),
        "status": dict(Counter(r["status"] for r in rows)),
        "reasons": Counter(r["reason"] for r in rows if r["reason"]).most_common(),
        "warnings": Counter(w for r in rows for w in r["warnings"] or ()).most_common(),
        "flagged": {n: sum(bool(r[f"flag_{n}"]) for r in rows) for n in ("unhealthy", "covid")},
        "histograms": histograms,
        "facts": facts,
        "written_by": __version__,
    }


def page(data: dict[str, Any], shown: dict[int, dict[str, str]]) -> str:
    """The page; its two blocks of JSON hold no character that could end them."""
    template = files("comit.look").joinpath("report.html").read_text(encoding="utf-8")
    script = template.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    head, rest = template.replace("SCRIPT-HASH", digest).split("/*DATA*/")
    middle, tail = rest.split("/*PICTURES*/")
    return "".join((head, _json(data), middle, _json(shown), tail))


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
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not what comit screen --report writes") from error
    return found if isinstance(found, dict) else None
