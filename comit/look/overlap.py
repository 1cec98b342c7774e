"""Intersection over union of many masks at once, from their runs: no mask is drawn.

The runs of a batch lie end to end on one line, mask after mask, each :data:`AREA` pixels long. The
pixels of A before a point of that line are a piecewise linear function of the point, so what A
shares with an interval of B is the difference of this function at the interval's ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comit.image.preprocess import SIZE

if TYPE_CHECKING:
    import pyarrow as pa

AREA = SIZE**2
EMPTY = "PPa1"  # COCO's counts of a mask without a pixel: one run of AREA
PARTS = 6  # characters of a length at most, as in comit.masks
Lengths = NDArray[np.signedinteger[Any]]


class Runs(NamedTuple):
    """Runs of masks end to end: of each first the background, then in turns."""

    lengths: Lengths  # (M,) pixels
    ends: Lengths  # (M,) where they end on the line
    inside: NDArray[np.bool_]  # (M,) whether they are of the mask
    first: NDArray[np.int64]  # (N,) of each mask the index of its first run


def ious(a: pa.StructArray, b: pa.StructArray) -> NDArray[np.float64]:
    """(N,) IoU of N pairs of run-length masks; 1 where both are empty, NaN where one is no mask.

    ``a`` and ``b`` are columns ``lung_rle`` or ``disease_rle`` without nulls.
    """
    import pyarrow.compute as pc

    x, y = _counts(a), _counts(b)
    differ = np.asarray(pc.not_equal(x, y))
    found = np.empty(len(differ))
    _, are = runs(x.filter(~differ))
    found[~differ] = np.where(are, 1.0, np.nan)
    (left, one), (right, other) = runs(x.filter(differ)), runs(y.filter(differ))
    found[differ] = np.where(one & other, _ious(left, right), np.nan)
    return found


def _ious(a: Runs, b: Runs) -> NDArray[np.float64]:
    if not len(a.first):
        return np.empty(0)
    before = np.cumsum(a.lengths * a.inside, dtype=a.lengths.dtype)  # pixels of A up to an end
    at = np.interp(b.ends, a.ends, before)  # exact: slopes are 0 or 1
    at[1:] -= at[:-1].copy()
    shared = np.add.reduceat(at * b.inside, b.first)
    areas = [np.add.reduceat(r.lengths * r.inside, r.first) for r in (a, b)]
    union = areas[0] + areas[1] - shared
    return np.asarray(np.divide(shared, union, out=np.ones(len(union)), where=union > 0))


def runs(counts: pa.StringArray) -> tuple[Runs, NDArray[np.bool_]]:
    """Runs of N of COCO's compressed counts, and (N,) which are those of a mask.

    They are read as :func:`comit.masks.decode_mask` reads them. An empty mask takes the place of
    what is none.
    """
    import pyarrow.compute as pc

    masks = np.ones(len(counts), np.bool_)
    while not isinstance(found := _parsed(counts), Runs):
        masks &= ~found
        counts = pc.if_else(found, EMPTY, counts)
    return found, masks


def _parsed(counts: pa.StringArray) -> Runs | NDArray[np.bool_]:
    """Runs; or (N,) which counts are none of a mask, as far as the first check finds some."""
    if not len(counts):
        none = np.empty(0, np.int64)
        return Runs(none, none, none > 0, none)
    characters, offsets = _bytes(counts)
    starts, stops = offsets[:-1], offsets[1:]
    wrong: NDArray[np.bool_] = starts == stops
    if wrong.any():
        return wrong
    parts = characters - np.uint8(48)  # five bits, and the sixth where more follow
    more = parts > 31
    wrong = more[stops - 1]
    if parts.max() > 63:
        wrong |= np.logical_or.reduceat(parts > 63, starts)
    if wrong.any():
        return wrong

    # The last part has the sign. Most lengths have one part or two, the first with the low bits.
    low = (parts & 31).view(np.int8)
    signed = (low ^ 16) - 16
    short = signed.astype(np.int16)
    short[1:] += more[:-1] * (31 * short[1:] + low[:-1])
    ends = np.flatnonzero(~more)
    first = np.searchsorted(ends, starts)
    # Sums over one mask fit: its counts hold no more lengths than characters.
    longest = max(len(counts), int((stops - starts).max()))
    kind = np.int32 if longest * AREA < 2**31 else np.int64
    steps: Lengths = short[ends].astype(kind)
    long = np.flatnonzero((more[:-2] & more[1:-1]) > more[2:]) + 2
    value, going = signed[long].astype(np.int32), np.ones(len(long), np.bool_)
    for back in range(1, PARTS):
        going &= more.take(long - back, mode="wrap")  # the last of all is no more
        value[going] = (value[going] << 5) | low[long[going] - back]
    going &= more.take(long - PARTS, mode="wrap")
    value[going] = AREA + 1
    steps[np.searchsorted(ends, long)] = value
    if (wrong := _outside(steps, -AREA, first)).any():
        return wrong

    # From the fourth length on each is the difference to the one two before: two sums, in turns.
    sums = np.empty_like(steps)
    for turn in (sums[::2], steps[::2]), (sums[1::2], steps[1::2]):
        np.cumsum(turn[1], out=turn[0])
    count = np.diff(first, append=len(ends))
    even = (first + count + 1) // 2 - (first + 1) // 2  # of them at even places
    own, other = sums[first], np.where(first > 0, sums[first - 1], 0)
    odd = first % 2 == 1
    sums[::2] -= np.repeat(np.where(odd, other, own), even)
    sums[1::2] -= np.repeat(np.where(odd, own, other), count - even)
    sums[first] = steps[first]
    if (wrong := _outside(sums, 0, first)).any():
        return wrong
    line: Lengths = np.cumsum(sums, dtype=kind)
    wrong = np.diff(line[first + count - 1], prepend=0) != AREA
    if wrong.any():
        return wrong
    inside = np.repeat(~odd, count)
    inside[::2] ^= True
    return Runs(sums, line, inside, first)


def _outside(values: Lengths, least: int, first: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) whether any value of a mask is not from ``least`` to AREA."""
    if least <= values.min() and values.max() <= AREA:
        return np.zeros(len(first), np.bool_)
    return np.asarray(
        (np.minimum.reduceat(values, first) < least) | (np.maximum.reduceat(values, first) > AREA)
    )


def _counts(masks: pa.StructArray) -> pa.StringArray:
    """Their counts; empty, which is no mask, where the size is another or there are none."""
    import pyarrow.compute as pc

    counts, size = (
        pc.fill_null(pc.struct_field(masks, "counts"), ""),
        pc.struct_field(masks, "size"),
    )
    sides = np.asarray(size.flatten().fill_null(0))
    lengths = np.asarray(pc.fill_null(pc.list_value_length(size), 0))
    if (lengths == 2).all() and (sides == SIZE).all():
        return counts
    fits = [found == [SIZE, SIZE] for found in size.to_pylist()]
    return pc.if_else(fits, counts, "")


def _bytes(texts: pa.StringArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Their characters end to end, and (N + 1,) where each begins."""
    _, offsets, data = texts.buffers()
    places = np.frombuffer(offsets, np.int32)[texts.offset :][: len(texts) + 1].astype(np.int64)
    characters = np.frombuffer(data or b"", np.uint8)[places[0] : places[-1]]
    return characters, places - places[0]
