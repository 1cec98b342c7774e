"""Small results files made for tests, with pictures that fit them and no model behind them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from comit.masks import encode
from comit.results import schema

THRESHOLDS = {"unhealthy": 0.8, "covid": 0.4}
PROVENANCE = {
    "comit_version": "0.1.0",
    "comit_model": "tiny",
    "comit_model_sha256": "ab" * 32,
    "comit_thresholds": json.dumps(THRESHOLDS),
}


def disc(y: int, x: int, radius: int) -> NDArray[np.bool_]:
    """(224, 224) mask of a disc."""
    rows, columns = np.ogrid[:224, :224]
    return np.asarray((rows - y) ** 2 + (columns - x) ** 2 <= radius**2)


LUNGS = disc(110, 65, 45) | disc(110, 160, 45)
DISEASE = disc(130, 70, 12) & ~disc(130, 70, 4)
RUNS = encode(np.stack([LUNGS, DISEASE]))


def ok(row_id: str, path: str | None = None, *, unhealthy: float = 0.5, **columns: Any):
    """A row that was scored, with masks."""
    lungs, disease = RUNS
    return {
        "row_id": row_id,
        "path": path or f"{row_id}.png",
        "status": "ok",
        "warnings": [],
        "rows": 300,
        "cols": 260,
        "voi": "none",
        "score_unhealthy": unhealthy,
        "score_covid": unhealthy / 2,
        "score_other": 0.25,
        "score_chest": None,
        "flag_unhealthy": unhealthy >= THRESHOLDS["unhealthy"],
        "flag_covid": unhealthy / 2 >= THRESHOLDS["covid"],
        "sop_instance_uid": None,
        "file_crc32": None,
        "lung_rle": lungs,
        "disease_rle": disease,
        "lung_fraction": 0.25,
        "disease_fraction": 0.02,
        **columns,
    }


def unscored(row_id: str, status: str, reason: str, **columns: Any):
    """A row that was skipped or failed."""
    return {"row_id": row_id, "path": f"{row_id}.png", "status": status, "reason": reason} | columns


def write(
    to: Path, rows: list[dict[str, Any]], row_group_size: int | None = None, **metadata: str
) -> Path:
    """The rows as ``comit screen`` would have written them; other columns come last."""
    own = {f.name: f for f in schema()}
    names = dict.fromkeys(name for row in rows for name in row)
    fields = [own[n] for n in own if n in names]
    others = [n for n in names if n not in own]
    columns = [pa.array([r.get(f.name) for r in rows], f.type) for f in fields]
    columns += [pa.array([r.get(n) for r in rows]) for n in others]
    table = pa.table(columns, names=[*(f.name for f in fields), *others])
    pq.write_table(table.replace_schema_metadata(PROVENANCE | metadata), to, row_group_size)
    return to


def draw(to: Path | bytes, rows: int = 300, columns: int = 260) -> None:
    """A grey picture in which every row and every column can be told apart."""
    y, x = np.mgrid[0:rows, 0:columns]
    grey = (60 + 120 * y / rows + 60 * x / columns).astype(np.uint8)
    content = cv2.imencode(".png", grey)[1].tobytes()
    Path(to if isinstance(to, Path) else to.decode("utf-8", "surrogateescape")).write_bytes(content)
