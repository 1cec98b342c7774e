"""The decoding process of a :class:`comit.look.picture.Pictures`, a :mod:`comit.pipeline.worker`.

Its tasks want, beside what that one has:

picture  (H, W) uint8 in the tones that were screened
header   what a derived object needs of a radiograph's header, (1, n) bytes of
         :func:`comit.look.reference.pack`; none where the file is not DICOM
"""

from __future__ import annotations

import numpy as np

from comit.errors import ItemError
from comit.image.base import Image
from comit.image.dicom import is_dicom
from comit.image.preprocess import picture
from comit.look.reference import pack, reference
from comit.pipeline import worker as decoding
from comit.pipeline.worker import Kept, Parent, Store, Stored
from comit.reasons import Fail


def main() -> None:
    """Serves items until the pipe closes."""
    decoding.main(STORES)


def _store_picture(image: Image, data: bytes, parent: Parent) -> Kept:
    shape = image.height, image.width
    size = image.height * image.width
    offset = parent.place(max(image.nbytes, size), image.working + size)
    shown = picture(image.samples(parent.memory, offset), image.presentation)
    # The stored values are done with: the picture takes their place.
    np.ndarray(shape, np.uint8, parent.memory, offset)[...] = shown
    return Kept(Stored(shape, "|u1", "samples", image.presentation))


def _store_header(image: Image, data: bytes, parent: Parent) -> Kept:
    try:
        content = pack(reference(data)) if is_dicom(data) else b""
    except (ItemError, MemoryError):
        raise
    except Exception as error:  # pydicom raises many kinds for what it cannot parse
        raise ItemError(Fail.CORRUPT) from error
    offset = parent.place(len(content))
    parent.memory[offset : offset + len(content)] = content
    return Kept(Stored((1, len(content)), "|u1", "samples", image.presentation))


STORES: dict[str, Store] = {
    **decoding.STORES,
    "picture": _store_picture,
    "header": _store_header,
}
