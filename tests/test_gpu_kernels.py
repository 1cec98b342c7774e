"""The CUDA kernels against the definitions in NumPy, compiled for the CPU; and by NVRTC."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from comit.engine.gpu.compile import KERNELS
from comit.engine.gpu.preprocess import Preprocessor
from comit.engine.gpu.run_lengths import RunLengths
from comit.errors import ItemError
from comit.image import open_image
from comit.image import samples as layout_of
from comit.image.preprocess import Lut, Presentation, Window, preprocess
from comit.image.samples import Outcome, Rows, Source, takes
from comit.image.scanlines import read_rows
from comit.masks import FOREGROUND, encoded
from comit.reasons import Fail

TOLERANCE = 1e-3  # what the GPU may differ by in a pixel
pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not here")
quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=[False, True], ids=["forwards", "backwards"], scope="module")
def device(kernels_library: Any, request: pytest.FixtureRequest) -> Any:
    from cpu_device import CpuDevice

    return CpuDevice(kernels_library, request.param)


def on_gpu(
    device: Any, images: list[tuple[Source, Presentation]], half: bool = False
) -> tuple[NDArray[Any], list[Outcome]]:
    """(N, 224, 224) and what was said, by the kernels."""
    preprocessor = Preprocessor(device, half)
    memory = preprocessor.start(device.pictures(images), None)
    outcomes = preprocessor.outcomes(None)
    pixels = np.empty((len(images), 224, 224), np.float16 if half else np.float32)
    device.download(pixels, memory, None)
    return pixels, outcomes


def on_cpu(image: tuple[Source, Presentation]) -> tuple[NDArray[Any], Outcome]:
    """The same by the definition; a picture without pixels is black."""
    source, presentation = image
    assert isinstance(source, np.ndarray)
    try:
        pixels, voi, warnings = preprocess(source, presentation)
    except ItemError as error:
        assert isinstance(error.reason, Fail)
        return np.zeros((224, 224), np.float32), Outcome(error.reason, "", ())
    return pixels, Outcome(None, voi, warnings)


def agree(device: Any, images: list[tuple[Source, Presentation]]) -> None:
    pixels, said = on_gpu(device, images)
    halves, _ = on_gpu(device, images, half=True)
    for image, found, half, outcome in zip(images, pixels, halves, said, strict=True):
        expected, wanted = on_cpu(image)
        assert outcome.reason == wanted.reason
        if outcome.reason is None:
            assert outcome == wanted
        np.testing.assert_allclose(found, expected, atol=TOLERANCE / 10)
        np.testing.assert_allclose(half.astype(np.float32), expected, atol=TOLERANCE)


def shapes(rng: np.random.Generator, height: int, width: int, dtype: Any) -> NDArray[Any]:
    """A smooth picture with grain over much of the type's range."""
    rows, columns = np.linspace(0, 3, height)[:, None], np.linspace(0, 5, width)
    smooth = np.sin(rows + rng.uniform(0, 6)) * np.cos(columns * rng.uniform(0.5, 2)) / 2 + 0.5
    info = np.iinfo(dtype)
    grain = rng.uniform(0, 0.1, (height, width))
    return (info.min + (0.9 * smooth + grain) * (int(info.max) - info.min) * 0.9).astype(dtype)


WINDOWS = st.tuples(
    st.floats(0.1, 0.9), st.floats(0.05, 3), st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"])
)
IMAGES = st.fixed_dictionaries(
    {
        "size": st.tuples(st.integers(1, 900), st.integers(1, 900)),
        "dtype": st.sampled_from([np.uint8, np.uint16, np.int16]),
        "rescale": st.sampled_from([(1.0, 0.0), (2.0, -1024.0), (-0.37, 7.5), (0.001, 0.0)]),
        "modality_lut": st.booleans(),
        "voi": st.none() | st.just("lut") | WINDOWS,
        "inverted": st.booleans(),
        "padding": st.none() | st.sampled_from([(0.0, 0.0), (-5.5, 1000.2), (30000.0, 65535.0)]),
    }
)


def drawn(rng: np.random.Generator, image: dict[str, Any]) -> tuple[Source, Presentation]:
    """A picture and how it is shown, its window somewhere within its values.

    A window beside them, or a table with jumps, would ask for more digits than float32 has.
    """
    samples = shapes(rng, *image["size"], image["dtype"])
    low, high = float(samples.min()), float(samples.max()) + 1
    slope, intercept = image["rescale"]
    modality_lut = voi = None
    ends = sorted(v * slope + intercept for v in (low, high))
    if image["modality_lut"]:
        modality_lut = Lut(low, tuple(np.linspace(0, 90, 500) ** 1.5))
        ends = [0.0, 90.0**1.5]
    if image["voi"] == "lut":
        voi = Lut(ends[0], tuple(np.sqrt(np.arange(4096.0)) * 7))
    elif image["voi"] is not None:
        at, share, function = image["voi"]
        span = ends[1] - ends[0]
        voi = Window(ends[0] + at * span, max(2.0, share * span), function)
    return samples, Presentation(
        slope, intercept, modality_lut, voi, image["inverted"], image["padding"]
    )


@given(st.lists(IMAGES, min_size=1, max_size=4), st.integers(0, 2**32 - 1))
@quick
def test_a_batch_of_any_sizes_is_preprocessed_as_defined(
    device: Any, images: list[dict[str, Any]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    agree(device, [drawn(rng, image) for image in images])


@pytest.mark.parametrize("size", [(224, 224), (3056, 2544), (1, 1), (64, 9000), (9000, 64)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_sizes_at_the_edges(device: Any, size: tuple[int, int], dtype: Any) -> None:
    samples = shapes(np.random.default_rng(5), *size, dtype)
    agree(device, [(samples, Presentation(inverted=True))])


def test_the_longest_sides_do_not_overflow(device: Any) -> None:
    """32,767 rows of 65,535: the largest sum of a column, 2^31 - 98,302."""
    for dtype, value in ((np.uint16, 65535), (np.int16, -32768)):
        for shape in ((layout_of.MOST_SIDE, 64), (64, layout_of.MOST_SIDE)):
            samples = np.full(shape, value, dtype)
            samples[: shape[0] // 2, : shape[1] // 2] = value // 2
            agree(device, [(samples, Presentation())])
    assert not takes((64, layout_of.MOST_SIDE + 1), np.dtype(np.uint8), Presentation())


def test_polarity_padding_and_thresholds_are_pictures_of_their_own(device: Any) -> None:
    rng = np.random.default_rng(0)
    framed = shapes(rng, 500, 400, np.uint16) // 2 + 1
    framed[:, :130] = 0
    framed[::7, 131:140] = 0
    agree(
        device,
        [
            (framed, Presentation(padding=(0, 0))),
            (framed, Presentation(padding=(0, 0), inverted=True, voi=Window(9000, 1))),
            (framed, Presentation(padding=(0, 70000))),  # nothing else: blank
            (framed, Presentation(slope=1e38)),  # beyond float32: nonfinite
            (framed, Presentation(voi=Window(-9e4, 10))),  # shows one shade: left out
            (framed, Presentation(voi=Window(100, 200))),  # nearly all white
            (framed, Presentation(padding=(0, 0), voi=Window(60000, 60000))),  # nearly all black
            (framed, Presentation(voi=Lut(0, (0.0, 5.0, 9.0)), inverted=True)),
            (np.tri(300, 300, -90, np.uint8) * 9, Presentation(voi=Window(4, 9))),  # black anyway
            (np.full((300, 300), 7, np.uint8), Presentation(voi=Window(7, 2))),  # blank
            (np.eye(300, dtype=np.uint8), Presentation()),  # a few bright cells on nothing
        ],
    )


def test_pixels_from_the_cpu_pass_through_among_others(device: Any) -> None:
    rng = np.random.default_rng(1)
    ready = rng.random((224, 224), np.float32)
    samples = shapes(rng, 300, 310, np.uint8)
    (a, b, c), said = on_gpu(device, [(ready, Presentation()), (samples, Presentation()),
                                      (ready, Presentation(inverted=True))])  # fmt: skip
    assert np.array_equal(a, ready) and np.array_equal(c, ready)
    np.testing.assert_allclose(b, preprocess(samples, Presentation()).pixels, atol=1e-4)
    assert [s.reason for s in said] == [None] * 3


def test_a_smaller_batch_after_a_larger_one_is_its_own(device: Any) -> None:
    rng = np.random.default_rng(2)
    preprocessor = Preprocessor(device, half=False)
    many: list[tuple[Source, Presentation]] = [
        (shapes(rng, 400 + i, 300, np.uint16), Presentation()) for i in range(3)
    ]
    preprocessor.start(device.pictures(many), None)
    assert len(preprocessor.outcomes(None)) == 3
    memory = preprocessor.start(device.pictures(many[1:2]), None)
    assert len(preprocessor.outcomes(None)) == 1
    found = np.empty((224, 224), np.float32)
    device.download(found, memory, None)
    np.testing.assert_allclose(found, on_cpu(many[1])[0], atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint32, np.int8])
def test_other_types_are_the_cpus(device: Any, dtype: Any) -> None:
    samples = np.zeros((300, 300), dtype)
    assert not takes(samples.shape, samples.dtype, Presentation())
    with pytest.raises(ValueError, match="do not take"):
        device.pictures([(samples, Presentation())])


def test_a_table_is_the_same_in_python_and_in_c(kernels_library: Any) -> None:
    assert kernels_library.size_of_picture() == layout_of.PICTURE.itemsize
    assert kernels_library.size_of_scanlines() == layout_of.SCANLINES.itemsize
    assert kernels_library.size_of_runs() == layout_of.RUNS.itemsize


def test_float16_is_rounded_as_ieee_says(kernels_library: Any) -> None:
    """Every float16 in [0, 1], the midpoints between them, and their neighbours."""
    halves = np.arange(0x3C01, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (halves[1:] + halves[:-1]) / 2
    values = np.concatenate(
        [halves, middle, np.nextafter(middle, np.float32(2)), np.nextafter(middle, np.float32(-2))]
    )
    found = np.array([kernels_library.half_of(float(v)) for v in values], np.uint16)
    assert np.array_equal(found, values.astype(np.float16).view(np.uint16))


# PNG


def filtered(samples: NDArray[Any], rng: np.random.Generator) -> NDArray[np.uint8]:
    """ISO/IEC 15948 9.2: each row with a filter drawn at random, in the slow obvious way."""
    size = samples.dtype.itemsize
    raw = samples.astype(samples.dtype.newbyteorder(">")).view(np.uint8).reshape(len(samples), -1)
    out = np.empty((raw.shape[0], raw.shape[1] + 1), np.uint8)
    for y, row in enumerate(raw.astype(int)):
        up = raw[y - 1].astype(int) if y else np.zeros_like(row)
        left = np.concatenate([np.zeros(size, int), row[:-size]])
        corner = np.concatenate([np.zeros(size, int), up[:-size]])
        p = left + up - corner
        pa, pb, pc = abs(p - left), abs(p - up), abs(p - corner)
        paeth = np.where((pa <= pb) & (pa <= pc), left, np.where(pb <= pc, up, corner))
        out[y, 0] = kind = rng.integers(5)
        out[y, 1:] = (row - [np.zeros_like(row), left, up, (left + up) // 2, paeth][kind]) % 256
    return out


def png(
    rows: NDArray[np.uint8], width: int, depth: int, colour: int = 0, extra: bytes = b""
) -> bytes:
    """A file of these scanlines, its IDAT in two pieces."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    packed = zlib.compress(rows.tobytes())
    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", head), extra, chunk(b"IDAT", packed[:99]), chunk(b"IDAT", packed[99:])]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


@given(
    st.integers(64, 600),
    st.integers(64, 400),
    st.sampled_from([np.uint8, np.uint16]),
    st.integers(0, 2**32 - 1),
)
@quick
def test_png_filters_are_undone(
    device: Any, height: int, width: int, dtype: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    samples = shapes(rng, height, width, dtype)
    data = png(filtered(samples, rng), width, samples.itemsize * 8)
    rows = read_rows(data)
    assert isinstance(rows, Rows) and rows.shape == samples.shape and rows.dtype == samples.dtype
    pictures = device.pictures([(samples, Presentation()), (rows, Presentation())])
    layout = layout_of.lay_out(pictures)
    memory = device.empty(layout.size)
    device.upload(memory, pictures.data, None)
    lines = device.empty(layout.scanlines.nbytes)
    device.upload(lines, layout.scanlines, None)
    device.launch("unfilter_rows", (1, 1, 1), (256, 1, 1), [memory, memory, lines], None)
    start = int(layout.scanlines["target"][0])
    found = memory.array[start : start + samples.nbytes].view(dtype).reshape(samples.shape)
    assert np.array_equal(found, samples)


def test_png_rows_and_samples_are_one_batch(device: Any) -> None:
    rng = np.random.default_rng(3)
    pictures = [shapes(rng, 270, 300 + i, t) for i, t in enumerate((np.uint8, np.uint16) * 2)]
    images: list[tuple[Source, Presentation]] = []
    for i, samples in enumerate(pictures):
        rows = read_rows(png(filtered(samples, rng), samples.shape[1], samples.itemsize * 8))
        assert rows is not None
        images.append((rows if i < 3 else samples, Presentation(inverted=i == 1)))
    pixels, _ = on_gpu(device, images)
    for found, samples, (_, presentation) in zip(pixels, pictures, images, strict=True):
        np.testing.assert_allclose(found, preprocess(samples, presentation).pixels, atol=1e-4)


def with_header(data: bytes, at: int, value: bytes) -> bytes:
    """A PNG whose IHDR has other bytes from ``at`` on, its checksum set right."""
    changed = data[12:at] + value + data[at + len(value) : 29]
    return data[:12] + changed + struct.pack(">I", zlib.crc32(changed)) + data[33:]


def test_other_pngs_are_the_cpus(tmp_path: Path) -> None:
    grey = np.zeros((64, 65), np.uint8)
    assert read_rows(png(grey, 64, 8)) is not None
    transparent = b"\0\0\0\2tRNS\0\7" + struct.pack(">I", zlib.crc32(b"tRNS\0\7"))
    assert read_rows(png(grey, 64, 8, extra=transparent)) is None
    assert read_rows(png(np.zeros((64, 9), np.uint8), 64, 1)) is None
    assert read_rows(png(np.zeros((64, 193), np.uint8), 64, 8, colour=2)) is None
    assert read_rows(with_header(png(grey, 64, 8), 28, b"\1")) is None  # interlaced
    assert read_rows(b"\xff\xd8\xff") is None


def test_a_png_whose_rows_are_not_whole_is_the_cpus() -> None:
    for rows in (63, 65):
        data = png(np.zeros((rows, 65), np.uint8), 64, 8)
        assert read_rows(with_header(data, 20, struct.pack(">I", 64))) is None
    assert read_rows(png(np.full((64, 65), 5, np.uint8), 64, 8)) is None  # no such filter


# Run lengths


def masks_of(seed: int, n: int) -> NDArray[np.uint8]:
    """(n, 2, 224, 224): blobs, noise, and both ends of the range."""
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 256, (n, 2, 224, 224)).astype(np.uint8)
    for i in range(0, n, 2):
        for which in range(2):
            blurred = cv2.GaussianBlur(masks[i, which], (0, 0), 12).astype(float)
            masks[i, which] = np.clip((blurred - 127.5) * 20 + 127.5, 0, 255)
    return masks


@pytest.mark.parametrize("n", [1, 5])
def test_run_lengths_are_those_of_coco(device: Any, n: int) -> None:
    masks = masks_of(n, n)
    check_runs(device, masks)


@pytest.mark.parametrize("value", [0, FOREGROUND - 1, FOREGROUND, 255])
def test_run_lengths_of_a_plain_mask(device: Any, value: int) -> None:
    masks = np.full((2, 2, 224, 224), value, np.uint8)
    masks[1, 0, 0, 0] = 255 - value
    masks[1, 1, -1, -1] = 255 - value
    check_runs(device, masks)


def check_runs(device: Any, masks: NDArray[np.uint8]) -> None:
    memory = device.empty(masks.nbytes)
    device.upload(memory, masks, None)
    lengths = RunLengths(device)
    lengths.start(memory, len(masks), None)
    for found, mask in zip(lengths.finish(None), masks >= FOREGROUND, strict=True):
        assert encoded(found) == encoded(mask * np.uint8(255))


# NVRTC


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_every_kernel_compiles_for(arch: str) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not here: pip install 'comit[test]'")
    from comit.engine.gpu.compile import compile_cubin

    code = compile_cubin(arch)
    assert code.startswith(b"\x7fELF")
    assert all(f".text.{kernel}".encode() in code for kernel in KERNELS)


def test_a_cubin_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from comit.engine.gpu import compile as compiler

    made: list[str] = []

    def compiled(arch: str) -> bytes:
        made.append(arch)
        return b"\x7fELF of " + arch.encode()

    monkeypatch.setattr(compiler, "compile_cubin", compiled)
    first = compiler.cubin("sm_90", tmp_path)
    assert compiler.cubin("sm_90", tmp_path) == first
    (kept,) = (tmp_path / "kernels").glob("*.cubin")
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.write_bytes(b"\x7fELF of somebody else")
    assert compiler.cubin("sm_90", tmp_path) == first
    kept.chmod(0o666)
    assert compiler.cubin("sm_90", tmp_path) == first
    assert made == ["sm_90"] * 3
    compiler.cubin("sm_120", tmp_path)
    assert made[-1] == "sm_120"


# Real files


@pytest.mark.real
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.nightly)])
def test_real_files_are_preprocessed_as_defined(
    kernels_library: Any, shared: Path, every: int
) -> None:
    from cpu_device import CpuDevice

    device, compared, by_rows = CpuDevice(kernels_library), 0, 0
    paths = sorted(p for p in (shared / "cxr/images").rglob("*") if p.is_file())[::every]
    for folder in (shared / "dicom", shared / "originals"):
        paths += sorted(p for p in folder.rglob("*") if p.is_file())
    for path in paths:
        data = path.read_bytes()
        try:
            image = open_image(data)
            samples = image.samples()
        except ItemError:
            continue
        if image.frames > 1 or not takes(samples.shape, samples.dtype, image.presentation):
            continue
        agree(device, [(samples, image.presentation)])
        compared += 1
        rows = read_rows(data)
        if rows is not None:
            a, b = on_gpu(device, [(rows, image.presentation), (samples, image.presentation)])[0]
            assert np.array_equal(a, b)
            by_rows += 1
    assert compared > 100 and by_rows > 5
