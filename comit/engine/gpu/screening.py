"""A batch from stored values to scores and run lengths: what surrounds an engine on its GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comit.engine.base import Screened
from comit.engine.gpu.device import Device, Memory
from comit.engine.gpu.preprocess import Preprocessor
from comit.engine.gpu.run_lengths import RunLengths
from comit.image.samples import Pictures


class Screening:
    """Kernels before and after an engine that reads ``images`` and writes ``masks``, one stream."""

    def __init__(self, gpu: Device, stream: Any, images: Memory, masks: Memory, half: bool) -> None:
        """``half``: the engine reads float16, else float32."""
        self.stream, self._images, self._masks = stream, images, masks
        self._preprocessor, self._lengths = Preprocessor(gpu, half), RunLengths(gpu)

    def screen(
        self, pictures: Pictures, start: Callable[[], None], scores: NDArray[np.float32]
    ) -> Screened:
        """``start`` puts the engine on the stream, and its scores' way to ``scores``."""
        n = len(pictures)
        self._preprocessor.start(pictures, self.stream, self._images)
        start()
        self._lengths.start(self._masks, n, self.stream)
        outcomes = self._preprocessor.outcomes(self.stream)
        return Screened(outcomes, scores[:n].copy(), self._lengths.finish(self.stream))


def in_halves(screen: Callable[[Pictures], Screened], pictures: Pictures) -> Screened:
    """``screen`` of a batch, of its halves where the GPU has no memory for all its samples.

    Raises MemoryError for an image alone.
    """
    try:
        return screen(pictures)
    except MemoryError:
        if len(pictures) == 1:
            raise
    first, second = (in_halves(screen, half) for half in pictures.halves())
    scores = np.concatenate([first.scores, second.scores])
    return Screened(first.outcomes + second.outcomes, scores, first.masks + second.masks)
