"""PNG (ISO/IEC 15948) and JPEG (ISO/IEC 10918-1) files, kept at the depth they have."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from comit.decode import Image, Limits, Samples, ViewPolicy, check_size, jpeg
from comit.errors import ItemError
from comit.reasons import Caution, Fail, Skip

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# Colour types and the bit depths each may have, 11.2.1.
PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


@dataclass
class RasterImage(Image):
    """A PNG or JPEG file whose headers have been checked."""

    data: bytes = b""
    frame: jpeg.Frame | None = None  # of a JPEG file

    def read_into(self, out: Samples) -> None:
        """Decodes to grey, 8 or 16 bits as stored; colour by luminance, alpha over black."""
        if self.frame is None:
            pixels = _imdecode(self.data)
        elif self.frame.components == 4:  # CMYK or YCCK, which OpenCV makes BGR
            pixels = _imdecode(self.data)
            if pixels is not None and jpeg.is_cut(self.data, self.frame, pixels, _imdecode):
                raise ItemError(Fail.TRUNCATED)
        else:
            direct = out if self.frame.components == 1 and out.flags.c_contiguous else None
            pixels = jpeg.decode(self.data, self.frame, out=direct)
            if pixels is direct:
                return
            if pixels.ndim == 3:
                pixels = pixels[..., ::-1]  # RGB to BGR
        if pixels is None or pixels.shape[:2] != out.shape or pixels.dtype != out.dtype:
            raise ItemError(Fail.CORRUPT)
        if pixels.ndim == 3:
            pixels = self._grey(pixels)
        out[...] = pixels

    def _grey(self, pixels: NDArray[Any]) -> NDArray[Any]:
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


def open_raster(data: bytes, limits: Limits, policy: ViewPolicy = "tagged") -> RasterImage:
    """Reads the structure of a PNG or JPEG file; raises ItemError where it is broken.

    OpenCV fills what is missing from a damaged PNG and reports nothing, so completeness and the
    checksums are checked here; :func:`comit.decode.jpeg.is_cut` does so for JPEG.
    """
    frame, frames = None, 1
    if data.startswith(PNG_MAGIC):
        height, width, depth, frames, exif = _png_header(data)
    else:
        frame = jpeg.read_frame(data)
        height, width, depth, exif = frame.height, frame.width, frame.precision, frame.exif
        if data.rfind(jpeg.EOI, frame.offset) < 0:
            raise ItemError(Fail.TRUNCATED)
        if (
            frame.marker == jpeg.JPEG_LS
            or not 2 <= depth <= 16
            or frame.components not in (1, 3, 4)
        ):
            raise ItemError(Fail.DECODE)
    check_size(height, width, limits)
    skip = Skip.UNVERIFIED_VIEW if policy == "strict" else None  # these files have no tags
    warnings = [] if skip else [Caution.UNVERIFIED_VIEW]
    if exif is not None and _exif_orientation(exif) not in (None, 1):
        warnings.append(Caution.ORIENTATION)
    return RasterImage(
        height=height,
        width=width,
        dtype=np.dtype(np.uint16 if depth > 8 else np.uint8),
        frames=frames,
        skip=Skip.MULTI_FRAME if frames > 1 else skip,
        warnings=warnings,
        data=data,
        frame=frame,
    )


def _imdecode(data: bytes) -> NDArray[Any] | None:
    """As stored: no EXIF turn, no squashing to 8 bits; None where OpenCV gives up."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None


def _png_header(data: bytes) -> tuple[int, int, int, int, bytes | None]:
    """Height, width, bit depth, frames and Exif; walks every chunk and checks its checksum."""
    view, offset, frames = memoryview(data), len(PNG_MAGIC), 1
    header, exif, has_data = None, None, False
    while True:
        if offset + 12 > len(data):
            raise ItemError(Fail.TRUNCATED)
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + 12 + length
        if end > len(data):
            raise ItemError(Fail.TRUNCATED)
        if zlib.crc32(view[offset + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise ItemError(Fail.CORRUPT)
        if (kind == b"IHDR") != (header is None):  # first, and once
            raise ItemError(Fail.CORRUPT)
        if kind == b"IHDR" and length == 13:
            header = struct.unpack_from(">IIBB", data, offset + 8)
        elif kind == b"IDAT":
            has_data = True
        elif kind == b"acTL" and length == 8:  # animated PNG
            frames = struct.unpack_from(">I", data, offset + 8)[0]
        elif kind == b"eXIf":
            exif = data[offset + 8 : end - 4]
        elif kind == b"IEND":
            break
        offset = end
    if header is None or not has_data:
        raise ItemError(Fail.CORRUPT)
    width, height, depth, colour = header
    if not width or not height or depth not in PNG_DEPTHS.get(colour, ()):
        raise ItemError(Fail.CORRUPT)
    return height, width, depth, frames, exif


def _exif_orientation(tiff: bytes) -> int | None:
    """The Orientation tag (0x0112) of an Exif structure's first directory, or None."""
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
