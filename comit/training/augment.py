"""Random variation of training images and their masks, on whichever device the batch is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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

    @staticmethod
    def strong() -> Augmentation:
        """Hides more of what tells sources apart: tone, sharpness, noise, what is at the border."""
        return Augmentation(
            gamma=0.5, contrast=0.3, noise=0.04, scale=0.15, border=0.08, sharpness=1.0
        )

    @staticmethod
    def paper() -> Augmentation:
        """10 degrees and 10 px (3.1), nothing else."""
        return Augmentation(scale=0.0, flip=0.0, gamma=0.0, contrast=0.0, noise=0.0)


def augment(
    images: Tensor, masks: Tensor, config: Augmentation, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(N, 1, H, W) in [0, 1] and (N, 2, H, W) masks in {0, 1}, moved together; tones vary.

    What moves in from outside is black and outside every mask; masks stay in {0, 1}, also under
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
    move_x = uniform(-1, 1) * config.shift * 2 / width  # the grid spans -1 .. 1
    move_y = uniform(-1, 1) * config.shift * 2 / height
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
    if config.sharpness:  # no draw where there is none: earlier recipes keep their numbers
        mean = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        images = torch.lerp(images, mean, each(uniform(-1, 1) * config.sharpness)).clamp(0, 1)
    images = images ** each(torch.exp(uniform(-1, 1) * config.gamma))
    images = (images - 0.5) * each(1 + uniform(-1, 1) * config.contrast) + 0.5
    images = images + each(uniform(-1, 1) * config.contrast / 2)
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    images = images + noise * each(uniform(0, 1) * config.noise)
    if config.border:
        seen = [_inside(width, config.border, uniform), _inside(height, config.border, uniform)]
        images = images * seen[0].view(n, 1, 1, width) * seen[1].view(n, 1, height, 1)
    return images.clamp(0, 1), masks


def _inside(length: int, border: float, uniform: Callable[[float, float], Tensor]) -> Tensor:
    """(N, length) bool: false on strips at both ends; every second strip has no width."""
    place = (torch.arange(length) + 0.5) / length
    first, last = (uniform(-1, 1).clamp(min=0) * border for _ in range(2))
    place = place.to(first.device)
    return (place > first[:, None]) & (place < 1 - last[:, None])
