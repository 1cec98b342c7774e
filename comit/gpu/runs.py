"""Masks to COCO run lengths on a GPU: only the boundaries of runs come back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comit.gpu.batch import RUNS
from comit.gpu.device import Device, Memory
from comit.gpu.preprocess import CELLS, Room
from comit.postprocess import FOREGROUND
from comit.preprocess import SIZE

EXPECTED = 2048  # boundaries an image that come back with the table; a second copy brings more


class Masks(NamedTuple):
    """Both masks of one image, as :mod:`comit.results` has them."""

    lung_rle: dict[str, Any]
    disease_rle: dict[str, Any]
    lung_fraction: float
    disease_fraction: float | None  # of the lung; None without one


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

    def finish(self, stream: Any) -> list[Masks]:
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
        return [_masks(r, found.view(np.uint16)) for r in runs]


def _masks(run: Any, boundaries: NDArray[np.uint16]) -> Masks:
    start, (lung, disease) = int(run["offset"]), (int(c) for c in run["count"])
    lungs, inside = (int(a) for a in run["area"])
    return Masks(
        lung_rle=rle(boundaries[start : start + lung]),
        disease_rle=rle(boundaries[start + lung : start + lung + disease]),
        lung_fraction=lungs / CELLS,
        disease_fraction=inside / lungs if lungs else None,
    )


def rle(boundaries: NDArray[np.uint16]) -> dict[str, Any]:
    """Positions where runs begin, down the columns, to COCO's compressed RLE."""
    from pycocotools import mask

    edges = np.concatenate([[0], boundaries.astype(np.int64), [CELLS]])
    plain = {"size": [SIZE, SIZE], "counts": np.diff(edges).tolist()}
    packed = mask.frPyObjects(plain, SIZE, SIZE)
    return {"size": list(packed["size"]), "counts": packed["counts"].decode("ascii")}
