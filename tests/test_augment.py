"""Images and masks move together; the ranges are what the configuration says."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from comit.model.augment import Augmentation, _compressed, augment

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


def test_a_filled_outside_has_one_shade_an_image_and_not_always_black() -> None:
    images, masks = torch.full((64, 1, 224, 224), 0.5), torch.ones(64, 1, 224, 224)
    made, kept = augment(images, masks, replace(STILL, shift=60.0, fill=0.5), seeded())
    outside = [made[i, 0][kept[i, 0] == 0] for i in range(64)]
    outside = [shade for shade in outside if shade.numel()]
    inner = torch.stack([shade.median() for shade in outside])  # rims are interpolated
    assert (inner == 0).any() and (inner == 1).any() and ((inner > 0) & (inner < 1)).any()


def test_resampling_loses_detail_and_keeps_flat_tones() -> None:
    images = torch.rand(16, 1, 224, 224, generator=seeded())
    made, _ = augment(images, images, replace(STILL, resample=1.0), seeded())
    spread = made.std(dim=(1, 2, 3)) / images.std(dim=(1, 2, 3))
    assert (spread < 0.8).any() and (spread > 0.99).any()
    flat = torch.full((4, 1, 224, 224), 0.3)
    assert torch.allclose(augment(flat, flat, replace(STILL, resample=1.0), seeded())[0], flat)


def test_jpeg_losses_are_a_jpegs() -> None:
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.integers(0, 256, (224, 224), np.uint8), (0, 0), 2)
    picture = cv2.normalize(picture, picture, 0, 255, cv2.NORM_MINMAX)
    image = torch.from_numpy(picture).float()[None, None] / 255
    for quality in (15, 50, 85):
        written = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        real = torch.from_numpy(cv2.imdecode(written, cv2.IMREAD_GRAYSCALE)).float() / 255
        ours = _compressed(image, torch.tensor([float(quality)]))[0, 0]
        loss, same = (float((x - image[0, 0]).abs().mean()) for x in (real, ours))
        assert same == pytest.approx(loss, rel=0.03)
        assert (ours - real).abs().mean() < 0.3 * loss + 0.002  # 8 bits: half a level
    assert torch.equal(_compressed(image, torch.tensor([100.0])), image)


def test_equalising_brings_dark_and_bright_regions_to_the_same_tone() -> None:
    images = torch.rand(64, 1, 224, 224, generator=seeded()) * 0.2
    images[..., 112:] += 0.7
    made, _ = augment(images, images, replace(STILL, equalise=1.0), seeded())
    gap = made[..., 150:].mean(dim=(1, 2, 3)) - made[..., :70].mean(dim=(1, 2, 3))
    assert gap.max() > 0.65 and gap.min() < 0.1


def test_marks_are_written_into_a_share_of_the_images() -> None:
    images = torch.full((200, 1, 64, 64), 0.5)
    made, _ = augment(images, images, replace(STILL, marks=0.3), seeded())
    marked = (made != images).flatten(1).any(dim=1).float().mean()
    assert 0.15 < marked < 0.45
