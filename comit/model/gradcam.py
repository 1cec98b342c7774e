"""Grad-CAM: where the encoder's features speak for a score (the paper's figure 12).

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", arXiv 1610.02391, equations 1 and 2, at the last convolution before pooling.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from comit.model.network import COMiTNet

Task = Literal["unhealthy", "covid"]
BATCH = 16  # images at once


def gradcam(model: COMiTNet, images: Tensor, task: Task) -> NDArray[np.float32]:
    """Heat maps of the score ``task``: (N, 1, 224, 224) in [0, 1] to (N, 224, 224) in [0, 1].

    Channels of the deepest block (14 x 14, before its pooling) are weighted by the mean gradient
    of the logit (unhealthy minus healthy, or COVID), summed, cut below 0, enlarged, and divided
    by the image's own maximum: 1 is the place that raises this image's score most, and maps of
    two images do not compare. All zeros where nothing raises it. The model is used in evaluation
    mode and left in the mode it had; ``images`` may be on any device and come without channels
    last. Raises ValueError for another task. What a map marks is what the network looked at, and
    says nothing of whether it was right to.
    """
    if task not in ("unhealthy", "covid"):
        raise ValueError(f"task {task!r}: choose unhealthy or covid")
    training = model.training
    model.eval()
    try:
        maps = [_maps(model, x, task) for x in torch.split(images, BATCH)]
    finally:
        model.train(training)
    return np.concatenate(maps)


def _maps(model: COMiTNet, images: Tensor, task: Task) -> NDArray[np.float32]:
    """One batch; gradients flow through the last pooling and one branch alone."""
    device = next(model.parameters()).device
    with torch.no_grad():
        x = (images.to(device, torch.float32) - model.config.mean) / model.config.std
        for block in model.encoder[:-1]:
            x = F.max_pool2d(block(x), 2)
        features = model.encoder[-1](x)  # (N, C, 14, 14)
    with torch.enable_grad():
        features.requires_grad_()
        embedding = model.embed(F.max_pool2d(features, 2))
        if task == "unhealthy":
            logits = model.health_branch(embedding)
            score = logits[:, 1] - logits[:, 0]
        else:
            score = model.findings_branch(embedding)[:, 0]
        (gradient,) = torch.autograd.grad(score.sum(), features)
    with torch.no_grad():
        weights = gradient.mean(dim=(2, 3), keepdim=True)  # equation 1
        cam = F.relu((weights * features).sum(dim=1, keepdim=True))  # equation 2
        cam = F.interpolate(cam, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
        peak = cam.amax(dim=(1, 2), keepdim=True)
        found: NDArray[np.float32] = torch.where(peak > 0, cam / peak, 0.0).float().cpu().numpy()
    return found
