"""``comit screen`` with an engine that takes samples: the rows that the CPU's path gives.

The GPU's kernels run on the CPU, compiled by g++, and ONNX Runtime computes where TensorRT would.
"""

from __future__ import annotations

import shutil
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import fake_tensorrt
import numpy as np
import pyarrow.parquet as pq
import pytest

from comit import engine as engines
from comit import lanes as lanes_module
from comit.bench.faults import dicoms, zoo
from comit.card import OperatingPoint, card_path, read_card
from comit.console import Console
from comit.decode import open_image
from comit.decode.compressed import FORMATS, LOSSLESS
from comit.demo import demo
from comit.engine import tensorrt as runtime
from comit.engine.base import IMAGE
from comit.errors import ItemError, Stopped
from comit.export import to_tensorrt
from comit.gpu.batch import Pictures
from comit.gpu.device import Borrowed
from comit.gpu.frames import draw
from comit.gpu.screening import Screening
from comit.results import RUN, decode_mask
from comit.screen import Options, Report, screen

torch = pytest.importorskip("torch")
Rows = dict[str, dict[str, Any]]
QUIET = Console(quiet=True)
RLES, FRACTIONS = ("lung_rle", "disease_rle"), ("lung_fraction", "disease_fraction")
SCORES = ("score_unhealthy", "score_covid", "score_other")
DRAWN = "synthetic*"  # drawings of every kind


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not shutil.which("g++"):
        pytest.skip("g++ is not here")
    from cpu_device import build

    return build(tmp_path_factory.mktemp("kernels") / "kernels.so")


@pytest.fixture(autouse=True)
def gpus(library: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The stand-ins in place of TensorRT, its packages and GPUs; the devices that were opened."""
    from cpu_device import CpuDevice

    opened: dict[str, Any] = {}

    def open_device(name: str) -> Any:
        device = opened[name] = CpuDevice(library)
        device.name = name
        return device

    monkeypatch.setattr(runtime, "open_device", open_device)
    monkeypatch.setattr(engines, "_missing", lambda name: [])
    monkeypatch.setattr(to_tensorrt, "import_tensorrt", lambda: fake_tensorrt.module("Float"))
    monkeypatch.setattr(to_tensorrt, "build", lambda trt, onnx, *rest: (onnx, b""))
    monkeypatch.setattr(to_tensorrt, "read", lambda path: None)
    monkeypatch.setattr(to_tensorrt, "publish", lambda path, content: None)
    return opened


def run(source: Path, out: Path, model: Path, **options: Any) -> tuple[Report, Rows]:
    given = {"model": model, "precision": "fp32", "batch_size": 4, "workers": 2, **options}
    report = screen(source, out, Options(**given), console=QUIET)
    rows = pq.read_table(out).drop_columns(list(RUN)).to_pylist()
    return report, {row["path"]: row for row in rows}


def on_cpu(source: Path, out: Path, model: Path, **options: Any) -> tuple[Report, Rows]:
    return run(source, out, model, engine="onnxruntime", device="cpu", **options)


def on_gpu(source: Path, out: Path, model: Path, **options: Any) -> tuple[Report, Rows]:
    return run(source, out, model, engine="tensorrt", device="cuda:0", **options)


def agree(found: Rows, expected: Rows) -> None:
    """All columns the same; scores within 1e-4, masks but for cells at the threshold."""
    assert found.keys() == expected.keys()
    numbers = (*SCORES, *RLES, *FRACTIONS)
    for path, row in found.items():
        other = expected[path]
        rest = {k: v for k, v in row.items() if k not in numbers}
        assert rest == {k: v for k, v in other.items() if k not in numbers}, path
        for name in numbers:
            assert (row[name] is None) == (other[name] is None), (path, name)
        for name in (*SCORES, *FRACTIONS):
            if row[name] is not None:
                assert row[name] == pytest.approx(other[name], abs=1e-4), (path, name)
        for name in RLES:
            if row[name] is not None:
                differs = decode_mask(row[name]) != decode_mask(other[name])
                assert np.count_nonzero(differs) <= 2, (path, name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawing of every kind, every class of bad input that is a file, and what else is odd."""
    made = tmp_path_factory.mktemp("folder") / "in"
    demo(made)
    with pytest.MonkeyPatch.context() as patch:
        for bomb in ("slow_jpeg", "deflate_bomb", "huge_png"):  # seconds each, tested elsewhere
            patch.setattr(zoo, bomb, lambda *size: b"")
        for case in zoo.cases():
            if isinstance(case.content, bytes):
                (made / case.name).write_bytes(case.content)
    rng = np.random.default_rng(0)
    large = cv2.GaussianBlur(rng.integers(0, 65535, (1800, 1500), np.uint16), (0, 0), 9)
    cv2.imwrite(str(made / "large16.png"), large)  # more than a slot of the ring
    cv2.imwrite(str(made / "large.jpg"), (large >> 8).astype(np.uint8))
    return made


@pytest.fixture(scope="module")
def cpu(
    folder: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Report, Rows]:
    """What the CPU's path says of them."""
    return on_cpu(folder, tmp_path_factory.mktemp("cpu") / "r.parquet", tiny_model)


def drawn(rows: Rows) -> Rows:
    """Those that :data:`DRAWN` asks for."""
    return {path: row for path, row in rows.items() if path.startswith("synthetic")}


def test_rows_are_those_of_the_cpu(
    folder: Path,
    cpu: tuple[Report, Rows],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    really = Pictures.add

    def add(self: Pictures, *image: Any) -> None:
        really(self, *image)
        seen.append(self.images[-1])

    monkeypatch.setattr(Pictures, "add", add)
    report, rows = on_gpu(folder, tmp_path / "gpu.parquet", tiny_model)
    expected, others = cpu
    agree(rows, others)
    assert (report.status, report.reasons, report.warnings, report.screened) == (
        expected.status, expected.reasons, expected.warnings, expected.screened
    )  # fmt: skip
    assert report.status["ok"] > 40 and report.reasons["blank"] == 2
    assert report.warnings["padding"] and report.warnings["window_unusable"]
    assert {row["voi"] for row in rows.values()} >= {"window", "lut", "none"}
    # Samples reached the engine as they are stored; what is blank, it was the one to find.
    kinds = {(p.dtype.str, p.form) for p in seen}
    rows_of, samples_of = (("|u1", "<u2"), ("|u1", "<u2", "<i2"))
    assert kinds == {(d, "rows") for d in rows_of} | {(d, "samples") for d in samples_of}
    assert all(p.dtype != np.float32 for p in seen)
    assert len(seen) == report.screened + 2


def test_masks_of_flagged_rows_or_none(
    folder: Path, cpu: tuple[Report, Rows], tiny_model: Path, tmp_path: Path
) -> None:
    everything = drawn(cpu[1])
    scores = sorted(r["score_unhealthy"] for r in everything.values() if r["status"] == "ok")
    point = OperatingPoint(unhealthy=(scores[4] + scores[5]) / 2, covid=2.0)
    model = tmp_path / "parting.onnx"
    model.write_bytes(tiny_model.read_bytes())
    replace(read_card(tiny_model), operating_points={"90": point}).write(card_path(model))
    for masks in ("flagged", "none"):
        _, rows = on_gpu(folder, tmp_path / masks, model, masks=masks, pattern=DRAWN)
        expected = {}
        for path, row in everything.items():
            marked = row["status"] == "ok" and row["score_unhealthy"] >= point.unhealthy
            flags = {"flag_unhealthy": marked, "flag_covid": False} if row["status"] == "ok" else {}
            bare = {} if marked and masks == "flagged" else dict.fromkeys((*RLES, *FRACTIONS))
            expected[path] = row | flags | bare
        agree(rows, expected)


def test_batches_end_at_a_number_of_bytes(
    folder: Path,
    cpu: tuple[Report, Rows],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes_module, "MOST_BYTES", 500_000)
    sizes: list[int] = []
    really = runtime.TensorRtEngine.screen

    def counted(self: Any, given: Pictures) -> Any:
        sizes.append(len(given))
        return really(self, given)

    monkeypatch.setattr(runtime.TensorRtEngine, "screen", counted)
    report, rows = on_gpu(folder, tmp_path / "gpu.parquet", tiny_model, pattern=DRAWN)
    agree(rows, drawn(cpu[1]))
    assert sum(sizes) == report.screened and max(sizes) < 4


def test_several_gpus_share_the_work(
    folder: Path,
    cpu: tuple[Report, Rows],
    tiny_model: Path,
    tmp_path: Path,
    gpus: dict[str, Any],
) -> None:
    given = {"device": "cuda:0,cuda:1", "engine": "tensorrt", "batch_size": 1, "pattern": DRAWN}
    report, rows = run(folder, tmp_path / "gpu.parquet", tiny_model, **given)
    agree(rows, drawn(cpu[1]))
    assert report.engine["device"] == "cuda:0,cuda:1" and report.engine["lanes"] == 4
    assert list(gpus) == ["cuda:0", "cuda:1"]
    assert all(device.launches > 0 for device in gpus.values())


class Uncaptured:
    """In place of a captured graph: the same buffers, and the network run as it is."""

    def __init__(self, graph: Any, batch_size: int, dtype: Any, device: Any, gpu: Any) -> None:
        self._graph, self._images = graph, torch.zeros((batch_size, *IMAGE), dtype=dtype)
        self._found = [torch.empty(batch_size, 3), torch.empty((batch_size, 2, 224, 224)).byte()]
        images, masks = (
            Borrowed(x, x.data_ptr(), x.nbytes) for x in (self._images, self._found[1])
        )
        self.screening = Screening(gpu, None, images, masks, half=dtype == torch.float16)

    def screen(self, pictures: Pictures) -> Any:
        return self.screening.screen(pictures, self._start, self._found[0].numpy())

    def _start(self) -> None:
        with torch.inference_mode():
            for to, found in zip(self._found, self._graph(self._images), strict=True):
                to.copy_(found)


def test_the_torch_engine_takes_samples_where_the_kernels_run(
    folder: Path,
    cpu: tuple[Report, Rows],
    library: Any,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cpu_device import CpuDevice

    from comit.engine import torch as module
    from comit.export.graph import Graph

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module, "open_device", lambda name: CpuDevice(library))
    monkeypatch.setattr(module, "on_gpu", lambda network, dtype, *rest: Graph(network, dtype))
    monkeypatch.setattr(module, "Captured", Uncaptured)
    given = {"device": "cuda:0", "engine": "torch", "pattern": DRAWN}
    report, rows = run(folder, tmp_path / "r.parquet", tiny_model, **given)
    assert report.engine["takes_samples"]
    agree(rows, drawn(cpu[1]))


# ---- compressed frames that the GPU decodes -------------------------------------------------


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every format, larger and smaller than a slot of the ring, whole and broken, and others."""
    made = tmp_path_factory.mktemp("compressed") / "in"
    demo(made, 12)
    syntaxes = {"JPEG": "50", "lossless JPEG": "70", "JPEG 2000": "90", "lossy JPEG 2000": "91",
                "HTJ2K": "201", "lossy HTJ2K": "203"}  # fmt: skip
    for name in FORMATS:
        syntax = "1.2.840.10008.1.2.4." + syntaxes[name.partition(" ")[2]]
        for i, (plain, samples) in enumerate(draw(name)):
            bits, tags = 8 * samples.itemsize, {"PhotometricInterpretation": f"MONOCHROME{1 + i}"}
            streams = {"whole": plain.data, "cut": plain.data[: len(plain.data) // 2]}
            streams["closed"] = streams["cut"].rstrip(b"\xff") + b"\xff\xd9"
            for what, stream in streams.items():
                path = made / f"{name}-{i}-{what}.dcm"
                path.write_bytes(dicoms.make(samples, syntax, stream, bits, **tags))
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1100)).astype(np.uint8)
    pictures = {
        "large": noise,
        "flat": np.full((300, 300), 128, np.uint8),
        "colour": np.dstack([noise[:200, :200], noise[200:400, :200], noise[:200, 200:400]]),
    }
    for what, picture in pictures.items():
        cv2.imwrite(str(made / f"{what}.jpg"), picture)
    cv2.imwrite(str(made / "steps.jpg"), noise[:200, :200], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    (made / "cut.jpg").write_bytes((made / "large.jpg").read_bytes()[:90_000] + b"\xff\xd9")
    return made


@pytest.fixture(scope="module")
def by_cpu(
    compressed: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Report, Rows]:
    """What the CPU's path says of them."""
    return on_cpu(compressed, tmp_path_factory.mktemp("by_cpu") / "r.parquet", tiny_model)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The decoders that were opened, imagecodecs in place of a GPU's."""
    from cpu_device import CpuDevice
    from frame_decoders import ByImagecodecs

    found: list[Any] = []

    def decoder(device: Any) -> Any:
        found.append(ByImagecodecs())
        return found[-1]

    monkeypatch.setattr(CpuDevice, "decoder", decoder)
    return found


DRAWINGS = sum(len(draw(name)) for name in FORMATS)
# Eight copies of each to compare, and of JPEG eight that are cut.
CHECKED = 8 * (DRAWINGS + sum(len(draw(n)) for n in FORMATS if n.endswith("JPEG")))


def test_frames_that_the_gpu_decodes_give_the_rows_of_the_cpu(
    compressed: Path, by_cpu: tuple[Report, Rows], opened: list[Any], tiny_model: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    report, rows = on_gpu(compressed, tmp_path / "r.parquet", tiny_model)
    expected, others = by_cpu
    agree(rows, others)
    assert (report.status, report.reasons, report.warnings, report.screened) == (
        expected.status, expected.reasons, expected.warnings, expected.screened
    )  # fmt: skip
    assert report.engine["formats"] == sorted(FORMATS) and not report.notes
    assert report.reasons["truncated"] > 5 and report.reasons["blank"] == 1
    # A decoder for each lane; they had every plain frame, once.
    assert len(opened) == 2
    plain = plain_frames(compressed)
    assert len(plain) > DRAWINGS and set(plain) == set(FORMATS)
    assert sum(decoder.decoded for decoder in opened) == CHECKED + len(plain)


def plain_frames(folder: Path) -> list[str]:
    """The formats of the frames that a decoder on a GPU is given, a file each."""
    found = []
    for path in folder.iterdir():
        with suppress(ItemError):
            image = open_image(path.read_bytes())
            frame = image.compressed() if image.skip is None else None
            found += [frame.format] if frame else []
    return found


def test_frames_go_through_nvimagecodec(
    compressed: Path, by_cpu: tuple[Report, Rows], tiny_model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip("nvidia.nvimgcodec")
    from cpu_device import CpuDevice
    from frame_decoders import OnHost

    opened: list[Any] = []

    def decoder(device: Any) -> Any:
        opened.append(OnHost(device))
        return opened[-1]

    monkeypatch.setattr(CpuDevice, "decoder", decoder)
    report, rows = on_gpu(compressed, tmp_path / "r.parquet", tiny_model)
    agree(rows, by_cpu[1])
    missing = "16-bit lossless JPEG"
    assert report.engine["formats"] == sorted(set(FORMATS) - {missing})
    assert report.notes == [
        f"nvImageCodec is not used for {missing} (no result); the CPU decodes those"
    ]
    plain = [name for name in plain_frames(compressed) if name != missing]
    checked = CHECKED - 8 * 2 * len(draw(missing))
    assert sum(decoder.decoded for decoder in opened) == checked + len(plain)


@pytest.mark.parametrize("options", [{"masks": "none"}, {"batch_size": 1}, {"workers": 1}])
def test_frames_that_the_gpu_rejects_are_decoded_by_a_process(
    options: dict[str, Any], compressed: Path, by_cpu: tuple[Report, Rows], opened: list[Any],
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from frame_decoders import ByImagecodecs

    refused: list[int] = []
    really = ByImagecodecs.decode

    def decode(self: Any, frames: Any, stream: Any) -> Any:
        found = really(self, frames, stream)
        if self.decoded <= CHECKED and self is opened[0] and not refused:
            return found  # the comparison at the start
        refused.extend(len(frame.data) for frame in frames[::2])
        return [None if i % 2 == 0 else memory for i, memory in enumerate(found)]

    monkeypatch.setattr(ByImagecodecs, "decode", decode)
    report, rows = on_gpu(compressed, tmp_path / "r.parquet", tiny_model, **options)
    bare = dict.fromkeys((*RLES, *FRACTIONS)) if "masks" in options else {}
    agree(rows, {path: row | bare for path, row in by_cpu[1].items()})
    assert report.screened == by_cpu[0].screened and len(refused) > 10


def test_what_is_rejected_while_a_run_stops_is_done_when_it_resumes(
    compressed: Path, by_cpu: tuple[Report, Rows], opened: list[Any], tiny_model: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    stop = threading.Event()
    really = runtime.TensorRtEngine.screen

    def stopping(self: Any, given: Pictures) -> Any:
        answer = really(self, given)
        stop.set()
        frames = [picture.form == "frame" for picture in given.images]
        outcomes = [o._replace(rejected=f) for o, f in zip(answer.outcomes, frames, strict=True)]
        return answer._replace(outcomes=outcomes)

    out = tmp_path / "r.parquet"
    given = {"model": tiny_model, "precision": "fp32", "batch_size": 4, "workers": 2}
    options = Options(engine="tensorrt", device="cuda:0", **given)
    with monkeypatch.context() as patch:
        patch.setattr(runtime.TensorRtEngine, "screen", stopping)
        with pytest.raises(Stopped):
            screen(compressed, out, options, console=QUIET, stop=stop)
    assert not out.exists()
    _, rows = on_gpu(compressed, out, tiny_model)
    agree(rows, by_cpu[1])


def test_the_cpu_decodes_where_it_is_told_to(
    compressed: Path, by_cpu: tuple[Report, Rows], opened: list[Any], tiny_model: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    report, rows = on_gpu(compressed, tmp_path / "r.parquet", tiny_model, decoder="cpu")
    agree(rows, by_cpu[1])
    assert not opened and report.engine["formats"] == []


def test_several_gpus_take_the_formats_that_all_are_trusted_with(
    compressed: Path, by_cpu: tuple[Report, Rows], opened: list[Any], tiny_model: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from cpu_device import CpuDevice
    from frame_decoders import ByImagecodecs

    def decoder(device: Any) -> Any:
        opened.append(
            ByImagecodecs(lambda data, found: found if device.name == "cuda:0" else found ^ 1)
        )
        return opened[-1]

    monkeypatch.setattr(CpuDevice, "decoder", decoder)
    given = {"device": "cuda:0,cuda:1", "engine": "tensorrt"}
    report, rows = run(compressed, tmp_path / "r.parquet", tiny_model, **given)
    agree(rows, by_cpu[1])
    assert not set(report.engine["formats"]) & LOSSLESS and len(opened) == 4
    (note,) = report.notes
    assert note.startswith("cuda:1: imagecodecs is not used for ")


@pytest.mark.real
def test_rows_of_real_files_are_those_of_the_cpu(
    shared: Path, tiny_model: Path, tmp_path: Path, opened: list[Any]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for where, every in (("dicom", 9), ("dicom/radiographs", 5), ("cxr/images", 30)):
        files = sorted(p for p in (shared / where).rglob("*") if p.is_file())
        for i, path in enumerate(files[::every], every * 1000):
            shutil.copy(path, folder / f"{i}-{path.name}")
    _, cpu = on_cpu(folder, tmp_path / "cpu.parquet", tiny_model)
    _, gpu = on_gpu(folder, tmp_path / "gpu.parquet", tiny_model)
    agree(gpu, cpu)
    assert sum(row["status"] == "ok" for row in gpu.values()) > 25
    assert (
        sum(decoder.decoded for decoder in opened) >= CHECKED + len(plain_frames(folder)) > CHECKED
    )
