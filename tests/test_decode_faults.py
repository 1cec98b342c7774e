"""Faults met in the field, by kind: what a stream or a header holds and no reader expects."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
from outcomes import outcome
from pydicom.encaps import generate_frames

from comit.bench.faults import dicoms
from comit.bench.faults.dicoms import dataset, make, picture, write
from comit.errors import ItemError
from comit.image import open_image
from comit.image.base import Image
from comit.reasons import Caution, Fail, Skip

PIXELS = picture()
EIGHT = picture(bits=8).astype(np.uint8)
VIEW = Caution.UNVERIFIED_VIEW


def samples(data: bytes, *warnings: Caution) -> np.ndarray:
    """Stored values of a file that is read with these warnings."""
    image = open_image(data)
    values = image.samples()
    assert image.skip is None and image.warnings == list(warnings)
    return values


def j2k(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k"))


def rle(pixels: np.ndarray) -> bytes:
    """The RLE stream of a picture, as pydicom writes it."""
    ds = pydicom.dcmread(io.BytesIO(make(pixels, bits=8 * pixels.itemsize)))
    ds.compress(dicoms.RLE, generate_instance_uid=False)
    return next(generate_frames(ds.PixelData, number_of_frames=1))


def segments(*parts: bytes) -> bytes:
    """An RLE stream of these packed segments."""
    places = np.cumsum([64, *map(len, parts)])[:-1]
    head = [len(parts), *places.tolist()]
    return struct.pack("<16I", *head, *[0] * (16 - len(head))) + b"".join(parts)


def packed(data: bytes) -> bytes:
    return bytes(imagecodecs.packbits_encode(data))


# ---- RLE: every byte of a picture is written, and what lies behind it is padding ------------

HIGH, LOW = (PIXELS >> 8).astype(np.uint8).tobytes(), (PIXELS & 255).astype(np.uint8).tobytes()


def rle_file(*parts: bytes) -> bytes:
    stream = segments(*parts)
    return make(PIXELS, dicoms.RLE, stream + b"\0" * (len(stream) % 2))


@pytest.mark.parametrize(
    ("high", "low", "expected"),
    [
        (2 * HIGH, LOW[:100], Fail.TRUNCATED),  # as long as both together
        (HIGH[:-1], LOW, Fail.TRUNCATED),
        (HIGH, LOW[:-1], Fail.TRUNCATED),
        (b"", HIGH + LOW, Fail.TRUNCATED),
        (HIGH, LOW + bytes(200_000), Fail.CORRUPT),  # no padding is that long
    ],
)
def test_rle_segments_that_do_not_hold_the_picture(high: bytes, low: bytes, expected: Fail) -> None:
    assert outcome(rle_file(packed(high), packed(low))) is expected


@pytest.mark.parametrize(
    ("high", "low"), [(b"", bytes(1)), (b"", bytes(200)), (bytes(5), b""), (bytes(1), bytes(9))]
)
def test_rle_segments_with_padding_behind_the_picture(high: bytes, low: bytes) -> None:
    data = rle_file(packed(HIGH + high), packed(LOW + low))
    np.testing.assert_array_equal(samples(data, Caution.LENGTH), PIXELS)


def test_rle_segments_padded_to_an_even_length() -> None:
    odd = [s if len(s) % 2 else s + b"\x80" for s in (packed(HIGH), packed(LOW))]
    data = rle_file(*(s + b"\0" for s in odd))
    np.testing.assert_array_equal(samples(data), PIXELS)


@pytest.mark.parametrize("place", [4, 8])
@pytest.mark.parametrize("offset", [0, 63, 0x7FFFFFFF, 0xFF000000, 0xFFFFFFFF])
def test_rle_offsets_that_lead_nowhere(place: int, offset: int) -> None:
    stream = bytearray(rle(PIXELS))
    stream[place : place + 4] = struct.pack("<I", offset)
    assert outcome(make(PIXELS, dicoms.RLE, bytes(stream))) in (Fail.CORRUPT, Fail.TRUNCATED)


def test_rle_segments_in_another_order_are_corrupt() -> None:
    stream = bytearray(rle(PIXELS))
    stream[4:12] = stream[8:12] + stream[4:8]
    assert outcome(make(PIXELS, dicoms.RLE, bytes(stream))) is Fail.CORRUPT


DAMAGED = """
import hashlib, sys
import numpy as np
from comit.image import open_image
from comit.errors import ItemError
from pathlib import Path
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        samples = open_image(path.read_bytes()).samples()
        print(path.name, hashlib.sha256(samples.tobytes()).hexdigest())
    except ItemError as error:
        print(path.name, error.reason)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc fills memory on request")
def test_no_codec_leaves_memory_unwritten(tmp_path: Path) -> None:
    """Damaged streams give the same pictures, whatever memory held before (mallopt(3))."""
    rgb, spaces = np.dstack([EIGHT, 255 - EIGHT, EIGHT[::-1]]), {"colorspace": "CMYK"}
    twelve = bytes(imagecodecs.jpeg8_encode(PIXELS, level=95, bitspersample=12))
    cmyk = imagecodecs.jpeg8_encode(np.dstack([rgb, EIGHT]), outcolorspace="CMYK", **spaces)
    progressive = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1]
    streams = {
        "rle": (rle(PIXELS), dicoms.RLE),
        "j2k": (j2k(PIXELS), dicoms.J2K),
        "htj2k": (bytes(imagecodecs.htj2k_encode(PIXELS)), dicoms.HTJ2K),
        "ls": (bytes(imagecodecs.jpegls_encode(PIXELS)), dicoms.JPEG_LS),
        "lossless": (bytes(imagecodecs.ljpeg_encode(PIXELS)), dicoms.JPEG_LOSSLESS),
        "twelve": (twelve, dicoms.JPEG_12),
        "jpeg": (cv2.imencode(".jpg", EIGHT)[1].tobytes(), None),
        "progressive": (progressive.tobytes(), None),
        "cmyk": (bytes(cmyk), None),
        "png": (cv2.imencode(".png", rgb)[1].tobytes(), None),
    }
    random = np.random.default_rng(3)
    for name, (stream, syntax) in streams.items():
        for i in range(12):
            mutant = bytearray(stream)
            at = int(random.integers(len(mutant) // 8, len(mutant) - 8))
            if i % 3 == 0:
                del mutant[at:]
            elif i % 3 == 1:
                del mutant[at : at + int(random.integers(1, len(mutant) // 3))]
            else:
                mutant[at] ^= int(random.integers(1, 256))
            damaged = bytes(mutant) + (b"\xff\xd9" if i % 2 else b"") + b"\0" * (len(mutant) % 2)
            file = make(PIXELS, syntax, damaged) if syntax else damaged
            (tmp_path / f"{name}{i}").write_bytes(file)
    found = [
        subprocess.run(
            [sys.executable, "-c", DAMAGED, str(tmp_path)],
            env={**os.environ, "MALLOC_PERTURB_": fill},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        ).stdout.splitlines()
        for fill in ("85", "170")
    ]
    assert found[0] == found[1] and len(found[0]) == 12 * len(streams)


# ---- bits above BitsStored are no part of a sample, however it is compressed ----------------

LOSSLESS = {
    dicoms.RLE: rle,
    dicoms.JPEG_LOSSLESS: lambda p: bytes(imagecodecs.ljpeg_encode(p)),
    dicoms.JPEG_LS: lambda p: bytes(imagecodecs.jpegls_encode(p)),
    dicoms.J2K: j2k,
    dicoms.HTJ2K: lambda p: bytes(imagecodecs.htj2k_encode(p)),
}


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("bits", [0x1000, 0x5000, 0xF000])
@pytest.mark.parametrize("signed", [False, True])
def test_overlay_bits_in_lossless_streams_are_cut(syntax: str, bits: int, signed: bool) -> None:
    words = PIXELS.copy()
    words[20:40, 10:60] |= bits  # the last 0xF000 sets the highest bit of the stream
    ds = dataset(words.view(np.int16) if signed else words, bits=12)
    for overlays in (False, True):
        if overlays:
            ds.add_new(0x60000102, "US", 12)
        file = write(pydicom.dcmread(io.BytesIO(write(ds))))
        image = open_image(encapsulated(file, syntax, LOSSLESS[syntax](words)))
        expected = PIXELS.astype(np.int16)
        if signed:
            expected = expected << 4 >> 4
        np.testing.assert_array_equal(image.samples(), expected)
        is_sign = signed and bits == 0xF000
        assert image.warnings == ([] if overlays or is_sign else [Caution.TRAILING_BITS])


def encapsulated(file: bytes, syntax: str, stream: bytes) -> bytes:
    """A native file's header before a compressed frame."""
    ds = pydicom.dcmread(io.BytesIO(file))
    ds.PixelData = pydicom.encaps.encapsulate([stream + b"\0" * (len(stream) % 2)])
    return write(ds, syntax)


def test_values_above_bits_stored_in_lossy_streams_are_overshoot() -> None:
    """A mask would turn the brightest pixels black."""
    near = bytes(imagecodecs.jpegls_encode(np.minimum(PIXELS + 3, 4098), level=2))
    values = open_image(make(PIXELS, dicoms.JPEG_LS, near)).samples()
    assert np.abs(values.astype(int) - np.minimum(PIXELS.astype(int) + 3, 4098)).max() <= 2


# ---- whole data without the marker that should follow them ----------------------------------

JPEG = cv2.imencode(".jpg", EIGHT)[1].tobytes()
WITHOUT_END = {  # streams whose last two bytes are their end marker
    dicoms.JPEG: JPEG[:-2],
    dicoms.JPEG_LOSSLESS: bytes(imagecodecs.ljpeg_encode(PIXELS))[:-2],
}
DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("end", [b"", bytes(8), DELIMITER[:4], b"\xff" * 20])
def test_fragments_without_a_delimiter_are_whole(syntax: str, end: bytes) -> None:
    stream = LOSSLESS[syntax](PIXELS)
    data = make(PIXELS, syntax, stream + b"\0" * (len(stream) % 2))
    assert data.endswith(DELIMITER)
    np.testing.assert_array_equal(samples(data[:-8] + end, Caution.END_MARKER), PIXELS)
    assert outcome(data[:-20]) is Fail.TRUNCATED


@pytest.mark.parametrize("syntax", WITHOUT_END)
def test_streams_without_their_end_marker_are_whole(syntax: str) -> None:
    pixels = EIGHT if syntax == dicoms.JPEG else PIXELS
    stream = WITHOUT_END[syntax]
    data = make(pixels, syntax, stream + b"\0" * (len(stream) % 2), bits=8 * pixels.itemsize)
    whole = make(pixels, syntax, stream + b"\xff\xd9" * 2, bits=8 * pixels.itemsize)
    expected = open_image(whole).samples()
    np.testing.assert_array_equal(samples(data, Caution.END_MARKER), expected)


# ---- YBR_FULL_422 ----------------------------------------------------------------------------


def test_odd_columns_of_ybr_full_422_are_read_where_they_are_compressed() -> None:
    grey = np.ascontiguousarray(EIGHT[:, :79])
    stream = cv2.imencode(".jpg", np.dstack([grey] * 3))[1].tobytes()
    tags = {"PhotometricInterpretation": "YBR_FULL_422"}
    data = make(np.dstack([grey] * 3), dicoms.JPEG, stream + b"\0" * (len(stream) % 2), 8, **tags)
    assert np.abs(samples(data).astype(int) - grey).max() < 16
    assert outcome(make(np.dstack([grey] * 3), bits=8, **tags)) is Fail.BAD_GEOMETRY
    planes = segments(packed(grey.tobytes()), packed(bytes([128]) * grey.size),
                      packed(bytes([128]) * grey.size))  # fmt: skip
    data = make(np.dstack([grey] * 3), dicoms.RLE, planes + b"\0" * (len(planes) % 2), 8, **tags)
    np.testing.assert_array_equal(samples(data), grey)


# ---- the files that were met -----------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rle-uninitialised-memory-ok/uneq-20000-100.dcm", Fail.TRUNCATED),
        ("rle-segfault/second-ff00.dcm", Fail.TRUNCATED),
        ("rle-padding/80b_rle_trailing.dcm", [Caution.LENGTH]),
        ("rle-padding/80h_rle_last_one_more.dcm", [Caution.LENGTH]),
        ("delimiter-missing/26_ok.dcm", []),
        ("delimiter-missing/26a_delim_zeros.dcm", [Caution.END_MARKER]),
        ("delimiter-missing/26b_no_delim.dcm", [Caution.END_MARKER]),
        ("end-marker-missing-in-jpeg-png/40g_dicom_no_eoi.dcm", [Caution.END_MARKER]),
        ("end-marker-missing-in-jpeg-png/40a_no_eoi.jpg", [VIEW, Caution.END_MARKER]),
        ("end-marker-missing-in-jpeg-png/43i_no_iend.png", [VIEW, Caution.END_MARKER]),
        ("no-pixel-objects-called-truncated/DICOMDIR-empty.dcm", Skip.SOP_CLASS),
        ("no-pixel-objects-called-truncated/no_meta_group_length.dcm", Fail.NO_PIXELS),
        ("no-pixel-objects-called-truncated/priv_SQ.dcm", Fail.NO_PIXELS),
        ("memory-bomb-fragments/fragments.dcm", Fail.TOO_COMPLEX),
        ("ybr422-odd-columns/25_ybr422_odd.dcm", []),
        ("ybr422-odd-columns/25b_ybr422_even.dcm", []),
    ],
)
def test_files_met_in_the_field(
    faults: Path, name: str, expected: Fail | Skip | list[Caution]
) -> None:
    found = outcome((faults / name).read_bytes())
    assert (found.warnings if isinstance(found, Image) else found) == expected


@pytest.mark.real
def test_overlays_do_not_depend_on_the_codec(faults: Path) -> None:
    folder = faults / "overlay-bits-in-lossless-streams"
    native, *others = (samples(p.read_bytes()) for p in sorted(folder.glob("*.dcm")))
    assert len(others) == 3
    for other in others:
        np.testing.assert_array_equal(other, native)


# ---- data sets without pixels, and headers that would be read for ever -----------------------


def test_a_data_set_without_pixels_is_asked_what_it_is_first() -> None:
    bare = pydicom.Dataset()
    bare.SOPClassUID, bare.SOPInstanceUID = dicoms.SECONDARY, "1.2.3"
    assert outcome(write(bare)) is Fail.NO_PIXELS
    bare.ImageComments = "no more than this"
    assert outcome(write(bare)[:-6]) is Fail.TRUNCATED
    bare.SOPClassUID = "1.2.840.10008.1.3.10"  # a media directory
    assert outcome(write(bare)) is Skip.SOP_CLASS
    assert outcome(write(dataset(PixelData=None))) is Fail.NO_PIXELS
    assert outcome(write(dataset(PixelData=None, Modality="CT"))) is Skip.MODALITY


def test_a_pixel_tag_planted_in_a_value_does_not_lift_the_limit() -> None:
    head = make(PIXELS)
    start = head.index(b"\x08\x00\x16\x00UI")
    planted = b"\x08\x00\x08\x00LO\x04\x00\xe0\x7f\x10\x00"
    sequence = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0" * 300_000
    data = head[:start] + planted + sequence + b"\xfe\xff\xdd\xe0\0\0\0\0" + head[start:]
    assert outcome(data) is Fail.TOO_COMPLEX


def test_fragments_without_number_are_too_complex() -> None:
    data = make(PIXELS, dicoms.J2K, j2k(PIXELS))
    assert outcome(data[:-8] + b"\xfe\xff\x00\xe0\0\0\0\0" * 150_000) is Fail.TOO_COMPLEX


def test_no_more_of_a_deflated_data_set_is_inflated_than_its_pixels_need() -> None:
    large = picture(3000, 3000)
    data = make(large, dicoms.DEFLATED)  # 18 MB: more than the head that is inflated first
    np.testing.assert_array_equal(samples(data), large)
    assert outcome(data[: len(data) // 2]) is Fail.TRUNCATED


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are Linux's")
def test_a_process_is_bound_to_its_memory_and_leaves_no_core_dump() -> None:
    program = """
import ctypes, resource
from comit.pipeline.confine import Memory, forbid_core_dumps
forbid_core_dumps()
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
memory = Memory()
memory.allow(2**26)
try:
    bytearray(2**27)
except MemoryError:
    memory.allow(2**28)
    print(len(bytearray(2**27)))
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.split("\n")[:2] == ["(0, 0) 0", str(2**27)]


@pytest.mark.parametrize("blank", [b"  ", b"\0\0", b"??"])
@pytest.mark.parametrize("syntax", [dicoms.EXPLICIT, dicoms.BIG_ENDIAN, dicoms.DEFLATED])
def test_a_blank_vr_is_read_on_as_the_dictionary_says(syntax: str, blank: bytes) -> None:
    ds = dicoms.dataset(SeriesDescription="Chest", KVP="70")
    ds.add_new(0x00280120, "US", 5)  # PixelPaddingValue
    ds.add_new(0x00111010, "LO", "PRIVATE-ELEMENT")
    order = ">" if syntax == dicoms.BIG_ENDIAN else "<"
    data = dicoms.write(ds, syntax if syntax != dicoms.DEFLATED else dicoms.EXPLICIT)
    whole = open_image(data)
    for group, element in ((0x0028, 0x0120), (0x0011, 0x1010), (0x0028, 0x0004)):
        tag = struct.pack(f"{order}HH", group, element)
        start = data.index(tag, 132)
        data = data[: start + 4] + blank + data[start + 6 :]
    if syntax == dicoms.DEFLATED:
        meta = dicoms.write(ds, dicoms.DEFLATED)
        start, plain = (132 + 12 + struct.unpack_from("<I", d, 140)[0] for d in (meta, data))
        packer = zlib.compressobj(wbits=-15)
        data = meta[:start] + packer.compress(data[plain:]) + packer.flush()
    image = open_image(data)
    assert image.presentation == whole.presentation
    assert image.presentation.padding == (5.0, 5.0)
    assert np.array_equal(image.samples(), whole.samples())
    assert set(image.warnings) == {*whole.warnings, Caution.UNKNOWN_VR}


@pytest.mark.real
@pytest.mark.parametrize("name", ["70a_blank_vr_padding", "70b_question_vr_private"])
def test_blank_vrs_met_in_the_field(faults: Path, name: str) -> None:
    image = open_image((faults / "blank-vr" / f"{name}.dcm").read_bytes())
    assert image.samples().max() == 4095 and image.warnings == [Caution.UNKNOWN_VR]


@pytest.mark.parametrize("syntax", [dicoms.EXPLICIT, dicoms.BIG_ENDIAN])
def test_very_many_items_of_defined_length_are_too_complex(syntax: str) -> None:
    order = ">" if syntax == dicoms.BIG_ENDIAN else "<"
    data = write(dataset(), syntax)
    item = struct.pack(f"{order}HHI", 0xFFFE, 0xE000, 0) * 200_001
    head = struct.pack(f"{order}HH2sHI", 0x0028, 0x3010, b"SQ", 0, len(item))
    place = data.index(struct.pack(f"{order}HH", 0x7FE0, 0x0010), 132)
    with pytest.raises(ItemError) as caught:
        open_image(data[:place] + head + item + data[place:])
    assert caught.value.reason == Fail.TOO_COMPLEX
