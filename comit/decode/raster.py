"""PNG (ISO/IEC 15948) and JPEG (ISO/IEC 10918-1) files through OpenCV, kept at their depth."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np

from comit.decode import Image, Limits, Samples, check_size
from comit.errors import ItemError
from comit.preprocess import Presentation
from comit.reasons import Caution, Fail, Skip

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# Start-of-frame markers: SOF0 to SOF15 without DHT (C4), JPG (C8) and DAC (CC).
JPEG_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_NO_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})  # TEM, RST0 to RST7, SOI


@dataclass
class RasterImage(Image):
    """A PNG or JPEG file whose headers have been checked."""

    data: bytes = b""

    def read_into(self, out: Samples) -> None:
        """Decodes to grey, 8 or 16 bits as stored; colour by luminance, alpha over black."""
        pixels = cv2.imdecode(np.frombuffer(self.data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None or pixels.shape[:2] != out.shape or pixels.dtype != out.dtype:
            raise ItemError(Fail.CORRUPT)
        if pixels.ndim == 3:
            pixels = self._grey(pixels)
        out[...] = pixels

    def _grey(self, pixels: Samples) -> Samples:
        """(H, W, 3 or 4) BGR or BGRA to (H, W) of the same type."""
        colour, top = pixels[..., :3], np.iinfo(pixels.dtype).max
        blue, green, red = colour[..., 0], colour[..., 1], colour[..., 2]
        if np.array_equal(blue, green) and np.array_equal(green, red):
            grey = green  # a grey picture saved in colour
        else:
            grey = cv2.cvtColor(np.ascontiguousarray(colour), cv2.COLOR_BGR2GRAY)
            self.warnings.append(Caution.COLOUR)
        if pixels.shape[2] == 4 and (pixels[..., 3] != top).any():
            grey = np.round(grey * (pixels[..., 3] / top)).astype(pixels.dtype)
            if Caution.COLOUR not in self.warnings:
                self.warnings.append(Caution.COLOUR)
        return grey


def open_raster(data: bytes, limits: Limits) -> RasterImage:
    """Reads the structure of a PNG or JPEG file; raises ItemError where it is broken.

    OpenCV fills what is missing from a damaged stream with grey and reports nothing, so
    completeness (and PNG's checksums) are checked here.
    """
    if data.startswith(PNG_MAGIC):
        height, width, depth, frames, warnings = _png_header(data)
    else:
        height, width, depth, frames, warnings = _jpeg_header(data)
    check_size(height, width, limits)
    return RasterImage(
        height=height,
        width=width,
        dtype=np.dtype(np.uint16 if depth == 16 else np.uint8),
        presentation=Presentation(),
        frames=frames,
        skip=Skip.MULTI_FRAME if frames > 1 else None,
        warnings=[Caution.UNVERIFIED_VIEW, *warnings],
        data=data,
    )


def _png_header(data: bytes) -> tuple[int, int, int, int, list[Caution]]:
    """Height, width, bit depth, frames and warnings; walks and checks every chunk."""
    view, offset, frames, header = memoryview(data), len(PNG_MAGIC), 1, None
    while True:
        if offset + 12 > len(data):
            raise ItemError(Fail.TRUNCATED)
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + 12 + length
        if end > len(data):
            raise ItemError(Fail.TRUNCATED)
        if zlib.crc32(view[offset + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise ItemError(Fail.CORRUPT)
        if kind == b"IHDR" and length == 13:
            header = struct.unpack_from(">IIB", data, offset + 8)
        elif kind == b"acTL" and length == 8:  # animated PNG
            frames = struct.unpack_from(">I", data, offset + 8)[0]
        elif kind == b"IEND":
            break
        offset = end
    if header is None or 0 in header:
        raise ItemError(Fail.CORRUPT)
    width, height, depth = header
    return height, width, depth, frames, []


def _jpeg_header(data: bytes) -> tuple[int, int, int, int, list[Caution]]:
    """Height, width, bit depth, frames and warnings; walks the markers up to the scan."""
    offset, warnings = 2, []
    while True:
        while data[offset : offset + 2] == b"\xff\xff":  # fill bytes, B.1.1.2
            offset += 1
        if offset + 4 > len(data):
            raise ItemError(Fail.TRUNCATED)
        if data[offset] != 0xFF:
            raise ItemError(Fail.CORRUPT)
        marker = data[offset + 1]
        if marker in JPEG_NO_LENGTH:
            offset += 2
            continue
        length = struct.unpack_from(">H", data, offset + 2)[0]
        segment = data[offset + 4 : offset + 2 + length]
        if marker in JPEG_SOF:
            break
        if marker == 0xE1 and _exif_orientation(segment) not in (None, 1):
            warnings.append(Caution.ORIENTATION)
        if marker in (0xD9, 0xDA):  # end or scan before any frame header
            raise ItemError(Fail.CORRUPT)
        offset += 2 + length
    if len(segment) < 6:
        raise ItemError(Fail.TRUNCATED)
    depth, height, width, components = struct.unpack_from(">BHHB", segment)
    if data.rfind(b"\xff\xd9", offset) < 0:
        raise ItemError(Fail.TRUNCATED)
    if marker not in (0xC0, 0xC1, 0xC2) or depth != 8:  # baseline, extended, progressive
        raise ItemError(Fail.DECODE)
    if not height or not width or not components:
        raise ItemError(Fail.CORRUPT)
    return height, width, depth, 1, warnings


def _exif_orientation(segment: bytes) -> int | None:
    """The Orientation tag (0x0112) of an APP1 Exif segment's first directory, or None."""
    if not segment.startswith(b"Exif\0\0"):
        return None
    tiff = segment[6:]
    try:
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        directory = struct.unpack_from(order + "I", tiff, 4)[0]
        for i in range(struct.unpack_from(order + "H", tiff, directory)[0]):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * i)
            if tag == 0x0112:
                return int(value)
    except (KeyError, struct.error):
        pass
    return None
