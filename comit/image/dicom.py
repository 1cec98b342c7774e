"""DICOM files: what the header says, and one-channel stored values.

Four questions, one module each: :mod:`comit.image.header` (what was written),
:mod:`comit.image.radiograph` (what it shows), :mod:`comit.image.codecs` (the samples),
:mod:`comit.image.presentation` (how they are to be shown).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comit.errors import ItemError
from comit.image.base import Image, Limits, Memory, Samples, ViewPolicy, check_size
from comit.image.codecs import (
    SYNTAXES,
    Codec,
    Format,
    decode_frame,
    frame_bytes,
    native_frame,
    row_blocks,
)
from comit.image.header import DOUBLE, FLOAT, UNDEFINED, Header, is_dicom, quiet, read_header
from comit.image.presentation import PALETTE, read_presentation
from comit.image.radiograph import MODALITY, judge
from comit.reasons import Caution, Fail, Skip
from comit.results import Facts

__all__ = ["DicomImage", "is_dicom", "open_dicom"]

NATIVE = Codec.NATIVE
ITEM = b"\xfe\xff\x00\xe0"
# Bytes a sample that codecs take for themselves, measured and rounded up: libjpeg for coefficients
# of progressive streams and for a second decoding, OpenJPEG for coefficients of 32 bits.
WORKING = {Codec.JPEG: 4, Codec.JPEG_2000: 6}
MAY_BE_LOSSY = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (91, 93, 203))  # JPEG 2000
STREAMS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")  # JPEG and JPEG-LS, JPEG 2000
LUMINANCE = (0.299, 0.587, 0.114)  # of R, G, B: ITU-R BT.601, the Y of YBR_FULL


@dataclass
class DicomImage(Image):
    """One DICOM object whose header has been read. ``skip`` says why it is not to be screened."""

    header: Header = field(kw_only=True, repr=False)
    format: Format = field(kw_only=True)
    codec: Codec | None = None  # None where the transfer syntax does not say

    def read_into(self, out: Samples) -> None:
        """Decodes to ``out``, (height, width) of ``dtype``; colour by luminance."""
        pixels = self._decode(0, out if self._is_grey else None)
        if not self._is_grey:
            self._grey(pixels, out)
        elif pixels is not out:
            out[...] = pixels

    @property
    def in_place(self) -> bool:
        """Uncompressed grey values, whose unused bits are usually clear."""
        return self.codec is NATIVE and self._is_grey

    @property
    def working(self) -> int:
        """As :attr:`Image.working`."""
        fmt = self.format
        size = max(fmt.allocated // 8, 1)
        codec = WORKING.get(self.codec or Codec.JPEG_2000, 2 * size)
        colour = 0 if self._is_grey else 2 * size  # as decoded, and as RGB
        return fmt.rows * fmt.columns * fmt.samples * (codec + colour)

    @property
    def _is_grey(self) -> bool:
        return self.format.samples == 1 and self.format.photometric != PALETTE

    def samples(self, memory: Memory | None = None, offset: int = 0) -> Samples:
        """As :meth:`Image.samples`."""
        if not self.in_place:
            return super().samples(memory, offset)
        return np.require(self._decode(0, None), requirements=["ALIGNED"])

    @property
    def _is_encapsulated(self) -> bool:
        h = self.header
        if h.pixels_length == UNDEFINED:
            return True
        return self.codec is not NATIVE and h.body.startswith(ITEM, h.pixels_start)

    def frame(self, index: int = 0) -> Samples:
        """Stored values of one frame: (H, W), indices for a palette; or (H, W, 3) RGB."""
        return self._decode(index, None)

    def _decode(self, index: int, out: Samples | None) -> Samples:
        h, fmt = self.header, self.format
        check(h, fmt, self.codec)
        start, length = h.pixels_start, h.pixels_length
        if self._is_encapsulated:
            stream = frame_bytes(h.body, start, length, fmt, self._warn, index)
        elif self.codec is NATIVE:
            return native_frame(h.body, start, fmt, self._warn, index)
        elif fmt.frames == 1 and h.body.startswith(STREAMS, start):  # bare, without items
            self._warn(Caution.SYNTAX_MISMATCH)
            stream = h.body[start : start + length]
        elif 0 <= excess(h, fmt) <= 1:  # decompressed by a tool that left the syntax as it was
            self._warn(Caution.SYNTAX_MISMATCH)
            return native_frame(h.body, start, fmt, self._warn, index)
        else:
            raise ItemError(Fail.CORRUPT)
        return decode_frame(stream, self.codec, fmt, self._warn, out)

    def _warn(self, caution: Caution) -> None:
        if caution not in self.warnings:
            self.warnings.append(caution)

    def _look_up(self, indices: Samples) -> Samples:
        """(H, W) palette indices to (H, W, 3) RGB (PS3.3 C.7.9)."""
        from pydicom.pixels.processing import apply_color_lut

        elements = self.header.elements
        kind = "" if "RedPaletteColorLookupTableData" in elements else "Segmented"
        tables = [f"{kind}{name}PaletteColorLookupTableData" for name in ("Red", "Green", "Blue")]
        try:
            with quiet():
                if not all(elements.get(name) for name in tables):  # pydicom would move others up
                    raise ItemError(Fail.CORRUPT)
                rgb: Samples = apply_color_lut(indices, elements)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except Exception:
            raise ItemError(Fail.CORRUPT) from None
        return rgb[..., :3].astype(self.dtype, copy=False)

    def _grey(self, pixels: NDArray[Any], out: Samples) -> None:
        """(H, W, 3) or indices to (H, W) ``out``; a warning unless it was grey all along."""
        is_palette = self.format.photometric == PALETTE

        def rgb(rows: slice) -> NDArray[Any]:
            return self._look_up(pixels[rows]) if is_palette else pixels[rows]

        is_grey = all(
            np.array_equal(p[..., 0], p[..., 1]) and np.array_equal(p[..., 1], p[..., 2])
            for p in map(rgb, row_blocks(pixels))
        )
        if not is_grey:
            self._warn(Caution.COLOUR)
        weights = np.asarray(LUMINANCE, np.float32 if self.dtype.itemsize < 4 else np.float64)
        for rows in row_blocks(pixels):
            colour = rgb(rows)
            out[rows] = colour[..., 0] if is_grey else np.rint(colour @ weights)


def open_dicom(data: bytes, limits: Limits, policy: ViewPolicy = "tagged") -> DicomImage:
    """Reads the header. What is left out on purpose is in ``skip``, which comes before faults.

    Raises ItemError for a header that cannot be read, and where nothing is to be skipped, for
    pixels that are missing, do not fit the header, or cannot be decoded by what is installed.
    """
    with quiet():  # pydicom converts values when they are asked for, and comments on them
        return _open(data, limits, policy)


def _open(data: bytes, limits: Limits, policy: ViewPolicy) -> DicomImage:
    header = read_header(data)
    fmt = read_format(header)
    # PS3.10 7.1: without file meta the syntax is the reader's guess; a stream shows its own.
    uid = header.uid(0x00020010)
    codec = SYNTAXES.get(uid) if uid else (None if header.pixels_length == UNDEFINED else NATIVE)
    colour = fmt.samples != 1 or fmt.photometric == PALETTE
    verdict = judge(header, fmt.frames, colour, policy)
    if header.pixels_tag is None and verdict.skip is Skip.MODALITY and not header.word(MODALITY):
        raise ItemError(Fail.NO_PIXELS)  # nothing says what it is but that it has none
    presentation, more = read_presentation(header, fmt)
    image = DicomImage(
        height=fmt.rows,
        width=fmt.columns,
        dtype=_dtype(header, fmt),
        presentation=presentation,
        frames=fmt.frames,
        skip=verdict.skip,
        verified=verdict.verified,
        warnings=list(verdict.warnings),
        facts=Facts(
            view=verdict.view,
            rows=fmt.rows,
            cols=fmt.columns,
            sop_instance_uid=header.uid(0x00080018),
            series_instance_uid=header.uid(0x0020000E),
            study_instance_uid=header.uid(0x0020000D),
        ),
        header=header,
        format=fmt,
        codec=codec,
    )
    if verdict.skip is None:
        check(header, fmt, codec)
        check_size(fmt.rows, fmt.columns, limits)
        image.warnings += more
        if not header.has_meta:
            image.warnings.append(Caution.NO_FILE_META)
        if header.has_blank_vr:
            image.warnings.append(Caution.UNKNOWN_VR)
        if codec is NATIVE and excess(header, fmt) > 1:  # one byte pads to an even length
            image.warnings.append(Caution.LENGTH)
    return image


def read_format(h: Header) -> Format:
    """The Image Pixel attributes; what is missing or absurd becomes 0, or its usual value."""
    floating = h.pixels_tag in (FLOAT, DOUBLE)
    allocated = {FLOAT: 32, DOUBLE: 64}.get(h.pixels_tag or 0, h.integer(0x00280100))
    stored = h.integer(0x00280101)
    if not 1 <= stored <= allocated:
        stored = allocated
    high = h.integer(0x00280102)
    if not stored - 1 <= high < allocated:
        high = stored - 1
    samples = h.integer(0x00280002, 1)
    photometric = h.word(0x00280004) or ("MONOCHROME2" if samples == 1 else "RGB")
    ge_private = h.uid(0x00020010) == "1.2.840.113619.5.2"
    return Format(
        rows=max(h.integer(0x00280010), 0),
        columns=max(h.integer(0x00280011), 0),
        samples=samples,
        photometric=photometric,
        planar=h.integer(0x00280006) == 1,
        allocated=allocated,
        stored=stored,
        high=high,
        signed=h.integer(0x00280103) == 1 and not floating,
        floating=floating,
        big_endian=h.big_endian or ge_private,
        swapped=h.big_endian and h.pixels_vr == "OW" and allocated in (1, 8),
        frames=max(h.integer(0x00280008, 1), 1),
        overlays=any(h.integer(0x60000102 + (group << 17)) > 0 for group in range(16)),
        lossy=h.word(0x00282110) == "01" and h.uid(0x00020010) in MAY_BE_LOSSY,
    )


def check(h: Header, fmt: Format, codec: Codec | None) -> None:
    """Raises ItemError where these pixels cannot be what the header says."""
    if h.pixels_tag is None:
        raise ItemError(Fail.NO_PIXELS)
    if not fmt.rows or not fmt.columns or fmt.samples not in (1, 3):
        raise ItemError(Fail.BAD_GEOMETRY)
    if fmt.allocated not in ((32, 64) if fmt.floating else (1, 8, 16, 32)):
        raise ItemError(Fail.BAD_GEOMETRY)
    has_pairs = codec in (NATIVE, Codec.DEFLATE) and fmt.photometric == "YBR_FULL_422"
    if has_pairs and fmt.columns % 2:  # PS3.3 C.7.6.3.1: of native data alone
        raise ItemError(Fail.BAD_GEOMETRY)
    if h.pixels_length == 0:
        raise ItemError(Fail.NO_PIXELS)
    if h.pixels_length != UNDEFINED and h.pixels_start + h.pixels_length > len(h.body):
        raise ItemError(Fail.TRUNCATED)
    if codec is None and h.uid(0x00020010):
        raise ItemError(Fail.UNSUPPORTED_TRANSFER_SYNTAX)
    if codec is NATIVE and excess(h, fmt) < 0:
        raise ItemError(Fail.BAD_GEOMETRY)


def excess(h: Header, fmt: Format) -> int:
    """Bytes of pixel data beyond what native frames need; negative where some are missing."""
    if h.pixels_length == UNDEFINED:
        return 0
    return h.pixels_length - (fmt.frame_bits * fmt.frames + 7) // 8


def _dtype(h: Header, fmt: Format) -> np.dtype[Any]:
    """Of the values read_into gives: those of a palette have its depth."""
    if fmt.photometric == PALETTE:
        descriptor = h.numbers(0x00281101)
        return np.dtype(np.uint16 if len(descriptor) == 3 and descriptor[2] > 8 else np.uint8)
    known = (32, 64) if fmt.floating else (1, 8, 16, 32)
    return fmt.dtype if fmt.allocated in known else np.dtype(np.uint8)
