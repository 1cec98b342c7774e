"""Images and masks move together; the ranges are what the configuration says."""

from dataclasses import replace

import torch
from torch import Tensor

from comit.training.augment import Augmentation, augment

STILL = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def block(n: int = 4) -> tuple[Tensor, Tensor]:
    """White rectangles, left of the middle, and both masks drawn over exactly them."""
    images = torch.zeros(n, 1, 224, 224)
    images[:, :, 60:160, 40:100] = 1.0
    return images, images.repeat(1, 2, 1, 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_any_range_nothing_changes() -> None:
    images, masks = block()
    moved, moved_masks = augment(images, masks, STILL, seeded())
    assert torch.allclose(moved, images, atol=1e-4)
    assert torch.equal(moved_masks, masks)


def test_mask_follows_the_image() -> None:
    images, masks = block(16)
    moved, moved_masks = augment(images, masks, Augmentation.paper(), seeded())
    agree = ((moved[:, 0] > 0.5) == (moved_masks[:, 0] > 0.5)).float().mean()
    assert agree > 0.995  # all but the rims, where the image is interpolated
    unmoved = ((moved[:, 0] > 0.5) == (masks[:, 0] > 0.5)).float().mean()
    assert unmoved < 0.98  # and they did move
    assert set(moved_masks.unique().tolist()) == {0.0, 1.0}


def test_a_certain_flip_mirrors_the_image() -> None:
    images, masks = block()
    flipped, flipped_masks = augment(
        images, masks, Augmentation(0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0), seeded()
    )
    assert torch.allclose(flipped, images.flip(3), atol=1e-4)
    assert torch.equal(flipped_masks, masks.flip(3))


def test_paper_moves_at_most_ten_pixels_and_leaves_tones() -> None:
    images, masks = block(64)
    config = Augmentation(0.0, 10.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    _, moved = augment(images, masks, config, seeded())
    columns = moved[:, 0].any(dim=1).float().argmax(dim=1)  # left edge; at 40 before
    assert columns.min() >= 30 and columns.max() <= 50
    assert columns.max() - columns.min() > 10
    tones, _ = augment(torch.full((2, 1, 224, 224), 0.5), masks[:2], Augmentation.paper(), seeded())
    assert (tones[:, :, 100:120, 100:120] - 0.5).abs().max() < 1e-6


def test_values_stay_in_range_and_the_seed_decides() -> None:
    images, masks = torch.rand(8, 1, 224, 224), block(8)[1]
    first, _ = augment(images, masks, Augmentation(), seeded(1))
    again, _ = augment(images, masks, Augmentation(), seeded(1))
    other, _ = augment(images, masks, Augmentation(), seeded(2))
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_strips_at_the_border_hide_the_picture_and_not_the_mask() -> None:
    images, masks = torch.ones(64, 1, 224, 224), torch.ones(64, 2, 224, 224)
    hidden, kept = augment(images, masks, replace(STILL, border=0.08), seeded())
    black = (hidden[:, 0] == 0).float().mean(dim=(1, 2))
    assert black.max() <= 1 - 0.84**2 and (black == 0).any() and (black > 0).any()
    assert (hidden[:, 0, 20:200, 20:200] == 1).all()  # never more than 8 % of a side
    assert (kept == 1).all()


def test_sharpness_blurs_and_sharpens_and_keeps_flat_tones() -> None:
    step = torch.full((32, 1, 224, 224), 0.25)
    step[..., 112:] = 0.75
    varied, _ = augment(step, step.repeat(1, 2, 1, 1), replace(STILL, sharpness=1.0), seeded())
    rise = varied[:, 0, 100, 112] - varied[:, 0, 100, 111]
    assert rise.min() < 0.4 and rise.max() > 0.6  # 0.5 before
    assert torch.allclose(varied[..., 50:60], step[..., 50:60], atol=1e-6)
