"""One file, as comit reads it, for a program that has its own use for it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comit.errors import ItemError
from comit.image import open_image
from comit.image.base import Limits, ViewPolicy
from comit.image.preprocess import Presentation, picture, preprocess
from comit.options import Options
from comit.pipeline.worker import Contents, read_file
from comit.reasons import Fail, Skip
from comit.results import Facts


@dataclass(frozen=True, eq=False)
class Radiograph:
    """A radiograph that was decoded; :func:`read_image` makes it."""

    pixels: NDArray[np.float32] = field(repr=False)  # (224, 224) in [0, 1], as the network sees it
    samples: NDArray[Any] = field(repr=False)  # (H, W) as stored, whole numbers or floats
    presentation: Presentation = field(repr=False)  # how the header wants the samples to be shown
    facts: Facts  # what the file says of itself, and warnings
    skip: Skip | None  # why the view policy leaves it out; None where it does not

    def picture(self) -> NDArray[np.uint8]:
        """(H, W) uint8, air dark: all samples in the tones of ``pixels``."""
        return picture(self.samples, self.presentation)


def read_image(
    source: str | os.PathLike[str] | bytes, view_policy: ViewPolicy = "tagged"
) -> Radiograph:
    """Reads a DICOM, PNG or JPEG file, by its path or of its bytes, in this process.

    ``view_policy`` decides what ``skip`` says, as in :class:`comit.Options`. A radiograph that is
    to be skipped is decoded all the same.

    Raises ItemError with the reason where there is nothing to decode (no image, no radiograph,
    several frames) or decoding fails, UsageError for a policy that there is not.
    """
    Options(view_policy=view_policy)  # which checks it
    limits = Limits()
    try:
        contents = _contents(source, limits)
        image = open_image(contents.data, limits, view_policy)
        skip = image.skip
        if skip is not None:
            image = open_image(contents.data, limits, "all")
        if image.skip is not None:
            raise ItemError(image.skip)
        samples = image.samples()
        pixels, voi, found = preprocess(samples, image.presentation)
    except ItemError:
        raise
    except MemoryError:
        raise ItemError(Fail.TOO_LARGE) from None
    except Exception:  # a decoder's own error; its text may hold header values
        raise ItemError(Fail.CRASH) from None
    facts = replace(
        image.facts,
        voi=voi,
        file_size=contents.size,
        file_mtime=contents.mtime,
        file_crc32=contents.crc32,
    ).warned(*image.warnings, *found)
    return Radiograph(pixels, samples, image.presentation, facts, skip)


def _contents(source: str | os.PathLike[str] | bytes, limits: Limits) -> Contents:
    if not isinstance(source, bytes):
        return read_file(os.fsencode(source), limits.file_bytes)
    if len(source) > limits.file_bytes:
        raise ItemError(Fail.TOO_LARGE)
    from imagecodecs import deflate_crc32

    return Contents(source, len(source), None, deflate_crc32(source))
