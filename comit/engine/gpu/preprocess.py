"""Stored values to pixels on a GPU: the steps of :mod:`comit.image.preprocess`, a batch at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from comit.engine.gpu.device import Device, Memory, Room
from comit.image.preprocess import SIZE, Lut, Presentation
from comit.image.samples import Outcome, Pictures, lay_out
from comit.reasons import Caution, Fail

CELLS = SIZE * SIZE
PADDED, UNUSABLE, USED_VOI, BLANK, NONFINITE, CLIPPING = (
    1,
    2,
    4,
    8,
    16,
    32,
)  # enum Status of present.cuh


class Preprocessor:
    """Memory and one stream's work for a batch at a time; one for each thread that uses it.

    ``start`` puts copies and kernels on the stream and returns, ``outcomes`` waits for them. Raw
    samples go to the GPU once, pixels stay there.
    """

    def __init__(self, device: Device, half: bool = True) -> None:
        """``half``: pixels as float16, else float32."""
        self.device, self.half = device, half
        self._room = Room(device)
        self._shown: list[Presentation] = []

    def start(self, given: Pictures, stream: Any, into: Memory | None = None) -> Memory:
        """(N, 1, 224, 224) pixels in [0, 1], air dark, in ``into`` or memory of this object.

        ``given`` is to stay as it is until :meth:`outcomes`. Raises MemoryError.
        """
        self._shown = [picture.presentation for picture in given.images]
        layout, room, n = lay_out(given), self._room, len(given)
        samples = room.on_gpu("samples", layout.size)
        self.device.upload(samples, given.data, stream)
        pictures = room.send("pictures", layout.pictures, stream)
        entries = room.send("entries", layout.entries, stream)
        grids, shown = (room.on_gpu(k, n * CELLS * 4) for k in ("grids", "shown"))
        out = into or room.on_gpu("pixels", n * CELLS * (2 if self.half else 4))
        status = room.on_gpu("status", n * 4)
        launch = self.device.launch
        if len(layout.scanlines):
            scanlines = room.send("scanlines", layout.scanlines, stream)
            arguments: list[Any] = [samples, samples, scanlines]
            launch("unfilter_rows", (len(layout.scanlines), 1, 1), (256, 1, 1), arguments, stream)
        arguments = [samples, pictures, grids]
        launch("average_area", (SIZE, n, layout.tiles), (256, 1, 1), arguments, stream)
        half = np.int32(self.half)
        arguments = [samples, pictures, entries, grids, shown, out, half, status]
        launch("present_pixels", (n, 1, 1), (1024, 1, 1), arguments, stream)
        self.device.download(room.on_host("status", n * 4), status, stream)
        return out

    def outcomes(self, stream: Any) -> list[Outcome]:
        """Of the last batch, once its pixels are done."""
        self.device.wait(stream)
        status = self._room.on_host("status", len(self._shown) * 4).view(np.uint32)
        return [outcome(int(s), p) for s, p in zip(status, self._shown, strict=True)]


def outcome(status: int, presentation: Presentation) -> Outcome:
    """The kernel's status bits in the words of :mod:`comit.image.preprocess`."""
    warnings = []
    if status & PADDED:
        warnings.append(Caution.PADDING)
    if status & UNUSABLE:
        warnings.append(Caution.WINDOW_UNUSABLE)
    if status & CLIPPING:
        warnings.append(Caution.WINDOW_CLIPS)
    voi = "none"
    if status & USED_VOI:
        voi = "lut" if isinstance(presentation.voi, Lut) else "window"
    reason = Fail.NONFINITE if status & NONFINITE else Fail.BLANK if status & BLANK else None
    return Outcome(reason, voi, tuple(warnings))
