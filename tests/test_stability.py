"""Changes of a picture that say nothing of the patient, against answers that are known."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from comit.card import Card, Gate, OperatingPoint
from comit.model.metrics import Predictions
from comit.model.stability import CHANGES, changed, stability

CARD = Card(
    name="m",
    sha256="",
    width=1.0,
    mean=0.5,
    std=0.25,
    operating_points={"90": OperatingPoint(0.5, 0.5)},
)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """(4, 224, 224) smooth grey pictures, as preprocessing leaves them."""
    grain = np.random.default_rng(0).random((4, 224, 224)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(g, (0, 0), 12) for g in grain])
    low, high = (f(smooth, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    return ((smooth - low) / (high - low)).astype(np.float16)


def test_every_change_changes_and_gives_pixels_of_the_same_kind(images: np.ndarray) -> None:
    for name, change in CHANGES.items():
        made = changed(images, change.of)
        assert made.shape == images.shape and made.dtype == images.dtype, name
        assert made.min() >= 0 and made.max() <= 1, name
        assert np.abs(made.astype(float) - images).mean() > 1e-3, name


def test_a_border_shrinks_and_a_crop_cuts_a_tenth_of_each_side(images: np.ndarray) -> None:
    white = changed(images, CHANGES["white border of 10 %"].of)
    assert (white[:, :9] == 1).all() and (white[:, :, -9:] == 1).all()
    inner = np.stack([cv2.resize(i, (224, 224)) for i in images[:, 11:-11, 11:-11].astype("f4")])
    crop = changed(images, CHANGES["crop by 10 %"].of).astype("f4")
    for a, b in zip(crop, inner, strict=True):  # each is spread over [0, 1] again
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99
    assert np.array_equal(
        changed(images, CHANGES["mirrored"].of), changed(images, lambda p: p)[..., ::-1]
    )


def brightness(images: np.ndarray) -> Predictions:
    """Scores that are a picture's mean, and lungs that are its bright part."""
    pixels = images.astype(np.float32)
    scores = np.repeat(pixels.mean(axis=(1, 2))[:, None], 4, axis=1)
    masks = np.repeat(np.where(pixels > 0.5, 255, 0).astype(np.uint8)[:, None], 2, axis=1)
    return Predictions(scores, masks)


def test_flags_that_come_and_go_are_counted_each_way(images: np.ndarray) -> None:
    means = brightness(changed(images, lambda p: p)).scores[:, 0]
    cut = float(np.sort(means)[2])  # two of four are flagged
    card = replace(CARD, operating_points={"90": OperatingPoint(cut, 2.0)}, gate=Gate(cut))
    found = stability(brightness, images, card)
    darker, brighter, mirrored = (found[k] for k in ("gamma 1.4", "gamma 0.7", "mirrored"))
    assert brighter["flags"]["unhealthy"] == {"flagged": 3, "raised": 1 / 3, "dropped": 0.0}
    assert darker["flags"]["unhealthy"] == {"flagged": 2, "raised": 0.0, "dropped": 1.0}
    assert brighter["flags"]["covid"] == {"flagged": 0, "raised": None, "dropped": None}
    assert darker["gate"] == 0.5 and mirrored["gate"] == 0
    assert mirrored["score"]["p99"] < 1e-6 < darker["score"]["mean"]
    assert "lung_iou" not in mirrored and 0 < darker["lung_iou"] < 1
