"""A grey PNG's scanlines, inflated and still filtered: the CPU's part of decoding one.

Filters are undone on the GPU (``cuda/png.cuh``). Structure and checksums are checked before, by
:func:`comit.image.open_image`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from comit.image import png
from comit.image.exif import orientation
from comit.image.samples import Rows

DTYPES: dict[int, np.dtype[Any]] = {8: np.dtype(np.uint8), 16: np.dtype(np.uint16)}


def read_rows(data: bytes) -> Rows | None:
    """The rows of a PNG file that :func:`comit.image.open_image` accepted.

    None for what the kernel does not take (colour, alpha, palettes, fewer than 8 bits, interlaced,
    to be turned), for rows that are not whole and where IEND is missing: the CPU decodes those, or
    finds what is wrong.
    """
    if not data.startswith(png.MAGIC):
        return None
    header = png.read_header(data)
    if header.colour != 0 or header.depth not in DTYPES or header.transparent:
        return None
    if not header.ended:  # of which the CPU warns
        return None
    if orientation(header.exif) != 1:
        return None
    lines = png.scanlines(data, header)
    if lines is None or lines[:, 0].max() > 4:  # no such filter
        return None
    return Rows(lines, DTYPES[header.depth])
