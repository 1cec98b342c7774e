"""JPEG streams (ISO/IEC 10918-1, 14495-1): what the headers say, and pixels that are all there.

Shared by JPEG files and by JPEG in DICOM. libjpeg-turbo, in imagecodecs, reads sequential and
progressive streams of 8 and 12 bits and lossless ones of 2 to 16.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comit.errors import ItemError
from comit.reasons import Fail

Pixels = NDArray[Any]

LOSSLESS, PROGRESSIVE, JPEG_LS = frozenset({0xC3, 0xCB}), frozenset({0xC2, 0xCA}), 0xF7
# Start-of-frame markers: SOF0 to SOF15 without DHT (C4), JPG (C8) and DAC (CC); SOF55, JPEG-LS.
SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {JPEG_LS}
NO_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})  # TEM, RST0 to RST7, SOI
SOS, EOI = b"\xff\xda", b"\xff\xd9"
NOISE = bytes(range(1, 255))  # entropy-coded data that is not zero and holds no marker


class Frame(NamedTuple):
    """A frame header (B.2.2), with what was met before it."""

    marker: int  # the second byte of its SOF marker
    precision: int  # bits per sample
    height: int
    width: int
    components: int
    offset: int  # of the SOF marker
    exif: bytes | None  # TIFF structure of the APP1 Exif segment
    encoded_rgb: bool | None  # by the Adobe (True, False) or JFIF (False) segment; else None


def read_frame(data: bytes) -> Frame:
    """Walks the markers up to the frame header; raises ItemError where the walk ends early."""
    offset, exif, encoded_rgb = 2, None, None
    while True:
        while data[offset : offset + 2] == b"\xff\xff":  # fill bytes, B.1.1.2
            offset += 1
        if offset + 4 > len(data):
            raise ItemError(Fail.TRUNCATED)
        if data[offset] != 0xFF:
            raise ItemError(Fail.CORRUPT)
        marker = data[offset + 1]
        if marker in NO_LENGTH:
            offset += 2
            continue
        length = struct.unpack_from(">H", data, offset + 2)[0]
        segment = data[offset + 4 : offset + 2 + length]
        if marker in SOF:
            break
        if marker in (0xD9, 0xDA):  # end or scan before any frame header
            raise ItemError(Fail.CORRUPT)
        if marker == 0xE0 and segment.startswith(b"JFIF\0") and encoded_rgb is None:
            encoded_rgb = False  # JFIF is grey or YCbCr
        elif marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            exif = segment[6:]
        elif marker == 0xEE and segment.startswith(b"Adobe") and len(segment) >= 12:
            encoded_rgb = segment[11] == 0  # the colour transform: 0 none, 1 YCbCr, 2 YCCK
        offset += 2 + length
    if len(segment) < 6:
        raise ItemError(Fail.TRUNCATED)
    precision, height, width, components = struct.unpack_from(">BHHB", segment)
    if not height or not width or not components:
        raise ItemError(Fail.CORRUPT)
    return Frame(marker, precision, height, width, components, offset, exif, encoded_rgb)


def near(data: bytes, frame: Frame) -> int | None:
    """NEAR of a JPEG-LS stream's first scan (14495-1 C.2.3): 0 is lossless; None without a scan."""
    start = data.find(b"\xff\xda", frame.offset)
    place = start + 5 + 2 * data[start + 4] if 0 <= start < len(data) - 4 else len(data)
    return data[place] if place < len(data) else None


def decode(data: bytes, frame: Frame, out: Pixels | None = None, **options: Any) -> Pixels:
    """(H, W) or (H, W, components), uint8 up to 8 bits and uint16 above, into ``out`` if it fits.

    Raises ItemError: ``decode`` where libjpeg gives up, ``truncated`` where it does not and data
    are missing. ``options`` go to ``imagecodecs.jpeg8_decode``.
    """
    import imagecodecs

    def run(stream: bytes, out: Pixels | None = None) -> Pixels:
        try:
            pixels: Pixels = imagecodecs.jpeg8_decode(stream, out=out, **options)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException:
            raise ItemError(Fail.DECODE) from None
        return pixels

    pixels = run(data, out)
    if is_cut(data, frame, pixels, run):
        raise ItemError(Fail.TRUNCATED)
    return pixels


def is_cut(
    data: bytes, frame: Frame, pixels: Pixels, decode: Callable[[bytes], Pixels | None]
) -> bool:
    """Whether the entropy-coded data ended before the picture did.

    libjpeg only prints a warning then, and fills the rest with the middle value (128 for 8 bits).
    So where the last pixels have that value (and always in CMYK, where OpenCV mixes it into
    another, and in progressive streams, where a cut blurs instead) the end is replaced by other
    data and decoded again: a whole picture does not change.

    Less than the last block (8 x 8, or 16 x 16 with subsampled colour) may be missing unnoticed.
    """
    end = data.rfind(EOI, frame.offset)
    if end < 0 and not has_all_scans(data, frame):
        return True
    middle = 1 << (frame.precision - 1)
    hidden = frame.marker in PROGRESSIVE or frame.components == 4
    suspect = end < 0 or hidden or bool((pixels[-1, -4:] == middle).all())
    if not suspect:
        return False
    again = decode((data if end < 0 else data[:end]) + NOISE + EOI)
    return again is None or not np.array_equal(again, pixels)


def has_all_scans(data: bytes, frame: Frame) -> bool:
    """Whether a scan came for every component; in progressive streams, for every bit of it.

    A stream that ends between two scans decodes without a complaint: to less detail, or without
    colour.
    """
    sent: dict[tuple[int, int], int] = {}  # component and coefficient: its lowest bit so far
    start = data.find(SOS, frame.offset)
    while 0 <= start < len(data) - 5:
        # Ns, for each component its name and tables, then Ss, Se, Ah and Al (B.2.3)
        tables = start + 5 + 2 * data[start + 4]
        if tables + 3 > len(data):
            break
        first, last, bits = data[tables : tables + 3]
        coefficients = range(first, last + 1) if frame.marker in PROGRESSIVE else range(1)
        for component in data[start + 5 : tables : 2]:
            sent.update(((component, k), bits & 15) for k in coefficients)
        start = data.find(SOS, tables)
    if frame.marker not in PROGRESSIVE:
        return len(sent) == frame.components
    return len(sent) == frame.components * 64 and not any(sent.values())
