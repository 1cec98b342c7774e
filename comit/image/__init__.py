"""Bytes of one file to one-channel stored values, and how they are meant to be shown.

Opening reads the header alone, so that memory can be granted before pixels are decoded::

    image = open_image(data)            # header: size, type, presentation, identifiers
    if image.skip is None:              # a frontal chest radiograph, as far as the header says
        samples = image.samples()       # the codec runs here

Everything that is wrong with a file is raised as :class:`comit.errors.ItemError` with its code.
"""

from __future__ import annotations

from comit.errors import ItemError
from comit.image.base import Image, Limits, ViewPolicy
from comit.reasons import Fail, Skip

__all__ = ["Image", "Limits", "ViewPolicy", "open_image"]


def open_image(data: bytes, limits: Limits | None = None, policy: ViewPolicy = "tagged") -> Image:
    """Opens a DICOM, PNG or JPEG file by its content; the name does not matter.

    ``policy`` says what is taken for a frontal chest radiograph: ``strict``, where tags say so;
    ``tagged``, where they do not say otherwise; ``all``, any radiograph whatever it shows.

    Raises ItemError: ``unsupported_format`` for anything else, and what its reader finds.
    """
    limits = limits or Limits()
    if not data:
        raise ItemError(Fail.EMPTY)
    if data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        from comit.image.raster import open_raster

        return open_raster(data, limits, policy)
    from comit.image.dicom import is_dicom, open_dicom

    if not is_dicom(data):
        raise ItemError(Skip.UNSUPPORTED_FORMAT)
    return open_dicom(data, limits, policy)
