"""PNG (ISO/IEC 15948): structure, checksums, and image data inflated by libdeflate.

OpenCV fills what is missing from a damaged PNG and reports nothing, so completeness and the
checksums are checked here. It inflates with zlib, half of what decoding takes; libdeflate needs a
third of that. So OpenCV is given the same picture with nothing left to inflate, and is not needed
for grey pictures whose filters look at one neighbour alone, as in files that OpenCV wrote.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from imagecodecs import deflate_adler32, deflate_crc32, deflate_decode, delta_decode
from numpy.typing import NDArray

from comit.errors import ItemError
from comit.reasons import Fail

MAGIC = b"\x89PNG\r\n\x1a\n"
# Colour types: the bit depths each may have (11.2.1) and the channels of a pixel.
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PALETTE = 3
LARGE = 64 * 2**20  # bytes of scanlines, of which there would be several copies
STORED = 0xFFFF  # bytes of a stored block at most, RFC 1951 3.2.4
PIECE = 2**20  # bytes that are inflated at a time, only to count them
# First column and row, and steps, of the passes of an interlaced picture (8.2)
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)]
ADAM7 += [(0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
NONE, SUB, UP = 0, 1, 2  # filter types, 9.2


class Header(NamedTuple):
    """What the chunks say."""

    width: int
    height: int
    depth: int  # bits of a channel
    colour: int  # type, 11.2.1
    interlaced: bool
    transparent: bool = False  # a colour or palette entry is, by tRNS
    frames: int = 1
    exif: bytes | None = None
    ended: bool = True  # by IEND
    damaged: bool = False  # an ancillary chunk is, by its checksum

    @property
    def row_bytes(self) -> int:
        """Bytes of a scanline with the one that names its filter."""
        return 1 + -(-self.width * CHANNELS[self.colour] * self.depth // 8)


def read_header(data: bytes) -> Header:
    """Walks every chunk; raises ItemError ``truncated`` or ``corrupt``.

    What is missing behind the image data, or damaged beside them, is said and left out (clause 13).
    """
    header, has_data, kind = None, False, b""
    for kind, start, end in chunks(data):
        if end + 4 > len(data):  # the file ends here: what there is may do
            has_data = has_data or (kind == b"IDAT" and header is not None)
            kind = b""
            break
        if deflate_crc32(data[start - 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            if header is None or not kind.isalpha() or not kind[:1].islower():
                raise ItemError(Fail.CORRUPT)
            header = header._replace(damaged=True)
            continue
        if (kind == b"IHDR") != (header is None):  # first, and once
            raise ItemError(Fail.CORRUPT)
        if header is None:
            header = _described(data[start:end])
        elif kind == b"IDAT":
            has_data = True
        elif kind == b"tRNS":
            header = header._replace(transparent=True)
        elif kind == b"acTL" and end - start == 8:  # animated PNG
            header = header._replace(frames=struct.unpack_from(">I", data, start)[0])
        elif kind == b"eXIf":
            header = header._replace(exif=data[start:end])
    ended = kind == b"IEND"
    if header is None or not has_data:
        raise ItemError(Fail.CORRUPT if ended else Fail.TRUNCATED)
    return header._replace(ended=ended)


def _described(ihdr: bytes) -> Header:
    if len(ihdr) != 13:
        raise ItemError(Fail.CORRUPT)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", ihdr)
    if not width or not height or depth not in DEPTHS.get(colour, ()):
        raise ItemError(Fail.CORRUPT)
    return Header(width, height, depth, colour, interlaced != 0)


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type of every chunk up to IEND or the file's end, and where its data start and end."""
    offset, kind = len(MAGIC), b""
    while kind != b"IEND" and offset + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        start, end = offset + 8, min(offset + 8 + length, len(data))
        yield kind, start, end
        offset = end + 4


def repaired(data: bytes) -> bytes:
    """The same file with all its good chunks, its image data and IEND, and no others."""
    kept = [
        _chunk(kind, data[start:end])
        for kind, start, end in chunks(data)
        if kind == b"IDAT" or _chunk(kind, data[start:end]) == data[start - 8 : end + 4]
    ]
    end = _chunk(b"IEND", b"")
    return MAGIC + b"".join(kept) + (b"" if kept[-1:] == [end] else end)


def is_whole(data: bytes, header: Header) -> bool:
    """Whether the image data are, by zlib's own end and checksum and by their length."""
    bits, missing = CHANNELS[header.colour] * header.depth, 0
    for x, y, dx, dy in ADAM7 if header.interlaced else [(0, 0, 1, 1)]:
        width, height = -(-(header.width - x) // dx), -(-(header.height - y) // dy)
        missing += height * (1 + -(-width * bits // 8)) if width > 0 and height > 0 else 0
    inflater = zlib.decompressobj()
    try:
        for kind, start, end in chunks(data):
            packed = data[start:end] if kind == b"IDAT" else b""
            while packed and not inflater.eof:
                missing -= len(inflater.decompress(packed, PIECE))
                packed = inflater.unconsumed_tail
    except zlib.error:
        return False
    return inflater.eof and missing <= 0


def scanlines(data: bytes, header: Header) -> NDArray[np.uint8] | None:
    """(height, row bytes): what each scanline's filter left of it, the filter's type before it.

    None for an interlaced or very large picture, and for a stream that is not zlib's or of
    another length.
    """
    if header.interlaced or header.height * header.row_bytes > LARGE:
        return None
    packed = b"".join(data[start:end] for kind, start, end in chunks(data) if kind == b"IDAT")
    lines = np.empty((header.height, header.row_bytes), np.uint8)
    try:
        inflated = deflate_decode(packed, out=lines.data.cast("B"))
    except Exception:  # imagecodecs has no common base of its errors
        return None
    return lines if len(inflated) == lines.size else None


def unfiltered(lines: NDArray[np.uint8], header: Header) -> NDArray[np.uint8 | np.uint16] | None:
    """(height, width) samples of a grey picture's scanlines; None for others.

    None as well where a scanline's filter looks at several neighbours (Average, Paeth): one after
    another, which is nothing for NumPy.
    """
    if header.colour != 0 or header.depth < 8 or header.transparent:
        return None
    filters, size = lines[:, 0], header.depth // 8
    if filters.max() > UP:
        return None
    values = lines[:, 1:].reshape(header.height, header.width, size)
    is_sub = filters == SUB
    if is_sub.all():
        values = delta_decode(values, axis=1)
    else:
        values = np.ascontiguousarray(values)
        values[is_sub] = delta_decode(values[is_sub], axis=1)
        for i in np.flatnonzero(filters[1:] == UP) + 1:  # above the first there are zeros
            values[i] += values[i - 1]
    return values.view(f">u{size}")[..., 0].astype(f"u{size}", copy=False)


def uncompressed(data: bytes, lines: NDArray[np.uint8]) -> bytes:
    """The same picture in stored blocks, from its :func:`scanlines`."""
    raw = lines.tobytes()
    first = next(start for kind, start, _ in chunks(data) if kind == b"IDAT")
    stream = [b"\x78\x01"]
    for at in range(0, len(raw), STORED):
        block = raw[at : at + STORED]
        is_last = at + STORED >= len(raw)
        stream += [struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block]
    stream.append(struct.pack(">I", deflate_adler32(raw)))
    return data[: first - 8] + _chunk(b"IDAT", b"".join(stream)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    named = kind + body
    return struct.pack(">I", len(body)) + named + struct.pack(">I", deflate_crc32(named))
