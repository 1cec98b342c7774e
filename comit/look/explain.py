"""Grad-CAM of a row's picture, by the one implementation of :mod:`comit.model.gradcam`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from comit.card import BUNDLED
from comit.errors import MissingExtra


class GradCam:
    """A network to explain: a training run's folder, an .onnx file, or None, the bundled one.

    ``task`` is the score. Raises UsageError, ModelError, MissingExtra without PyTorch.
    """

    def __init__(self, model: Path | None, task: Literal["unhealthy", "covid"]) -> None:
        try:
            from comit.model.opened import network_of
        except ImportError as error:
            raise MissingExtra("Grad-CAM", "train") from error
        self._network = network_of(model or BUNDLED)
        self._task = task

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """(224, 224) as the network gets them to as many in [0, 1].

        1 is what raises this picture's score most.
        """
        import torch

        from comit.model.gradcam import gradcam

        (found,) = gradcam(self._network, torch.from_numpy(pixels)[None, None], self._task)
        return np.asarray(found, np.float32)
