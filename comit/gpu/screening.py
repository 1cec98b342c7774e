"""A batch from stored values to scores and run lengths: what surrounds an engine on its GPU."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comit.engine.base import Screened
from comit.gpu.batch import Pictures
from comit.gpu.device import Device, Memory
from comit.gpu.frames import Frames
from comit.gpu.preprocess import Preprocessor
from comit.gpu.runs import RunLengths


class Screening:
    """Kernels before and after an engine that reads ``images`` and writes ``masks``, one stream."""

    def __init__(self, gpu: Device, stream: Any, images: Memory, masks: Memory, half: bool) -> None:
        """``half``: the engine reads float16, else float32."""
        self.stream, self._images, self._masks = stream, images, masks
        self._preprocessor, self._lengths = Preprocessor(gpu, half), RunLengths(gpu)
        self._gpu = gpu

    def open_decoder(self) -> Frames | None:
        """From now on compressed frames are taken too; None where nothing decodes them."""
        decoder = self._gpu.decoder()
        self._preprocessor.frames = Frames(self._gpu, decoder) if decoder else None
        return self._preprocessor.frames

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


def open_decoders(
    gpu: Device, free: SimpleQueue[Any], lanes: int
) -> tuple[frozenset[str], tuple[str, ...]]:
    """A decoder of compressed frames for each lane; the formats to give them, and notes.

    ``free`` holds the lanes, all idle, each with its ``screening``. The formats are those of
    :data:`comit.decode.compressed.FORMATS` that the first decoder decodes as the CPU does.
    """
    taken = [free.get() for _ in range(lanes)]
    try:
        with gpu.current():
            opened = [lane.screening.open_decoder() for lane in taken]
            if None in opened:
                return frozenset(), ()
            formats, note = opened[0].trusted(taken[0].screening.stream)
            return formats, (note,) if note else ()
    finally:
        for lane in taken:
            free.put(lane)


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
