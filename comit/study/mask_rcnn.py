"""torchvision's Mask R-CNN as a rival for lungs and disease (section 4.1).

It finds instances and their boxes, which the manifest does not have: an instance is a connected
part of a mask, and the union of the instances found is the mask again. A network a task, since
few images have both masks. It needs torchvision's compiled operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from comit.console import Console
from comit.errors import Unavailable
from comit.model.augment import augment
from comit.model.calibrate import subset
from comit.model.data import Cohort
from comit.model.loop import schedule_of
from comit.model.recipe import TrainConfig
from comit.model.resident import Resident
from comit.model.runs import replace_file
from comit.study.rivals import torchvision

SMALLEST = 16  # pixels of an instance; less is a splinter of a moved mask
CERTAIN = 0.5  # score of an instance that counts
CHECKPOINT = "mask-rcnn.pt"


def masks(
    task: int,
    cohorts: dict[str, Cohort],
    place: Path,
    config: TrainConfig,
    device: torch.device,
    console: Console,
) -> dict[str, NDArray[np.uint8]]:
    """Trains for task 1 (lungs) or 2 (disease); (N, 224, 224) probability times 255 by split.

    Steps, variation and schedule are those of ``config``, on the images of ``train`` that have the
    mask; fp32 and full-size images throughout, and the last weights count. ``place`` keeps what
    is needed to go on after an interruption. Raises UsageError without the operators.
    """
    train = cohorts["train"]
    train = subset(train, (train.has_lung, train.has_disease)[task - 1])
    torch.manual_seed(config.seed)
    model = build(train).to(device)
    steps = max(1, len(train) // config.batch_size)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = schedule_of(config, optimizer, steps)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    checkpoint, first = place / CHECKPOINT, 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        first = state["epoch"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    data = Resident.of(train, torch.device("cpu"))
    for epoch in range(first, config.epochs):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(train), generator=generator)
        model.train()
        with console.progress(f"epoch {epoch + 1}/{config.epochs}", steps) as step:
            for i in range(steps):
                chosen = order[i * config.batch_size : (i + 1) * config.batch_size]
                images, moved = augment(
                    data.images[chosen].float()[:, None],
                    data.masks[chosen, task - 1 : task].float() / 255,
                    config.augmentation,
                    generator,
                )
                targets = [
                    {k: v.to(device) for k, v in instances(mask[0].numpy() >= 0.5).items()}
                    for mask in moved
                ]
                loss = sum(model(_coloured(images, device), targets).values())
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                step()
        state = {k: v.state_dict() for k, v in parts.items()} | {"epoch": epoch + 1}
        replace_file(checkpoint, partial(torch.save, state))
    return {s: _found(model, cohorts[s].images, device) for s in ("val", "test")}


def build(train: Cohort) -> nn.Module:
    """Mask R-CNN on ResNet50 with a feature pyramid, from random weights; one class."""
    models, ops = torchvision().models, torchvision().ops
    try:
        ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    except RuntimeError as error:
        raise Unavailable(
            "Mask R-CNN needs torchvision's compiled operators, which do not load beside torch "
            f"{torch.__version__}"
        ) from error
    pixels, side = train.images.astype(np.float32), train.images.shape[-1]
    network: nn.Module = models.detection.maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=2,
        min_size=side,
        max_size=side,
        image_mean=[float(pixels.mean())] * 3,
        image_std=[float(pixels.std())] * 3,
        box_detections_per_img=10,
    )
    return network


def instances(mask: NDArray[np.bool_]) -> dict[str, Tensor]:
    """Connected parts of an (H, W) mask as torchvision's targets: boxes, labels, masks."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    kept = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= SMALLEST]
    corners = [[x, y, x + w, y + h] for x, y, w, h, _ in stats[kept]]
    return {
        "boxes": torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.ones(len(kept), dtype=torch.int64),
        "masks": torch.from_numpy(labels == np.reshape(kept, (-1, 1, 1))).to(torch.uint8),
    }


def union(found: Sequence[dict[str, Tensor]], side: int) -> NDArray[np.uint8]:
    """Instances as torchvision gives them, a dictionary an image, to (N, side, side) masks."""
    made = np.zeros((len(found), side, side), np.uint8)
    for mask, image in zip(made, found, strict=True):
        certain = image["masks"][image["scores"] >= CERTAIN, 0]
        if len(certain):
            mask[:] = (certain.amax(dim=0) * 255).round().to(torch.uint8).cpu().numpy()
    return made


def _coloured(images: Tensor, device: torch.device) -> list[Tensor]:
    return list(images.expand(-1, 3, -1, -1).to(device))


def _found(
    model: nn.Module, images: NDArray[np.float16], device: torch.device
) -> NDArray[np.uint8]:
    model.eval()
    found = []
    with torch.inference_mode():
        for i in range(0, len(images), 16):
            batch = torch.from_numpy(images[i : i + 16].astype(np.float32))[:, None]
            found.append(union(model(_coloured(batch, device)), images.shape[-1]))
    return np.concatenate(found)
