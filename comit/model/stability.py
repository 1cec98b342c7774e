"""What a change that means nothing for the patient does to flags, scores and masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from comit.card import CLASSES, Card
from comit.image.preprocess import SIZE, Presentation, preprocess
from comit.masks import FOREGROUND, iou
from comit.model.metrics import Predictions

Picture = NDArray[np.uint8]  # (H, W)
EDGE = SIZE // 20  # a twentieth of a side at each end: a tenth of the side


def _bordered(shade: int) -> Callable[[Picture], Picture]:
    def change(picture: Picture) -> Picture:
        return np.pad(picture, EDGE, constant_values=shade)

    return change


def _toned(gamma: float) -> Callable[[Picture], Picture]:
    def change(picture: Picture) -> Picture:
        return np.rint(255 * (picture / 255) ** gamma).astype(np.uint8)

    return change


def _turned(degrees: float) -> Callable[[Picture], Picture]:
    def change(picture: Picture) -> Picture:
        middle = (SIZE - 1) / 2
        turn = cv2.getRotationMatrix2D((middle, middle), degrees, 1)
        return np.asarray(cv2.warpAffine(picture, turn, (SIZE, SIZE)), np.uint8)

    return change


def _equalised(picture: Picture) -> Picture:
    return np.asarray(cv2.createCLAHE(2.0, (8, 8)).apply(picture), np.uint8)


def _compressed(picture: Picture) -> Picture:
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)


def _labelled(picture: Picture) -> Picture:
    for text, place in (("L", (190, 30)), ("PORTABLE", (8, 216))):
        picture = np.ascontiguousarray(picture)
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 2)
    return picture


class Change(NamedTuple):
    """A change of 8-bit pictures."""

    of: Callable[[Picture], Picture]
    moves: bool = True  # lungs are elsewhere afterwards


CHANGES = {
    "black border of 10 %": Change(_bordered(0)),
    "white border of 10 %": Change(_bordered(255)),
    "crop by 10 %": Change(lambda p: p[EDGE:-EDGE, EDGE:-EDGE]),
    "gamma 0.7": Change(_toned(0.7), moves=False),
    "gamma 1.4": Change(_toned(1.4), moves=False),
    "CLAHE": Change(_equalised, moves=False),
    "JPEG of quality 40": Change(_compressed, moves=False),
    "turned 7 degrees left": Change(_turned(7)),
    "turned 7 degrees right": Change(_turned(-7)),
    "letters": Change(_labelled, moves=False),
    "mirrored": Change(lambda p: p[:, ::-1]),
}


def changed(
    images: NDArray[np.float16], change: Callable[[Picture], Picture]
) -> NDArray[np.float16]:
    """(N, 224, 224) preprocessed pixels, changed as 8-bit pictures and preprocessed again."""
    pictures = np.rint(images.astype(np.float32) * 255).astype(np.uint8)
    made = [preprocess(change(p), Presentation()).pixels for p in pictures]
    return np.stack(made).astype(np.float16)


def stability(
    answer: Callable[[NDArray[np.float16]], Predictions],
    images: NDArray[np.float16],
    card: Card,
    percent: str = "90",
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """What each of :data:`CHANGES` does to (N, 224, 224) ``images``, compared with no change.

    Change -> ``flags``: of each flag the images that are ``flagged`` in either version, and the
    shares of those that the change ``raised`` and ``dropped`` (None where none is flagged), at the
    card's operating point of ``percent`` % specificity; ``gate``: the share of all images that
    passes in one version alone; ``score``: mean and 99th percentile of the largest change of the
    three class scores; ``lung_iou``: mean IoU of both lung masks, where lungs stay in place.
    """
    point = card.operating_points.get(percent)
    before = answer(changed(images, lambda p: p))
    found: dict[str, Any] = {}
    for name, change in CHANGES.items():
        after = answer(changed(images, change.of))
        progress()
        flags = {}
        for i, kind in enumerate(CLASSES):
            if (cut := getattr(point, kind, None)) is not None:
                flags[kind] = _flips(*(p.scores[:, i] >= np.float32(cut) for p in (before, after)))
        moved = np.abs(after.scores[:, :3] - before.scores[:, :3]).max(axis=1)
        found[name] = {
            "flags": flags,
            "score": {"mean": float(moved.mean()), "p99": float(np.quantile(moved, 0.99))},
        }
        if card.gate is not None:
            passes = [p.scores[:, 3] >= np.float32(card.gate.threshold) for p in (before, after)]
            found[name]["gate"] = float(np.mean(passes[0] != passes[1]))
        if not change.moves:
            lungs = (p.masks[:, 0] >= FOREGROUND for p in (before, after))
            found[name]["lung_iou"] = float(np.mean([*map(iou, *lungs)]))
    return found


def _flips(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> dict[str, Any]:
    flagged = int(np.count_nonzero(before | after))
    raised, dropped = (int(np.count_nonzero(m)) for m in (after & ~before, before & ~after))
    return {
        "flagged": flagged,
        "raised": raised / flagged if flagged else None,
        "dropped": dropped / flagged if flagged else None,
    }
