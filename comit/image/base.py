"""One opened file: what its header says, and how large it may be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from mmap import mmap
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from comit.errors import ItemError
from comit.image.preprocess import Presentation
from comit.reasons import Caution, Fail, Skip
from comit.results import Facts

Samples = NDArray[np.generic]


Memory = mmap | memoryview


ViewPolicy = Literal["strict", "tagged", "all"]


@dataclass(frozen=True)
class Limits:
    """What one input may take; checked before memory is taken."""

    file_bytes: int = 512 * 2**20
    pixels: int = 100_000_000  # a 43 x 35 cm detector at 0.1 mm has 15 million
    min_side: int = 64  # pixels; a chest radiograph below this shows nothing
    max_aspect: float = 8.0  # longer side over shorter side


@dataclass
class Image(ABC):
    """One opened file: what its header says. ``warnings`` may grow while pixels are read."""

    height: int  # DICOM Rows
    width: int  # DICOM Columns
    dtype: np.dtype[np.generic]  # of the stored values that read_into gives
    presentation: Presentation = Presentation()
    frames: int = 1
    skip: Skip | None = None  # why this is not a frontal chest radiograph
    verified: bool = False  # tags say chest, and a frontal view of it
    warnings: list[Caution] = field(default_factory=list)
    facts: Facts = Facts()  # what goes into the row

    @property
    def in_place(self) -> bool:
        """Whether the stored values are among the file's bytes, so that nothing is decoded."""
        return False

    @property
    def nbytes(self) -> int:
        """Bytes of memory that :meth:`samples` takes beside the file's own."""
        return 0 if self.in_place else self.height * self.width * self.dtype.itemsize

    @property
    @abstractmethod
    def working(self) -> int:
        """Bytes that the codec and conversions take meanwhile, at most in an honest file."""

    @abstractmethod
    def read_into(self, out: Samples) -> None:
        """Decodes the only frame into ``out``, (height, width) of ``dtype``; raises ItemError."""

    def samples(self, memory: Memory | None = None, offset: int = 0) -> Samples:
        """The stored values, (height, width) of ``dtype``; raises ItemError.

        They are written to ``memory`` from ``offset`` on, or to new memory where none is given;
        but a view of the file's bytes where they are :attr:`in_place`.
        """
        out: Samples = np.ndarray((self.height, self.width), self.dtype, memory, offset)
        self.read_into(out)
        return out


def check_size(height: int, width: int, limits: Limits) -> None:
    """Raises ItemError where an image of this size is not to be decoded."""
    if height * width > limits.pixels:
        raise ItemError(Fail.TOO_LARGE)
    short, long = sorted((height, width))
    if short < limits.min_side or long > limits.max_aspect * short:
        raise ItemError(Fail.TOO_SMALL)
