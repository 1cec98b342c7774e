"""A cohort as tensors, and how much each of its labels weighs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comit.model.adversary import origins
from comit.model.data import Cohort
from comit.model.inference import teach
from comit.model.network import COMiTNet
from comit.model.recipe import TrainConfig

SWITCHES = {1: [0], 2: [1], 3: [2], 4: [3, 4], 5: [5]}  # of a task: columns of the switches


class Resident(NamedTuple):
    """A cohort as tensors, on the device where it fits there, else in host memory."""

    images: Tensor  # (N, 224, 224) float16
    masks: Tensor  # (N, 3, 224, 224) uint8: lung, disease, ignore; probability times 255
    unhealthy: Tensor  # (N,) float32 in [0, 1]; 0 where unknown, as its switch says
    findings: Tensor  # (N, 2) float32 in [0, 1]; 0 where unknown
    chest: Tensor  # (N,) float32 in {0, 1}
    switches: Tensor  # (N, 6) float32
    taught: Tensor  # (N, 2) bool: the mask is the teachers'
    origin: Tensor  # (N,) int64: see :func:`.adversary.origins`

    @staticmethod
    def of(
        cohort: Cohort,
        device: torch.device,
        teachers: Sequence[COMiTNet] = (),
        config: TrainConfig | None = None,
    ) -> Resident:
        """250 kB an image; at most half of the GPU's free memory is taken.

        With ``teachers``, a mask that a chest lacks is the mean of theirs, and each class label
        moves towards the mean of their scores by the share ``config.soften``. ``config.balance``
        weighs the labels, see :func:`label_weights`; ``config.smooth`` moves a healthy/unhealthy
        label read from a report's text towards one half. A task that is not in ``config.tasks``
        is switched off for all, as is the gate where nothing is to be rejected.
        """
        config = config or TrainConfig()
        masks = np.stack([cohort.lung, cohort.disease, cohort.ignore], axis=1) * np.uint8(255)
        switches = cohort.switches()
        taught = np.zeros((len(cohort), 2), np.bool_)
        labels = np.column_stack([cohort.unhealthy, cohort.findings]).clip(0).astype(np.float32)
        if teachers:
            taught = (switches[:, :2] == 0) & (cohort.chest == 1)[:, None]
            said = teach(teachers, cohort.images, device)
            masks[:, :2][taught] = said.masks[taught]
            switches[:, :2][taught] = 1
            labels = (1 - config.soften) * labels + config.soften * said.scores[:, :3]
        doubted = np.char.startswith(cohort.basis, "text")
        labels[doubted, 0] += config.smooth * (0.5 - labels[doubted, 0])
        switches *= label_weights(cohort, config.balance)
        if not config.spoil and cohort.chest.all():
            switches[:, SWITCHES[5]] = 0
        for task, columns in SWITCHES.items():
            if task not in config.tasks:
                switches[:, columns] = 0
        host = Resident(
            images=torch.from_numpy(cohort.images),
            masks=torch.from_numpy(masks),
            unhealthy=torch.from_numpy(labels[:, 0].astype(np.float32)),
            findings=torch.from_numpy(labels[:, 1:].astype(np.float32)),
            chest=torch.from_numpy(cohort.chest.astype(np.float32)),
            switches=torch.from_numpy(switches),
            taught=torch.from_numpy(taught),
            origin=torch.from_numpy(origins(cohort)),
        )
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if sum(t.nbytes for t in host) < free // 2:
                return Resident(*(t.to(device) for t in host))
        return host

    def batch(self, chosen: Tensor, device: torch.device) -> Resident:
        """The images with the indices ``chosen``, on ``device``."""
        return Resident(*(t[chosen.to(t.device)].to(device) for t in self))


def label_weights(cohort: Cohort, balance: float) -> NDArray[np.float32]:
    """(N, 6): weights of each image's terms of equation 8; the gate's are 1.

    A group is a source with a label (healthy or not, COVID or not, other disease or not; disease
    drawn or known to be empty; lungs drawn). An image weighs as the power ``-balance`` of its
    group's size, with a mean of 1: at 1 all groups of a task weigh the same, so a source's name is
    worth nothing as an answer where both labels occur in it (Idrissi et al., "Simple data
    balancing achieves competitive worst-group-accuracy", 2022), and a few outlines count beside
    many boxes.
    """
    weights = np.ones((len(cohort), 6), np.float32)
    drawn = (cohort.disease > 0).any(axis=(1, 2))
    labels = [np.zeros(len(cohort)), drawn, cohort.unhealthy, *cohort.findings.T]
    for task, label in enumerate(labels):
        known = cohort.switches()[:, task] > 0
        groups = list(zip(cohort.source.tolist(), label.tolist(), strict=True))
        sizes = Counter(g for g, k in zip(groups, known, strict=True) if k)
        raw = np.array(
            [sizes[g] ** -balance if k else 0 for g, k in zip(groups, known, strict=True)]
        )
        if known.any():
            weights[known, task] = (raw / raw[known].mean())[known]
    return weights
