"""Masks as COCO run lengths, there and back, their areas and their overlap."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comit.errors import ItemError
from comit.image.preprocess import SIZE
from comit.reasons import Fail

FOREGROUND = 128  # of 255: the first value above probability 0.5, the paper's threshold (4.1)


class Masks(NamedTuple):
    """Both masks of one image, as :mod:`comit.results` has them."""

    lung_rle: dict[str, Any]
    disease_rle: dict[str, Any]
    lung_fraction: float
    disease_fraction: float | None  # of the lung; None without one


class Runs(NamedTuple):
    """Both masks of one image as positions where runs begin, down the columns, and their areas."""

    lung: NDArray[np.uint16]
    disease: NDArray[np.uint16]
    lung_area: int
    inside: int  # of the disease, inside the lungs


def encoded(masks: NDArray[np.uint8] | Runs) -> Masks:
    """(2, 224, 224) lung and disease, probability times 255, to run lengths and areas."""
    if isinstance(masks, Runs):
        lung_rle, disease_rle = rle(masks.lung), rle(masks.disease)
        lungs, inside = masks.lung_area, masks.inside
    else:
        lung, disease = found = masks >= FOREGROUND
        lung_rle, disease_rle = encode(found)
        lungs, inside = int(np.count_nonzero(lung)), int(np.count_nonzero(lung & disease))
    return Masks(lung_rle, disease_rle, lungs / SIZE**2, inside / lungs if lungs else None)


def encode(masks: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """(N, H, W) masks to COCO's compressed RLE, ``{"size": [H, W], "counts": str}`` each.

    ``comit.results.decode_mask`` and ``pycocotools.mask.decode`` read them as they are.
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


def rle(boundaries: NDArray[np.uint16]) -> dict[str, Any]:
    """Positions where runs begin, down the columns, to COCO's compressed RLE."""
    from pycocotools import mask

    edges = np.concatenate([[0], boundaries.astype(np.int64), [SIZE**2]])
    plain = {"size": [SIZE, SIZE], "counts": np.diff(edges).tolist()}
    packed = mask.frPyObjects(plain, SIZE, SIZE)
    return {"size": list(packed["size"]), "counts": packed["counts"].decode("ascii")}


def decode_mask(rle: dict[str, Any] | None) -> NDArray[np.bool_]:
    """The (224, 224) mask of ``lung_rle`` or ``disease_rle``, a COCO compressed RLE.

    Raises ItemError ``corrupt`` where there is none, it has another size, or its runs do not fill
    that size exactly: nothing is allocated by what a file says of itself.
    """
    import numpy as np

    # pandas gives the size as an array.
    if not isinstance(rle, dict) or not np.array_equal(rle.get("size", ()), (SIZE, SIZE)):
        raise ItemError(Fail.CORRUPT)
    runs = _runs(rle.get("counts"))
    values = np.arange(len(runs)) % 2 == 1  # background first, in turns, down the columns
    return np.repeat(values, runs).reshape(SIZE, SIZE).T


def _runs(counts: str | None) -> list[int]:
    """The lengths in COCO's compressed counts; raises ItemError where they are none of a mask.

    Five bits a character; the sixth says that more follow, the last one's fifth is the sign. From
    the fourth length on it is the difference to the one two before (cocoapi, ``rleFrString``).
    """
    runs: list[int] = []
    value = bits = total = 0
    for character in counts or "":
        part = ord(character) - 48
        if not 0 <= part < 64 or bits > 25:
            raise ItemError(Fail.CORRUPT)
        value |= (part & 31) << bits
        bits += 5
        if part & 32:
            continue
        if part & 16:
            value -= 1 << bits
        if len(runs) > 2:
            value += runs[-2]
        total += value
        if value < 0 or total > SIZE**2:
            raise ItemError(Fail.CORRUPT)
        runs.append(value)
        value = bits = 0
    if bits or total != SIZE**2:
        raise ItemError(Fail.CORRUPT)
    return runs


def rectangles(lungs: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
    """The rectangle (x, y, w, h) around each lung of an (H, W) mask, left in the picture first.

    These are the paper's "two solid bounding boxes" (3.2). Specks below a hundredth of the mask are
    left out. Lungs are parted at the thinnest column of the middle third; where that is half as
    thick as the thickest, there is one lung.
    """
    import cv2

    _, of, stats, _ = cv2.connectedComponentsWithStats(lungs.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]  # without the background
    kept = np.isin(of, 1 + np.flatnonzero(areas * 100 >= areas.sum())) & lungs
    if not kept.any():
        return []
    x, _, width, _ = _around(kept)
    middle = slice(x + width // 3, x + width - width // 3)
    thickness = kept.sum(axis=0)
    thinnest = np.flatnonzero(thickness[middle] == thickness[middle].min())
    cut = middle.start + int(thinnest[len(thinnest) // 2])
    if thickness[cut] * 2 >= thickness.max():
        return [_around(kept)]
    columns = np.arange(kept.shape[1])
    return [_around(kept & side) for side in (columns <= cut, columns > cut)]


def _around(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(x, y, w, h) of the pixels of a mask that is not empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    (top, bottom), (left, right) = ((int(v[0]), int(v[-1])) for v in (rows, columns))
    return left, top, right - left + 1, bottom - top + 1


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks; 1 where both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Dice coefficient of two masks; 1 where both are empty."""
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / total if total else 1.0
