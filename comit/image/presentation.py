"""How the stored values of a DICOM image are meant to be shown (PS3.4 N.2), by its header.

A value that is there and cannot be used never becomes its default in silence: every way in which
a window, a table or a rescale is left out, or read against the letter of the Standard, warns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from comit.image.codecs import Format
from comit.image.header import Header
from comit.image.preprocess import Lut, Presentation, Window
from comit.reasons import Caution

WINDOW_UNUSABLE, RESCALE_UNUSABLE = Caution.WINDOW_UNUSABLE, Caution.RESCALE_UNUSABLE
PALETTE = "PALETTE COLOR"
CENTER, WIDTH, FUNCTION, VOI_LUT = 0x00281050, 0x00281051, 0x00281056, 0x00283010
INTERCEPT, SLOPE, MODALITY_LUT = 0x00281052, 0x00281053, 0x00283000
PADDING, PADDING_LIMIT = 0x00280120, 0x00280121
# Functional group macros (PS3.3 C.7.6.16.2.10, C.7.6.16.2.9): of these the same three or four.
FRAME_VOI, PIXEL_VALUES = 0x00289132, 0x00289145
DESCRIPTOR, DATA = 0x00283002, 0x00283006
SHORTEST = 0.99  # share of a table's entries below which it is not a table that lost its end


T = TypeVar("T")
# What is there, None where it cannot be used, in the order of preference; and what to say of it.
Found = Sequence[tuple[T | None, list[Caution]]]


def read_presentation(h: Header, fmt: Format) -> tuple[Presentation, list[Caution]]:
    """How the stored values are meant to be shown, and what is odd about that.

    A usable window goes before a VOI LUT: the Standard leaves the choice to the reader
    (PS3.3 C.11.2), and viewers start with the window. A modality LUT goes before a rescale. Those
    of the only frame's functional groups go before those of the data set.
    """
    warnings = unreadable(h, fmt)
    if fmt.samples != 1 or fmt.photometric == PALETTE:
        return Presentation(), warnings
    source = h.of_frame(PIXEL_VALUES, (SLOPE, INTERCEPT, MODALITY_LUT))
    slope, intercept, table, more = read_rescale(source, fmt)
    warnings += more
    signed = table is None and _goes_below_zero(fmt, slope, intercept)
    voi, more = read_voi(h.of_frame(FRAME_VOI, (CENTER, WIDTH, VOI_LUT)), signed)
    warnings += more
    inverted = fmt.photometric == "MONOCHROME1"
    # PresentationLUTShape (PS3.3 C.11.6): INVERSE is what MONOCHROME1 says already.
    shape = h.word(0x20500020)
    if shape in ("IDENTITY", "INVERSE") and (shape == "INVERSE") != inverted:
        warnings.append(Caution.POLARITY)
    shown = Presentation(slope, intercept, table, voi, inverted, read_padding(h, fmt))
    return shown, list(dict.fromkeys(warnings))


def read_rescale(h: Header, fmt: Format) -> tuple[float, float, Lut | None, list[Caution]]:
    """Slope, intercept and the modality LUT that goes before them (PS3.3 C.11.1)."""
    slope, intercept = h.number(SLOPE), h.number(INTERCEPT)
    table, warnings = _first_usable(_read_luts(h, MODALITY_LUT, fmt.signed), RESCALE_UNUSABLE)
    if table is None:
        given = ((SLOPE, slope or None), (INTERCEPT, intercept))
        if any(h.has(tag) and value is None for tag, value in given):
            warnings.append(RESCALE_UNUSABLE)
        if h.has_comma(SLOPE) or h.has_comma(INTERCEPT):
            warnings.append(Caution.DECIMAL_COMMA)
    return slope or 1.0, intercept or 0.0, table, warnings


def read_voi(h: Header, signed: bool) -> tuple[Window | Lut | None, list[Caution]]:
    """The first usable window, else the first usable VOI LUT (PS3.3 C.11.2).

    ``signed``: values after the modality step may be negative.
    """
    windows = _read_windows(h)
    voi: Window | Lut | None
    voi, warnings = _first_usable(windows, WINDOW_UNUSABLE)
    several = sum(window is not None for window, _ in windows) > 1
    if voi is None:
        luts = _read_luts(h, VOI_LUT, signed)
        voi, more = _first_usable(luts, WINDOW_UNUSABLE)
        several = sum(lut is not None for lut, _ in luts) > 1
        warnings += more
    if h.has_comma(CENTER) or h.has_comma(WIDTH):
        warnings.append(Caution.DECIMAL_COMMA)
    if several:
        warnings.append(Caution.SEVERAL_WINDOWS)
    return voi, warnings


def _first_usable(found: Found[T], left_out: Caution) -> tuple[T | None, list[Caution]]:
    """It, and what to say of it; ``left_out`` where it is not the first or there is none."""
    warnings = [left_out] if found and found[0][0] is None else []
    for one, said in found:
        if one is not None:
            return one, warnings + said
    return None, warnings


def _read_windows(h: Header) -> Found[Window]:
    """Centres and widths are pairs by position (C.11.2.1.2)."""
    function = h.word(FUNCTION)
    unknown = function not in ("", "LINEAR", "LINEAR_EXACT", "SIGMOID")
    if unknown or not function:
        function = "LINEAR"
    found: list[tuple[Window | None, list[Caution]]] = []
    for center, width in zip_longest(h.values(CENTER), h.values(WIDTH)):
        if center is None or width is None or width < np.finfo(np.float32).tiny:
            found.append((None, []))
        elif function == "LINEAR" and width < 1:
            # C.11.2.1.2.1 has no such width. Where values after the rescale are small, this is
            # meant, and what other readers show.
            found.append((Window(center, width, "LINEAR_EXACT"), [Caution.NONSTANDARD_VALUE]))
        else:
            said = [Caution.NONSTANDARD_VALUE] if unknown else []
            found.append((Window(center, width, function), said))
    return found


def _read_luts(h: Header, sequence: int, signed: bool) -> Found[Lut]:
    items = h.items(sequence)
    if not items and h.has(sequence):  # not a sequence
        return [(None, [])]
    found: list[tuple[Lut | None, list[Caution]]] = []
    for item in items:
        lut, is_short = read_lut(item, signed)
        found.append((lut, [Caution.NONSTANDARD_VALUE] if is_short else []))
    return found


def read_lut(item: Header, signed: bool) -> tuple[Lut | None, bool]:
    """A modality or VOI LUT item (PS3.3 C.11.1.1.1), None where it is not one; is it too short?

    The descriptor is number of entries (0 for 65536), first input value, bits per entry. What is
    not there of the last hundredth of the entries, or is but one, is as the last that is there.
    """
    descriptor = item.words_of_16_bits(DESCRIPTOR)
    if len(descriptor) != 3:
        return None, False
    count, first, bits = (int(v) for v in descriptor)
    count = count or 65536
    if signed and first > 0x7FFF:
        first -= 0x10000
    # 8-bit entries are stored one to a word, or packed, by older writers.
    packed = item.packed_bytes(DATA, count) if bits <= 8 else None
    entries: NDArray[np.integer] = packed if packed is not None else item.words_of_16_bits(DATA)
    missing = max(count - len(entries), 0)
    if count < 2 or len(entries) < 2 or missing > max(1, round(count * (1 - SHORTEST))):
        return None, False
    values = entries[:count].astype(float).tolist()
    return Lut(float(first), tuple(values + values[-1:] * missing)), missing > 0


def _goes_below_zero(fmt: Format, slope: float, intercept: float) -> bool:
    """Whether a stored value may be negative after the rescale (C.11.2.1.1).

    The type of a VOI LUT's first value follows from that: SS where it may, else US.
    """
    span = 2.0 ** min(fmt.stored, 64)  # no more, whatever the header says
    low, high = (-span / 2, span / 2 - 1) if fmt.signed else (0.0, span - 1)
    return min(low * slope, high * slope) + intercept < 0


def read_padding(h: Header, fmt: Format) -> tuple[float, float] | None:
    """PixelPaddingValue to PixelPaddingRangeLimit (PS3.3 C.7.5.1.1.2), lowest first."""
    value = h.stored(PADDING, fmt.signed)
    if value is None:
        return None
    limit = h.stored(PADDING_LIMIT, fmt.signed)
    low, high = sorted((value, value if limit is None else limit))
    return float(low), float(high)


def unreadable(h: Header, fmt: Format) -> list[Caution]:
    """A warning where a default stands in for a value that is there (Image Pixel, C.7.6.3)."""
    floating = fmt.floating
    wrong = [
        fmt.samples == 1
        and h.has(0x00280004)
        and fmt.photometric not in ("MONOCHROME1", "MONOCHROME2", PALETTE),
        h.has(0x00280103) and h.number(0x00280103) not in (0, 1) and not floating,
        h.has(0x00280101) and h.number(0x00280101) != fmt.stored and not floating,
        h.has(0x00280102) and h.number(0x00280102) != fmt.high and not floating,
        *(h.has(tag) and h.number(tag) is None for tag in (0x00280002, 0x00280008)),
        *(h.has(t) and h.stored(t, fmt.signed) is None for t in (PADDING, PADDING_LIMIT)),
    ]
    return [Caution.UNREADABLE_VALUE] if any(wrong) else []
