"""A grey PNG's scanlines, inflated and still filtered: the CPU's part of decoding one.

Filters are undone on the GPU (``cuda/png.cuh``). Structure and checksums are checked before, by
:func:`comit.decode.open_image`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import imagecodecs
import numpy as np

from comit.decode.raster import PNG_MAGIC
from comit.errors import ItemError
from comit.gpu.batch import Rows
from comit.reasons import Fail

DEPTHS: dict[int, np.dtype[Any]] = {8: np.dtype(np.uint8), 16: np.dtype(np.uint16)}


def read_rows(data: bytes) -> Rows | None:
    """The rows of a PNG file that :func:`comit.decode.open_image` accepted.

    None for what the kernel does not take (colour, alpha, palettes, fewer than 8 bits, interlaced):
    such files take the CPU's way. Raises ItemError ``corrupt`` where the rows are not whole.
    """
    if not data.startswith(PNG_MAGIC):
        return None
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    if colour != 0 or depth not in DEPTHS or interlaced or _has_transparency(data):
        return None
    size = height * (1 + width * depth // 8)
    packed = b"".join(body for kind, body in _chunks(data) if kind == b"IDAT")
    rows = np.empty((height, size // height), np.uint8)
    try:
        # libdeflate, which checks zlib's checksum; a longer stream does not fit and is refused.
        inflated = imagecodecs.deflate_decode(packed, out=rows.data.cast("B"))
    except Exception as error:  # imagecodecs has no common base of its errors
        raise ItemError(Fail.CORRUPT) from error
    if len(inflated) != size or rows[:, 0].max() > 4:
        raise ItemError(Fail.CORRUPT)
    return Rows(rows, DEPTHS[depth])


def _has_transparency(data: bytes) -> bool:
    return any(kind == b"tRNS" for kind, _ in _chunks(data))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(PNG_MAGIC)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at + 8 : at + 8 + length]
        at += 12 + length
