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
    switches: Tensor  # (N, 4) float: T_1i .. T_4i of equation 8, 0 or the image's weight (1)
    taught: Tensor | None = None  # (N, 2) bool: this lung or disease mask is a teacher's, in [0, 1]


@dataclass(frozen=True)
class LossConfig:
    """The paper's loss is ``LossConfig(mean=False, disease_weight=1)``.

    ``mean``: pixel terms are averaged over pixels and every task over the images that have its
    label. Summed, as printed, the 50,176 pixels of a mask outweigh a class label 50,176 to 1 and
    a task with labels on every image outweighs one with labels on 8 %.
    ``disease_weight``: weight of a diseased pixel against a healthy one in equation 3; not for a
    teacher's masks, whose probabilities have it in them.
    ``mask_weight``: weight of the two mask terms against the two of classes: what lies between
    the mean and the sum.
    """

    mean: bool = True
    disease_weight: float = 4.0
    mask_weight: float = 1.0


def losses(outputs: Outputs, targets: Targets, config: LossConfig | None = None) -> Tensor:
    """The four terms of equation 8, (4,) float32: lung, disease, healthy/unhealthy, findings.

    Their sum is the loss to minimise. A switch above 0 is the weight of its term. The two-channel
    softmax with cross entropy is the binary cross entropy of equations 2 and 3 on the softmax
    probability of the foreground; the same holds for equation 5.
    """
    config = config or LossConfig()
    weight = torch.full_like(targets.switches[:, 1], config.disease_weight)
    if targets.taught is not None:
        weight = torch.where(targets.taught[:, 1], torch.ones_like(weight), weight)
    z1 = _pixels(outputs.lung, targets.lung, torch.ones_like(weight), config.mean)  # eq. 2
    z2 = _pixels(outputs.disease, targets.disease, weight, config.mean)  # eq. 3
    # What stands in for an unknown label may be anything, and a NaN times 0 is a gradient of NaN.
    unhealthy = torch.where(targets.switches[:, 2] > 0, targets.unhealthy, 0)
    findings = torch.where(targets.switches[:, 3:] > 0, targets.findings, 0)
    z3 = F.binary_cross_entropy_with_logits(  # eq. 5
        outputs.health[:, 1].float() - outputs.health[:, 0].float(),
        unhealthy.float(),
        reduction="none",
    )
    z4 = F.binary_cross_entropy_with_logits(
        outputs.findings.float(), findings, reduction="none"
    ).sum(dim=1)  # eq. 7
    z1, z2 = z1 * config.mask_weight, z2 * config.mask_weight
    per_image = torch.stack([z1, z2, z3, z4], dim=1)  # (N, 4)
    on = targets.switches > 0
    per_image = torch.where(on, per_image * targets.switches, torch.zeros_like(per_image))
    total = per_image.sum(dim=0)  # eq. 8, summed over images
    return total / on.sum(dim=0).clamp(min=1) if config.mean else total


def _pixels(logits: Tensor, mask: Tensor, weight: Tensor, mean: bool) -> Tensor:
    """(N, 2, H, W) logits, an (N, H, W) mask and (N,) weights to (N,): equations 2 and 3.

    With d the difference of the two logits, softmax gives log L = -softplus(-d) and
    log(1 - L) = -softplus(d).
    """
    difference = logits[:, 1].float() - logits[:, 0].float()
    mask = torch.nan_to_num(mask)  # of a switched-off image: NaN would reach the gradient
    loss = weight[:, None, None] * mask * F.softplus(-difference)
    loss = loss + (1 - mask) * F.softplus(difference)
    return loss.mean(dim=(1, 2)) if mean else loss.sum(dim=(1, 2))
