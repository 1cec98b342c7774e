"""The X-ray of a row, shown in the tones it was screened in, and its masks laid over it.

The model's grid spans the whole picture, so a mask maps to it by scaling alone: the pixel with
centre (y + 1/2) of H lies in cell floor((y + 1/2) 224 / H). Where H >= 224, the pixel that holds a
cell's centre lies in that cell again, so :func:`to_grid` undoes :func:`to_picture` bit for bit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from comit.decode import Limits, open_image
from comit.decode.worker import read_file
from comit.errors import ItemError, UsageError
from comit.preprocess import SIZE, picture
from comit.reasons import Fail
from comit.results import decode_mask
from comit.source import folder

Mask = NDArray[np.bool_]
Grey = NDArray[np.uint8]
Rgb = NDArray[np.uint8]

LUNGS = (86, 204, 242)  # RGB, light blue
DISEASE = (255, 122, 51)  # orange: apart from blue for every kind of colour vision
RESEARCH = "RESEARCH USE ONLY"
Row = Mapping[str, Any]


class Pictures:
    """Finds the files of rows under the folder they were screened from.

    Nothing outside ``root`` is opened, whatever a results file says. A row without a path, as
    where identifiers were left out, is found by its ``row_id``, the hash of the relative path.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UsageError(f"{root} is not a folder; give the one that was screened")
        self.root = root
        self._by_id: dict[str, bytes] | None = None

    def file(self, row: Row) -> bytes:
        """The name of a row's file; raises ItemError ``vanished`` where there is none."""
        path = row["path"]
        if path is None:
            if self._by_id is None:
                self._by_id = {i.row_id: i.file for i in folder.items(self.root, "*", ())}
            if row["row_id"] in self._by_id:
                return self._by_id[row["row_id"]]
            raise ItemError(Fail.VANISHED)
        top = os.path.realpath(os.fsencode(self.root))
        for name in (os.fsencode(path), _undisplayed(path)):
            found = os.path.realpath(os.path.join(top, name))  # noqa: PTH118
            if b"\0" not in found and found.startswith(top + b"/") and os.path.isfile(found):  # noqa: PTH113
                return found
        raise ItemError(Fail.VANISHED)

    def data(self, row: Row) -> bytes:
        """The bytes of a row's file; raises ItemError."""
        return read_file(self.file(row), Limits().file_bytes)

    def show(self, row: Row) -> Grey:
        """(rows, cols) uint8 as screened: air dark. Raises ItemError.

        ``changed`` where the picture has another size or SOPInstanceUID than the row says: masks
        are never laid over another picture.
        """
        return show(self.data(row), row)


def show(data: bytes, row: Row) -> Grey:
    """The picture in a file's bytes, checked against its row as :meth:`Pictures.show` says."""
    image = open_image(data)
    uid = row["sop_instance_uid"]
    if (image.height, image.width) != (row["rows"], row["cols"]) or (
        uid is not None and image.sop_instance_uid is not None and uid != image.sop_instance_uid
    ):
        raise ItemError(Fail.CHANGED)
    return np.rint(picture(image.samples(), image.presentation) * 255).astype(np.uint8)


def _undisplayed(path: str) -> bytes:
    r"""The bytes of a name that :func:`comit.source.display` has shown with ``\xNN``."""
    raw = path.encode("utf-8", "surrogateescape")
    return re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), raw)


class Masks(NamedTuple):
    """The two masks of a row, (224, 224) each."""

    lungs: Mask
    disease: Mask


def masks(row: Row) -> Masks | None:
    """A row's masks, None where it has none; raises ItemError ``corrupt`` for another size."""
    if row["lung_rle"] is None or row["disease_rle"] is None:
        return None
    found = Masks(decode_mask(row["lung_rle"]), decode_mask(row["disease_rle"]))
    if found.lungs.shape != (SIZE, SIZE) or found.disease.shape != (SIZE, SIZE):
        raise ItemError(Fail.CORRUPT)
    return found


def to_picture(mask: Mask, height: int, width: int) -> Mask:
    """(224, 224) to (height, width) by nearest neighbours."""
    y = (2 * np.arange(height) + 1) * SIZE // (2 * height)
    x = (2 * np.arange(width) + 1) * SIZE // (2 * width)
    return np.asarray(mask[np.ix_(y, x)])


def to_grid(mask: Mask) -> Mask:
    """(H, W) to (224, 224): the pixels that hold the cells' centres."""
    centres = 2 * np.arange(SIZE) + 1
    height, width = mask.shape
    return np.asarray(mask[np.ix_(centres * height // (2 * SIZE), centres * width // (2 * SIZE))])


def draw(grey: Grey, found: Masks, *, fill: bool = False, label: str | None = None) -> Rgb:
    """(H, W, 3) uint8 RGB: lungs and disease as contours, or filled, over a (H, W) picture."""
    height, width = grey.shape
    rgb = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    thickness = max(1, round(min(height, width) / 350))
    for mask, colour in zip(found, (LUNGS, DISEASE), strict=True):
        large = to_picture(mask, height, width)
        if fill:
            share = 0.18 if colour == LUNGS else 0.42
            tint = np.asarray(colour, np.float32) * share
            rgb[large] = np.rint(rgb[large] * np.float32(1 - share) + tint).astype(np.uint8)
        else:
            outlines, _ = cv2.findContours(
                large.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
            )
            cv2.drawContours(rgb, outlines, -1, colour, thickness)
    if label:
        _write(rgb, label)
    return np.asarray(rgb, dtype=np.uint8)


def _write(rgb: Any, label: str) -> None:
    """Burns lines of text into the lower left corner, on black, and the key to the colours."""
    height, width = rgb.shape[:2]
    font = cv2.FONT_HERSHEY_SIMPLEX
    lines = [(text, (255, 255, 255)) for text in label.splitlines()]
    lines += [("lungs", LUNGS), ("disease", DISEASE)]
    (widest, tall), _ = cv2.getTextSize(max((t for t, _ in lines), key=len), font, 1.0, 2)
    scale = min(height / 1100, 0.7 * width / widest)
    line = round(1.9 * tall * scale)
    thickness = max(1, round(1.6 * scale))
    top = height - line * len(lines) - line // 2
    cv2.rectangle(rgb, (0, top), (round(widest * scale) + line, height), (0, 0, 0), -1)
    for i, (text, colour) in enumerate(lines, start=1):
        at = (line // 2, top + i * line)
        cv2.putText(rgb, text, at, font, scale, colour, thickness, cv2.LINE_AA)


def outline(mask: Mask) -> str:
    """An SVG path around a (224, 224) mask, in thirds of a cell: 0 to 672 both ways.

    It runs through the outermost thirds, so cells alone still have an area.
    """
    thirds = np.kron(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
    found, _ = cv2.findContours(thirds, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for contour in found:
        points = contour.reshape(-1, 2)
        steps = np.diff(points, axis=0).tolist()
        parts.append(f"M{points[0][0]} {points[0][1]}l" + " ".join(f"{x} {y}" for x, y in steps))
    return "".join(f"{p}z" for p in parts)


def file_stem(row: Row) -> str:
    """A file name for a row: letters of its path, and what makes it unique and harmless."""
    import hashlib

    digest = hashlib.blake2b(row["row_id"].encode("utf-8", "surrogatepass"), digest_size=6)
    name = Path(row["path"]).stem if row["path"] else ""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60].strip("_-")
    return f"{plain}-{digest.hexdigest()}" if plain else digest.hexdigest()
