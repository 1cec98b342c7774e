"""Images of different sizes as one block of bytes, and the tables that say where each begins.

The structured types mirror the C++ structs of ``cuda/*.cuh``; a test compares their sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comit.image.preprocess import SIZE, Lut, Presentation
from comit.reasons import Caution, Fail

KINDS = {np.dtype(np.uint8): 0, np.dtype(np.uint16): 1, np.dtype(np.int16): 2}  # enum Kind
PIXELS = 3
WINDOWS = {"LINEAR": 1, "LINEAR_EXACT": 2, "SIGMOID": 3}  # enum Voi
LUT = 4
MOST_SIDE = 32767  # grid.cuh: sums of a longer side do not fit 32 bits
SPAN = 4096  # grid.cuh
ALIGNED = 256  # bytes an image begins at a multiple of
FIRST = 2**20  # bytes of host memory that a batch begins with

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


Form = Literal["samples", "rows"]
Source = NDArray[Any] | Rows  # stored values, a PNG's rows, or (224, 224) float32 pixels


class Picture(NamedTuple):
    """One image of a batch."""

    offset: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]  # of the samples
    form: Form
    presentation: Presentation

    @property
    def nbytes(self) -> int:
        """Of the samples."""
        return math.prod(self.shape) * self.dtype.itemsize


class Pictures:
    """Images of different sizes, one after another in host memory that is used again.

    ``allocate`` gives bytes that the GPU copies from fast. They grow where an image does not fit.
    """

    def __init__(self, allocate: Callable[[int], NDArray[np.uint8]]) -> None:
        self._allocate = allocate
        self._memory = allocate(FIRST)
        self.clear()

    def clear(self) -> None:
        """Forgets the images and keeps the memory."""
        self.images: list[Picture] = []
        self._end = 0
        self.nbytes = 0  # as they are sent

    def __len__(self) -> int:
        return len(self.images)

    @property
    def data(self) -> NDArray[np.uint8]:
        """The bytes of all images."""
        return self._memory[: self._end]

    def add(self, source: Source, presentation: Presentation | None = None) -> None:
        """Copies an image; float32 (224, 224) are pixels in [0, 1], passed through.

        Raises ValueError for a source that :func:`takes` refuses and that is not pixels.
        """
        shown = presentation or Presentation()
        is_pixels = source.dtype == np.float32 and source.shape == (SIZE, SIZE)
        if not is_pixels and not takes(source.shape, source.dtype, shown):
            raise ValueError(f"the kernels do not take {source.shape} of {source.dtype}")
        data = source if isinstance(source, np.ndarray) else source.data
        start, end = self._end, _aligned(self._end + data.nbytes)
        if end > len(self._memory):
            larger = self._allocate(max(end, 2 * len(self._memory)))
            larger[:start] = self.data
            self._memory = larger
        np.ndarray(data.shape, data.dtype, self._memory, start)[...] = data
        form: Form = "rows" if isinstance(source, Rows) else "samples"
        rows, columns = source.shape
        self.images.append(Picture(start, (rows, columns), source.dtype, form, shown))
        self._end = end
        self.nbytes += data.nbytes

    def halves(self) -> tuple[Pictures, Pictures]:
        """The same images as two batches, in the same memory."""
        middle = len(self) // 2
        return self._part(0, middle), self._part(middle, len(self))

    def _part(self, first: int, last: int) -> Pictures:
        start = self.images[first].offset
        end = self.images[last].offset if last < len(self) else self._end
        part = Pictures(lambda size: self._memory[start:end])
        part.images = [p._replace(offset=p.offset - start) for p in self.images[first:last]]
        part._end = end - start
        return part


@dataclass(frozen=True)
class Layout:
    """Where everything of a batch lies on the GPU: what the host sends comes first, as it is."""

    pictures: NDArray[Any]  # (N,) PICTURE
    scanlines: NDArray[Any]  # (M,) SCANLINES, M <= N
    entries: NDArray[np.float32]  # of all lookup tables
    size: int  # bytes with the room for samples that are made on the GPU
    tiles: int  # most tiles of a row of cells, of any image


def takes(shape: tuple[int, ...], dtype: np.dtype[Any], presentation: Presentation) -> bool:
    """Whether the kernels compute this image; what they do not, the CPU does.

    They take uint8, uint16 and int16 of up to 32,767 rows and columns, and PNG rows.
    """
    return (
        dtype in KINDS
        and all(0 < side <= MOST_SIDE for side in shape)
        and (presentation.padding is None or not any(map(math.isnan, presentation.padding)))
    )


def lay_out(pictures: Pictures) -> Layout:
    """Offset tables of a batch."""
    table = np.zeros(len(pictures), PICTURE)
    scanlines, tables, end = [], _Tables(), len(pictures.data)
    for entry, picture in zip(table, pictures.images, strict=True):
        entry["offset"] = picture.offset
        entry["height"], entry["width"] = rows, columns = picture.shape
        _describe(entry, picture, tables)
        if picture.form == "rows":
            scanlines.append((picture.offset, end, rows, columns, picture.dtype.itemsize))
            entry["offset"] = end
            end = _aligned(end + picture.nbytes)
    return Layout(
        pictures=table,
        scanlines=np.array(scanlines, SCANLINES),
        entries=np.array(tables.entries or [0], np.float32),
        size=end,
        tiles=max((_tiles(int(w)) for w in table["width"]), default=1),
    )


class _Tables:
    def __init__(self) -> None:
        self.entries: list[float] = []

    def add(self, lut: Lut) -> tuple[int, int, float]:
        offset = len(self.entries)
        self.entries.extend(lut.values)
        return offset, len(lut.values), lut.first


def _describe(entry: Any, picture: Picture, tables: _Tables) -> None:
    entry["kind"] = KINDS.get(picture.dtype, PIXELS)
    if picture.dtype not in KINDS:
        return
    p = picture.presentation
    entry["slope"], entry["intercept"] = p.slope, p.intercept
    entry["inverted"] = p.inverted
    low, high = p.padding or (1, 0)
    # Samples are whole numbers of at most 16 bits: rounding inwards changes nothing.
    entry["padding_low"] = math.ceil(min(max(low, -(2**20)), 2**20))
    entry["padding_high"] = math.floor(min(max(high, -(2**20)), 2**20))
    if p.modality_lut is not None:
        entry["modality"] = tables.add(p.modality_lut)
    if isinstance(p.voi, Lut):
        entry["voi"], entry["table"] = LUT, tables.add(p.voi)
    elif p.voi is not None:
        entry["voi"] = WINDOWS[p.voi.function]
        entry["center"], entry["spread"] = p.voi.center, p.voi.width


def _tiles(width: int) -> int:
    """Blocks that share a row of cells: grid.cuh's tile_cells."""
    cells = max(1, min(SIZE, (SPAN - 2) * SIZE // max(width, 1)))
    return -(-SIZE // cells)


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


class Outcome(NamedTuple):
    """What :func:`comit.image.preprocess.preprocess` says beside the pixels."""

    reason: Fail | None  # why there are no pixels: blank or nonfinite; they are 0 then
    voi: str  # window, lut or none
    warnings: tuple[Caution, ...]
