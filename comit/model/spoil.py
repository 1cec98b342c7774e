"""Pictures that are no upright frontal chest radiograph, made from ones that are, or drawn.

They teach the gate, together with those of a gate's manifest (:func:`.data.read_gate`).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from comit.image.preprocess import SIZE

DRAWINGS = 400  # pages, screens and shapes to choose from
WORDS = ("findings", "impression", "no", "acute", "lateral", "report", "exam", "image", "date")


def spoil(
    images: Tensor, share: float, drawings: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Makes about ``share`` of (N, 1, H, W) images in [0, 1] into what the gate must reject.

    Negatives; quarter and half turns; a part of at most 0.45 of each side; four pictures on one
    sheet; quarters in the wrong order; noise of any grain; one shade or a ramp; and one of the
    (M, H, W) ``drawings``. Returns the images and which were spoilt, (N,) bool.
    """
    n, _, height, width = images.shape
    spoilt = torch.rand(n, generator=generator) < share
    out = images.clone()
    for i in torch.nonzero(spoilt).flatten().tolist():
        kind = int(torch.randint(len(KINDS), (), generator=generator))
        seed = int(torch.randint(2**31, (), generator=generator))
        rng = np.random.default_rng(seed)
        if kind == len(KINDS) - 1:
            made = drawings[int(rng.integers(len(drawings)))].to(images.device, images.dtype)
        else:
            made = KINDS[kind](images, i, rng)
        out[i, 0] = made.reshape(height, width)
    return out, spoilt.to(images.device)


def _negative(images: Tensor, i: int, rng: np.random.Generator) -> Tensor:
    return 1 - images[i, 0]


def _turned(images: Tensor, i: int, rng: np.random.Generator) -> Tensor:
    return torch.rot90(images[i, 0], int(rng.choice([1, 2, 3])), (0, 1))


def _upside_down(images: Tensor, i: int, rng: np.random.Generator) -> Tensor:
    return images[i, 0].flip(0)


def _part(images: Tensor, i: int, rng: np.random.Generator) -> Tensor:
    height, width = images.shape[2:]
    side = rng.uniform(0.15, 0.45)
    top, left = (int(rng.uniform(0, 1 - side) * s) for s in (height, width))
    rows, columns = (max(4, int(side * s)) for s in (height, width))
    part = images[i : i + 1, :, top : top + rows, left : left + columns]
    return F.interpolate(part, (height, width), mode="bilinear", align_corners=False)


def _sheet(images: Tensor, i: int, rng: np.random.Generator) -> Tensor:
    height, width = images.shape[2:]
    chosen = [i, *rng.integers(0, len(images), 3).tolist()]
    half = F.interpolate(images[chosen], (height // 2, width // 2), mode="area")[:, 0]
    return torch.cat([torch.cat([half[0], half[1]], 1), torch.cat([half[2], half[3]], 1)], 0)


def _shuffled(images: Tensor, i: int, rng: np.random.Generator) -> Tensor:
    height, width = (s // 2 for s in images.shape[2:])
    x = images[i, 0]
    quarters = [x[:height, :width], x[:height, width:], x[height:, :width], x[height:, width:]]
    a, b, c, d = (quarters[k] for k in np.roll(np.arange(4), int(rng.integers(1, 4))))
    return torch.cat([torch.cat([a, b], 1), torch.cat([c, d], 1)], 0)


def _noise(images: Tensor, i: int, rng: np.random.Generator) -> Tensor:
    height, width = images.shape[2:]
    grain = int(rng.choice([1, 1, 2, 4, 8, 16, 32, 56]))
    rows, columns = max(2, height // grain), max(2, width // grain)
    values = (
        rng.random((rows, columns))
        if rng.random() < 0.5
        else rng.normal(0.5, 0.25, (rows, columns))
    )
    method = cv2.INTER_NEAREST if rng.random() < 0.3 else cv2.INTER_CUBIC
    made = cv2.resize(values.astype(np.float32), (width, height), interpolation=method)
    return torch.from_numpy(made.clip(0, 1)).to(images.device)


def _ramp(images: Tensor, i: int, rng: np.random.Generator) -> Tensor:
    height, width = images.shape[2:]
    across, down, level = rng.normal(0, 0.5), rng.normal(0, 0.5), rng.random()
    if rng.random() < 0.3:
        across = down = 0.0
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    if rng.random() < 0.3:
        x, y = np.hypot(x, y), 0 * y
    made = (level + across * x + down * y + rng.normal(0, 0.02, x.shape) * rng.random()).clip(0, 1)
    return torch.from_numpy(made.astype(np.float32)).to(images.device)


# The last kind is one of the drawings. Turns and negatives are the likeliest errors: twice.
KINDS = (
    _negative, _negative, _turned, _turned, _upside_down, _part, _sheet, _shuffled, _noise, _noise,
    _ramp, lambda images, i, rng: images[i, 0],
)  # fmt: skip


def draw(seed: int, count: int = DRAWINGS) -> Tensor:
    """(count, 224, 224) float32 in [0, 1]: pages of text, screens, plots, lines and shapes."""
    rng = np.random.default_rng(seed)
    kinds = (_page, _screen, _shapes, _stripes)
    return torch.from_numpy(
        np.stack([kinds[k % len(kinds)](rng) for k in range(count)]).astype(np.float32) / 255
    )


def _page(rng: np.random.Generator) -> NDArray[np.uint8]:
    paper, ink = (245, 20) if rng.random() < 0.6 else (10, 235)
    page = np.full((SIZE, SIZE), paper, np.uint8)
    step, x = int(rng.integers(7, 26)), int(rng.integers(2, 30))
    for y in range(int(rng.integers(10, 40)), SIZE - 4, step):
        if rng.random() < 0.15:
            continue
        text = " ".join(rng.choice(WORDS, int(rng.integers(1, 9))))
        cv2.putText(page, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, step / 40, ink, 1, cv2.LINE_AA)
    return page


def _screen(rng: np.random.Generator) -> NDArray[np.uint8]:
    screen = np.full((SIZE, SIZE), rng.integers(0, 256), np.uint8)
    for _ in range(int(rng.integers(3, 14))):
        a = rng.integers(0, SIZE, 2)
        b = a + rng.integers(10, SIZE, 2)
        shade = int(rng.integers(0, 256))
        cv2.rectangle(screen, a.tolist(), b.tolist(), shade, -1 if rng.random() < 0.7 else 2)
        text, place = str(rng.choice(WORDS)), (int(a[0]) + 2, int(a[1]) + 9)
        cv2.putText(screen, text, place, cv2.FONT_HERSHEY_PLAIN, 0.7, 255 - shade, 1)
    return screen


def _shapes(rng: np.random.Generator) -> NDArray[np.uint8]:
    canvas: NDArray[Any] = np.full((SIZE, SIZE), rng.integers(0, 256), np.uint8)
    for _ in range(int(rng.integers(1, 12))):
        center, axes = rng.integers(0, SIZE, 2), rng.integers(4, SIZE // 2, 2)
        angle, shade = float(rng.uniform(0, 180)), int(rng.integers(0, 256))
        thick = -1 if rng.random() < 0.6 else int(rng.integers(1, 6))
        if rng.random() < 0.6:
            cv2.ellipse(canvas, center.tolist(), axes.tolist(), angle, 0, 360, shade, thick)
        else:
            corners = rng.integers(0, SIZE, (int(rng.integers(3, 7)), 1, 2)).astype(np.int32)
            cv2.fillPoly(canvas, [corners], shade)
    if rng.random() < 0.5:
        canvas = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.5, 12)))
    return np.asarray(canvas, np.uint8)


def _stripes(rng: np.random.Generator) -> NDArray[np.uint8]:
    y, x = np.mgrid[:SIZE, :SIZE]
    waves = np.zeros((SIZE, SIZE))
    for _ in range(int(rng.integers(1, 4))):
        fx, fy = rng.normal(0, 0.4, 2)
        waves += np.sin(fx * x + fy * y + rng.uniform(0, 6.3))
    if rng.random() < 0.4:
        waves = np.sign(waves)
    low, high = np.sort(rng.integers(0, 256, 2))
    spread = np.ptp(waves) or 1.0
    return np.asarray(low + (waves - waves.min()) / spread * (high - low), np.uint8)
