"""``comit screen`` with an engine that takes samples: the rows that the CPU's path gives.

The GPU's kernels run on the CPU, compiled by g++, and ONNX Runtime computes where TensorRT would.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import fake_tensorrt
import numpy as np
import pyarrow.parquet as pq
import pytest

from comit import engine as engines
from comit.bench.faults import zoo
from comit.card import OperatingPoint, card_path, read_card
from comit.console import Console
from comit.demo import demo
from comit.engine import builder
from comit.engine import tensorrt as runtime
from comit.engine.base import IMAGE
from comit.engine.gpu.device import Borrowed
from comit.engine.gpu.screening import Screening
from comit.image.samples import Pictures
from comit.masks import decode_mask
from comit.options import Options
from comit.pipeline import lanes as lanes_module
from comit.results import RUN
from comit.run.report import Report
from comit.screening import screen

torch = pytest.importorskip("torch")
Rows = dict[str, dict[str, Any]]
QUIET = Console(quiet=True)
RLES, FRACTIONS = ("lung_rle", "disease_rle"), ("lung_fraction", "disease_fraction")
SCORES = ("score_unhealthy", "score_covid", "score_other")
DRAWN = "synthetic*"  # drawings of every kind


@pytest.fixture(autouse=True)
def gpus(kernels_library: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The stand-ins in place of TensorRT, its packages and GPUs; the devices that were opened."""
    from cpu_device import CpuDevice

    opened: dict[str, Any] = {}

    def open_device(name: str) -> Any:
        device = opened[name] = CpuDevice(kernels_library)
        device.name = name
        return device

    monkeypatch.setattr(runtime, "open_device", open_device)
    monkeypatch.setattr(engines, "_missing", lambda name: [])
    monkeypatch.setattr(builder, "import_tensorrt", lambda: fake_tensorrt.module("Float"))
    monkeypatch.setattr(builder, "build", lambda trt, onnx, *rest: (onnx, b""))
    monkeypatch.setattr(builder, "read", lambda path: None)
    monkeypatch.setattr(builder, "publish", lambda path, content: None)
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
                most = 1e-4 if name in SCORES else 1e-3  # a few cells at the threshold
                assert row[name] == pytest.approx(other[name], abs=most), (path, name)
        for name in RLES:
            if row[name] is not None:
                differs = decode_mask(row[name]) != decode_mask(other[name])
                assert np.count_nonzero(differs) <= 16, (path, name)


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


@pytest.mark.nightly
def test_masks_of_flagged_rows_or_none(
    folder: Path, cpu: tuple[Report, Rows], tiny_model: Path, tmp_path: Path
) -> None:
    everything = drawn(cpu[1])
    scores = sorted(r["score_unhealthy"] for r in everything.values() if r["status"] == "ok")
    point = OperatingPoint(unhealthy=(scores[4] + scores[5]) / 2, covid=1.0)
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
        self._found = [torch.empty(batch_size, 4), torch.empty((batch_size, 2, 224, 224)).byte()]
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
    kernels_library: Any,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cpu_device import CpuDevice

    from comit.engine import torch as module
    from comit.model.graph import Graph

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module, "open_device", lambda name: CpuDevice(kernels_library))
    monkeypatch.setattr(module, "on_gpu", lambda network, dtype, *rest: Graph(network, dtype))
    monkeypatch.setattr(module, "Captured", Uncaptured)
    given = {"device": "cuda:0", "engine": "torch", "pattern": DRAWN}
    report, rows = run(folder, tmp_path / "r.parquet", tiny_model, **given)
    assert report.engine["takes_samples"]
    agree(rows, drawn(cpu[1]))


@pytest.mark.real
def test_rows_of_real_files_are_those_of_the_cpu(
    shared: Path, tiny_model: Path, tmp_path: Path
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
