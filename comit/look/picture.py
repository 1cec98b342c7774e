"""The X-ray of a row, shown in the tones it was screened in, and its masks laid over it.

The model's grid spans the whole picture, so a mask maps to it by scaling alone: the pixel with
centre (y + 1/2) of H lies in cell floor((y + 1/2) 224 / H). Where H >= 224, the pixel that holds a
cell's centre lies in that cell again, so nearest neighbours lead back to the mask bit for bit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from comit.config import ring_bytes
from comit.errors import ItemError, UsageError
from comit.identifiers import names
from comit.image.base import Limits
from comit.image.preprocess import SIZE
from comit.masks import decode_mask
from comit.options import Options
from comit.pipeline.pool import Pool
from comit.pipeline.worker import Done, Task
from comit.reasons import REASONS, Fail
from comit.source.address import is_address
from comit.source.spelling import spellings

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Mask = NDArray[np.bool_]
Grey = NDArray[np.uint8]
Rgb = NDArray[np.uint8]

LUNGS = (86, 204, 242)  # RGB, light blue
DISEASE = (255, 122, 51)  # orange: apart from blue for every kind of colour vision
RESEARCH = "RESEARCH USE ONLY"
RAMP = (  # red, green, blue and opacity of a heat map at 0, 1/4, 1/2, 3/4 and 1
    (0.0, 0.0, 0.0, 0.0),
    (0.48, 0.12, 0.64, 0.40),
    (1.0, 0.35, 0.12, 0.55),
    (1.0, 0.75, 0.18, 0.60),
    (1.0, 1.0, 0.69, 0.65),
)
WORKER = "from comit.look.worker import main; main()"
# Bytes that a picture's stored values may take, and decoding beside them: twice what screening
# has, as the picture shown lies beside those. No more is taken than a picture needs.
RING = 2 * Options.ring_bytes
TIMEOUT = Options.timeout  # seconds
Row = Mapping[str, Any]


class Pictures:
    """The files of rows, found under the folder they were screened from; a context manager.

    ``root`` is that folder, or the manifest that was screened; None is the folder that the results
    name in ``said``, their provenance. A file outside it, to which an absolute path or a link
    leads, is shown only where the row has its CRC-32: results that somebody else made show no
    file that was not screened. Files are read and decoded by another process, as in screening: one
    that crashes it, or takes too long or too much memory, costs itself. Raises UsageError where
    there is no such folder or manifest, or the results hold no plain paths.

    Its methods raise ItemError: ``vanished`` where there is no file, ``changed`` where it is not
    the one that was screened (masks are never laid over another picture), and what decoding finds.
    """

    def __init__(self, root: Path | None, said: Mapping[str, Any]) -> None:
        mode = str(said.get("identifiers", "plain")).split()[0]
        if mode != "plain":
            raise UsageError(
                f"these results have {mode} identifiers, so no picture can be found by its path; "
                "screen with --identifiers plain to look at pictures (report --top 0 needs none)"
            )
        if root is None and "root" not in said:
            raise UsageError("these results do not say where their pictures are; give --images")
        if root is None and is_address(str(said["root"])):
            raise UsageError(
                "these pictures are not files here but objects of a store; copy them into a folder "
                "and give it with --images"
            )
        folder = _screened(root) if root else Path(os.fsdecode(_named(said["root"], os.path.isdir)))
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder; give the screened one with --images")
        self._root = os.path.realpath(os.fsencode(folder))
        self._pool: Pool | None = None

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._pool is not None:
            self._pool.close()

    def shown(self, row: Row) -> Grey:
        """(H, W) uint8 in the tones that the picture was screened in, air dark."""
        return self._decoded(row, "picture")

    def pixels(self, row: Row) -> NDArray[np.float32]:
        """(224, 224) float32 in [0, 1]: what the network gets."""
        return self._decoded(row, "grid")

    def header(self, row: Row) -> Dataset | None:
        """What a derived object needs of a DICOM header; None where the file is not DICOM."""
        from comit.look.reference import unpack

        content = self._decoded(row, "header").tobytes()
        return unpack(content) if content else None

    def _decoded(self, row: Row, want: str) -> NDArray[Any]:
        """What a decoding process gives of a row's file."""
        file = self._file(row)
        if self._pool is None:
            # Whatever the view policy was: a row says that its picture was screened.
            self._pool = Pool(1, ring_bytes(RING), Limits(), TIMEOUT, "all", WORKER)
        ((done, found),) = (
            (done, None if view is None else np.array(view))
            for done, view in self._pool.run([Task(0, file, want)])
        )
        if _is_another(row, done):
            raise ItemError(Fail.CHANGED)
        if found is None:
            raise ItemError(REASONS[str(done.reason)])
        return found

    def _file(self, row: Row) -> bytes:
        """The name of a row's file."""
        path = row["path"] or ""

        def is_there(name: bytes) -> bool:
            return self._found(name) is not None

        for name in chain(names(path), [_named(path, is_there)], spellings(path, is_there)):
            file = self._found(name)
            if file is not None and os.path.isfile(file):  # noqa: PTH113
                inside = file.startswith(self._root.rstrip(b"/") + b"/")
                if inside or row["file_crc32"] is not None:  # which is compared once it is read
                    return file
        raise ItemError(Fail.VANISHED)

    def _found(self, name: bytes) -> bytes | None:
        """What there is of a name: below the folder, or where an absolute path or a link leads."""
        if b"\0" in name or os.path.normpath(name).split(b"/")[0] == b"..":
            return None
        file = os.path.realpath(os.path.join(self._root, name))  # noqa: PTH118
        return file if os.path.exists(file) else None  # noqa: PTH110


def _screened(given: Path) -> Path:
    """The folder to which paths of results are relative, of what was screened."""
    from comit.source.inputs import Input
    from comit.source.manifest import Place, Table

    source = Input.of(given)
    if source.is_manifest:
        Table(given, Place(source.root, jailed=False))  # it is one, or UsageError says why not
    return source.root


def _named(text: str, is_there: Callable[[bytes], bool]) -> bytes:
    r"""The path that a text of results stands for; in each of its parts ``\xNN`` may be a byte."""
    name = b"/" if text.startswith("/") else b""
    for part in text.split("/"):
        each = [os.path.join(name, form) for form in names(part)]  # noqa: PTH118
        name = next(filter(is_there, each), each[0])
    return name


def _is_another(row: Row, done: Done) -> bool:
    """Whether a file is not the one of a row, by what is known of both."""
    pairs = [(row[name], getattr(done.facts, name)) for name in ("file_crc32", "sop_instance_uid")]
    opened = done.facts.rows is not None
    return any(a != b for a, b in pairs if None not in (a, b)) or (
        opened and (row["rows"], row["cols"]) != (done.facts.rows, done.facts.cols)
    )


class Masks(NamedTuple):
    """The two masks of a row, (224, 224) each."""

    lungs: Mask
    disease: Mask


def masks(row: Row) -> Masks:
    """The masks of a row that has them; raises ItemError ``corrupt`` where they are none."""
    return Masks(decode_mask(row["lung_rle"]), decode_mask(row["disease_rle"]))


def to_picture(mask: Mask, height: int, width: int) -> Mask:
    """(224, 224) to (height, width) by nearest neighbours."""
    y = (2 * np.arange(height) + 1) * SIZE // (2 * height)
    x = (2 * np.arange(width) + 1) * SIZE // (2 * width)
    return np.asarray(mask[np.ix_(y, x)])


def draw(
    grey: Grey,
    found: Masks,
    *,
    fill: bool = False,
    heat: NDArray[np.float32] | None = None,
    label: str | None = None,
) -> Rgb:
    """(H, W, 3) uint8 RGB: lungs and disease as contours, or filled, over a (H, W) picture.

    ``heat`` is a map of (224, 224) in [0, 1] to lay beneath them.
    """
    height, width = grey.shape
    rgb = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    if heat is not None:
        rgb = _warm(rgb, heat)
    thickness = max(1, round(min(height, width) / 350))
    for mask, colour in zip(found, (LUNGS, DISEASE), strict=True):
        large = to_picture(mask, height, width)
        if fill:
            share = 0.18 if colour == LUNGS else 0.42
            tint = np.asarray(colour, np.float32) * share
            rgb[large] = np.rint(rgb[large] * np.float32(1 - share) + tint).astype(np.uint8)
        else:
            area = large.astype(np.uint8)
            outlines, _ = cv2.findContours(area, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(rgb, outlines, -1, colour, thickness)
    if label:
        _write(rgb, label)
    return np.asarray(rgb, dtype=np.uint8)


def _warm(rgb: Any, heat: NDArray[np.float32]) -> Any:
    """A heat map in the colours of :data:`RAMP` over a picture."""
    height, width = rgb.shape[:2]
    large = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
    stops = np.linspace(0, 1, len(RAMP))
    *colour, opacity = (
        np.interp(large, stops, c).astype(np.float32) for c in zip(*RAMP, strict=True)
    )
    tint = 255 * np.stack(colour, axis=-1)
    return np.rint(rgb + (tint - rgb) * opacity[..., None]).astype(np.uint8)


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
    thirds = mask.astype(np.uint8).repeat(3, axis=0).repeat(3, axis=1)
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
