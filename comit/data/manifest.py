"""Rows of one or more readers to a manifest: split by patient, balanced, counted, written."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comit.data.tables import Row
from comit.errors import UsageError

SHARES = (0.70, 0.10)  # of patients in train and val; the rest is test


def split_by_patient(rows: Sequence[Row], seed: int, shares: tuple[float, float] = SHARES) -> None:
    """Sets ``split`` of each row, all of a patient's alike; shares hold within each source.

    A patient's place depends on the seed and on the patients of its source, not on row order.
    """
    import random

    by_source: dict[str, set[str]] = {}
    for row in rows:
        by_source.setdefault(row["source"], set()).add(row["patient_id"])
    place = {}
    for source, patients in sorted(by_source.items()):
        order = sorted(patients)
        random.Random(f"{seed} {source}").shuffle(order)  # noqa: S311
        ends = [round(shares[0] * len(order)), round(sum(shares) * len(order))]
        for i, patient in enumerate(order):
            place[patient] = "train" if i < ends[0] else "val" if i < ends[1] else "test"
    for row in rows:
        row["split"] = place[row["patient_id"]]


def balance_views(rows: Sequence[Row], seed: int) -> list[Row]:
    """As many AP as PA pictures among the healthy and among the unhealthy of each source (3.1).

    Those of the commoner view are drawn at random; pictures without a view are left out, and so
    is a group that has only one view. Raises UsageError where that leaves nothing.
    """
    import random

    groups: dict[tuple[str, bool | None], dict[str, list[Row]]] = {}
    for row in rows:
        if row["view"]:
            view = row["view"][:2]
            groups.setdefault((row["source"], row["healthy"]), {}).setdefault(view, []).append(row)
    kept: list[Row] = []
    for key, views in sorted(groups.items(), key=str):
        least = min(len(views.get(v, [])) for v in ("AP", "PA"))
        for view in ("AP", "PA"):
            listed = sorted(views.get(view, []), key=lambda r: str(r["path"]))
            kept += random.Random(f"{seed} {key} {view}").sample(listed, least)  # noqa: S311
    if rows and not kept:
        raise UsageError(
            "views cannot be balanced: this collection has "
            + ("no pictures of both AP and PA" if groups else "no views")
        )
    return kept


def counts(rows: Sequence[Row]) -> list[str]:
    """Lines in the shape of the paper's tables 1 to 3, for what was read."""
    words = {True: "healthy", False: "unhealthy", None: "unknown"}
    lines = ["source, healthy or not, view: pictures (tables 1 and 2)"]
    seen = Counter(
        (r.get("source") or "", words[r["healthy"]], r.get("view") or "no view") for r in rows
    )
    lines += [f"  {s:22} {h:10} {v:10} {n:7,}" for (s, h, v), n in sorted(seen.items())]
    lines += ["split: masks, findings, views (table 3)"]
    names = ("lung", "disease", "normal", "covid", "others", "PA", "AP", "patients")
    lines.append("  " + " " * 8 + "".join(f"{n:>10}" for n in names))
    for split in ("train", "val", "test", "all"):
        here = [r for r in rows if split in (r["split"], "all")]
        numbers = [
            sum(bool(r.get("lung_boxes") or r.get("lung_mask")) for r in here),
            sum(bool(r.get("disease_boxes") or r.get("disease_mask")) for r in here),
            *(sum(r[k] is True for r in here) for k in ("healthy", "covid", "other")),
            *(sum((r.get("view") or "").startswith(v) for r in here) for v in ("PA", "AP")),
            len({r.get("patient_id") or r["path"] for r in here}),
        ]
        lines.append(f"  {split:8}" + "".join(f"{n:10,}" for n in numbers))
    return lines


def write(rows: Sequence[Row], out: Path) -> None:
    """Writes the Parquet manifest; paths become relative to its folder. Raises UsageError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not rows:
        raise UsageError("no picture was found; a manifest of nothing is not written")
    text, flag, number = pa.string(), pa.bool_(), pa.float64()
    boxes = pa.list_(pa.list_(number))
    kinds: dict[str, Any] = {
        "path": text,
        "source": text,
        "patient_id": text,
        "view": text,
        "finding": text,
        "healthy": flag,
        "covid": flag,
        "other": flag,
        "lung_boxes": boxes,
        "lung_mask": text,
        "disease_boxes": boxes,
        "disease_mask": text,
        "ignore_mask": text,
        "split": text,
        "label_basis": text,
        "age": number,
        "sex": text,
        "license": text,
        "url": text,
    }

    def relative(value: Any) -> Any:
        return os.path.relpath(value, out.parent) if isinstance(value, Path) else value

    columns = {k: pa.array([relative(r.get(k)) for r in rows], t) for k, t in kinds.items()}
    temporary = out.with_name(out.name + ".new")
    try:
        with temporary.open("wb") as file:
            pq.write_table(pa.table(columns), file)
        temporary.replace(out)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}") from error


def merge(manifests: Sequence[Path], out: Path) -> list[Row]:
    """Several manifests as one, splits as they are; returns its rows.

    Raises UsageError where two have a picture in common, or a patient in different splits.
    """
    from comit.model.data import check_splits, read_manifest

    rows: list[Row] = []
    seen: set[str] = set()
    for manifest in manifests:
        read = read_manifest(manifest)
        for row in read:
            for name in ("path", "lung_mask", "disease_mask", "ignore_mask"):
                if row.get(name) is not None:
                    row[name] = manifest.parent / row[name]
        pictures = {os.path.realpath(row["path"]) for row in read}
        if common := len(seen & pictures):
            raise UsageError(f"{manifest} has {common:,} pictures that those before it have too")
        seen |= pictures
        rows += read
    check_splits(rows, out)
    write(rows, out)
    return rows
