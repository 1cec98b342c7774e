"""Masks to COCO run lengths on a GPU: only the boundaries of runs come back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from comit.engine.gpu.device import Device, Memory, Room
from comit.engine.gpu.preprocess import CELLS
from comit.image.preprocess import SIZE
from comit.image.samples import RUNS
from comit.masks import FOREGROUND, Runs

EXPECTED = 2048  # boundaries an image that come back with the table; a second copy brings more


class RunLengths:
    """Memory and one stream's work for a batch at a time; one for each thread that uses it."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._room = Room(device)
        self._n = 0

    def start(self, masks: Memory, n: int, stream: Any) -> None:
        """``masks`` is (n, 2, 224, 224) uint8, probability times 255, on the GPU."""
        room, device, self._n = self._room, self.device, n
        cursor = room.on_gpu("cursor", 4)
        boundaries = room.on_gpu("boundaries", n * 2 * CELLS * 2)
        runs = room.on_gpu("runs", n * RUNS.itemsize)
        device.clear(cursor, 4, stream)
        arguments = [masks, np.int32(FOREGROUND), cursor, boundaries, runs]
        device.launch("encode_masks", (n, 1, 1), (SIZE, 1, 1), arguments, stream)
        device.download(room.on_host("runs", n * RUNS.itemsize), runs, stream)
        device.download(room.on_host("boundaries", n * EXPECTED * 2), boundaries, stream)

    def finish(self, stream: Any) -> list[Runs]:
        """Of the last batch, once it is done."""
        room, n = self._room, self._n
        self.device.wait(stream)
        runs = room.on_host("runs", n * RUNS.itemsize).view(RUNS)
        total = int(runs["count"].sum())
        if total > n * EXPECTED:
            found = room.on_host("more", total * 2)
            self.device.download(found, room.on_gpu("boundaries", total * 2), stream)
            self.device.wait(stream)
        else:
            found = room.on_host("boundaries", n * EXPECTED * 2)
        boundaries = found[: total * 2].view(np.uint16).copy()  # the next batch takes their place
        return [_runs(r, boundaries) for r in runs]


def _runs(run: Any, boundaries: NDArray[np.uint16]) -> Runs:
    start, (lung, disease) = int(run["offset"]), (int(c) for c in run["count"])
    lungs, inside = (int(a) for a in run["area"])
    middle, end = start + lung, start + lung + disease
    return Runs(boundaries[start:middle], boundaries[middle:end], lungs, inside)
