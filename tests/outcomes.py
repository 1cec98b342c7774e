"""What becomes of a file's bytes when they are decoded, for tests of decoding."""

from __future__ import annotations

from comit.errors import ItemError
from comit.image import open_image
from comit.image.base import Image
from comit.reasons import Fail, Skip


def outcome(data: bytes) -> Skip | Fail | Image:
    """The image after its pixels were read, or why it has none."""
    try:
        image = open_image(data)
        if image.skip is None:
            image.samples()
    except ItemError as error:
        return error.reason
    return image.skip or image


def reason(data: bytes) -> Skip | Fail | None:
    """Why these bytes have no scores; None where they have."""
    found = outcome(data)
    return None if isinstance(found, Image) else found
