"""The one tag of Exif (CIPA DC-008) that changes the picture: Orientation."""

from __future__ import annotations

import struct
from typing import Any

from numpy.typing import NDArray


def orientation(tiff: bytes | None) -> int:
    """The Orientation tag (0x0112) of an Exif structure's first directory: 1 to 8 (Exif 4.6.4).

    1, which asks for no turn, where there is none or it has no such value.
    """
    if tiff is None:
        return 1
    try:
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        directory = struct.unpack_from(order + "I", tiff, 4)[0]
        for i in range(struct.unpack_from(order + "H", tiff, directory)[0]):
            entry = directory + 2 + 12 * i
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if tag == 0x0112:
                value: int = struct.unpack_from(order + {3: "H", 4: "I"}[kind], tiff, entry + 8)[0]
                return value if 1 <= value <= 8 else 1
    except (KeyError, struct.error):
        pass
    return 1


def upright(stored: NDArray[Any], turn: int) -> NDArray[Any]:
    """A view of (H, W) stored values as Exif Orientation ``turn`` wants them shown.

    The tag says where the first row and the first column of what is stored lie in the picture.
    """
    pixels = stored.T if turn > 4 else stored
    if turn in (3, 4, 7, 8):  # the first row (or column) is at the bottom
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):  # ... at the right
        pixels = pixels[:, ::-1]
    return pixels
