"""The paper's losses, each with its per-image switch (sections 2.1 and 2.2, equations 2 to 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from comit.model.network import Outputs


class Targets(NamedTuple):
    """Labels of a batch. A label that an image lacks has switch 0; its value is then ignored."""

    lung: Tensor  # (N, H, W) float in {0, 1}: L_i
    disease: Tensor  # (N, H, W) float in {0, 1}: D_i
    unhealthy: Tensor  # (N,) float in {0, 1}: H_i; in between where teachers soften it
    findings: Tensor  # (N, 2) float in {0, 1}: [C_i, O_i]; likewise
    chest: Tensor  # (N,) float in {0, 1}: a frontal chest radiograph
    switches: Tensor  # (N, 6) float: T_1i .. T_3i of equation 8, COVID, other, gate; 0 or a weight
    ignore: Tensor | None = None  # (N, H, W) float in {0, 1}: the lungs' outline says nothing here
    taught: Tensor | None = None  # (N, 2) bool: this lung or disease mask is a teacher's, in [0, 1]


@dataclass(frozen=True)
class LossConfig:
    """The paper's loss is ``LossConfig(mean=False, disease_weight=1)``, without gate pictures.

    ``mean``: pixel terms are averaged over pixels and every task over the images that have its
    label. Summed, as printed, the 50,176 pixels of a mask outweigh a class label 50,176 to 1 and
    a task with labels on every image outweighs one with labels on 8 %.
    ``disease_weight``: weight of a diseased pixel against a healthy one in equation 3; not for a
    teacher's masks, whose probabilities have it in them.
    ``mask_weight``: weight of the two mask terms against the two of classes: what lies between
    the mean and the sum.
    ``overlap``: weight of the soft Dice loss (Milletari et al., "V-Net", 2016) beside the cross
    entropy of both masks, over the images whose mask is not empty. It looks at the share of the
    mask that is hit, so that a small lesion counts as much as a large one.
    """

    mean: bool = True
    disease_weight: float = 4.0
    mask_weight: float = 1.0
    overlap: float = 0.0


def losses(outputs: Outputs, targets: Targets, config: LossConfig | None = None) -> Tensor:
    """The terms of equation 8 and the gate's, (5,) float32: lung, disease, healthy/unhealthy,
    findings, gate.

    Their sum is the loss to minimise. A switch above 0 is the weight of its term. The two-channel
    softmax with cross entropy is the binary cross entropy of equations 2 and 3 on the softmax
    probability of the foreground; the same holds for equation 5 and for the gate.
    """
    config = config or LossConfig()
    taught = targets.taught
    weight = torch.full_like(targets.switches[:, 1], config.disease_weight)
    if taught is not None:
        weight = torch.where(taught[:, 1], torch.ones_like(weight), weight)
    seen = None if targets.ignore is None else 1 - targets.ignore
    z1 = _pixels(outputs.lung, targets.lung, torch.ones_like(weight), seen, config)  # eq. 2
    z2 = _pixels(outputs.disease, targets.disease, weight, None, config)  # eq. 3
    # What stands in for an unknown label may be anything, and a NaN times 0 is a gradient of NaN.
    labels = torch.cat(
        [targets.unhealthy[:, None], targets.findings, targets.chest[:, None]], dim=1
    )
    labels = torch.where(targets.switches[:, 2:] > 0, labels, 0).float()
    health, gate = (x[:, 1:].float() - x[:, :1].float() for x in (outputs.health, outputs.gate))
    logits = torch.cat([health, outputs.findings.float(), gate], dim=1)
    classes = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")  # eq. 5, 7
    masks = torch.stack([z1, z2], dim=1) * config.mask_weight
    per_image = torch.cat([masks, classes], dim=1)  # (N, 6)
    on = targets.switches > 0
    per_image = torch.where(on, per_image * targets.switches, torch.zeros_like(per_image))
    total = per_image.sum(dim=0)  # eq. 8, summed over images
    if config.mean:
        total = total / on.sum(dim=0).clamp(min=1)
    lung, disease, unhealthy, covid, other, chest = total
    return torch.stack([lung, disease, unhealthy, covid + other, chest])


def _pixels(
    logits: Tensor, mask: Tensor, weight: Tensor, seen: Tensor | None, config: LossConfig
) -> Tensor:
    """(N, 2, H, W) logits, an (N, H, W) mask and (N,) weights to (N,): equations 2 and 3.

    With d the difference of the two logits, softmax gives log L = -softplus(-d) and
    log(1 - L) = -softplus(d). Pixels where ``seen`` (N, H, W) is 0 count nothing.
    """
    difference = logits[:, 1].float() - logits[:, 0].float()
    mask = torch.nan_to_num(mask)  # of a switched-off image: NaN would reach the gradient
    loss = weight[:, None, None] * mask * F.softplus(-difference)
    loss = loss + (1 - mask) * F.softplus(difference)
    if seen is not None:
        loss = loss * seen
    loss = loss.mean(dim=(1, 2)) if config.mean else loss.sum(dim=(1, 2))
    if config.overlap:
        found = torch.sigmoid(difference) if seen is None else torch.sigmoid(difference) * seen
        drawn = mask if seen is None else mask * seen
        area = drawn.sum(dim=(1, 2))
        hit = 2 * (found * drawn).sum(dim=(1, 2)) / (found.sum(dim=(1, 2)) + area).clamp(min=1)
        loss = loss + config.overlap * torch.where(area > 0, 1 - hit, 0)
    return loss
