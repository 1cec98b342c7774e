"""Compressed frames on the GPU's side: which decoder is trusted, and what it rejects."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from comit.decode.compressed import FORMATS
from comit.gpu.batch import Frame, lay_out
from comit.gpu.decoder import NvImageCodec, open_decoder
from comit.gpu.device import Borrowed
from comit.gpu.frames import Frames, draw
from comit.preprocess import Presentation

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not here")
JPEGS = {name for name in FORMATS if name.endswith("JPEG")}
Alter = Callable[[bytes, NDArray[Any]], NDArray[Any] | None]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from cpu_device import CpuDevice, build

    return CpuDevice(build(tmp_path_factory.mktemp("kernels") / "kernels.so"))


@pytest.fixture
def nvimagecodec(device: Any) -> Any:
    pytest.importorskip("nvidia.nvimgcodec")
    from frame_decoders import OnHost

    return OnHost(device)


def trusted(device: Any, alter: Alter) -> tuple[frozenset[str], str]:
    """What of a decoder that is right but for ``alter``."""
    from frame_decoders import ByImagecodecs

    return Frames(device, ByImagecodecs(alter)).trusted(None)


def test_a_decoder_that_does_as_the_cpu_is_trusted_with_everything(device: Any) -> None:
    assert trusted(device, lambda data, found: found) == (frozenset(FORMATS), "")


def off(found: NDArray[Any], every: int, levels: int) -> NDArray[Any]:
    """Samples changed by a number of levels of 8 bits, one in ``every``."""
    step = max(1, levels * int(found.max()) // 255)
    away = np.zeros(found.size, np.int64)
    away[::every] = step
    top = np.iinfo(found.dtype).max
    changed = found.astype(np.int64).ravel()
    changed += np.where(changed + away > top, -away, away)
    return changed.reshape(found.shape).astype(found.dtype)


@pytest.mark.parametrize(("every", "levels", "lossy"), [(40, 1, True), (40, 2, False),
                                                        (10, 1, False)])  # fmt: skip
def test_lossless_formats_agree_to_the_bit_and_lossy_ones_nearly(
    device: Any, every: int, levels: int, lossy: bool
) -> None:
    formats, note = trusted(device, lambda data, found: off(found, every, levels))
    assert formats == (
        {n for n in FORMATS if "lossy" in n or n == "8-bit JPEG"} if lossy else set()
    )
    assert note.startswith("imagecodecs is not used for ") and note.endswith(
        "; the CPU decodes those"
    )
    assert "16-bit JPEG 2000 (other values)" in note


def test_a_lossy_format_may_not_be_off_by_a_block(device: Any) -> None:
    def shifted(data: bytes, found: NDArray[Any]) -> NDArray[Any]:
        changed = found.copy()
        changed[96:104, 136:144] -= max(1, int(found.max()) // 255)
        return changed

    formats, note = trusted(device, shifted)
    assert not formats and note.count("(other values)") == len(FORMATS)


def test_what_gives_nothing_or_scales_values_or_hides_a_cut_is_not_trusted(device: Any) -> None:
    formats, note = trusted(device, lambda data, found: None if found.dtype == np.uint8 else found)
    assert formats == {name for name in FORMATS if name.startswith("16")}
    assert "8-bit JPEG (no result)" in note
    formats, _ = trusted(
        device, lambda data, found: found << 4 if 255 < found.max() < 5000 else found
    )
    assert formats == {name for name in FORMATS if name.startswith("8")}

    def without_fill(data: bytes, found: NDArray[Any]) -> NDArray[Any]:
        cut = found[-1, -4:]
        return (
            np.where(found == cut[0], 7, found).astype(found.dtype) if np.ptp(cut) == 0 else found
        )

    formats, note = trusted(device, without_fill)
    assert formats == set(FORMATS) - JPEGS
    assert len(re.findall(r"JPEG \(a cut is not seen\)", note)) == len(JPEGS)


def test_one_copy_in_a_batch_that_differs_is_enough(device: Any) -> None:
    turn = iter(range(10**6))
    formats, note = trusted(device, lambda data, found: found ^ 1 if next(turn) % 8 == 5 else found)
    assert "lossless JPEG (other values)" in note and not formats & {"8-bit HTJ2K", "16-bit HTJ2K"}


def test_a_format_that_the_cpu_cannot_write_is_not_trusted(
    device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import imagecodecs

    monkeypatch.delattr(imagecodecs, "htj2k_encode", raising=False)
    formats, note = trusted(device, lambda data, found: found)
    assert formats == {name for name in FORMATS if not name.endswith("HTJ2K")}
    assert "8-bit HTJ2K (the CPU has no encoder to compare it by)" in note


def frames_of(names: Sequence[str]) -> list[tuple[Frame, NDArray[Any]]]:
    found = []
    for name in names:
        plain, expected = draw(name)[-1]
        data = np.frombuffer(plain.data, np.uint8)
        found.append((Frame(data, expected.shape, expected.dtype, plain.fill), expected))
    return found


def test_samples_lie_in_their_places_beside_those_of_other_pictures(
    device: Any,
) -> None:
    from frame_decoders import ByImagecodecs

    (a, first), (b, second) = frames_of(["16-bit lossless JPEG", "8-bit JPEG 2000"])
    broken = a._replace(data=a.data[:-2000])  # libjpeg fills the rest
    plain = np.arange(90 * 70, dtype=np.uint16).reshape(90, 70)
    shown = Presentation()
    given = device.pictures([(s, shown) for s in (plain, a, broken, b, plain)])
    layout = lay_out(given)
    assert [i for i, _ in layout.frames] == [1, 2, 3]
    assert given.nbytes == 2 * plain.nbytes + 2 * first.nbytes + second.nbytes
    samples = device.empty(layout.size)
    device.upload(samples, given.data, None)
    frames = Frames(device, ByImagecodecs())
    frames.start(given, layout, samples, None)
    assert frames.rejected() == {2}
    wanted = {0: plain, 1: first, 3: second, 4: plain}
    for i, expected in wanted.items():
        found = np.empty(expected.shape, expected.dtype)
        place = int(layout.pictures[i]["offset"])
        device.download(found, Borrowed(samples, samples.address + place, found.nbytes), None)
        assert np.array_equal(found, expected), i
    # Halves of the batch are batches of their own.
    _, second_half = given.halves()
    frames.start(second_half, lay_out(second_half), samples, None)
    assert frames.rejected() == {0}
    other = given.halves()[0]
    frames.start(other, lay_out(other), samples, None)
    assert frames.rejected() == set()


# ---- nvImageCodec: its class, with the package's decoders for CPUs --------------------------


def test_nvimagecodec_agrees_where_it_has_a_decoder_for_cpus(
    device: Any, nvimagecodec: Any
) -> None:
    formats, note = Frames(device, nvimagecodec).trusted(None)
    assert formats == set(FORMATS) - {"16-bit lossless JPEG"}
    assert note == (
        "nvImageCodec is not used for 16-bit lossless JPEG (no result); the CPU decodes those"
    )


def test_nvimagecodec_rejects_what_is_not_the_picture_expected(nvimagecodec: Any) -> None:
    (frame, expected), (other, _) = frames_of(["8-bit JPEG", "16-bit JPEG 2000"])
    rows, columns = frame.shape
    rubbish = np.frombuffer(b"\xff\xd8\xff" + bytes(500), np.uint8)
    batch = [
        frame,
        frame._replace(shape=(rows, columns + 1)),
        frame._replace(dtype=np.dtype(np.uint16)),
        frame._replace(data=rubbish),
        frame._replace(data=np.empty(0, np.uint8)),
        other._replace(data=other.data[:60]),
        other,
    ]
    # Before memory is taken: the size that this library reads in the header, not only comit.
    assert [nvimagecodec._parse(frame) is not None for frame in batch[:4]] == [True, *[False] * 3]
    found = nvimagecodec.decode(batch, None)
    assert [memory is not None for memory in found] == [True, *[False] * 5, True]
    assert nvimagecodec.decode([], None) == []
    assert found[0].nbytes == expected.nbytes


def test_nvimagecodec_is_left_alone_where_it_finds_no_gpu(device: Any) -> None:
    pytest.importorskip("nvidia.nvimgcodec")
    from comit.engine import gpu_present

    if gpu_present():
        pytest.skip("there is a GPU here")
    assert open_decoder(device) is None


def test_without_the_package_nothing_is_decoded(
    device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    assert open_decoder(device) is None


class Package:
    """nvimgcodec's names, with images that lie on a GPU and are not what was asked for."""

    class Image:
        def __init__(self, **about: Any) -> None:
            given = {"shape": (4, 5, 1), "typestr": "|u1", "strides": None, "data": (4096, False)}
            self.__cuda_array_interface__ = given | about

    class CodeStream:
        height, width, num_channels, dtype = 4, 5, 1, np.dtype(np.uint8)

        def __init__(self, data: NDArray[np.uint8]) -> None:
            self.data = data


def test_where_an_image_lies_is_read_from_its_interface() -> None:
    codec = NvImageCodec.__new__(NvImageCodec)
    frame = Frame(np.zeros(9, np.uint8), (4, 5), np.dtype(np.uint8), None)
    image = Package.Image
    for found, fits in (
        (image(), True),
        (image(strides=(5, 1, 1)), True),
        (image(strides=(8, 1, 1)), False),
        (image(shape=(4, 5, 3)), False),
        (image(shape=(5, 4, 1)), False),
        (image(typestr="<u2"), False),
    ):
        memory = codec._memory(found, frame)
        assert (memory is not None) == fits
        if memory is not None:
            assert (memory.address, memory.nbytes) == (4096, 20)


def test_an_error_of_the_package_rejects_the_batch_and_says_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Broken:
        def decode(self, *given: Any, **options: Any) -> list[Any]:
            raise RuntimeError("Planted^Patient")

    codec: Any = NvImageCodec.__new__(NvImageCodec)
    codec._package, codec._decoder, codec._as_stored = Package, Broken(), None
    codec._gpu = type("Gpu", (), {"handle": lambda self, stream: 0})()
    frame = Frame(np.zeros(9, np.uint8), (4, 5), np.dtype(np.uint8), None)
    assert codec.decode([frame, frame], None) == [None, None]
    assert "Planted" not in "".join(capfd.readouterr())
