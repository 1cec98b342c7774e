"""Mixup across sources: of one label and two sources, or of one source and two labels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comit.model.data import Cohort
from comit.model.loss import Targets


class Partners:
    """Whom an image is mixed with, so that the source tells less about the label.

    Yao et al., "Improving out-of-distribution robustness via selective augmentation" (LISA), 2022:
    with even odds an image of the same labels and another source, which makes the source worthless,
    or one of the same source and other labels, which makes the label worth knowing. Where the
    cohort has none of the one kind it is the other, and where it has neither the image itself.
    The share of the first image is drawn from Beta(``alpha``, ``alpha``).
    """

    def __init__(self, cohort: Cohort, alpha: float) -> None:
        labels = np.column_stack([cohort.unhealthy, cohort.findings])
        self._label = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
        self._source = np.unique(cohort.source, return_inverse=True)[1].reshape(-1)
        self._alpha = alpha

    def draw(self, chosen: NDArray[np.int64], seed: int) -> tuple[Tensor, Tensor]:
        """(N,) indices of partners of the images ``chosen``, and (N,) shares of these images."""
        numbers = np.random.default_rng(seed)
        partners = []
        for i in chosen:
            label, source = self._label == self._label[i], self._source == self._source[i]
            kinds = [np.flatnonzero(label & ~source), np.flatnonzero(source & ~label)]
            if numbers.random() < 0.5:
                kinds.reverse()
            partners.append(numbers.choice(next((k for k in kinds if k.size), np.array([i]))))
        shares = numbers.beta(self._alpha, self._alpha, len(chosen))
        return torch.tensor(np.array(partners)), torch.tensor(shares, dtype=torch.float32)


def mixed(
    images: tuple[Tensor, Tensor], targets: tuple[Targets, Targets], share: Tensor
) -> tuple[Tensor, Targets]:
    """``share`` (N,) of the first (N, ...) images and labels, the rest of the second.

    Masks and labels are mixed as the pixels are (Zhang et al., "mixup", 2018). One that either
    image lacks is unknown; a mask counts as taught where either is.
    """

    def blend(a: Tensor, b: Tensor) -> Tensor:
        part = share.to(a.device).view(-1, *[1] * (a.ndim - 1))
        return part * a + (1 - part) * b

    a, b = targets
    known = (a.switches > 0) & (b.switches > 0)
    return blend(*images), Targets(
        lung=blend(a.lung, b.lung),
        disease=blend(a.disease, b.disease),
        unhealthy=blend(a.unhealthy, b.unhealthy),
        findings=blend(a.findings, b.findings),
        chest=blend(a.chest, b.chest),
        switches=blend(a.switches, b.switches) * known,
        ignore=None if a.ignore is None or b.ignore is None else torch.maximum(a.ignore, b.ignore),
        taught=None if a.taught is None or b.taught is None else a.taught | b.taught,
    )
