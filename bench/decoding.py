"""Our decoder beside every decoder that pydicom finds here, by transfer syntax.

Both go from the bytes of a file to the stored values of its first frame. Values are compared
first: a decoder that gives others is not timed.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from comit.bench.throughput import listed
from comit.errors import ComitError, ItemError
from comit.image.base import Limits
from comit.image.dicom import is_dicom, open_dicom

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOSSY = "1.2.840.10008.1.2.4."  # with these ends decoders may round differently
LOSSY_ENDS = ("50", "51", "81", "91", "203")


@dataclass(frozen=True)
class Decoded:
    """One transfer syntax and one decoder of pydicom's."""

    syntax: str  # its name in PS3.6
    decoder: str  # pylibjpeg, gdcm, pyjpegls, native; with its version of pydicom
    files: int  # compared
    equal: int  # pixel for pixel the same as ours
    refused: int  # files that one of the two cannot read
    ours_ms: float  # of the equal files, mean of the medians
    theirs_ms: float
    ratio: float  # theirs / ours
    least: float  # of one file
    greatest: float
    lossy: bool  # may differ by rounding
    largest_difference: float  # of a stored value, where not equal


def measure(sources: Sequence[Path], repeat: int = 3) -> list[Decoded]:
    """Times every DICOM file below ``sources`` with every decoder, ``repeat`` times in turn.

    Raises ComitError where a lossless file decodes to the same values with all decoders of
    pydicom that read it, and to others with ours.
    """
    found: dict[tuple[str, str, bool], list[tuple[float, float] | float | None]]
    found = defaultdict(list)
    for path in (p for source in sources for p in listed(source)):
        data = path.read_bytes()
        if not is_dicom(data):
            continue
        name, lossy, theirs = decoders(data)
        answers: dict[str, NDArray[Any] | None] = {n: tried(d) for n, d in theirs.items()}
        mine = tried(partial(ours, data))
        for decoder, values in answers.items():
            if mine is None or values is None:
                found[name, decoder, lossy].append(None)
            elif same(mine, values):
                found[name, decoder, lossy].append(timed(data, theirs[decoder], repeat))
            else:
                found[name, decoder, lossy].append(apart(mine, values))
        read = [v for v in answers.values() if v is not None]
        if mine is not None and read and not lossy and not any(same(mine, v) for v in read):
            raise ComitError(f"{path} decodes to other values than every decoder of pydicom's")
    return [summary(*key, results) for key, results in sorted(found.items())]


def ours(data: bytes) -> NDArray[Any]:
    """Stored values of the first frame: (H, W), or (H, W, 3)."""
    return open_dicom(data, Limits(min_side=1, max_aspect=1e9), "all").frame(0)


def decoders(data: bytes) -> tuple[str, bool, dict[str, Callable[[], NDArray[Any]]]]:
    """Name of the transfer syntax, whether it loses, and what of pydicom's decodes it here."""
    from pydicom import dcmread
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            uid = dcmread(BytesIO(data), stop_before_pixels=True).file_meta.TransferSyntaxUID
            decoder = get_decoder(uid)
        except (AttributeError, NotImplementedError):
            return "no transfer syntax", True, {}
    plugins = decoder.available_plugins if uid.is_encapsulated else ("",)

    def run(plugin: str) -> NDArray[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds = dcmread(BytesIO(data))
            values: NDArray[Any] = decoder.as_array(ds, index=0, decoding_plugin=plugin)[0]
        return values

    lossy = str(uid).startswith(LOSSY) and str(uid).removeprefix(LOSSY) in LOSSY_ENDS
    return UID(uid).name, lossy, {p or "native": partial(run, p) for p in plugins}


def tried(decode: Callable[[], NDArray[Any]]) -> NDArray[Any] | None:
    """What a decoder gives, or None where it gives up in any way."""
    try:
        return decode()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except ItemError:
        return None
    except BaseException:  # pylibjpeg-rle can raise a PanicException
        return None


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether shape and every value agree."""
    return a.shape == b.shape and bool(np.array_equal(a, b))


def apart(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Largest difference of a value; infinite where shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


def timed(data: bytes, theirs: Callable[[], NDArray[Any]], repeat: int) -> tuple[float, float]:
    """Milliseconds of our decoder and theirs, medians of ``repeat`` in turn."""

    def once(decode: Callable[[], NDArray[Any]]) -> float:
        started = time.perf_counter()
        decode()
        return 1000 * (time.perf_counter() - started)

    took = np.array([(once(lambda: ours(data)), once(theirs)) for _ in range(repeat)])
    mine, others = np.median(took, axis=0)
    return float(mine), float(others)


def summary(
    syntax: str, decoder: str, lossy: bool, results: list[tuple[float, float] | float | None]
) -> Decoded:
    """Adds the files of one syntax and decoder up."""
    times = [r for r in results if isinstance(r, tuple)]
    wrong = [r for r in results if isinstance(r, float)]
    mine, theirs = sum(a for a, _ in times), sum(b for _, b in times)
    ratios = [b / a for a, b in times] or [0.0]
    n = max(len(times), 1)
    return Decoded(
        syntax=syntax,
        decoder=decoder,
        files=len(times) + len(wrong),
        equal=len(times),
        refused=sum(r is None for r in results),
        ours_ms=round(mine / n, 3),
        theirs_ms=round(theirs / n, 3),
        ratio=round(theirs / mine, 2) if mine else 0.0,
        least=round(min(ratios), 2),
        greatest=round(max(ratios), 2),
        lossy=lossy,
        largest_difference=max(wrong, default=0.0),
    )
