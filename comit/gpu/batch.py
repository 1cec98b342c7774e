"""Images of different sizes as one block of bytes, and the tables that say where each begins.

The structured types mirror the C++ structs of ``cuda/*.cuh``; a test compares their sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comit.preprocess import SIZE, Lut, Presentation

KINDS = {np.dtype(np.uint8): 0, np.dtype(np.uint16): 1, np.dtype(np.int16): 2}  # enum Kind
PIXELS = 3
WINDOWS = {"LINEAR": 1, "LINEAR_EXACT": 2, "SIGMOID": 3}  # enum Voi
LUT = 4
MOST_SIDE = 32767  # grid.cuh: sums of a longer side do not fit 32 bits
SPAN = 4096  # grid.cuh
ALIGNED = 256  # bytes an image begins at a multiple of

_TABLE = np.dtype([("offset", np.uint32), ("count", np.int32), ("first", np.float32)], align=True)
PICTURE = np.dtype(
    [
        ("offset", np.uint64),
        ("height", np.int32),
        ("width", np.int32),
        ("kind", np.int32),
        ("padding_low", np.int32),
        ("padding_high", np.int32),
        ("slope", np.float32),
        ("intercept", np.float32),
        ("modality", _TABLE),
        ("voi", np.int32),
        ("center", np.float32),
        ("spread", np.float32),
        ("table", _TABLE),
        ("inverted", np.int32),
    ],
    align=True,
)
SCANLINES = np.dtype(
    [
        ("source", np.uint64),
        ("target", np.uint64),
        ("height", np.int32),
        ("width", np.int32),
        ("bytes", np.int32),
    ],
    align=True,
)
RUNS = np.dtype([("offset", np.uint32), ("count", np.uint32, 2), ("area", np.uint32, 2)])


class Rows(NamedTuple):
    """A PNG's inflated scanlines: what the GPU un-filters."""

    data: NDArray[np.uint8]  # (height, 1 + width * sample size), a filter byte first
    dtype: np.dtype[Any]  # uint8 or uint16 of the samples

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the picture."""
        return len(self.data), (self.data.shape[1] - 1) // self.dtype.itemsize


Source = NDArray[Any] | Rows  # stored values, a PNG's rows, or (224, 224) float32 pixels


@dataclass(frozen=True)
class Layout:
    """Where everything of a batch lies, on the host as on the GPU."""

    pictures: NDArray[Any]  # (N,) PICTURE
    scanlines: NDArray[Any]  # (M,) SCANLINES, M <= N
    entries: NDArray[np.float32]  # of all lookup tables
    placed: tuple[tuple[int, NDArray[Any]], ...]  # (offset, bytes) of what the host sends
    sent: int  # bytes of the batch that the host sends
    size: int  # bytes with the room for samples that the GPU un-filters
    tiles: int  # most tiles of a row of cells, of any image


def takes(source: Source, presentation: Presentation) -> bool:
    """Whether the kernels compute this image; what they do not, the CPU does.

    They take uint8, uint16 and int16 of up to 32,767 rows and columns, and PNG rows.
    """
    height, width = source.shape
    return (
        source.dtype in KINDS
        and 0 < height <= MOST_SIDE
        and 0 < width <= MOST_SIDE
        and (presentation.padding is None or not any(map(math.isnan, presentation.padding)))
    )


def lay_out(images: Sequence[tuple[Source, Presentation]]) -> Layout:
    """Offset tables of a batch. Float32 (224, 224) sources are pixels in [0, 1], passed through.

    Raises ValueError for a source that :func:`takes` refuses and that is not pixels.
    """
    pictures = np.zeros(len(images), PICTURE)
    scanlines, tables, placed = [], _Tables(), []
    end, later = 0, []
    for picture, (source, presentation) in zip(pictures, images, strict=True):
        data = source.data if isinstance(source, Rows) else source
        picture["height"], picture["width"] = source.shape
        _describe(picture, source, presentation, tables)
        placed.append((end, np.ascontiguousarray(data)))
        if isinstance(source, Rows):
            later.append((picture, end))
        picture["offset"] = end
        end = _aligned(end + data.nbytes)
    sent = end
    for picture, source_offset in later:
        rows, columns = int(picture["height"]), int(picture["width"])
        size = 2 if picture["kind"] == KINDS[np.dtype(np.uint16)] else 1
        picture["offset"] = end
        scanlines.append((source_offset, end, rows, columns, size))
        end = _aligned(end + rows * columns * size)
    return Layout(
        pictures=pictures,
        scanlines=np.array(scanlines, SCANLINES),
        entries=np.array(tables.entries or [0], np.float32),
        placed=tuple(placed),
        sent=sent,
        size=end,
        tiles=max((_tiles(int(w)) for w in pictures["width"]), default=1),
    )


class _Tables:
    def __init__(self) -> None:
        self.entries: list[float] = []

    def add(self, lut: Lut) -> tuple[int, int, float]:
        offset = len(self.entries)
        self.entries.extend(lut.values)
        return offset, len(lut.values), lut.first


def _describe(picture: Any, source: Source, p: Presentation, tables: _Tables) -> None:
    if source.dtype == np.float32 and source.shape == (SIZE, SIZE):
        picture["kind"] = PIXELS
        return
    if not takes(source, p):
        raise ValueError(f"the kernels do not take {source.shape} of {source.dtype}")
    picture["kind"] = KINDS[source.dtype]
    picture["slope"], picture["intercept"] = p.slope, p.intercept
    picture["inverted"] = p.inverted
    low, high = p.padding or (1, 0)
    # Samples are whole numbers of at most 16 bits: rounding inwards changes nothing.
    picture["padding_low"] = math.ceil(min(max(low, -(2**20)), 2**20))
    picture["padding_high"] = math.floor(min(max(high, -(2**20)), 2**20))
    if p.modality_lut is not None:
        picture["modality"] = tables.add(p.modality_lut)
    if isinstance(p.voi, Lut):
        picture["voi"], picture["table"] = LUT, tables.add(p.voi)
    elif p.voi is not None:
        picture["voi"] = WINDOWS[p.voi.function]
        picture["center"], picture["spread"] = p.voi.center, p.voi.width


def _tiles(width: int) -> int:
    """Blocks that share a row of cells: grid.cuh's tile_cells."""
    cells = max(1, min(SIZE, (SPAN - 2) * SIZE // max(width, 1)))
    return -(-SIZE // cells)


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
