"""What comit reads from PNG and JPEG files."""

from __future__ import annotations

import struct
import time
import zlib
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
from outcomes import reason

from comit.bench.faults.dicoms import picture
from comit.errors import ItemError
from comit.image import open_image
from comit.image.base import Limits
from comit.image.png import read_header, scanlines, uncompressed, unfiltered
from comit.image.scanlines import read_rows
from comit.reasons import Caution, Fail, Skip

EIGHT = picture(96, 80, bits=8).astype(np.uint8)
SIXTEEN = picture(96, 80, bits=16)
UNVERIFIED = [Caution.UNVERIFIED_VIEW]


def read(data: bytes) -> tuple[np.ndarray, list[Caution]]:
    image = open_image(data)
    samples = image.samples()
    assert samples.shape == (image.height, image.width) and samples.dtype == image.dtype
    return samples, image.warnings


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    pixels: np.ndarray, depth: int, colour: int, before: bytes = b"", after: bytes = b""
) -> bytes:
    """Rows of packed bytes to a file; ``before`` and ``after`` the image data go other chunks."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    width = pixels[0].nbytes * 8 // depth // {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    header = struct.pack(">IIBBBBB", width, len(pixels), depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + after
        + chunk(b"IEND", b"")
    )  # fmt: skip


def encode(pixels: np.ndarray, extension: str = ".png") -> bytes:
    return cv2.imencode(extension, pixels)[1].tobytes()


def cmyk_jpeg(pixels: np.ndarray, level: int) -> bytes:
    spaces = {"colorspace": "CMYK", "outcolorspace": "CMYK"}
    return bytes(imagecodecs.jpeg8_encode(pixels, level=level, **spaces))


# ---- PNG -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [EIGHT, SIXTEEN, SIXTEEN >> 4], ids=["8", "16", "12 in 16"])
def test_grey_png_keeps_its_depth_and_values(pixels: np.ndarray) -> None:
    samples, warnings = read(encode(pixels))
    np.testing.assert_array_equal(samples, pixels)
    assert warnings == UNVERIFIED


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_spread_over_eight(depth: int) -> None:
    values = EIGHT >> (8 - depth)
    bits = np.unpackbits(values[..., None], axis=-1)[..., -depth:].reshape(96, -1)
    samples, _ = read(png(np.packbits(bits, axis=1), depth, 0))
    np.testing.assert_array_equal(samples, values * (255 // ((1 << depth) - 1)))


def test_grey_palette_is_that_grey() -> None:
    table = chunk(b"PLTE", bytes(v for i in range(256) for v in (255 - i,) * 3))
    samples, warnings = read(png(EIGHT, 8, 3, table))
    np.testing.assert_array_equal(samples, 255 - EIGHT)
    assert warnings == UNVERIFIED


def test_colour_palette_is_its_luminance() -> None:
    table = chunk(b"PLTE", bytes(v for i in range(256) for v in (i, 0, 0)))
    samples, warnings = read(png(EIGHT, 8, 3, table))
    np.testing.assert_allclose(samples, EIGHT * 0.299, atol=1)
    assert warnings == [*UNVERIFIED, Caution.COLOUR]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("opaque", [True, False])
def test_alpha_is_laid_over_black(dtype: type, opaque: bool) -> None:
    top = np.iinfo(dtype).max
    grey = (EIGHT if dtype is np.uint8 else SIXTEEN).astype(f">u{np.dtype(dtype).itemsize}")
    alpha = np.full_like(grey, top if opaque else top // 3)
    pairs = np.stack([grey, alpha], axis=-1).astype(grey.dtype)
    samples, warnings = read(png(pairs, 8 * grey.itemsize, 4))
    np.testing.assert_allclose(samples, grey * (1.0 if opaque else 1 / 3), atol=1)
    assert warnings == (UNVERIFIED if opaque else [*UNVERIFIED, Caution.COLOUR])


def test_rgb_of_sixteen_bits() -> None:
    rgb = np.dstack([SIXTEEN, SIXTEEN // 2, SIXTEEN // 3])
    samples, warnings = read(encode(rgb[..., ::-1]))
    expected = rgb @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(samples, expected, atol=2)
    assert warnings == [*UNVERIFIED, Caution.COLOUR]


def test_animated_png_is_not_reduced_to_its_first_frame() -> None:
    data = png(EIGHT, 8, 0, chunk(b"acTL", struct.pack(">II", 3, 0)))
    assert reason(data) is Skip.MULTI_FRAME
    assert open_image(data).frames == 3


def exif(turn: int, kind: int = 3, order: str = "<") -> bytes:
    """A TIFF structure of the Orientation tag alone; kind 3 is SHORT, 4 LONG."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order]
    value = struct.pack(order + ("I" if kind == 4 else "HH"), *([turn] if kind == 4 else [turn, 0]))
    return head + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, 1) + value


def with_exif(jpeg: bytes, tiff: bytes) -> bytes:
    segment = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


# The place of the stored first row and first column in the picture (Exif 4.6.4, Orientation).
TURNS = {
    1: lambda p: p,
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize(("kind", "order"), [(3, "<"), (3, ">"), (4, "<"), (4, ">")])
def test_pictures_are_turned_as_exif_says(turn: int, kind: int, order: str) -> None:
    expected = TURNS[turn](EIGHT)
    warnings = [*UNVERIFIED, Caution.ORIENTATION] if turn != 1 else UNVERIFIED
    tiff = exif(turn, kind, order)
    stored = png(EIGHT, 8, 0, chunk(b"eXIf", tiff))
    samples, said = read(stored)
    np.testing.assert_array_equal(samples, expected)
    assert said == warnings
    assert (read_rows(stored) is None) == (turn != 1)
    plain = encode(EIGHT, ".jpg")
    jpeg = with_exif(plain, tiff)
    samples, said = read(jpeg)
    np.testing.assert_array_equal(samples, TURNS[turn](read(plain)[0]))
    if kind == 3:  # OpenCV turns by this type alone
        np.testing.assert_array_equal(samples, cv2.imdecode(np.frombuffer(jpeg, np.uint8), 0))
    assert said == warnings


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_colour_is_turned_too(suffix: str) -> None:
    rgb = np.dstack([EIGHT, EIGHT // 2, EIGHT // 3])
    plain = encode(rgb, suffix)
    is_png = suffix == ".png"
    png_chunk = plain[:33] + chunk(b"eXIf", exif(6)) + plain[33:]
    turned = png_chunk if is_png else with_exif(plain, exif(6))
    np.testing.assert_array_equal(read(turned)[0], np.rot90(read(plain)[0], -1))


@pytest.mark.parametrize("turn", [0, 9, 65535])
def test_orientations_that_exif_does_not_define_ask_for_no_turn(turn: int) -> None:
    samples, warnings = read(png(EIGHT, 8, 0, chunk(b"eXIf", exif(turn))))
    np.testing.assert_array_equal(samples, EIGHT)
    assert warnings == UNVERIFIED


@pytest.mark.real
@pytest.mark.parametrize("name", ["41_exif6.jpg", "41b_exif3.jpg"])
def test_turned_pictures_met_in_the_field(faults: Path, name: str) -> None:
    data = (faults / "exif-orientation" / name).read_bytes()
    samples, warnings = read(data)
    np.testing.assert_array_equal(samples, cv2.imdecode(np.frombuffer(data, np.uint8), 0))
    assert warnings == [*UNVERIFIED, Caution.ORIENTATION]


def test_size_limits_hold_for_the_turned_picture() -> None:
    wide = np.tile(EIGHT, (1, 5))[:70]  # 70 x 400
    image = open_image(png(wide, 8, 0, chunk(b"eXIf", exif(6))))
    assert (image.height, image.width) == (400, 70)


def test_damaged_png() -> None:
    data = encode(EIGHT)
    for length in (9, 20, 40, len(data) // 2, len(data) - 20):
        assert reason(data[:length]) is Fail.TRUNCATED
    for place in (20, len(data) // 2, len(data) - 19):
        mutant = bytearray(data)
        mutant[place] ^= 1
        assert reason(bytes(mutant)) in (Fail.CORRUPT, Fail.TRUNCATED)


def adam7(pixels: np.ndarray) -> bytes:
    """The scanlines of an interlaced picture, pass by pass (8.2)."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2)]  # fmt: skip
    return b"".join(b"\0" + r.tobytes() for x, y, dx, dy in passes for r in pixels[y::dy, x::dx])


def test_interlaced_png_is_read_when_all_of_it_is_there() -> None:
    raw = adam7(EIGHT)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 80, 96, 8, 0, 0, 0, 1))
    end = chunk(b"IEND", b"")
    np.testing.assert_array_equal(read(head + chunk(b"IDAT", zlib.compress(raw)) + end)[0], EIGHT)
    for body in (zlib.compress(raw[:-900]), zlib.compress(raw)[:-200]):
        assert reason(head + chunk(b"IDAT", body) + end) is Fail.CORRUPT


def test_png_without_its_end_or_with_damage_beside_its_picture() -> None:
    text = bytearray(chunk(b"tEXt", b"Comment\0nothing"))
    text[-1] ^= 1
    for pixels in (EIGHT, SIXTEEN):
        whole = encode(pixels)
        for cut in (1, 6, 12, 13, 16):  # of IEND, and of the checksum of the image data
            samples, warnings = read(whole[:-cut])
            np.testing.assert_array_equal(samples, pixels)
            assert warnings == [*UNVERIFIED, Caution.END_MARKER]
        assert reason(whole[:-17]) is Fail.TRUNCATED
        samples, warnings = read(whole[:33] + bytes(text) + whole[33:])
        np.testing.assert_array_equal(samples, pixels)
        assert warnings == [*UNVERIFIED, Caution.CHECKSUM]


@pytest.mark.parametrize("colour", [False, True])
def test_jpeg_without_its_end_marker_is_whole(colour: bool) -> None:
    data = encode(np.dstack([EIGHT, 255 - EIGHT, EIGHT]) if colour else EIGHT, ".jpg")
    samples, warnings = read(data[:-2])
    np.testing.assert_array_equal(samples, read(data)[0])
    assert Caution.END_MARKER in warnings
    assert reason(data[:-300]) is Fail.TRUNCATED


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_only_a_whole_picture_misses_its_end_marker_alone(suffix: str) -> None:
    image = open_image(encode(EIGHT, suffix)[:-300])
    with pytest.raises(ItemError):
        image.samples()
    assert image.warnings == UNVERIFIED


def test_png_whose_checksums_fit_and_whose_image_data_end_early() -> None:
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in EIGHT))
    header = struct.pack(">IIBBBBB", 80, 96, 8, 0, 0, 0, 0)
    for body in (rows[: len(rows) // 2], zlib.compress(bytes(81 * 50)), b""):
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        data += chunk(b"IDAT", body) + chunk(b"IEND", b"")
        assert reason(data) is Fail.CORRUPT


@pytest.mark.parametrize(
    "header", [(0, 96, 8, 0), (80, 0, 8, 0), (80, 96, 3, 0), (80, 96, 16, 3), (80, 96, 8, 7)]
)
def test_png_headers_that_mean_nothing(header: tuple[int, ...]) -> None:
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))
    assert reason(data + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")) is Fail.CORRUPT


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_large_png_in_blocks_is_the_same_picture(level: int, dtype: type) -> None:
    """More than one stored block, of which the last is short, full or over by a byte."""
    for width in (509, 510, 511):  # 65,280 to 65,664 bytes of 8 bits, twice that of 16
        top = np.iinfo(dtype).max
        pixels = np.random.default_rng(width).integers(0, top, (128, width), dtype, endpoint=True)
        data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, level])[1].tobytes()
        lines = scanlines(data, read_header(data))
        assert lines is not None
        again = uncompressed(data, lines)
        assert again != data and read_header(again)
        np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(again, np.uint8), -1), pixels)
        np.testing.assert_array_equal(open_image(data).samples(), pixels)


def filtered(samples: np.ndarray, filters: np.ndarray) -> bytes:
    """A grey PNG whose row i has filter ``filters[i]``: 0 none, 1 Sub, 2 Up, 3 Average (9.2)."""
    size = samples.itemsize
    rows = samples.astype(f">u{size}").view(np.uint8).reshape(len(samples), -1).astype(int)
    left = np.pad(rows, ((0, 0), (size, 0)))[:, :-size]
    above = np.pad(rows, ((1, 0), (0, 0)))[:-1]
    guess = np.choose(filters[:, None], [rows * 0, left, above, (left + above) // 2])
    lines = np.column_stack([filters, rows - guess]).astype(np.uint8)
    header = struct.pack(">IIBBBBB", samples.shape[1], len(samples), 8 * size, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kinds", [[1], [0], [2], [0, 1, 2], [0, 1, 2, 3]])
def test_png_filters_are_undone(kinds: list[int], dtype: type) -> None:
    draw = np.random.default_rng(len(kinds))
    for height, width in ((64, 65), (93, 64), (70, 80)):
        top = np.iinfo(dtype).max
        samples = draw.integers(0, top, (height, width), dtype, endpoint=True)
        filters = draw.choice(kinds, height)
        filters[-1] = kinds[-1]
        data = filtered(samples, filters)
        lines = scanlines(data, read_header(data))
        assert lines is not None
        own = unfiltered(lines, read_header(data))
        assert (own is None) == (3 in filters)  # OpenCV's
        np.testing.assert_array_equal(open_image(data).samples(), samples)
        np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), -1), samples)


def test_png_with_a_transparent_grey_is_opencvs() -> None:
    data = png(EIGHT, 8, 0, chunk(b"tRNS", struct.pack(">H", 77)))
    header = read_header(data)
    lines = scanlines(data, header)
    assert header.transparent and lines is not None and unfiltered(lines, header) is None


# ---- JPEG ----------------------------------------------------------------------------------


def test_grey_jpeg_is_what_libjpeg_gives() -> None:
    data = encode(EIGHT, ".jpg")
    samples, warnings = read(data)
    np.testing.assert_array_equal(samples, cv2.imdecode(np.frombuffer(data, np.uint8), -1))
    assert warnings == UNVERIFIED


@pytest.mark.parametrize("options", [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]])
def test_colour_jpeg_is_its_luminance(options: list[int]) -> None:
    bgr = np.dstack([EIGHT, 255 - EIGHT, EIGHT // 2])
    data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 98, *options])[1].tobytes()
    samples, warnings = read(data)
    np.testing.assert_allclose(samples, bgr @ [0.114, 0.587, 0.299], atol=8)
    assert warnings == [*UNVERIFIED, Caution.COLOUR]


def test_cmyk_jpeg_is_converted() -> None:
    black = np.dstack([EIGHT * 0, EIGHT * 0, EIGHT * 0, 255 - EIGHT])
    data = bytes(
        imagecodecs.jpeg8_encode(255 - black, level=98, colorspace="CMYK", outcolorspace="CMYK")
    )
    samples, _ = read(data)
    assert np.corrcoef(samples.ravel(), EIGHT.ravel())[0, 1] ** 2 > 0.98


def test_twelve_bit_and_lossless_jpeg() -> None:
    twelve = SIXTEEN >> 4
    samples, _ = read(bytes(imagecodecs.jpeg8_encode(twelve, level=99, bitspersample=12)))
    assert samples.dtype == np.uint16 and np.abs(samples.astype(int) - twelve).max() < 40
    for pixels in (EIGHT, twelve):
        samples, _ = read(bytes(imagecodecs.ljpeg_encode(pixels)))
        np.testing.assert_array_equal(samples, pixels)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.95])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
@pytest.mark.parametrize("kind", ["grey", "colour", "progressive", "twelve", "lossless", "cmyk"])
def test_cut_jpeg_is_truncated(kind: str, end: bytes, share: float) -> None:
    """Also where an end marker was put behind the cut, which libjpeg takes without an error."""
    bgr = np.dstack([EIGHT, 255 - EIGHT, EIGHT // 2])
    cmyk = np.dstack([bgr, EIGHT])
    data = {
        "grey": lambda: encode(EIGHT, ".jpg"),
        "colour": lambda: encode(bgr, ".jpg"),
        "progressive": lambda: cv2.imencode(".jpg", EIGHT, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1],
        "twelve": lambda: imagecodecs.jpeg8_encode(SIXTEEN >> 4, level=90, bitspersample=12),
        "lossless": lambda: imagecodecs.ljpeg_encode(EIGHT),
        "cmyk": lambda: imagecodecs.jpeg8_encode(
            cmyk, level=90, colorspace="CMYK", outcolorspace="CMYK"
        ),
    }[kind]()
    data = bytes(data)
    assert reason(data) is None
    start = data.index(b"\xff\xda") + 20
    cut = data[: start + int((len(data) - start) * share)]
    assert reason(cut + end) in (Fail.TRUNCATED, Fail.DECODE)


def test_a_picture_that_ends_in_middle_grey_is_whole() -> None:
    """What libjpeg fills with is also a shade that pictures have."""
    grey = EIGHT.copy()
    grey[60:] = 128
    data = encode(grey, ".jpg")
    samples, _ = read(data)
    assert (samples[-1] == 128).all()
    assert reason(data + b"appended by a camera") is None


def test_damaged_jpeg_headers() -> None:
    data = encode(EIGHT, ".jpg")
    assert reason(data[:3]) is Fail.TRUNCATED
    assert reason(data[:30]) is Fail.TRUNCATED
    assert reason(b"\xff\xd8\xff\xd9" + bytes(100)) is Fail.CORRUPT
    zero = bytearray(data)
    place = zero.index(b"\xff\xc0") + 5
    zero[place : place + 2] = b"\0\0"
    assert reason(bytes(zero)) is Fail.CORRUPT


def test_random_damage_gives_pixels_or_a_reason() -> None:
    random = np.random.default_rng(5)
    for data in (encode(EIGHT, ".jpg"), encode(SIXTEEN), encode(np.dstack([EIGHT] * 3), ".jpg")):
        for _ in range(150):
            mutant = bytearray(data)
            for place in random.integers(3, len(data), 3):
                mutant[place] = random.integers(256)
            reason(bytes(mutant))  # anything but another exception


# ---- both ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", Fail.EMPTY), (b"GIF89a" + bytes(300), Skip.UNSUPPORTED_FORMAT),
     (b"%PDF-1.4" + bytes(300), Skip.UNSUPPORTED_FORMAT),
     (encode(EIGHT[:30, :30]), Fail.TOO_SMALL), (encode(np.tile(EIGHT, (1, 12))), Fail.TOO_SMALL)],
)  # fmt: skip
def test_other_content_and_sizes(data: bytes, expected: Skip | Fail) -> None:
    assert reason(data) is expected


def test_a_huge_picture_is_refused_by_its_header() -> None:
    header = struct.pack(">IIBBBBB", 60000, 60000, 16, 6, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
    )
    assert reason(data) is Fail.TOO_LARGE
    with pytest.raises(ItemError):
        open_image(encode(EIGHT), Limits(pixels=1000))


@pytest.mark.real
def test_real_files_are_what_opencv_reads(shared: Path) -> None:
    files = sorted((shared / "cxr" / "images").glob("*.jpg"))[:40]
    files += sorted(p for p in (shared / "originals").rglob("*") if p.suffix in (".png", ".jpg"))[
        :8
    ]
    for path in files:
        samples, _ = read(path.read_bytes())
        expected = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if expected.ndim == 2:
            np.testing.assert_array_equal(samples, expected)


@pytest.mark.real
def test_the_checks_cost_little(shared: Path) -> None:
    """Opening and decoding a 512-pixel JPEG takes about the CPU time of its codec."""
    data = sorted((shared / "cxr" / "images").glob("*.jpg"))[0].read_bytes()

    def best(run: object) -> float:
        times = []
        for _ in range(30):
            start = time.thread_time()
            run()  # type: ignore[operator]
            times.append(time.thread_time() - start)
        return min(times)

    ours = best(lambda: open_image(data).samples())
    codec = best(lambda: imagecodecs.jpeg8_decode(data))
    assert ours < 2 * codec + 0.3e-3


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("option", [cv2.IMWRITE_JPEG_PROGRESSIVE, cv2.IMWRITE_JPEG_OPTIMIZE])
def test_jpeg_that_ends_between_two_scans_is_truncated(option: int, colour: bool) -> None:
    grey = cv2.GaussianBlur(EIGHT, (0, 0), 2)
    pixels = np.dstack([grey, grey[::-1], grey[:, ::-1]]) if colour else grey
    whole = cv2.imencode(".jpg", pixels, [option, 1])[1].tobytes()
    scans = [i for i in range(len(whole)) if whole.startswith(b"\xff\xda", i)]
    assert len(scans) > 3 or option != cv2.IMWRITE_JPEG_PROGRESSIVE
    for start in scans[1:]:
        for end in (start, whole.rfind(b"\xff\xc4", 0, start)):  # with and without its tables
            assert reason(whole[:end]) == Fail.TRUNCATED
    _, warnings = read(whole[:-2])
    assert Caution.END_MARKER in warnings
