"""PNG (ISO/IEC 15948) and JPEG (ISO/IEC 10918-1) files, kept at the depth they have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from comit.errors import ItemError
from comit.image import jpeg, png
from comit.image.base import Image, Limits, Samples, ViewPolicy, check_size
from comit.image.exif import orientation, upright
from comit.reasons import Caution, Fail, Skip
from comit.results import Facts


@dataclass
class RasterImage(Image):
    """A PNG or JPEG file whose headers have been checked."""

    data: bytes = field(kw_only=True, repr=False)
    header: png.Header | jpeg.Frame = field(kw_only=True)
    ended: bool = field(kw_only=True)  # by IEND or EOI

    @property
    def working(self) -> int:
        """As :attr:`Image.working`."""
        pixels = self.height * self.width
        header = self.header
        if isinstance(header, jpeg.Frame):  # coefficients, and a second decoding
            return 4 * pixels * header.components
        # scanlines, the same where nothing is compressed, and OpenCV's; alpha in double
        transparent = 16 if header.transparent or header.colour in (4, 6) else 0
        channels = 4 if header.colour == png.PALETTE else png.CHANNELS[header.colour]
        return pixels * (3 * self.dtype.itemsize * channels + transparent)

    @property
    def turn(self) -> int:
        """The Exif Orientation, 1 to 8: how the stored picture is turned to be upright."""
        return orientation(self.header.exif)

    def read_into(self, out: Samples) -> None:
        """Decodes to grey, 8 or 16 bits as stored, upright; colour by luminance, alpha over black.

        Turning loses nothing: every viewer shows the picture that way.
        """
        if self.turn == 1:
            self._read_stored(out)
        else:
            stored = np.empty(out.shape[::-1] if self.turn > 4 else out.shape, out.dtype)
            self._read_stored(stored)
            out[...] = upright(stored, self.turn)
        if not self.ended:  # and yet whole
            self.warnings.append(Caution.END_MARKER)

    def _read_stored(self, out: Samples) -> None:
        """Decodes rows and columns as they are stored."""
        header = self.header
        if isinstance(header, png.Header):
            pixels = _decode_png(self.data, header)
        elif header.components == 4:  # CMYK or YCCK, which OpenCV makes BGR
            data = self.data if self.ended else self.data + jpeg.EOI  # which OpenCV insists on
            pixels = _imdecode(data)
            is_part = not (self.ended or jpeg.has_all_scans(data, header))
            if is_part or (pixels is not None and jpeg.is_cut(data, header, pixels, _imdecode)):
                raise ItemError(Fail.TRUNCATED)
        else:
            direct = out if header.components == 1 and out.flags.c_contiguous else None
            pixels = jpeg.decode(self.data, header, out=direct)
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

    What is missing from the image data of a JPEG is found on decoding.
    """
    header: png.Header | jpeg.Frame
    if data.startswith(png.MAGIC):
        header = png.read_header(data)
        depth, frames = header.depth, header.frames
    else:
        header = jpeg.read_frame(data)
        depth, frames = header.precision, 1
        if (
            header.marker == jpeg.JPEG_LS
            or not 2 <= depth <= 16
            or header.components not in (1, 3, 4)
        ):
            raise ItemError(Fail.DECODE)
    turn = orientation(header.exif)
    height, width = header.height, header.width
    if turn > 4:  # rows become columns
        height, width = width, height
    check_size(height, width, limits)
    skip = Skip.UNVERIFIED_VIEW if policy == "strict" else None  # these files have no tags
    warnings = [] if skip else [Caution.UNVERIFIED_VIEW]
    if turn != 1:
        warnings.append(Caution.ORIENTATION)
    if isinstance(header, png.Header):
        ended, damaged = header.ended, header.damaged
        if damaged or not ended:
            data = png.repaired(data)
    else:
        ended, damaged = data.rfind(jpeg.EOI, header.offset) >= 0, False
    warnings += [Caution.CHECKSUM] * damaged
    return RasterImage(
        height=height,
        width=width,
        dtype=np.dtype(np.uint16 if depth > 8 else np.uint8),
        frames=frames,
        skip=Skip.MULTI_FRAME if frames > 1 else skip,
        warnings=warnings,
        facts=Facts(rows=height, cols=width),
        data=data,
        header=header,
        ended=ended,
    )


def _decode_png(data: bytes, header: png.Header) -> NDArray[Any] | None:
    lines = png.scanlines(data, header)
    if lines is None:
        if not png.is_whole(data, header):  # OpenCV would leave memory unwritten
            raise ItemError(Fail.CORRUPT if header.ended else Fail.TRUNCATED)
        return _imdecode(data)
    pixels = png.unfiltered(lines, header)
    return _imdecode(png.uncompressed(data, lines)) if pixels is None else pixels


def _imdecode(data: bytes) -> NDArray[Any] | None:
    """As stored: no Exif turn, no squashing to 8 bits; None where OpenCV gives up."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
