"""Small DICOM files to try a reader with: a chest radiograph, unless told otherwise."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
RLE, J2K = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90"
JPEG, JPEG_12, JPEG_LOSSLESS = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 70))
JPEG_LS, HTJ2K, MPEG4 = (f"1.2.840.10008.1.2.4.{n}" for n in (80, 201, 102))
DX, SECONDARY = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.7"


def picture(rows: int = 96, columns: int = 80, bits: int = 12) -> NDArray[np.uint16]:
    """Smooth blobs with noise over all values of ``bits`` bits; the corners are 0 and the top."""
    random = np.random.default_rng(rows * 1000 + columns)
    y, x = np.mgrid[0:rows, 0:columns]
    waves = np.sin(y / 9) * np.cos(x / 7) + 0.1 * random.standard_normal((rows, columns))
    waves = (waves - waves.min()) / (waves.max() - waves.min()) * ((1 << bits) - 1)
    stored: NDArray[np.uint16] = np.rint(waves).astype(np.uint16)
    return stored


def dataset(pixels: NDArray[Any] | None = None, bits: int = 12, **tags: Any) -> Dataset:
    """A data set of native pixels, (H, W) or (H, W, 3); ``tags`` by keyword, None removes."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = UID(DX), UID("1.2.3.4")
    ds.StudyInstanceUID, ds.SeriesInstanceUID = UID("1.2.3"), UID("1.2.3.5")
    ds.PatientName, ds.PatientID = "Planted^Patient", "PLANTED-1"
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "DX", "CHEST", "PA"
    pixels = picture(bits=bits) if pixels is None else pixels
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
    ds.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = 8 * pixels.dtype.itemsize
    ds.BitsStored = min(bits, ds.BitsAllocated)
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is malformed on purpose
        for keyword, value in tags.items():
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)
    return ds


def write(ds: Dataset, syntax: str = EXPLICIT, stream: bytes | None = None) -> bytes:
    """The bytes of a file; ``stream`` takes the place of the pixels, encapsulated."""
    if stream is not None:
        ds.PixelData = encapsulate([stream])
        ds["PixelData"].is_undefined_length = True
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoding = {"implicit_vr": False, "little_endian": True} if UID(syntax).is_private else {}
        dcmwrite(out, ds, enforce_file_format=True, **encoding)
    return out.getvalue()


def make(
    pixels: NDArray[Any] | None = None,
    syntax: str = EXPLICIT,
    stream: bytes | None = None,
    bits: int = 12,
    **tags: Any,
) -> bytes:
    """The bytes of a file of these pixels."""
    return write(dataset(pixels, bits, **tags), syntax, stream)
