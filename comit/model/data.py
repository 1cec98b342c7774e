"""A training manifest to arrays, through the very decoding and preprocessing of screening."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from comit import parquet
from comit.errors import ItemError, UsageError
from comit.image import open_image
from comit.image.preprocess import SIZE, area_average, preprocess

if TYPE_CHECKING:
    import pyarrow as pa

UNKNOWN = -1


@dataclass(frozen=True)
class Cohort:
    """N labelled images. A label of -1 (or a false ``has_*``) is unknown: its loss is off."""

    images: NDArray[np.float16]  # (N, 224, 224) in [0, 1], as comit.image.preprocess gives them
    lung: NDArray[np.uint8]  # (N, 224, 224) in {0, 1}
    disease: NDArray[np.uint8]  # (N, 224, 224) in {0, 1}; all 0 where known to be empty
    ignore: NDArray[np.uint8]  # (N, 224, 224) in {0, 1}: here the lungs' outline says nothing
    has_lung: NDArray[np.bool_]  # (N,)
    has_disease: NDArray[np.bool_]  # (N,)
    unhealthy: NDArray[np.int8]  # (N,) in {-1, 0, 1}
    findings: NDArray[np.int8]  # (N, 2) in {-1, 0, 1}: COVID, other disease
    chest: NDArray[np.int8]  # (N,) in {0, 1}: whether it is a frontal chest radiograph
    shape: NDArray[np.int32]  # (N, 2) rows and columns of the picture as it was stored
    basis: NDArray[np.str_]  # (N,) where the labels come from; empty where unknown
    source: NDArray[np.str_]  # (N,) the data set each came from
    patient: NDArray[np.str_]  # (N,) its own name where the manifest names no patient
    view: NDArray[np.str_]  # (N,) PA, AP, ...; empty where unknown

    def __len__(self) -> int:
        return len(self.images)

    def switches(self) -> NDArray[np.float32]:
        """(N, 6) in {0, 1}: T_1i to T_3i of the paper's equation 8, COVID and other, gate.

        The paper has one switch, T_4i, for COVID and other; here one may be known alone.
        """
        known = [
            self.has_lung,
            self.has_disease,
            self.unhealthy != UNKNOWN,
            *(self.findings != UNKNOWN).T,
            np.ones(len(self), np.bool_),
        ]
        return np.stack(known, axis=1).astype(np.float32)

    def sha256(self) -> str:
        """Of everything in it, in order: what a run that goes on must find unchanged."""
        digest = hashlib.sha256()
        for name, values in sorted(vars(self).items()):
            digest.update(f"{name} {values.shape} ".encode())
            digest.update(
                "\0".join(values.tolist()).encode()
                if values.dtype.kind == "U"
                else values.tobytes()
            )
        return digest.hexdigest()


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """Rows of a Parquet training manifest; raises UsageError naming what it lacks.

    So it does where a patient is in two splits (:func:`check_splits`).

    ``path`` (relative to the manifest), ``split`` (train, val, test), ``healthy``, ``covid``,
    ``other`` (booleans or null); optional: ``source``, ``patient_id``, ``view``, ``lung_boxes`` and
    ``disease_boxes`` (lists of [x, y, w, h] in pixels of the image; an empty list says that there
    is none, null that nobody looked), ``lung_mask``, ``disease_mask`` and ``ignore_mask`` (paths;
    the last is where the lungs' outline says nothing), ``label_basis`` (where the labels come
    from).
    """
    table = _table(path, ("path", "split"), ("healthy", "covid", "other"), "training")
    rows: list[dict[str, Any]] = table.to_pylist()
    check_splits(rows, path)
    return rows


def read_gate(path: Path) -> list[dict[str, Any]]:
    """Rows of a Parquet manifest of pictures that are no frontal chest radiograph.

    ``path`` (relative to the manifest), ``split`` (train, val, test) and ``kind`` (hand, ...).
    They come back as rows of :func:`read_manifest` with absolute paths, all labels unknown and
    ``chest`` false; the kind is their source. Raises UsageError.
    """
    table = _table(path, ("path", "split", "kind"), (), "a gate's manifest")
    unknown = dict.fromkeys(("healthy", "covid", "other"))
    root = path.resolve().parent
    return [
        {
            "path": str(root / row["path"]),
            "split": row["split"],
            "source": row["kind"],
            "chest": False,
            **unknown,
        }
        for row in table.select(["path", "split", "kind"]).to_pylist()
    ]


def _table(path: Path, texts: Sequence[str], flags: Sequence[str], purpose: str) -> pa.Table:
    """A Parquet manifest with these columns of text, none of it null, and of booleans or null.

    Raises UsageError naming what it lacks.
    """
    import pyarrow as pa

    try:
        table = parquet.table(path)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path} cannot be read as a Parquet manifest") from error
    if missing := [c for c in (*texts, *flags) if c not in table.column_names]:
        raise UsageError(f"{path} lacks the column {missing[0]!r} that {purpose} needs")
    for name in (*texts, *flags):
        kind = table.schema.field(name).type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        wanted = "text" if name in texts else "boolean"
        if not (text if wanted == "text" else pa.types.is_boolean(kind) or pa.types.is_null(kind)):
            raise UsageError(f"{path}: column {name!r} is {kind}, and must be {wanted}")
        if wanted == "text" and table[name].null_count:
            raise UsageError(f"{path}: column {name!r} has rows without a value")
    return table


def check_splits(rows: Iterable[dict[str, Any]], where: Path) -> None:
    """Raises UsageError, naming no patient, where a patient or a picture is in two splits.

    A patient is a source and a ``patient_id``; rows without the latter are told by their paths.
    """
    splits: dict[str, dict[Any, set[str]]] = {k: defaultdict(set) for k in ("patients", "pictures")}
    for row in rows:
        splits["pictures"][os.path.normpath(row["path"])].add(row["split"])
        if row.get("patient_id") is not None:
            splits["patients"][row.get("source"), row["patient_id"]].add(row["split"])
    for what, held in splits.items():
        pairs = Counter(pair for s in held.values() for pair in combinations(sorted(s), 2))
        if pairs:
            said = ", ".join(f"{n:,} in {a} and {b}" for (a, b), n in sorted(pairs.items()))
            raise UsageError(f"{where} has {what} in more than one split: {said}")


def load(
    rows: Sequence[dict[str, Any]],
    root: Path,
    workers: int = 2,
    progress: Callable[[], None] = lambda: None,
) -> Cohort:
    """Decodes and preprocesses the images of ``rows``, paths relative to ``root``.

    Raises UsageError naming the first image that cannot be used: a training set is curated.
    """

    def one(row: dict[str, Any]) -> tuple[NDArray[Any], ...]:
        try:
            image = open_image((root / row["path"]).read_bytes())
            samples = image.samples()
            pixels = preprocess(samples, image.presentation).pixels
            shape = samples.shape
            lung = _annotation(row.get("lung_boxes"), row.get("lung_mask"), root, shape)
            disease = _annotation(row.get("disease_boxes"), row.get("disease_mask"), root, shape)
            ignore = _annotation(None, row.get("ignore_mask"), root, shape)
        except (OSError, ItemError) as error:
            reason = error.reason if isinstance(error, ItemError) else "not readable"
            raise UsageError(f"{row['path']}: {reason}; leave it out of the manifest") from error
        progress()
        return pixels.astype(np.float16), lung, disease, ignore, np.array(shape[:2], np.int32)

    with ThreadPoolExecutor(workers) as pool:
        arrays = list(pool.map(one, rows))
    empty = np.zeros((SIZE, SIZE), np.uint8)
    masks = [[empty if m.size == 0 else m for m in a[1:4]] for a in arrays]
    label = {None: UNKNOWN, False: 0, True: 1}
    healthy = np.array([label[r["healthy"]] for r in rows], np.int8)
    return Cohort(
        images=np.stack([a[0] for a in arrays]),
        lung=np.stack([m[0] for m in masks]),
        disease=np.stack([m[1] for m in masks]),
        ignore=np.stack([m[2] for m in masks]),
        has_lung=np.array([a[1].size > 0 for a in arrays]),
        has_disease=np.array([a[2].size > 0 for a in arrays]),
        unhealthy=np.where(healthy == UNKNOWN, UNKNOWN, 1 - healthy).astype(np.int8),
        findings=np.array([[label[r["covid"]], label[r["other"]]] for r in rows], np.int8),
        chest=np.array([r.get("chest", True) for r in rows], np.int8),
        shape=np.stack([a[4] for a in arrays]),
        basis=np.array([r.get("label_basis") or "" for r in rows]),
        source=np.array([r.get("source") or "" for r in rows]),
        patient=np.array([str(r.get("patient_id") or r["path"]) for r in rows]),
        view=np.array([r.get("view") or "" for r in rows]),
    )


def _annotation(
    boxes: list[list[float]] | None, mask: str | None, root: Path, shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Boxes (the paper's "solid bounding boxes", 3.2), else a mask file; (224, 224), or empty."""
    if boxes is not None:
        return filled(boxes, shape).astype(np.uint8)
    if mask is not None:
        drawn = open_image((root / mask).read_bytes()).samples()
        return (area_average((drawn != 0).astype(np.uint8)) >= 0.5).astype(np.uint8)
    return np.zeros(0, np.uint8)


def filled(
    boxes: Iterable[Sequence[float]], shape: tuple[int, ...] = (SIZE, SIZE)
) -> NDArray[np.bool_]:
    """(224, 224): true inside boxes [x, y, w, h] in pixels of a picture of ``shape`` (H, W)."""
    grid = np.zeros((SIZE, SIZE), np.bool_)
    height, width = shape
    for x, y, w, h in boxes:
        down = np.clip(np.rint(np.array([y, y + h]) * SIZE / height), 0, SIZE).astype(int)
        across = np.clip(np.rint(np.array([x, x + w]) * SIZE / width), 0, SIZE).astype(int)
        grid[slice(*down), slice(*across)] = True
    return grid
