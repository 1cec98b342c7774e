"""Which compressed frames another decoder may have: plain ones, whole by their markers."""

from __future__ import annotations

import struct
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray

from comit.bench.faults.dicoms import J2K, JPEG, JPEG_LOSSLESS, dataset, make, picture, write
from comit.decode import open_image
from comit.decode.compressed import FORMATS, Compressed, plain_jpeg2000
from comit.errors import ItemError
from comit.gpu.frames import draw
from comit.reasons import Fail

EIGHT = (picture() >> 4).astype(np.uint8)
TWELVE = picture()


def lossless(pixels: NDArray[Any], bits: int, predictor: int = 1) -> bytes:
    options: dict[str, Any] = {"lossless": True, "predictor": predictor, "bitspersample": bits}
    return bytes(imagecodecs.jpeg8_encode(pixels, **options))


def jpeg2000(pixels: NDArray[Any], bits: int = 12, **options: Any) -> bytes:
    given: dict[str, Any] = {"codecformat": "j2k", "reversible": True, "level": 0, **options}
    return bytes(imagecodecs.jpeg2k_encode(pixels, bitspersample=bits, **given))


def compressed(data: bytes) -> Compressed | None:
    return open_image(data, policy="all").compressed()


def stored_as(data: bytes) -> str | None:
    found = compressed(data)
    return found and found.format


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_known_in_dicom_and_its_samples_are_the_stored_values(name: str) -> None:
    for plain, expected in draw(name):
        assert plain.format == name
        syntax = J2K if name.endswith(("2000", "HTJ2K")) else JPEG_LOSSLESS
        syntax = JPEG if name == "8-bit JPEG" else syntax
        file = make(expected, syntax, plain.data, bits=8 * expected.itemsize)
        found = compressed(file)
        assert found is not None and found.format == name
        assert found.data.rstrip(b"\0") == plain.data.rstrip(b"\0")  # DICOM pads to even lengths
        assert np.array_equal(open_image(file).samples(), expected)
        assert found.fill == (
            None if syntax == J2K else 1 << (int(expected.max()).bit_length() - 1)
        )


def test_a_jpeg_file_is_one_too() -> None:
    assert stored_as(cv2.imencode(".jpg", EIGHT)[1].tobytes()) == "8-bit JPEG"
    assert stored_as(lossless(EIGHT, 8)) == "8-bit lossless JPEG"
    with_restarts = cv2.imencode(".jpg", EIGHT, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1].tobytes()
    assert stored_as(with_restarts) == "8-bit JPEG"


def test_what_is_not_plain_is_for_the_cpu() -> None:
    colour = cv2.cvtColor(EIGHT, cv2.COLOR_GRAY2BGR)
    progressive = cv2.imencode(".jpg", EIGHT, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    grey = cv2.imencode(".jpg", EIGHT)[1].tobytes()
    signed = TWELVE.astype(np.int16)
    coded = jpeg2000(TWELVE)
    for what, file in {
        "PNG": cv2.imencode(".png", EIGHT)[1].tobytes(),
        "colour": cv2.imencode(".jpg", colour)[1].tobytes(),
        "progressive": progressive,
        "12-bit JPEG": bytes(imagecodecs.jpeg8_encode(TWELVE, level=90, bitspersample=12)),
        "another predictor": lossless(TWELVE, 12, predictor=6),
        "two pictures": grey + grey,
        "uncompressed": make(TWELVE),
        "signed": make(signed, J2K, coded),
        "a signed stream": make(TWELVE, J2K, jpeg2000(signed)),
        "8 bits in words": make(TWELVE, J2K, jpeg2000(EIGHT, 8)),
        "7 bits": make(EIGHT >> 1, J2K, jpeg2000(EIGHT >> 1, 7), bits=8),
        "another syntax": make(TWELVE, JPEG_LOSSLESS, coded),
        "another size": make(TWELVE[:-1], J2K, coded),
        "a JP2 file": make(TWELVE, J2K, jpeg2000(TWELVE, codecformat="jp2")),
        "a palette": make(
            EIGHT, J2K, jpeg2000(EIGHT, 8), PhotometricInterpretation="PALETTE COLOR"
        ),
        "no stream": write(dataset(TWELVE), J2K, b"\0\0"),
    }.items():
        assert stored_as(file) is None, what


def changed(data: bytes, at: int, value: int, width: str = "B") -> bytes:
    room = bytearray(data)
    struct.pack_into(f">{width}", room, at, value)
    return bytes(room)


def test_a_code_stream_is_followed_to_its_end() -> None:
    data = jpeg2000(TWELVE)
    assert plain_jpeg2000(data) is not None and plain_jpeg2000(data + b"\0") is not None
    start = data.index(b"\xff\x90")
    for cut in range(2, len(data) - 1, 97):
        assert plain_jpeg2000(data[:cut]) is None
        assert plain_jpeg2000(data[:cut] + b"\xff\xd9") is None
    for length in (0, 13, 2**32 - 1):
        assert plain_jpeg2000(changed(data, start + 6, length, "I")) is None


def test_hostile_code_streams_are_for_the_cpu() -> None:
    """Small tiles, many layers, tiny precincts: much work for few bytes."""
    data = jpeg2000(TWELVE)
    size, coding = data.index(b"\xff\x51"), data.index(b"\xff\x52")
    for what, bad in {
        "tiles of 8 x 8": changed(changed(data, size + 22, 8, "I"), size + 26, 8, "I"),
        "tiles of no size": changed(data, size + 22, 0, "I"),
        "a picture of no size": changed(data, size + 6, 0, "I"),
        "an offset": changed(data, size + 14, 1, "I"),
        "subsampling": changed(data, size + 41, 2),
        "65,535 layers": changed(data, coding + 6, 65535, "H"),
        "no layers": changed(data, coding + 6, 0, "H"),
        "33 bits": changed(data, size + 40, 32),
        "precincts announced": changed(data, coding + 4, 1),
        "another style of blocks": changed(data, coding + 12, 4),
        "an unknown transform": changed(data, coding + 13, 2),
        "a component's own coding": data[:coding] + b"\xff\x53\0\x03\0" + data[coding:],
        "a second COD": data[:coding] + data[coding : coding + 14] + data[coding:],
    }.items():
        assert plain_jpeg2000(bad) is None, what
    with_precincts = bytearray(data[coding : coding + 14])
    levels = with_precincts[9]
    with_precincts[4] = 1
    struct.pack_into(">H", with_precincts, 2, 12 + levels + 1)
    for exponents, plain in ((b"\x88", True), (b"\x00", False), (b"\x83", False)):
        other = bytes(with_precincts) + exponents * (levels + 1)
        found = plain_jpeg2000(data[:coding] + other + data[coding + 14 :])
        assert (found is not None) == plain


def test_any_bytes_are_taken_or_refused() -> None:
    rng = np.random.default_rng(0)
    streams = [jpeg2000(EIGHT, 8), lossless(EIGHT, 8), cv2.imencode(".jpg", EIGHT)[1].tobytes()]
    taken = 0
    for turn in range(1500):
        data = bytearray(streams[turn % 3])
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(2, 250))] = int(rng.integers(0, 256))
        found = bytes(data[: rng.integers(1, len(data))]) if turn % 2 else bytes(data)
        try:
            taken += (
                compressed(found) is not None if turn % 3 else plain_jpeg2000(found) is not None
            )
        except ItemError as error:
            assert isinstance(error.reason, Fail) or error.reason == "unsupported_format"
    assert 0 < taken < 1500


def test_what_is_wrong_with_a_frame_is_what_the_cpu_finds() -> None:
    whole = jpeg2000(TWELVE)
    for what, file in {
        "cut header": make(TWELVE, J2K, whole[:30]),
        "cut file": make(TWELVE, J2K, whole)[:-300],
    }.items():
        reasons = []
        for ask in (lambda image: image.compressed(), lambda image: image.samples()):
            with pytest.raises(ItemError) as error:
                ask(open_image(file))
            reasons.append(error.value.reason)
        assert reasons[0] == reasons[1], what
