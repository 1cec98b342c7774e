"""Compressed frames that a decoder other than comit's may have: plain ones, whole by their markers.

comit's own decoders read everything and run where they may crash. Another one, on a GPU, is given
what is ordinary, so that it cannot mean something else by it: one grey component, unsigned, of 8
bits in bytes or 9 to 16 in words. Markers that a cut would have broken are followed to the end.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from comit.decode.jpeg import EOI, Frame

FORMATS = tuple(
    f"{bits}-bit {name}"
    for name in (
        "JPEG",  # baseline, ISO/IEC 10918-1 SOF0
        "lossless JPEG",  # SOF3, first-order prediction: DICOM's 1.2.840.10008.1.2.4.70
        "JPEG 2000",  # the reversible 5/3 transform
        "lossy JPEG 2000",  # the 9/7 transform
        "HTJ2K",  # ISO/IEC 15444-15, 5/3
        "lossy HTJ2K",
    )
    for bits in (8, 16)
    if (bits, name) != (16, "JPEG")
)
LOSSLESS = frozenset(name for name in FORMATS if "lossy" not in name and name != "8-bit JPEG")

SOF0, SOF3, DHT, DQT, DRI, SOS, COM = 0xC0, 0xC3, 0xC4, 0xDB, 0xDD, 0xDA, 0xFE
# Before the scan beside application segments: tables, restart interval, comments. Not DNL, DAC.
TABLES = frozenset({DHT, DQT, DRI, COM})
# In entropy-coded data: neither a stuffed zero, a restart marker nor a fill byte.
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

# JPEG 2000 (ISO/IEC 15444-1 A.2): what the header of a plain code stream and its tile-parts hold.
SOC, SOD, EOC = b"\xff\x4f", b"\xff\x93", b"\xff\xd9"
SIZ, COD, SOT = 0x51, 0x52, 0x90
IN_MAIN = frozenset({SIZ, COD, 0x50, 0x55, 0x57, 0x59, 0x5C, 0x63, 0x64})  # no COC, RGN, POC, PPM
IN_TILE = frozenset({0x58, 0x64})  # PLT, COM
BLOCKS = {0x00: "JPEG 2000", 0x40: "HTJ2K"}  # by the style of code blocks
LEAST_TILE = 128  # rows and columns of a tile, or the whole picture
LEAST_PRECINCT = 6  # exponent: 64 x 64
MOST_PACKETS = 4096  # tiles x layers x resolutions, of a precinct each; and tile-parts


class Compressed(NamedTuple):
    """A frame's stream, and what its headers say."""

    data: bytes
    format: str  # one of FORMATS
    # What libjpeg puts where data are missing, the middle value; a JPEG that ends in it may be
    # cut. None where markers show that nothing is missing.
    fill: int | None


def plain_jpeg(data: bytes, frame: Frame) -> Compressed | None:
    """A sequential or lossless JPEG stream of one scan; None for any other."""
    name = {SOF0: "JPEG", SOF3: "lossless JPEG"}.get(frame.marker)
    if name is None or frame.components != 1 or (name == "JPEG" and frame.precision != 8):
        return None
    scan = _scan(data, frame.offset)
    if scan is None:
        return None
    start, *selection = scan
    # Lossless: the predictor, 0 and the point transform (H.1.2). Baseline: coefficients 0 to 63.
    if selection != ([1, 0, 0] if frame.marker == SOF3 else [0, 63, 0]):
        return None
    end = MARKER.search(data, start)
    if end is None or end.group() != EOI or data.rfind(EOI) != end.start():
        return None
    return _of(data, name, frame.precision, 1 << (frame.precision - 1))


def _scan(data: bytes, offset: int) -> tuple[int, int, int, int] | None:
    """Where entropy-coded data start, and Ss, Se, Ah with Al of the scan's header (B.2.3)."""
    offset += 2 + struct.unpack_from(">H", data, offset + 2)[0]  # beyond the frame header
    while offset + 4 <= len(data) and data[offset] == 0xFF:
        marker, length = data[offset + 1], struct.unpack_from(">H", data, offset + 2)[0]
        if marker == SOS:
            body = data[offset + 4 : offset + 2 + length]
            if len(body) != 6 or body[0] != 1:
                return None
            return offset + 8 + 2, body[3], body[4], body[5]
        if marker not in TABLES and not 0xE0 <= marker <= 0xEF:
            return None
        offset += 2 + length
    return None


def plain_jpeg2000(data: bytes) -> Compressed | None:
    """A code stream of one component and ordinary structure, whole tile-parts to its end."""
    header = _main_header(data)
    if header is None:
        return None
    name, bits, offset = header
    for _ in range(MOST_PACKETS):
        if not data.startswith(b"\xff\x90", offset) or offset + 12 > len(data):
            break
        length = struct.unpack_from(">I", data, offset + 6)[0]  # Psot, A.4.2
        if length < 14 or not _is_plain_tile(data, offset + 12):
            return None
        offset += length
    return _of(data, name, bits, None) if data.startswith(EOC, offset) else None


def _main_header(data: bytes) -> tuple[str, int, int] | None:
    """The format's name, bits of a sample, and where the first tile-part begins."""
    if not data.startswith(SOC + b"\xff\x51"):
        return None
    offset, tiles, bits, packets, name = 2, 0, 0, 0, ""
    while offset + 4 <= len(data) and data[offset] == 0xFF:
        marker, length = data[offset + 1], struct.unpack_from(">H", data, offset + 2)[0]
        if marker == SOT:
            return (name, bits, offset) if 0 < tiles * packets <= MOST_PACKETS else None
        body = data[offset + 4 : offset + 2 + length]
        if marker not in IN_MAIN or (marker == SIZ and tiles) or (marker == COD and packets):
            return None
        if marker == SIZ:
            tiles, bits = _size(body)
        elif marker == COD:
            packets, name = _coding(body)
        offset += 2 + length
    return None


def _size(body: bytes) -> tuple[int, int]:
    """Tiles and bits of a SIZ segment (A.5.1); no tiles where it is not plain."""
    if len(body) != 39:  # one component
        return 0, 0
    _, x, y, x0, y0, xt, yt, xt0, yt0, _, depth, dx, dy = struct.unpack(">H8IHBBB", body)
    if x0 or y0 or xt0 or yt0 or (dx, dy) != (1, 1) or depth >= 16:  # the top bit: signed
        return 0, 0
    if not x or not y or xt < min(x, LEAST_TILE) or yt < min(y, LEAST_TILE):
        return 0, 0
    return -(-x // xt) * -(-y // yt), depth + 1


def _coding(body: bytes) -> tuple[int, str]:
    """Packets of a tile and the format's name, of a COD segment (A.6.1); none if not plain."""
    if len(body) < 10:
        return 0, ""
    _, layers, _, levels, _, _, blocks, transform = struct.unpack_from(">BHBBBBBB", body, 1)
    precincts = body[10:]
    if body[0] & ~7 or len(precincts) != (levels + 1 if body[0] & 1 else 0):
        return 0, ""
    if any(min(p & 15, p >> 4) < LEAST_PRECINCT for p in precincts):
        return 0, ""
    if blocks not in BLOCKS or transform > 1:
        return 0, ""
    return layers * (levels + 1), ("lossy ", "")[transform] + BLOCKS[blocks]


def _is_plain_tile(data: bytes, offset: int) -> bool:
    """Whether a tile-part's header, which begins at ``offset``, overrides nothing."""
    while offset + 4 <= len(data) and data[offset] == 0xFF and data[offset + 1] in IN_TILE:
        offset += 2 + struct.unpack_from(">H", data, offset + 2)[0]
    return data.startswith(SOD, offset)


def _of(data: bytes, name: str, bits: int, fill: int | None) -> Compressed | None:
    if not 8 <= bits <= 16:
        return None
    return Compressed(data, f"{8 if bits == 8 else 16}-bit {name}", fill)
