"""Random variation of training images and their masks, on whichever device the batch is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from comit.image.preprocess import SIZE


@dataclass(frozen=True)
class Augmentation:
    """Ranges are symmetric and drawn per image."""

    rotate: float = 10.0  # degrees
    shift: float = 10.0  # pixels of the 224 grid, in x and y
    scale: float = 0.12  # share by which the picture grows or shrinks, each axis its own
    flip: float = 0.5  # probability of a left-right flip
    gamma: float = 0.35  # exponent within e^-0.35 .. e^0.35
    contrast: float = 0.2  # slope within 1 +- 0.2, offset within +- 0.1
    noise: float = 0.02  # standard deviation of added noise, at most
    border: float = 0.0  # share of a side that a black strip hides, at most: text, markers, frames
    sharpness: float = 0.0  # blurred or sharpened by this share of a 3 x 3 mean, at most
    fill: float = (
        0.0  # probability that what is outside, and strips, have a shade and are not black
    )
    resample: float = 0.0  # shrunk by up to 1 + this and grown again, every second image
    jpeg: float = 0.0  # probability of the losses of a JPEG of quality 10 to 90
    equalise: float = 0.0  # local contrast made even by this share, at most, every second image
    marks: float = 0.0  # probability of letters or digits: side markers, labels

    @staticmethod
    def strong() -> Augmentation:
        """Hides what tells sources apart: tone, sharpness, resolution, JPEG, borders, labels."""
        return Augmentation(
            rotate=12.0,
            gamma=0.5,
            contrast=0.3,
            noise=0.04,
            scale=0.18,
            border=0.1,
            sharpness=1.0,
            fill=0.5,
            resample=1.0,
            jpeg=0.3,
            equalise=0.8,
            marks=0.3,
        )

    @staticmethod
    def paper() -> Augmentation:
        """10 degrees and 10 px (3.1), nothing else."""
        return Augmentation(scale=0.0, flip=0.0, gamma=0.0, contrast=0.0, noise=0.0)


def augment(
    images: Tensor, masks: Tensor, config: Augmentation, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(N, 1, H, W) in [0, 1] and (N, C, H, W) masks in {0, 1}, moved together; tones vary.

    What moves in from outside is black, or has one shade an image (``fill``), and is outside
    every mask; masks stay in {0, 1}, also under
    the strips of ``border``: a lung is where it is, seen or not. Random numbers come from
    ``generator`` on the CPU, so a seed means the same everywhere.
    """
    n, _, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        draw = torch.rand(n, generator=generator) * (high - low) + low
        return draw.to(images.device)

    angle = uniform(-1, 1) * math.radians(config.rotate)
    zoom_x, zoom_y = (1 + uniform(-1, 1) * config.scale for _ in range(2))
    flip = torch.where(uniform(0, 1) < config.flip, -1.0, 1.0)
    move_x = uniform(-1, 1) * config.shift * 2 / SIZE  # the grid spans -1 .. 1
    move_y = uniform(-1, 1) * config.shift * 2 / SIZE
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.stack(
        [
            torch.stack([cos * zoom_x * flip, -sin * zoom_y, move_x], dim=1),
            torch.stack([sin * zoom_x * flip, cos * zoom_y, move_y], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, [n, 1, height, width], align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False)
    masks = F.grid_sample(masks, grid, mode="nearest", align_corners=False)

    def each(value: Tensor) -> Tensor:
        return value.view(n, 1, 1, 1)

    images = images.clamp(0, 1)
    if config.equalise:
        chance = uniform(0, 1) < 0.5
        images = torch.lerp(
            images, _equalised(images), each(uniform(0, 1) * config.equalise * chance)
        )
    if config.resample:
        images = _resampled(images, 1 + uniform(0, 1) * config.resample * (uniform(0, 1) < 0.5))
    if config.sharpness:  # no draw where there is none: earlier recipes keep their numbers
        mean = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        images = torch.lerp(images, mean, each(uniform(-1, 1) * config.sharpness)).clamp(0, 1)
    images = images ** each(torch.exp(uniform(-1, 1) * config.gamma))
    images = (images - 0.5) * each(1 + uniform(-1, 1) * config.contrast) + 0.5
    images = images + each(uniform(-1, 1) * config.contrast / 2)
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    images = images + noise * each(uniform(0, 1) * config.noise)
    images = images.clamp(0, 1)
    if config.jpeg:
        quality = torch.where(uniform(0, 1) < config.jpeg, uniform(10, 90), 100)
        images = _compressed(images, quality)
    if config.marks:
        images = _marked(images, config.marks, generator)
    if config.border or config.fill:
        seen = torch.ones_like(images)
        if config.border:
            strips = [_inside(s, config.border, uniform) for s in (width, height)]
            seen = seen * strips[0].view(n, 1, 1, width) * strips[1].view(n, 1, height, 1)
        shade = torch.zeros(())
        if config.fill:
            seen = seen * (grid.abs() <= 1).all(dim=3)[:, None]
            white, any_shade = (uniform(0, 1) < 0.4).float(), uniform(0, 1)
            shade = each(torch.maximum(white, any_shade) * (uniform(0, 1) < config.fill))
        images = images * seen + shade.to(images.device) * (1 - seen)
    return images.clamp(0, 1), masks


def _equalised(images: Tensor) -> Tensor:
    """Each neighbourhood of a quarter of a side to mean 0.5 and deviation 0.25: CLAHE's look."""
    size = images.shape[2:]
    side = size[0] // 16 | 1  # of 4 x 4 means: a box of all pixels is 50 times as slow

    def around(x: Tensor) -> Tensor:
        coarse = F.pad(F.avg_pool2d(x, 4), [side // 2] * 4, mode="reflect")
        return F.interpolate(
            F.avg_pool2d(coarse, side, stride=1), size, mode="bilinear", align_corners=False
        )

    mean, square = around(images), around(images**2)
    deviation = (square - mean**2).clamp(min=0).sqrt().clamp(min=0.05)
    return ((images - mean) / deviation * 0.25 + 0.5).clamp(0, 1)


def _resampled(images: Tensor, factor: Tensor) -> Tensor:
    """Each (1, H, W) shrunk ``factor`` (N,) times and grown again, as a small original would be."""
    height, width = images.shape[2:]
    made = images.clone()
    for i in torch.nonzero(factor > 1.02).flatten().tolist():
        size = [max(8, round(s / float(factor[i]))) for s in (height, width)]
        small = F.interpolate(images[i : i + 1], size, mode="area")
        made[i] = F.interpolate(small, (height, width), mode="bilinear", align_corners=False)[0]
    return made


# Luminance quantisation of quality 50, ISO/IEC 10918-1 table K.1
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip


def _compressed(images: Tensor, quality: Tensor) -> Tensor:
    """(N, 1, H, W) with the losses of a JPEG of ``quality`` (N,); from 100 on as it is.

    The DCT of 8 x 8 blocks is rounded to multiples of the table, scaled as the IJG's code does.
    H and W are multiples of 8.
    """
    n, _, height, width = images.shape
    k = torch.arange(8, device=images.device, dtype=images.dtype)
    basis = torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50).clamp(min=0.01)
    table = torch.tensor(LUMINANCE, device=images.device, dtype=images.dtype)
    steps = (table * scale.view(n, 1, 1, 1, 1)).clamp(min=1) / 255
    blocks = images.view(n, height // 8, 8, width // 8, 8).transpose(2, 3) - 0.5

    def both(x: Tensor, by: Tensor) -> Tensor:  # by @ x @ by.T, as products with one 8 x 8 matrix
        return ((x @ by.T).transpose(-1, -2) @ by.T).transpose(-1, -2)

    back = both(torch.round(both(blocks, basis) / steps) * steps, basis.T)
    back = back.transpose(2, 3).reshape(n, 1, height, width) + 0.5
    return torch.where((quality < 100).view(n, 1, 1, 1), back.clamp(0, 1), images)


def _marked(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Writes letters or digits, bright or dark, somewhere in a share of the images."""
    n, _, height, width = images.shape
    chosen = torch.rand(n, generator=generator) < probability
    seeds = torch.randint(2**31, (n,), generator=generator)
    made = images.clone()
    for i in torch.nonzero(chosen).flatten().tolist():
        rng = np.random.default_rng(int(seeds[i]))
        drawn = np.zeros((height, width), np.uint8)
        for _ in range(int(rng.integers(1, 4))):
            text = str(rng.choice(MARKS))
            place = (int(rng.integers(0, width - 8)), int(rng.integers(8, height)))
            font = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX]))
            thick = int(rng.integers(1, 3))
            cv2.putText(drawn, text, place, font, float(rng.uniform(0.3, 0.9)), 255, thick)
        where = torch.from_numpy(drawn).to(images.device) / 255
        shade = 1.0 if rng.random() < 0.8 else 0.0
        made[i, 0] = torch.lerp(made[i, 0], torch.full_like(where, shade), where)
    return made


MARKS = ("L", "R", "LT", "RT", "AP", "PA", "PORTABLE", "SUPINE", "ERECT", "SEMI-UPRIGHT", "12:34",
         "1234567", "CHEST", "2020", "BED 4", "80 kV")  # fmt: skip


def _inside(length: int, border: float, uniform: Callable[[float, float], Tensor]) -> Tensor:
    """(N, length) bool: false on strips at both ends; every second strip has no width."""
    place = (torch.arange(length) + 0.5) / length
    first, last = (uniform(-1, 1).clamp(min=0) * border for _ in range(2))
    place = place.to(first.device)
    return (place > first[:, None]) & (place < 1 - last[:, None])
