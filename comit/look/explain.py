"""Grad-CAM of a row's picture, by the one implementation of :mod:`comit.training.gradcam`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from comit.card import BUNDLED, open_model
from comit.decode import Image
from comit.errors import MissingExtra
from comit.preprocess import preprocess


class GradCam:
    """A network to explain: a training run's folder, an .onnx file, or None, the bundled one.

    ``task`` is the score. Raises UsageError, ModelError, MissingExtra without PyTorch.
    """

    def __init__(self, model: Path | None, task: Literal["unhealthy", "covid"]) -> None:
        try:
            from comit.export.to_onnx import load_network
            from comit.training.loop import load_run
        except ImportError as error:
            raise MissingExtra("Grad-CAM", "train") from error
        model = model or BUNDLED
        self._network = load_run(model) if model.is_dir() else load_network(open_model(model)[1])
        self._task = task

    def __call__(self, image: Image) -> NDArray[np.float32]:
        """(224, 224) in [0, 1]; 1 is what raises this picture's score most. Raises ItemError."""
        import torch

        from comit.training.gradcam import gradcam

        pixels = preprocess(image.samples(), image.presentation).pixels
        (found,) = gradcam(self._network, torch.from_numpy(pixels)[None, None], self._task)
        return np.asarray(found, np.float32)
