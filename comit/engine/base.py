"""What every engine does: a batch of images in, scores and masks out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from comit.image.samples import Outcome, Pictures
    from comit.masks import Runs

IMAGE = (1, 224, 224)  # channels, rows, columns of one image
SCORES = 4  # of one image: unhealthy, COVID, other disease, frontal chest radiograph
Progress = Callable[[str], None]  # is told, in lines, of what takes longer than a second


class Inference(NamedTuple):
    """An engine's answer for N images."""

    scores: NDArray[np.float32]  # (N, 4) in [0, 1], as comit.card.OUTPUTS names them
    masks: NDArray[np.uint8]  # (N, 2, 224, 224): probability of lung and disease times 255


class Screened(NamedTuple):
    """An engine's answer for N images that it preprocessed and encoded itself."""

    outcomes: list[Outcome]  # a reason where there are no pixels; its scores mean nothing
    scores: NDArray[np.float32]  # (N, 4), as in Inference
    masks: list[Runs]


class Engine(ABC):
    """A model loaded on one backend and device, ready to run.

    ``infer`` may be called from ``lanes`` threads at once and releases the GIL while it computes.
    It pads to ``batch_size`` itself, so that a row's result does not depend on how many others
    share its batch: same image, same bits. What it returns is the caller's to keep.
    """

    name: str  # openvino, onnxruntime, torch, tensorrt
    precision: str  # fp32, bf16, fp16: what it computes in
    device: str  # cpu, cuda:0
    batch_size: int  # images of a full batch
    lanes: int = 1  # threads that gain from calling infer at once
    two_stage: bool = False  # whether scores() costs much less than infer()
    takes_samples: bool = False  # whether it has pictures() and screen()
    notes: Sequence[str] = ()  # why ``auto`` did not choose a faster engine, a line each

    @abstractmethod
    def infer(self, images: NDArray[np.float32]) -> Inference:
        """(N, 1, 224, 224) float32 in [0, 1], 1 <= N <= batch_size, to N scores and masks."""

    def scores(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores alone, (N, 4), bit for bit those of :meth:`infer`."""
        return self.infer(images).scores

    def pictures(self) -> Pictures:
        """An empty batch for :meth:`screen`, in memory that the device copies from fast."""
        raise NotImplementedError

    def screen(self, pictures: Pictures) -> Screened:
        """1 to batch_size images as they are stored, to scores and run lengths.

        Called as :meth:`infer` is; ``pictures`` stay as they are until it returns.
        """
        raise NotImplementedError

    def predict(self, images: NDArray[np.float32]) -> Inference:
        """The same for any N, a batch after the other."""
        batches = [
            self.infer(images[i : i + self.batch_size])
            for i in range(0, len(images), self.batch_size)
        ]
        if not batches:
            return Inference(
                np.empty((0, SCORES), np.float32), np.empty((0, 2, *IMAGE[1:]), np.uint8)
            )
        return Inference(
            np.concatenate([b.scores for b in batches]), np.concatenate([b.masks for b in batches])
        )

    def close(self) -> None:  # noqa: B027
        """Frees what the engine holds; the default holds nothing."""


def ignore(line: str) -> None:
    """A :data:`Progress` that nobody reads."""


def padded(images: NDArray[Any], batch_size: int, dtype: Any = np.float32) -> NDArray[Any]:
    """(N, 1, 224, 224) to a contiguous (batch_size, 1, 224, 224) of ``dtype``, zeros at the end.

    Raises ValueError for another shape or for N outside [1, batch_size].
    """
    if images.shape[1:] != IMAGE or not 1 <= len(images) <= batch_size:
        raise ValueError(f"expected (1 to {batch_size}, 1, 224, 224), got {images.shape}")
    if len(images) == batch_size:
        return np.ascontiguousarray(images, dtype)
    batch = np.zeros((batch_size, *IMAGE), dtype)
    batch[: len(images)] = images
    return batch
