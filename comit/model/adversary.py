"""A head that names the source from the embedding, so that the encoder learns to hide it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from comit.model.data import Cohort
from comit.model.network import COMiTNet

HIDDEN = 64


class Adversary(nn.Module):
    """Ganin et al., "Domain-adversarial training of neural networks", 2016.

    The head learns to tell sources apart; its gradient reaches the encoder times ``-strength``.
    It sees images of other diseases alone: where every COVID-19 image is of one source, hiding
    that image's source would be hiding the disease.
    """

    def __init__(self, network: COMiTNet, origin: NDArray[np.int64], strength: float) -> None:
        super().__init__()
        self.strength = strength
        with torch.random.fork_rng(devices=[]):  # the network's numbers are those without it
            self.head = nn.Sequential(
                nn.Linear(cast(nn.Linear, network.health_branch[0]).in_features, HIDDEN),
                nn.ReLU(),
                nn.Linear(HIDDEN, int(origin.max(initial=0)) + 1),
            )
        self._seen = torch.zeros(0)  # the embeddings of the batch
        network.health_branch.register_forward_pre_hook(self._see)

    def _see(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._seen = inputs[0].float()

    def loss(self, origin: Tensor) -> Tensor:
        """Of the batch that the network saw last; ``origin`` (N,) as :func:`origins` has it."""
        seen = self._seen
        said = self.head((1 + self.strength) * seen.detach() - self.strength * seen)
        total = F.cross_entropy(said, origin.to(seen.device), ignore_index=-1, reduction="sum")
        return total / (origin >= 0).sum().clamp(min=1)


def origins(cohort: Cohort) -> NDArray[np.int64]:
    """(N,) number of each image's source; -1 for images that are not of another disease alone."""
    _, number = np.unique(cohort.source, return_inverse=True)
    judged = (cohort.findings == (0, 1)).all(axis=1)
    return np.where(judged, number, -1).astype(np.int64)
