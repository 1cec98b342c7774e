"""What every engine does: a batch of preprocessed images in, scores and masks out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Inference(NamedTuple):
    """An engine's answer for N images."""

    scores: NDArray[np.float32]  # (N, 3) in [0, 1]: unhealthy, COVID, other disease
    masks: NDArray[np.uint8]  # (N, 2, 224, 224): probability of lung and disease times 255


class Engine(ABC):
    """A model loaded on one backend and device, ready to run.

    ``infer`` may be called from ``lanes`` threads at once and releases the GIL while it computes.
    It pads to ``batch_size`` itself, so that a row's result does not depend on how many others
    share its batch: same image, same bits.
    """

    name: str  # openvino, onnxruntime, torch, tensorrt
    precision: str  # fp32, bf16, fp16
    device: str  # cpu, cuda:0
    batch_size: int  # images of a full batch
    lanes: int = 1  # threads that gain from calling infer at once

    @abstractmethod
    def infer(self, images: NDArray[np.float32]) -> Inference:
        """(N, 1, 224, 224) float32 in [0, 1], 1 <= N <= batch_size, to N scores and masks."""

    def close(self) -> None:  # noqa: B027
        """Frees what the engine holds; the default holds nothing."""
