"""Scores and probability maps of one image to its row: flags, areas and run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from comit.card import OperatingPoint
from comit.decode.worker import Done
from comit.engine.base import Inference
from comit.reasons import Fail, Skip
from comit.results import Row

FOREGROUND = 128  # of 255: the first value above probability 0.5, the paper's threshold (4.1)
SKIPS = frozenset(str(s) for s in Skip)


def scored_rows(
    decoded: list[Done], inference: Inference, point: OperatingPoint | None, masks: str
) -> list[Row]:
    """Rows of a batch: ``decoded[i]`` is image i of ``inference``.

    ``masks`` is all, flagged or none: which rows get masks and fractions. Without an operating
    point flags are null. An image with a score that is not finite gets a failed row.
    """
    foreground = inference.masks >= FOREGROUND  # (N, 2, 224, 224)
    rows = []
    for done, scores, mask in zip(decoded, inference.scores.tolist(), foreground, strict=True):
        if not np.isfinite(scores).all():
            rows.append(unscored_row(done._replace(reason=str(Fail.MODEL_NONFINITE))))
            continue
        unhealthy, covid, other = scores
        row = _described(done)._replace(
            status="ok", score_unhealthy=unhealthy, score_covid=covid, score_other=other
        )
        if point is not None:
            row = row._replace(
                flag_unhealthy=unhealthy >= point.unhealthy, flag_covid=covid >= point.covid
            )
        if masks == "all" or (masks == "flagged" and (row.flag_unhealthy or row.flag_covid)):
            row = _with_masks(row, mask)
        rows.append(row)
    return rows


def unscored_row(done: Done) -> Row:
    """The row of an item that was skipped or failed, with what its header said."""
    status = "skipped" if done.reason in SKIPS else "failed"
    return _described(done)._replace(status=status, reason=done.reason)


def _described(done: Done) -> Row:
    return Row(
        status="",
        warnings=done.warnings,
        view=done.view,
        rows=done.rows,
        cols=done.cols,
        voi=done.voi,
        sop_instance_uid=done.sop_instance_uid,
        series_instance_uid=done.series_instance_uid,
        study_instance_uid=done.study_instance_uid,
        file_size=done.file_size,
        file_mtime=done.file_mtime,
        file_crc32=done.file_crc32,
    )


def _with_masks(row: Row, masks: NDArray[np.bool_]) -> Row:
    """Adds the run lengths and areas of (2, 224, 224) lung and disease masks."""
    lung, disease = masks
    lungs = int(np.count_nonzero(lung))
    lung_rle, disease_rle = encode(masks)
    return row._replace(
        lung_rle=lung_rle,
        disease_rle=disease_rle,
        lung_fraction=lungs / lung.size,
        disease_fraction=np.count_nonzero(lung & disease) / lungs if lungs else None,
    )


def encode(masks: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """(N, H, W) masks to COCO's compressed RLE, ``{"size": [H, W], "counts": str}`` each.

    ``pycocotools.mask.decode`` reads them as they are.
    """
    import cv2
    from pycocotools import mask

    # What pycocotools reads as (H, W, N) in Fortran order is (N, W, H) in C order.
    n, height, width = masks.shape
    turned = np.empty((n, width, height), np.uint8)
    for picture, into in zip(masks.view(np.uint8), turned, strict=True):
        cv2.transpose(picture, into)
    encoded = mask.encode(turned.transpose(2, 1, 0))
    return [{"size": list(e["size"]), "counts": e["counts"].decode("ascii")} for e in encoded]


def decode(rle: dict[str, Any]) -> NDArray[np.bool_]:
    """The (H, W) mask of a COCO RLE."""
    from pycocotools import mask

    return np.asarray(mask.decode(rle), dtype=np.bool_)
