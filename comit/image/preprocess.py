"""Stored pixel values to what the network sees, (224, 224) float32 in [0, 1]: the definition.

    samples --area average--> grid --modality--> --VOI--> --stretch--> --polarity--> pixels
    (H, W)                  (224, 224)                                            (224, 224)

Training and screening call :func:`preprocess`; a CUDA kernel must give these values. The grid
spans the whole image whatever its aspect, so a mask maps back by scaling alone.

1. *Area average* of the stored values: each grid cell is the mean over its footprint, borders
   weighted by overlap. Padding weighs nothing.
2. *Modality* (PS3.3 C.11.1): rescale slope and intercept, or the modality LUT.
3. *VOI* (PS3.3 C.11.2): the first usable window or VOI LUT of the header, if there is one. Where
   it leaves most of the picture one shade, a warning says so.
4. *Stretch*: the 0.5 % darkest and brightest cells are clipped and the rest spread over [0, 1].
   So a PNG whose window was burned in and the DICOM with that window in its header agree, and a
   window that spans the whole range does not leave a flat picture.
5. *Polarity*: MONOCHROME1 (and what says INVERSE) is inverted, so that air is dark.

Everything after step 1 works on 50,176 values and is cheap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comit.errors import ItemError
from comit.reasons import Caution, Fail

# Versioned as comit.preprocess_version: change a value here and count it up.
SIZE = 224
CLIPPED = int(0.005 * SIZE * SIZE)  # 250 cells at either end
# A window that leaves more than two thirds of the picture black, or white, is most likely another
# picture's. Radiographs with much air around them have up to 0.44 of one shade.
CLIPS = (2, 3)
STRIP = 2**18  # pixels of a picture that are floats at once
BAND = 4  # rows of cells in one product; 1, 2, 7 and more are slower on 1 and on 5 Mpx

Grid = NDArray[np.float32]  # (224, 224)


@dataclass(frozen=True)
class Window:
    """A VOI window (PS3.3 C.11.2.1.2), in units after the modality step."""

    center: float
    width: float
    function: str = "LINEAR"  # LINEAR, LINEAR_EXACT or SIGMOID


@dataclass(frozen=True)
class Lut:
    """A modality or VOI lookup table (PS3.3 C.11.1.1.1)."""

    first: float  # the input value of the first entry
    values: tuple[float, ...]


@dataclass(frozen=True)
class Presentation:
    """How stored values become the picture a reader is meant to see (PS3.4 N.2)."""

    slope: float = 1.0
    intercept: float = 0.0
    modality_lut: Lut | None = None
    voi: Window | Lut | None = None
    inverted: bool = False  # MONOCHROME1: the lowest value is white
    padding: tuple[float, float] | None = None  # inclusive range of stored values to leave out


class Preprocessed(NamedTuple):
    """What one image became."""

    pixels: Grid  # (224, 224) in [0, 1], air dark
    voi: str  # what step 3 used: window, lut or none
    warnings: tuple[Caution, ...]


def preprocess(samples: NDArray[Any], presentation: Presentation) -> Preprocessed:
    """(H, W) stored values of any real type to (224, 224) float32 in [0, 1].

    Raises ItemError: ``nonfinite`` where a sample is NaN or infinite, ``blank`` where all agree.
    """
    return present(area_average(samples, presentation.padding), presentation)


def area_average(samples: NDArray[Any], padding: tuple[float, float] | None = None) -> Grid:
    """(H, W) to (224, 224) float32 means; NaN where a cell is padding alone. Step 1.

    Goes down the columns first, a few cells at a time, so that no floating copy leaves the cache.
    """
    if np.issubdtype(samples.dtype, np.floating):
        with np.errstate(over="ignore"):
            samples = samples.astype(np.float32)
        if not (np.abs(samples) < 1e30).all():  # sums of larger ones overflow
            raise ItemError(Fail.NONFINITE)
    height, width = samples.shape
    total = np.empty((SIZE, width), np.float32)
    weight = None  # share of each cell that is not padding, once some is
    for i, (first, shares) in enumerate(_bands(height)):
        cells = slice(i * BAND, (i + 1) * BAND)
        band = samples[first : first + shares.shape[1]]
        values = band.astype(np.float32)
        if padding is not None and (outside := _within(band, *padding)).any():
            values[outside] = 0
            weight = np.ones_like(total) if weight is None else weight
            np.matmul(shares, (~outside).astype(np.float32), out=weight[cells])
        np.matmul(shares, values, out=total[cells])
    if weight is None:
        return _across(total)
    weight = _across(weight)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Below 1e-6 of a cell the quotient is rounding noise, not a value.
        return np.where(weight > 1e-6, _across(total) / weight, np.float32(np.nan))


def _within(samples: NDArray[Any], low: float, high: float) -> NDArray[np.bool_]:
    """Which samples lie in a closed range; whole numbers are compared as such, which is fast."""
    if np.issubdtype(samples.dtype, np.integer):
        least, greatest = np.iinfo(samples.dtype).min, np.iinfo(samples.dtype).max
        if high < least or low > greatest:
            return np.zeros(samples.shape, np.bool_)
        low, high = max(math.ceil(low), least), min(math.floor(high), greatest)
    return np.asarray((samples >= low) & (samples <= high))


def _across(rows: Grid) -> Grid:
    """(224, W) to (224, 224) means along each row."""
    if rows.shape[1] < SIZE:
        return rows @ coverage(rows.shape[1]).T
    import cv2

    # INTER_AREA is the definition where it shrinks; where it enlarges, it interpolates.
    shrunk = cv2.resize(rows, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk, dtype=np.float32)


@lru_cache(maxsize=64)
def _bands(n: int) -> list[tuple[int, Grid]]:
    """The rows of :func:`coverage` by fours: the first sample that they weigh, and their shares."""
    starts = np.arange(0, SIZE, BAND)
    firsts, ends = starts * n // SIZE, -(-(starts + BAND) * n // SIZE)
    cells = starts[:, None, None] + np.arange(BAND)[:, None]
    samples = firsts[:, None, None] + np.arange((ends - firsts).max())
    shares = _shares(cells, samples, n)
    return [
        (a, s[:, : b - a]) for a, b, s in zip(firsts.tolist(), ends.tolist(), shares, strict=True)
    ]


def coverage(n: int) -> Grid:
    """(224, n) share of each of n samples in each grid cell; rows sum to 1.

    ``coverage(H) @ samples @ coverage(W).T`` is the area average, for H and W of any size.
    """
    return _shares(np.arange(SIZE)[:, None], np.arange(n), n)


def _shares(cells: NDArray[np.int64], samples: NDArray[np.int64], n: int) -> NDArray[np.float32]:
    """What share of each cell, of 224, each sample, of n, takes up."""
    left = np.maximum(cells * (n / SIZE), samples)
    right = np.minimum((cells + 1) * (n / SIZE), samples + 1)
    return np.asarray(np.clip(right - left, 0, None) * (SIZE / n), dtype=np.float32)


def present(grid: Grid, presentation: Presentation) -> Preprocessed:
    """Averaged stored values, NaN for padding, to pixels in [0, 1]. Steps 2 to 5."""
    values, outside, tones = _tones(grid, presentation)
    pixels = _shown(values, outside, tones, presentation.inverted)
    return Preprocessed(pixels, tones.voi, tones.warnings)


def picture(samples: NDArray[Any], presentation: Presentation) -> NDArray[np.uint8]:
    """(H, W) stored values to (H, W) uint8: what was screened, at its full size.

    Window and stretch are those that :func:`preprocess` finds on the grid. Raises ItemError as
    it does. Takes a few MiB beside what it gives: the values are floats a few rows at a time.
    """
    *_, tones = _tones(area_average(samples, presentation.padding), presentation)
    found = np.empty(samples.shape, np.uint8)
    rows = max(1, STRIP // samples.shape[1])
    for top in range(0, len(samples), rows):
        strip = samples[top : top + rows]
        outside = None
        if presentation.padding is not None:
            outside = (strip >= presentation.padding[0]) & (strip <= presentation.padding[1])
        values = _modality(strip.astype(np.float32), presentation)
        if tones.voi != "none" and presentation.voi is not None:
            values = _voi(values, presentation.voi)
        shown = _shown(values, outside, tones, presentation.inverted)
        found[top : top + rows] = np.rint(shown * 255)
    return found


class _Tones(NamedTuple):
    """What steps 3 and 4 chose: values from ``low`` to ``high`` are spread over [0, 1]."""

    voi: str  # window, lut or none
    low: np.float32
    high: np.float32
    warnings: tuple[Caution, ...]


def _tones(grid: Grid, presentation: Presentation) -> tuple[Grid, NDArray[np.bool_] | None, _Tones]:
    """The grid after step 3, which of its cells are padding, if any, and its tones."""
    warnings: list[Caution] = []
    outside = np.isnan(grid)
    padding = outside if outside.any() else None
    if padding is not None:
        warnings.append(Caution.PADDING)
        if padding.all():
            raise ItemError(Fail.BLANK)
    values = _modality(grid, presentation)
    if not np.isfinite(values if padding is None else values[~padding]).all():
        raise ItemError(Fail.NONFINITE)
    if presentation.voi is not None:
        windowed = _voi(values, presentation.voi)
        ends = _ends(windowed, padding)
        if ends is not None:
            voi = "lut" if isinstance(presentation.voi, Lut) else "window"
            if _is_clipped(windowed, padding, ends) and not _is_clipped(values, padding):
                warnings.append(Caution.WINDOW_CLIPS)
            return windowed, padding, _Tones(voi, *ends, tuple(warnings))
        warnings.append(Caution.WINDOW_UNUSABLE)  # it shows one shade
    ends = _ends(values, padding)
    if ends is None:
        raise ItemError(Fail.BLANK)
    return values, padding, _Tones("none", *ends, tuple(warnings))


def _is_clipped(
    values: Grid,
    outside: NDArray[np.bool_] | None,
    ends: tuple[np.float32, np.float32] | None = None,
) -> bool:
    """Whether one end of the stretch, black or white, is more than CLIPS of the picture."""
    inside = values if outside is None else values[~outside]
    ends = ends or _ends(values, outside)
    if ends is None:
        return True
    largest = max(np.count_nonzero(inside <= ends[0]), np.count_nonzero(inside >= ends[1]))
    return bool(largest * CLIPS[1] > inside.size * CLIPS[0])


def _shown(
    values: NDArray[np.float32], outside: NDArray[np.bool_] | None, tones: _Tones, inverted: bool
) -> NDArray[np.float32]:
    """Steps 4 and 5 on values after step 3; padding is shown as background."""
    pixels = values - tones.low
    pixels /= tones.high - tones.low
    np.clip(pixels, 0, 1, out=pixels)
    if inverted:
        pixels = 1 - pixels
    if outside is not None:
        pixels[outside] = 0
    return pixels


def _modality(grid: Grid, p: Presentation) -> Grid:
    if p.modality_lut is not None:
        return _look_up(grid, p.modality_lut)
    if (p.slope, p.intercept) == (1, 0):
        return grid
    with np.errstate(over="ignore"):
        return grid * np.float32(p.slope) + np.float32(p.intercept)


def _voi(values: Grid, voi: Window | Lut) -> Grid:
    """PS3.3 C.11.2.1, output scaled to [0, 1]."""
    if isinstance(voi, Lut):
        return _look_up(values, voi)
    center, width = np.float32(voi.center), np.float32(voi.width)
    if voi.function == "SIGMOID":  # C.11.2.1.3.1
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-4 * (values - center) / width)), dtype=np.float32)
    if voi.function == "LINEAR":  # C.11.2.1.2.1: a width of 1 is a threshold
        center, width = center - np.float32(0.5), max(width - 1, np.float32(1e-6))
    with np.errstate(over="ignore"):
        return np.asarray(np.clip((values - center) / width + np.float32(0.5), 0, 1))


def _look_up(values: Grid, lut: Lut) -> Grid:
    """Table lookup with linear interpolation: averaged values fall between entries."""
    table = np.asarray(lut.values, dtype=np.float32)
    found = np.interp(values - lut.first, np.arange(len(table)), table)
    return np.asarray(found, dtype=np.float32)


def _ends(values: Grid, outside: NDArray[np.bool_] | None) -> tuple[np.float32, np.float32] | None:
    """The values that step 4 spreads to 0 and to 1; None where that is a single value."""
    inside = values.ravel() if outside is None else values[~outside]
    k = CLIPPED * inside.size // values.size
    parted = np.partition(inside, k)
    low, high = parted[k], np.partition(parted[k:], -1 - k)[-1 - k]
    if not high > low:  # a few bright cells on nothing: use the whole range, if there is one
        low, high = inside.min(), inside.max()
    # A spread within float32 rounding of the values (2^-20) is a constant image.
    if not high - low > max(abs(float(low)), abs(float(high))) * 2**-20:
        return None
    return low, high
