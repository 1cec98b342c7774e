"""Files to measure on where there are none: phantoms of a detector's size, with its grain.

They compress as radiographs do, which a picture without noise would not: a 12-bit 2500 x 2048
JPEG-lossless file takes about half of its 10 MB.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from comit.demo import Kind, draw, write_dicom
from comit.errors import UsageError

DICOM = (2500, 2048)  # rows, columns
PICTURE = (1024, 1024)
GRAIN = 0.004  # standard deviation of the noise, of the full scale: 16 of 4,096 shades
DRAWN = 4  # phantoms drawn; each file has noise, shift and a mirror image of its own

KINDS = {
    "png": Kind("png"),
    "jpeg": Kind("jpg"),
    "dicom": Kind("dcm", 12),
    "jpeg-lossless": Kind("dcm", 12, codec="jpeg-lossless"),
    "jpeg2000": Kind("dcm", 12, codec="jpeg2000"),
}


def generate(
    kind: str, count: int, folder: Path, size: tuple[int, int] | None = None, seed: int = 0
) -> list[Path]:
    """Writes ``count`` files of a :data:`KINDS` into ``folder``; the same seed writes the same.

    ``size`` is rows and columns; None is 1024 x 1024 of 8 bits for PNG and JPEG, 2500 x 2048 of
    12 bits in 16 for DICOM. Raises UsageError for another kind.
    """
    if kind not in KINDS:
        raise UsageError(f"generate {kind!r}: choose {', '.join(KINDS)}")
    what = KINDS[kind]
    size = size or (DICOM if what.suffix == "dcm" else PICTURE)
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    drawn = [
        cv2.resize(draw("opacity", random), size[::-1], interpolation=cv2.INTER_CUBIC)
        for _ in range(min(DRAWN, count))
    ]
    paths = []
    for i in range(count):
        picture = np.roll(drawn[i % len(drawn)], int(random.integers(0, 40)), axis=1)
        picture = picture[:, :: -1 if i // len(drawn) % 2 else 1]
        grain = random.standard_normal(size, np.float32) * GRAIN
        top = 2**what.bits - 1
        stored = np.round(np.clip(picture + grain, 0, 1) * top).astype(np.uint16)
        path = folder / f"synthetic-{i:05d}.{what.suffix}"
        _store(path, stored, what, seed, i)
        paths.append(path)
    return paths


def _store(path: Path, stored: NDArray[np.uint16], kind: Kind, seed: int, number: int) -> None:
    if kind.suffix != "dcm":
        done, data = cv2.imencode(path.suffix, stored.astype(np.uint8))
        if not done:
            raise UsageError(f"OpenCV cannot write {path}")
        path.write_bytes(data.tobytes())
        return
    lossless = kind.codec == "jpeg-lossless"
    write_dicom(path, stored, Kind("dcm", kind.bits) if lossless else kind, seed, number)
    if lossless:
        _compress(path, stored, kind.bits)


def _compress(path: Path, stored: NDArray[np.uint16], bits: int) -> None:
    """Rewrites a native DICOM file as JPEG lossless, process 14, selection value 1."""
    import imagecodecs
    from pydicom import dcmread, uid
    from pydicom.encaps import encapsulate

    ds = dcmread(path)
    stream = imagecodecs.jpeg8_encode(stored, lossless=True, predictor=1, bitspersample=bits)
    ds.file_meta.TransferSyntaxUID = uid.JPEGLosslessSV1
    ds.PixelData = encapsulate([bytes(stream)])
    ds["PixelData"].VR = "OB"
    ds.save_as(path, enforce_file_format=True)
