"""Intersection over union of many masks at once, from their runs: no mask is drawn.

The runs of a batch lie end to end on one line, mask after mask, each :data:`AREA` pixels long. An
edge is a point of that line where a mask begins or ends. Of two masks, the pixels that only one of
them has begin and end at the edges of both, in turns: |A xor B| is summed over the edges, sorted,
and |A and B| = (|A| + |B| - |A xor B|) / 2.
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
TOGETHER = 1024  # masks of which the runs are found at once: they stay in the cache
Numbers = NDArray[np.signedinteger[Any]]


class Edges(NamedTuple):
    """Where N masks begin and end, each an even number of times."""

    places: Numbers  # (M,) pixels from the beginning of the line, ascending
    first: NDArray[np.int64]  # (N + 1,) of each mask the index of its first edge, and M


def ious(a: pa.StructArray, b: pa.StructArray) -> NDArray[np.float64]:
    """(N,) IoU of N pairs of run-length masks; 1 where both are empty, NaN where one is no mask.

    ``a`` and ``b`` are columns ``lung_rle`` or ``disease_rle`` without nulls.
    """
    import pyarrow.compute as pc

    x, y = _counts(a), _counts(b)
    differ = pc.not_equal(x, y).to_numpy(zero_copy_only=False)
    found = np.empty(len(x))
    for start in range(0, len(x), TOGETHER):
        part = slice(start, start + TOGETHER)
        found[part] = _ious(x[part], y[part], differ[part])
    return found


def _ious(x: pa.StringArray, y: pa.StringArray, differ: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU by counts, and where these differ."""
    found = np.ones(len(differ))
    if not differ.all():  # the same mask twice, if it is one
        _, masks = edges(x.filter(~differ))
        found[~differ] = np.where(masks, 1.0, np.nan)
    if differ.any():
        (p, one), (q, other) = edges(x.filter(differ)), edges(y.filter(differ))
        merged = np.concatenate([p.places, q.places])
        merged.sort(kind="stable")  # of two sorted parts: their merging
        apart = _areas(Edges(merged, p.first + q.first))
        areas = _areas(p) + _areas(q)
        union = (areas + apart) / 2
        shared = np.divide((areas - apart) / 2, union, out=np.ones(len(union)), where=union > 0)
        found[differ] = np.where(one & other, shared, np.nan)
    return found


def _areas(e: Edges) -> Numbers:
    """(N,) pixels between the first edge and the second, the third and the fourth and so on."""
    before = np.zeros(len(e.places) // 2 + 1, e.places.dtype)
    np.cumsum(e.places[1::2] - e.places[::2], out=before[1:])
    return np.diff(before[e.first // 2])


def edges(counts: pa.StringArray) -> tuple[Edges, NDArray[np.bool_]]:
    """Edges of N of COCO's compressed counts, and (N,) which counts are those of a mask.

    They are read as :func:`comit.masks.decode_mask` reads them. An empty mask takes the place of
    what is none.
    """
    import pyarrow.compute as pc

    masks = np.ones(len(counts), np.bool_)
    while not isinstance(found := _parsed(counts), Edges):
        masks &= ~found
        counts = pc.if_else(found, EMPTY, counts)
    return found, masks


def _parsed(counts: pa.StringArray) -> Edges | NDArray[np.bool_]:
    """Edges; or (N,) which counts are none of a mask, as far as the first check finds some."""
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
    kind, unsigned = (np.int32, np.uint32) if longest * AREA < 2**31 else (np.int64, np.uint64)
    steps: Numbers = short[ends].astype(kind)
    long = np.flatnonzero((more[:-2] & more[1:-1]) > more[2:]) + 2
    value, going = signed[long].astype(np.int32), np.ones(len(long), np.bool_)
    for back in range(1, PARTS):
        going &= more.take(long - back, mode="wrap")  # the last of all is no more
        value[going] = (value[going] << 5) | low[long[going] - back]
    steps[np.searchsorted(ends, long)] = value
    going &= more.take(long - PARTS, mode="wrap")
    beyond = long[going | (np.abs(value) > AREA)]
    if len(beyond):
        wrong[np.searchsorted(stops, beyond, "right")] = True
        return wrong

    # From the fourth length on each is the difference to the one two before: two sums, in turns.
    lengths = np.empty_like(steps)
    for turn in (lengths[::2], steps[::2]), (lengths[1::2], steps[1::2]):
        np.cumsum(turn[1], out=turn[0])
    count = np.diff(first, append=len(ends))
    even = (first + count + 1) // 2 - (first + 1) // 2  # of them at even places
    own, other = lengths[first], np.where(first > 0, lengths[first - 1], 0)
    odd = first % 2 == 1
    lengths[::2] -= np.repeat(np.where(odd, other, own), even)
    lengths[1::2] -= np.repeat(np.where(odd, own, other), count - even)
    lengths[first] = steps[first]
    if lengths.view(unsigned).max() > AREA:  # or less than 0
        return np.asarray(np.maximum.reduceat(lengths.view(unsigned), first) > AREA)
    line: Numbers = np.cumsum(lengths, dtype=kind)
    last = first + count - 1
    wrong = np.diff(line[last], prepend=0) != AREA
    if wrong.any():
        return wrong
    # Each run ends at an edge but a last one outside the mask, which the end of its line cuts off.
    cut = count % 2 == 1
    places = np.delete(line, last[cut])
    return Edges(places, np.concatenate([[0], np.cumsum(count - cut)]))


def _counts(masks: pa.StructArray) -> pa.StringArray:
    """Their counts; empty, which is no mask, where the size is another or there are none."""
    import pyarrow.compute as pc

    counts, size = (pc.struct_field(masks, name) for name in ("counts", "size"))
    counts = pc.fill_null(counts, "")
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
