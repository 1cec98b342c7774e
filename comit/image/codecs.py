"""DICOM pixel data (PS3.5 8, A.4) to arrays of stored values.

Compressed streams go to bare codecs of imagecodecs, which release the GIL and decode into the
caller's memory. A stream's own header is read first: its size must be the data set's, so that
no codec takes more memory than was granted. What a codec leaves unwritten would be memory of
other pictures: docs/explanation/decoding.md says for each why it leaves nothing, and a test tries
them all.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comit.errors import ItemError
from comit.image import jpeg
from comit.image.header import UNDEFINED, quiet
from comit.reasons import Caution, Fail

Pixels = NDArray[Any]

FRAGMENTS = 100_000  # items of encapsulated pixel data; one frame has one, rarely some hundred
BLOCK = 2**18  # pixels that are converted at a time, so that no wide copy of a frame is made
SPARE = 2**16  # bytes that an RLE segment may have beyond its pixels: padding
REVERSIBLE = 1  # the 5/3 wavelet transform, ISO/IEC 15444-1 table A.20


class Codec(Enum):
    """How one frame is stored."""

    NATIVE = "native"
    RLE = "rle"  # PS3.5 annex G
    DEFLATE = "deflate"  # a frame at a time, PS3.5 A.4.13
    JPEG = "jpeg"
    JPEG_LS = "jpeg_ls"
    JPEG_2000 = "jpeg_2000"  # and high-throughput: OpenJPEG reads both


_UID = "1.2.840.10008.1.2"
SYNTAXES: dict[str, Codec] = {
    **dict.fromkeys((_UID, f"{_UID}.1", f"{_UID}.2", f"{_UID}.1.99"), Codec.NATIVE),
    "1.2.840.113619.5.2": Codec.NATIVE,  # GE: big-endian pixels in a little-endian data set
    f"{_UID}.5": Codec.RLE,
    f"{_UID}.8.1": Codec.DEFLATE,
    **{f"{_UID}.4.{n}": Codec.JPEG for n in (*range(50, 67), 70)},
    **{f"{_UID}.4.{n}": Codec.JPEG_LS for n in (80, 81)},
    **{f"{_UID}.4.{n}": Codec.JPEG_2000 for n in (90, 91, 92, 93, 201, 202, 203)},
}


@dataclass(frozen=True)
class Format:
    """The Image Pixel attributes (PS3.3 C.7.6.3), checked; and how they are laid out."""

    rows: int
    columns: int
    samples: int  # per pixel, 1 or 3
    photometric: str
    planar: bool
    allocated: int  # bits: 1, 8, 16, 32, or 64 for floats
    stored: int
    high: int
    signed: bool
    floating: bool
    big_endian: bool
    swapped: bool  # bytes are swapped in pairs: 8-bit samples in big-endian words, PS3.5 8.1.1
    frames: int
    overlays: bool  # unused bits may hold overlay planes (retired, PS3.3 C.9.2)
    lossy: bool = False  # reversible JPEG 2000 may have been cut to a size, by the header

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored values, in the machine's byte order."""
        if self.floating:
            return np.dtype(f"f{self.allocated // 8}")
        return np.dtype(f"{'i' if self.signed else 'u'}{max(self.allocated // 8, 1)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W) or (H, W, 3)."""
        return (self.rows, self.columns, 3)[: 2 if self.samples == 1 else 3]

    @property
    def frame_bits(self) -> int:
        """Bits that one native frame takes."""
        per_pixel = self.samples * self.allocated
        if self.photometric == "YBR_FULL_422":  # two pixels share a Cb and a Cr
            per_pixel = 2 * self.allocated
        return self.rows * self.columns * per_pixel


class Stream(NamedTuple):
    """What a compressed stream says of itself."""

    codec: Codec
    rows: int
    columns: int
    samples: int
    bits: int  # precision
    signed: bool
    lossless: bool
    frame: jpeg.Frame | None = None


class Encapsulated(NamedTuple):
    """Where encapsulated pixel data (PS3.5 A.4) lies in the file."""

    fragments: list[tuple[int, int]]  # start and stop of each, without the offset table
    is_delimited: bool  # by the sequence delimiter, or by their defined length


def find_fragments(data: bytes, start: int, length: int) -> Encapsulated:
    """Walks the items of encapsulated pixel data: ``length`` bytes, or up to the delimiter.

    Whole fragments without a delimiter behind them are all there; the codec says whether the
    picture is. Raises ItemError ``truncated`` where the file ends in one, ``corrupt``,
    ``too_complex``.
    """
    found: list[tuple[int, int]] = []
    is_delimited = length != UNDEFINED
    offset, end = start, start + length if is_delimited else len(data)
    while offset + 8 <= end:
        group, element, length = struct.unpack_from("<HHI", data, offset)
        offset += 8
        if (group, element) == (0xFFFE, 0xE0DD):
            is_delimited = True
            break
        if (group, element) != (0xFFFE, 0xE000) or length == UNDEFINED:
            if len(found) < 2:
                raise ItemError(Fail.CORRUPT)
            is_delimited = False
            break
        if offset + length > end:
            raise ItemError(Fail.TRUNCATED)
        if len(found) == FRAGMENTS:
            raise ItemError(Fail.TOO_COMPLEX)
        found.append((offset, offset + length))
        offset += length
    return Encapsulated(found[1:], is_delimited)


def frame_bytes(
    data: bytes,
    start: int,
    length: int,
    fmt: Format,
    warn: Callable[[Caution], None],
    index: int = 0,
) -> bytes:
    """The compressed stream of one frame.

    Raises ItemError ``truncated``, ``no_pixels`` and what :func:`find_fragments` does.
    """
    parts = find_fragments(data, start, length)
    if len(parts.fragments) < max(fmt.frames, 1):
        is_empty = parts.is_delimited and not parts.fragments
        raise ItemError(Fail.NO_PIXELS if is_empty else Fail.TRUNCATED)
    if not parts.is_delimited:
        warn(Caution.END_MARKER)
    if fmt.frames == 1:
        return b"".join(data[a:b] for a, b in parts.fragments)
    if len(parts.fragments) == fmt.frames:
        return data[slice(*parts.fragments[index])]
    from pydicom.encaps import generate_frames

    with _translated(Fail.CORRUPT), quiet():
        stream = io.BytesIO(data)
        stream.seek(start)
        frames = generate_frames(stream, number_of_frames=fmt.frames)
        return next(itertools.islice(frames, index, None))


def sniff(data: bytes) -> Stream | None:
    """Reads the header of a JPEG, JPEG-LS or JPEG 2000 stream; None where it is none of these.

    Raises ItemError where it is one, and broken.
    """
    if data.startswith(b"\xff\xd8\xff"):
        frame = jpeg.read_frame(data)
        is_ls = frame.marker == jpeg.JPEG_LS
        lossless = jpeg.near(data, frame) == 0 if is_ls else frame.marker in jpeg.LOSSLESS
        size = (frame.height, frame.width, frame.components, frame.precision)
        return Stream(Codec.JPEG_LS if is_ls else Codec.JPEG, *size, False, lossless, frame)
    start = 0
    if data.startswith(b"\0\0\0\x0cjP  \r\n\x87\n"):  # a JP2 file, which DICOM forbids
        start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or not data.startswith(b"\xff\x4f\xff\x51", start):
        return None
    if len(data) < start + 43:
        raise ItemError(Fail.TRUNCATED)
    # SIZ (ISO/IEC 15444-1 A.5.1): Xsiz, Ysiz, XOsiz, YOsiz, four of tiles, Csiz, Ssiz
    x, y, x0, y0, _, _, _, _, components, depth = struct.unpack_from(">8IHB", data, start + 8)
    signed, bits = bool(depth & 0x80), (depth & 0x7F) + 1
    lossless = _transform(data, start + 2) == REVERSIBLE
    return Stream(Codec.JPEG_2000, y - y0, x - x0, components, bits, signed, lossless)


def _transform(data: bytes, offset: int) -> int | None:
    """The wavelet transform that the COD segment of a main header names (A.6.1)."""
    while offset + 14 <= len(data) and data[offset] == 0xFF:
        marker, length = data[offset + 1], struct.unpack_from(">H", data, offset + 2)[0]
        if marker == 0x52:
            return data[offset + 13]
        offset += 2 + length
    return None


def decode_frame(
    data: bytes,
    codec: Codec | None,
    fmt: Format,
    warn: Callable[[Caution], None],
    out: Pixels | None = None,
) -> Pixels:
    """One frame's stream to (H, W) or (H, W, 3) stored values; colour as RGB.

    ``out``, (H, W) of ``fmt.dtype``, is written and returned where the codec can.
    Raises ItemError: what :func:`sniff` finds, ``bad_geometry``, ``decode``, ``truncated``.
    """
    stream = sniff(data) if codec is not Codec.DEFLATE else None
    if stream is not None and stream.codec is not codec:
        if codec is not None:
            warn(Caution.SYNTAX_MISMATCH)
        codec = stream.codec
    if codec is Codec.DEFLATE:
        return native_frame(_inflate(data, (fmt.frame_bits + 7) // 8), 0, fmt, warn)
    if codec is Codec.RLE:
        return _unpack_rle(data, fmt, warn)
    if stream is None:
        raise ItemError(Fail.DECODE)
    if (stream.rows, stream.columns, stream.samples) != (fmt.rows, fmt.columns, fmt.samples):
        raise ItemError(Fail.BAD_GEOMETRY)
    if fmt.floating or stream.bits > max(8, fmt.allocated) or stream.bits > 32:
        raise ItemError(Fail.BAD_GEOMETRY)
    pixels = _run(stream, data, fmt, out)
    if data.rfind(jpeg.EOI) < 0:  # EOC of JPEG 2000 is the same
        warn(Caution.END_MARKER)
    return _in_format(pixels, stream, fmt, warn)


def _run(stream: Stream, data: bytes, fmt: Format, out: Pixels | None) -> Pixels:
    """The codec's own values: colour as RGB, no sign correction."""
    import imagecodecs

    width = 1 if stream.bits <= 8 else 2 if stream.bits <= 16 else 4
    kind = "i" if stream.signed else "u"
    target = None
    if out is not None and out.dtype.itemsize == width and out.flags.c_contiguous:
        target = out.view(f"{kind}{width}")
    if stream.frame is not None and stream.codec is Codec.JPEG:
        options: dict[str, str] = {}
        if stream.samples == 3:
            # The stream's own marker wins; else the data set says (PS3.5 8.2.1).
            rgb = stream.frame.encoded_rgb
            if rgb is None:
                rgb = fmt.photometric == "RGB"
            lossless = stream.frame.marker in jpeg.LOSSLESS
            coded = "RGB" if rgb or lossless else "YCBCR"
            options = {"colorspace": coded, "outcolorspace": "RGB"}
        pixels = jpeg.decode(data, stream.frame, target, **options)
        if options and lossless and fmt.photometric.startswith("YBR"):
            pixels = ybr_to_rgb(pixels, stream.bits)
        return pixels
    with _translated(Fail.DECODE):
        if stream.codec is Codec.JPEG_LS:
            pixels = imagecodecs.jpegls_decode(data, out=target)
        else:
            # Not htj2k_decode: it swallows OpenJPH's errors and wraps values that overflow.
            pixels = imagecodecs.jpeg2k_decode(data, out=target)
    if stream.samples == 3 and fmt.photometric in ("YBR_FULL", "YBR_FULL_422"):
        pixels = ybr_to_rgb(pixels, stream.bits)  # YBR_ICT and YBR_RCT are undone by the codec
    return pixels


def _in_format(
    pixels: Pixels, stream: Stream, fmt: Format, warn: Callable[[Caution], None]
) -> Pixels:
    """A codec's values as the data set means them.

    Lossless streams hold the words that were stored, with what lies above BitsStored: they are
    cut as native ones are. A lossy codec was given clean values: a mask would turn an overshoot
    into black. PixelRepresentation says whether values are signed; the stream's precision, how
    many bits to extend (693_J2KR.dcm: unsigned 14 bits, holding -2000).
    """
    if pixels.shape != fmt.shape:
        raise ItemError(Fail.DECODE)
    lossless = stream.lossless and not (stream.codec is Codec.JPEG_2000 and fmt.lossy)
    if lossless and fmt.samples == 1 and fmt.stored < stream.bits <= fmt.allocated:
        size = fmt.allocated // 8
        words = pixels.astype(f"{pixels.dtype.kind}{size}", copy=False).view(f"u{size}")
        if stream.bits <= fmt.high:  # values at the top of a word, and a stream without a top
            fmt = replace(fmt, high=fmt.stored - 1)
        return _stored_bits(words.reshape(-1), fmt, warn).reshape(fmt.shape)
    bits = stream.bits if stream.codec is Codec.JPEG_2000 else min(stream.bits, fmt.stored)
    if stream.signed != fmt.signed or (fmt.signed and stream.codec is not Codec.JPEG_2000):
        unsigned = pixels.view(f"u{pixels.dtype.itemsize}")
        if fmt.signed:
            unused = 8 * unsigned.dtype.itemsize - bits
            pixels = (unsigned << unused).view(f"i{unsigned.dtype.itemsize}") >> unused
        else:
            pixels = unsigned & ((1 << bits) - 1)
    return pixels if pixels.dtype == fmt.dtype else pixels.astype(fmt.dtype)


def _unpack_rle(data: bytes, fmt: Format, warn: Callable[[Caution], None]) -> Pixels:
    """The frame of an RLE stream (PS3.5 annex G): a segment for each byte of each sample."""
    if len(data) < 64:
        raise ItemError(Fail.TRUNCATED)
    width = max(fmt.allocated // 8, 1)
    count, *offsets = struct.unpack_from("<16I", data)
    if count != fmt.samples * width or count > 15:
        raise ItemError(Fail.CORRUPT)
    limits = [*offsets[:count], len(data)]
    if max(limits) > len(data):
        raise ItemError(Fail.TRUNCATED)
    if limits[0] < 64 or limits != sorted(limits):
        raise ItemError(Fail.CORRUPT)
    size = -(-fmt.rows * fmt.columns * min(fmt.allocated, 8) // 8)  # of each segment, in bytes
    raw = np.empty((fmt.samples, size, width), np.uint8)
    segment = np.empty(size + SPARE, np.uint8)
    for i, (start, end) in enumerate(itertools.pairwise(limits)):
        if _unpack_segment(data[start:end], segment, size) > size:
            warn(Caution.LENGTH)
        raw[i // width, :, width - 1 - i % width] = segment[:size]  # the high byte comes first
    # Native bytes: little-endian and planar. Every sample has its own segment: none are shared.
    photometric = fmt.photometric.replace("YBR_FULL_422", "YBR_FULL")
    fmt = replace(fmt, planar=True, big_endian=False, swapped=False, photometric=photometric)
    return native_frame(raw.reshape(-1).data, 0, fmt, warn)


def _unpack_segment(packed: bytes, out: NDArray[np.uint8], least: int) -> int:
    """Unpacks one segment; how many bytes of ``out`` were written, one after the other."""
    from imagecodecs import packbits_decode

    for end in (len(packed), len(packed) - 1):  # the last may pad to an even length, G.3.1
        try:
            written = len(packbits_decode(packed[:end], out=out.data))
        except MemoryError:
            raise
        except Exception as error:  # imagecodecs has no common base of its errors
            if "TOO_SMALL" in str(error):
                raise ItemError(Fail.CORRUPT) from None
            continue
        if written >= least:
            return written
        break
    raise ItemError(Fail.TRUNCATED)


def _inflate(data: bytes, length: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        raw = inflater.decompress(data, length)
    except zlib.error:
        raise ItemError(Fail.CORRUPT) from None
    if len(raw) < length:
        raise ItemError(Fail.TRUNCATED)
    return raw


def native_frame(
    data: bytes | memoryview,
    offset: int,
    fmt: Format,
    warn: Callable[[Caution], None],
    index: int = 0,
) -> Pixels:
    """A frame of uncompressed pixel data that starts at ``offset``; colour as RGB.

    A view of ``data`` where nothing has to be changed. Raises ItemError ``truncated``,
    ``bad_geometry`` for two pixels to a colour in rows of odd length.
    """
    if fmt.photometric == "YBR_FULL_422" and fmt.columns % 2:
        raise ItemError(Fail.BAD_GEOMETRY)
    first = fmt.frame_bits * index  # frames of one-bit samples are not padded, PS3.5 8.1.1
    start, last = offset + first // 8, offset + (first + fmt.frame_bits + 7) // 8
    if last > len(data):
        raise ItemError(Fail.TRUNCATED)
    if fmt.allocated == 1:
        packed = np.frombuffer(data, np.uint8, last - start, start)
        if fmt.swapped:
            packed = packed[np.arange(packed.size) ^ 1]
        bits = np.unpackbits(packed, bitorder="little")[first % 8 :][: fmt.frame_bits]
        return bits.reshape(fmt.shape)
    order = ">" if fmt.big_endian else "<"
    kind = "f" if fmt.floating else "u"
    dtype = np.dtype(f"{order}{kind}{fmt.allocated // 8}")
    if fmt.swapped:
        # Pairs of bytes straddle an odd frame: swap from an even place.
        even = (start - offset) & ~1
        words = np.frombuffer(
            data, np.uint8, min(last + 1, len(data)) - offset - even & ~1, offset + even
        )
        values = words.reshape(-1, 2)[:, ::-1].reshape(-1)[start - offset - even :]
        values = values[: last - start]
    else:
        values = np.frombuffer(data, dtype, (last - start) // dtype.itemsize, start)
    if not fmt.floating:
        values = _stored_bits(values, fmt, warn)
    if fmt.samples == 1:
        return values.reshape(fmt.shape)
    if fmt.photometric == "YBR_FULL_422":
        pairs = values.reshape(fmt.rows, fmt.columns // 2, 4)  # Y Y Cb Cr, PS3.3 C.7.6.3.1.2
        colour = np.empty(fmt.shape, values.dtype)
        colour[..., 0] = pairs[..., :2].reshape(fmt.rows, -1)
        colour[..., 1:] = np.repeat(pairs[..., 2:], 2, axis=1)
    elif fmt.planar:
        colour = np.moveaxis(values.reshape(3, fmt.rows, fmt.columns), 0, -1)
    else:
        colour = values.reshape(fmt.shape)
    return ybr_to_rgb(colour, fmt.stored) if fmt.photometric.startswith("YBR_FULL") else colour


def _stored_bits(values: Pixels, fmt: Format, warn: Callable[[Caution], None]) -> Pixels:
    """Takes BitsStored bits up to HighBit (PS3.5 8.1.1) and extends the sign.

    Worked for 16 bits allocated, 12 stored, high bit 11, signed: 0x0FFF << 4 = 0xFFF0, as int16
    -16, >> 4 = -1.
    """
    allocated, stored = fmt.allocated, fmt.stored
    values = values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
    if stored == allocated:
        return values.view(fmt.dtype)
    mask, shift = (1 << stored) - 1, fmt.high + 1 - stored
    if not fmt.signed and not shift and (not values.size or int(values.max()) <= mask):
        return values
    result = np.empty(values.shape, fmt.dtype)
    outside = False
    for start in range(0, values.size, BLOCK):
        words = values[start : start + BLOCK]
        if not fmt.signed:
            outside = outside or bool((words & ~np.array(mask << shift, words.dtype)).any())
            result[start : start + BLOCK] = words >> shift & mask
        else:
            left = allocated - 1 - fmt.high
            result[start : start + BLOCK] = (words << left).view(fmt.dtype) >> (allocated - stored)
            above = words >> (fmt.high + 1)
            ones = (1 << left) - 1  # unused bits may be zero or repeat the sign
            outside = outside or bool(((above != 0) & (above != ones)).any())
            outside = outside or bool(shift and (words & ((1 << shift) - 1)).any())
    if outside and not fmt.overlays:
        warn(Caution.TRAILING_BITS)
    return result


def row_blocks(pixels: Pixels) -> Iterator[slice]:
    """Rows of (H, W, ...) pixels, some at a time."""
    step = max(BLOCK // max(pixels.shape[1], 1), 1)
    for start in range(0, pixels.shape[0], step):
        yield slice(start, start + step)


def ybr_to_rgb(pixels: Pixels, bits: int) -> Pixels:
    """(H, W, 3) YBR_FULL to RGB of the same type (PS3.3 C.7.6.3.1.2)."""
    result = np.empty(pixels.shape, pixels.dtype)
    half = 1 << (bits - 1)
    for rows in row_blocks(pixels):
        y, cb, cr = np.moveaxis(pixels[rows].astype(np.float64), -1, 0)
        red = y + 1.402 * (cr - half)
        green = y - 0.344136 * (cb - half) - 0.714136 * (cr - half)
        blue = y + 1.772 * (cb - half)
        rgb = np.stack([red, green, blue], axis=-1)
        result[rows] = np.clip(np.rint(rgb, out=rgb), 0, (1 << bits) - 1, out=rgb)
    return result


class _translated:  # noqa: N801
    """Turns whatever a codec raises into one reason; pyo3's panics derive from BaseException."""

    def __init__(self, reason: Fail) -> None:
        self.reason = reason

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(
            kind, (KeyboardInterrupt, SystemExit, MemoryError, ItemError)
        ):
            return
        raise ItemError(self.reason) from None
