"""Engines of TensorRT: built for real without a GPU, run on a stand-in that computes on the CPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from click.testing import CliRunner

from comit import modelfile
from comit.card import BUNDLED, read_card
from comit.cli import main
from comit.engine import load_engine
from comit.engine.gpu.preprocess import Preprocessor
from comit.errors import ModelError, UsageError
from comit.image.preprocess import Presentation, preprocess
from comit.image.samples import Source
from comit.masks import decode_mask, encoded
from comit.reasons import Fail

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from cpu_device import CpuDevice  # noqa: E402

from comit.engine import builder  # noqa: E402
from comit.engine import tensorrt as runtime  # noqa: E402
from comit.engine.builder import About, Machine, Options  # noqa: E402
from comit.engine.onnxruntime import OnnxRuntimeEngine  # noqa: E402
from comit.model.network import COMiTNet, NetworkConfig  # noqa: E402
from comit.model.stored import load_network, to_bytes  # noqa: E402

HERE = Machine("tensorrt", "11.4.0", "NVIDIA H200 sm_90", 13000)


@pytest.fixture
def half(tiny_half: bytes) -> bytes:
    return tiny_half


@pytest.fixture(scope="module")
def rtx() -> Any:
    """The real TensorRT for RTX, which builds for GPUs that are not here."""
    return pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT for RTX is not here: pip install 'comit[test]'"
    )


# Building, with the real parser and builder


@pytest.mark.nightly
def test_the_bundled_network_becomes_an_engine(rtx: Any) -> None:
    onnx = to_bytes(load_network(BUNDLED), "fp16", "bundled")
    plan, timing = builder.build(rtx, onnx, Options(batch_size=32))
    assert len(plan) > len(onnx) * 0.8  # its weights are in it
    assert timing == b""


@pytest.mark.nightly
def test_the_full_width_network_becomes_an_engine(rtx: Any) -> None:
    torch.manual_seed(0)
    onnx = to_bytes(COMiTNet(NetworkConfig(width=1.0)).eval(), "fp16", "full")
    assert len(builder.build(rtx, onnx)[0]) > 80_000_000  # 44.4 million float16 weights


def test_what_the_parser_refuses_is_a_model_error(rtx: Any, half: bytes) -> None:
    import onnx

    model = onnx.load_model_from_string(half)
    next(n for n in model.graph.node if n.op_type == "Conv").op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="TensorRT cannot read the model file: NoSuchOperator"):
        builder.build(rtx, model.SerializeToString())
    with pytest.raises(ModelError, match="not ONNX"):
        builder.build(rtx, b"noise")


def test_a_float32_convolution_in_an_fp16_file_is_refused(rtx: Any, half: bytes) -> None:
    import onnx

    model = onnx.load_model_from_string(half)
    graph = model.graph
    conv = next(n for n in graph.node if n.op_type == "Conv")
    for i, name in enumerate(list(conv.input)):
        graph.node.insert(0, onnx.helper.make_node("Cast", [name], [f"{name}_f"], to=1))
        conv.input[i] = f"{name}_f"
    back = onnx.helper.make_node("Cast", [f"{conv.output[0]}_f"], [conv.output[0]], to=10)
    conv.output[0] = back.input[0]
    graph.node.insert(list(graph.node).index(conv) + 1, back)
    with pytest.raises(ModelError, match="1 of 39 convolutions of the fp16 file are not float16"):
        builder.build(rtx, model.SerializeToString())


def test_a_network_becomes_an_engine_and_progress_is_told(rtx: Any, half: bytes) -> None:
    said: list[str] = []
    plan, timing = builder.build(rtx, half, Options(batch_size=4), progress=said.append)
    assert len(plan) > len(half) * 0.5  # its weights are in it
    assert timing == b""
    assert any("optimi" in line.lower() for line in said)


@pytest.mark.nightly
def test_the_command_writes_an_engine_and_its_card_and_keeps_it(
    rtx: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "PACKAGES", ("tensorrt_rtx_bindings",))
    monkeypatch.setattr("comit.engine.gpu_present", lambda: False)
    built: list[int] = []
    really = builder.build
    monkeypatch.setattr(builder, "build", lambda *a: built.append(1) or really(*a))
    for name in ("a", "b"):
        out, cache = tmp_path / f"{name}.engine", tmp_path / "cache"
        given = [str(tiny_model), "--out", str(out), "--cache", str(cache), "--batch-size", "4"]
        done = CliRunner().invoke(main, ["export", "tensorrt", *given])
        assert done.exit_code == 0, done.output
        assert "fp16, tensorrt_rtx" in done.output and "any GPU" in done.output
        about, _ = builder.unpack(out.read_bytes())
        assert (about.precision, about.options.batch_size) == ("fp16", 4)
        assert read_card(out).precision == "fp16"
        assert out.stat().st_mode & 0o777 == 0o600
    assert built == [1]
    files = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert files and all(p.stat().st_mode & 0o777 == 0o600 for p in files)


def test_a_phase_that_goes_on_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class IProgressMonitor:
        def __init__(self) -> None:
            pass

    said: list[str] = []
    monitor = builder.monitor(SimpleNamespace(IProgressMonitor=IProgressMonitor), said.append)
    monitor.phase_start("tactics", None, 4)
    assert monitor.step_complete("tactics", 0)
    monkeypatch.setattr(builder, "EVERY", 0.0)
    assert monitor.step_complete("tactics", 1)
    monitor.phase_finish("tactics")
    assert said == ["tactics", "tactics: 2 of 4"]


# What a file says of itself


def about_of(onnx: bytes, **changes: Any) -> About:
    return About(replace(HERE, **changes), Options(16), builder.sha256(onnx), "fp16")


def test_an_engine_file_says_what_it_is_for_and_is_whole() -> None:
    content = builder.pack(about_of(b"onnx"), b"a plan\nof two lines")
    about, plan = builder.unpack(content)
    assert plan == b"a plan\nof two lines"
    assert asdict(about) | {"plan": ""} == asdict(about_of(b"onnx"))
    for damaged in (content[:-1], content[:20], b"", content.replace(b"plan\nof", b"plan\nOf")):
        with pytest.raises(ModelError, match="damaged"):
            builder.unpack(damaged)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "10.16.1"}, "for tensorrt 10.16.1, here is tensorrt 11.4.0"),
        ({"tensorrt": "tensorrt_rtx"}, "for tensorrt_rtx 11.4.0, here is tensorrt 11.4.0"),
        ({"gpu": "NVIDIA A100 sm_80"}, "for NVIDIA A100 sm_80, here is NVIDIA H200 sm_90"),
        ({"cuda": 12080}, "for CUDA 12, here is CUDA 13"),
    ],
)
def test_an_engine_for_something_else_is_one_clear_line(change: Any, said: str) -> None:
    with pytest.raises(UsageError) as error:
        builder.check_machine(about_of(b"", **change), HERE)
    assert str(error.value) == f"the engine was made {said}: export it again"


def test_engines_that_fit_are_let_through() -> None:
    builder.check_machine(about_of(b""), HERE)
    builder.check_machine(about_of(b"", cuda=13010), HERE)  # a driver's minor update
    builder.check_machine(about_of(b"", gpu="", cuda=0), HERE)  # made without a GPU


def test_everything_an_engine_is_tied_to_is_in_its_name() -> None:
    changes: list[dict[str, Any]] = [
        {"version": "10"}, {"tensorrt": "tensorrt_rtx"}, {"gpu": "other"}, {"cuda": 1}
    ]  # fmt: skip
    keys = [about_of(b"", **c).key() for c in ({}, *changes)]
    keys += [about_of(b"other model").key()]
    keys += [replace(about_of(b""), options=Options(16, 5)).key()]
    keys += [replace(about_of(b""), options=Options(17)).key()]
    assert len(set(keys)) == len(keys)


def test_small_batches_have_a_profile_of_their_own() -> None:
    assert Options(64).profiles() == ((1, 1, 8), (1, 64, 64))
    assert Options(4).profiles() == ((1, 1, 4),)


@pytest.mark.parametrize("kind", ["Float", "Row major linear FP32"])
def test_float32_convolutions_in_an_fp16_engine_are_an_error(kind: str) -> None:
    layers = [fake_tensorrt.convolution("Half"), fake_tensorrt.convolution(kind)]
    text = json.dumps({"Layers": layers})
    with pytest.raises(ModelError, match="computes conv1"):
        builder.check_layers(text, "fp16")
    assert builder.check_layers(text, "fp32") == 2


def test_layers_that_tell_nothing_are_counted_as_none() -> None:
    named = {"Layers": ["conv1", {"Name": "sum", "LayerType": "kgen", "Inputs": []}]}
    assert builder.check_layers(json.dumps(named), "fp16") == 0
    half = {"Layers": [fake_tensorrt.convolution("Channel major FP16 format where C % 8 == 0")]}
    assert builder.check_layers(json.dumps(half), "fp16") == 1


def test_a_model_file_tells_its_notes(tiny_model: Path, half: bytes) -> None:
    assert modelfile.metadata(half)["precision"] == "fp16"
    assert modelfile.metadata(tiny_model.read_bytes())["name"] == "tiny"
    with pytest.raises(ModelError):
        modelfile.metadata(half[: len(half) // 2])


# Running: the class that hospitals run, on a TensorRT that computes on the CPU


class NoGpu(CpuDevice):
    """Memory of this machine in place of a GPU's."""

    name = "cuda:0"

    def __init__(self) -> None:
        pass  # no kernels


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Puts the stand-ins in place; the list counts builds."""
    builds: list[int] = []

    def build(trt: Any, onnx: bytes, *rest: Any) -> tuple[bytes, bytes]:
        builds.append(len(builds))
        return onnx, b"timing"

    monkeypatch.setattr(builder, "import_tensorrt", fake_tensorrt.module)
    monkeypatch.setattr(builder, "build", build)
    monkeypatch.setattr(runtime, "open_device", lambda name: NoGpu())
    return builds


@pytest.fixture(scope="module")
def images() -> Any:
    return np.random.default_rng(0).random((11, 1, 224, 224), np.float32)


def test_it_agrees_with_the_same_file_elsewhere(
    gpu: list[int], half: bytes, images: Any, tmp_path: Path
) -> None:
    engine = runtime.TensorRtEngine(half, batch_size=4, cache=tmp_path)
    assert (engine.precision, engine.device, engine.lanes) == ("fp16", "cuda:0", 2)
    found, expected = engine.predict(images), OnnxRuntimeEngine(half).predict(images)
    assert np.array_equal(found.scores, expected.scores)
    assert np.array_equal(found.masks, expected.masks)
    engine.close()


def test_lanes_at_once_keep_their_results_apart(
    gpu: list[int], half: bytes, images: Any, tmp_path: Path
) -> None:
    engine = runtime.TensorRtEngine(half, batch_size=2, cache=tmp_path)
    alone = [engine.infer(images[i : i + 2]) for i in range(0, 11, 2)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda i: engine.infer(images[i : i + 2]), range(0, 11, 2)))
    for a, b in zip(alone, together, strict=True):
        assert np.array_equal(a.scores, b.scores) and np.array_equal(a.masks, b.masks)
    assert len(alone[-1].scores) == 1


class Graphs(NoGpu):
    """Captures what the stand-in for TensorRT enqueues; ``kept`` of it is in the graph."""

    def __init__(self, kept: slice) -> None:
        self._kept, self.captured, self.launched = kept, 0, 0

    def graph(self, work: Callable[[], object], stream: Any) -> Callable[[], None] | None:
        fake_tensorrt.recording = recorded = []
        try:
            work()
        finally:
            fake_tensorrt.recording = None
        self.captured += 1

        def launch() -> None:
            self.launched += 1
            for call in recorded[self._kept]:
                call()

        return launch


@pytest.mark.parametrize(
    ("batch_size", "kept", "faster", "captured", "taken"),
    [
        (2, slice(None), True, 2, True),
        (2, slice(None), False, 2, False),
        (2, slice(0), True, 2, False),  # it does nothing, which is fast
        (9, slice(None), True, 0, False),  # many images: not tried
    ],
)
def test_few_images_run_as_a_cuda_graph_where_it_is_right_and_faster(
    gpu: list[int],
    half: bytes,
    images: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    kept: slice,
    faster: bool,
    captured: int,
    taken: bool,
) -> None:
    device = Graphs(kept)

    def seconds(self: Any, run: Callable[[], None]) -> float:
        return float((run == self._execute) == faster)

    monkeypatch.setattr(runtime, "open_device", lambda name: device)
    monkeypatch.setattr(runtime._Lane, "_seconds", seconds)
    engine = runtime.TensorRtEngine(half, batch_size=batch_size, cache=tmp_path)
    assert (device.captured, engine.graph) == (captured, taken)
    device.launched = 0
    found, expected = engine.predict(images), OnnxRuntimeEngine(half).predict(images)
    assert np.array_equal(found.scores, expected.scores)
    assert np.array_equal(found.masks, expected.masks)
    assert device.launched == (6 if taken else 0)


def test_timing_an_engine_runs_it(
    gpu: list[int], half: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Graphs(slice(None))
    monkeypatch.setattr(runtime, "open_device", lambda name: device)
    runtime.TensorRtEngine(half, batch_size=1, cache=tmp_path)
    assert device.launched == 2 * (1 + runtime.RUNS)  # a lane: once to compare


def test_an_engine_is_built_once(gpu: list[int], half: bytes, tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        runtime.TensorRtEngine(half, batch_size=2, cache=tmp_path, progress=said.append)
    assert gpu == [0]
    assert said[0].startswith("building the engine for a CPU none: minutes, once; it is kept in")
    assert said[1].startswith("built in") and said[2] == said[4] == "loading the engine"
    assert said[3] == "the engine for a CPU none was built before"
    runtime.TensorRtEngine(half, batch_size=3, cache=tmp_path)
    for engine in (tmp_path / "engines").glob("*.engine"):  # altered: made again, not trusted
        engine.write_bytes(engine.read_bytes()[:-1] + b"x")
    runtime.TensorRtEngine(half, batch_size=2, cache=tmp_path)
    assert gpu == [0, 1, 2]


def test_too_little_memory_halves_the_batch(gpu: list[int], half: bytes, tmp_path: Path) -> None:
    engine = runtime.TensorRtEngine(half, batch_size=40, cache=tmp_path)
    assert engine.batch_size == 10  # 40 and 20 are more than the 16 there is memory for
    assert engine.notes == ("batches of 10: no memory for 40",)
    assert len(engine.predict(np.zeros((11, 1, 224, 224), np.float32)).scores) == 11


def test_no_memory_at_all_is_a_usage_error(
    gpu: list[int], half: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_tensorrt, "MOST", 0)
    with pytest.raises(UsageError, match="no memory for a single image"):
        runtime.TensorRtEngine(half, batch_size=4, cache=tmp_path)


def test_an_fp16_engine_that_computes_in_float32_is_refused(
    gpu: list[int], half: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "import_tensorrt", lambda: fake_tensorrt.module("Float"))
    with pytest.raises(ModelError, match="in float32"):
        runtime.TensorRtEngine(half, batch_size=2, cache=tmp_path)


def test_an_fp32_file_gives_an_fp32_engine_when_asked(
    gpu: list[int], tiny_model: Path, tmp_path: Path
) -> None:
    content = tiny_model.read_bytes()
    full = runtime.TensorRtEngine(content, precision="fp32", batch_size=2, cache=tmp_path)
    assert full.precision == "fp32"


def test_an_fp32_file_becomes_fp16_once_and_what_is_kept_needs_no_pytorch(
    gpu: list[int], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        engine = runtime.TensorRtEngine(tiny_model.read_bytes(), batch_size=2, cache=tmp_path)
        assert engine.precision == "fp16"
        monkeypatch.setitem(sys.modules, "comit.model.stored", None)
    assert gpu == [0]


def test_an_fp16_file_gives_no_fp32_engine(gpu: list[int], half: bytes, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the model file is fp16"):
        runtime.TensorRtEngine(half, precision="fp32", cache=tmp_path)


def test_without_pytorch_an_fp32_file_is_refused_in_one_line(
    gpu: list[int], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "comit.model.stored", None)
    with pytest.raises(UsageError, match="--precision fp16` where") as error:
        runtime.TensorRtEngine(tiny_model.read_bytes(), cache=tmp_path)
    assert "\n" not in str(error.value)


def test_an_engine_file_is_run_as_it_is(gpu: list[int], half: bytes, images: Any) -> None:
    machine = Machine("tensorrt", "11.4.0", "a CPU none", 13000)
    about = About(machine, Options(16), builder.sha256(half), "fp16")
    content = builder.pack(about, half)
    engine = runtime.TensorRtEngine(content)
    assert engine.batch_size == 16 and gpu == []
    assert len(engine.infer(images[:3]).scores) == 3
    with pytest.raises(UsageError, match="batches of up to 16"):
        runtime.TensorRtEngine(content, batch_size=17)
    with pytest.raises(UsageError, match="computes in fp16, not fp32"):
        runtime.TensorRtEngine(content, precision="fp32")
    elsewhere = replace(about, machine=replace(machine, version="10.16.0"))
    with pytest.raises(UsageError, match="export it again"):
        runtime.TensorRtEngine(builder.pack(elsewhere, half))


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"precision": "bf16"}])
def test_what_tensorrt_does_not_do_is_a_usage_error(half: bytes, options: Any) -> None:
    with pytest.raises(UsageError, match="tensorrt"):
        runtime.TensorRtEngine(half, **options)


def test_other_shapes_are_refused(gpu: list[int], half: bytes, tmp_path: Path) -> None:
    engine = runtime.TensorRtEngine(half, batch_size=2, cache=tmp_path)
    for shape in ((3, 1, 224, 224), (0, 1, 224, 224), (1, 224, 224)):
        with pytest.raises(ValueError, match="expected"):
            engine.infer(np.zeros(shape, np.float32))


# The whole of it on the GPU's side: samples in, scores and run lengths out


@pytest.fixture
def kernels(gpu: list[int], kernels_library: Any, monkeypatch: pytest.MonkeyPatch) -> CpuDevice:
    """The stand-ins, with a device that has the kernels."""
    device = CpuDevice(kernels_library)
    monkeypatch.setattr(runtime, "open_device", lambda name: device)
    return device


def samples_of(n: int) -> list[tuple[Source, Presentation]]:
    """Pictures of different sizes and types; the fourth is blank, the fifth already pixels."""
    rng = np.random.default_rng(0)
    found: list[tuple[Source, Presentation]] = []
    for i in range(n):
        dtype = (np.uint8, np.uint16)[i % 2]
        grain = rng.integers(0, np.iinfo(dtype).max, (250 + 10 * i, 300), dtype)
        found.append((grain if i != 3 else np.full_like(grain, 5), Presentation(inverted=i == 1)))
    if n > 4:
        found[4] = (rng.random((224, 224), np.float32), Presentation())
    return found


def test_samples_become_scores_and_run_lengths(
    kernels: CpuDevice, half: bytes, tmp_path: Path
) -> None:
    engine = runtime.TensorRtEngine(half, batch_size=8, cache=tmp_path)
    images = samples_of(6)
    found = engine.screen(kernels.pictures(images))
    assert [o.reason for o in found.outcomes] == [None, None, None, Fail.BLANK, None, None]
    for i in (0, 1, 2, 4, 5):
        source, presentation = images[i]
        assert isinstance(source, np.ndarray)
        ready = source if i == 4 else preprocess(source, presentation).pixels
        inference = engine.infer(ready[None, None])
        np.testing.assert_allclose(found.scores[i], inference.scores[0], atol=2e-3)
        expected, masks = inference.masks[0] >= 128, encoded(found.masks[i])
        for rle, mask in zip(masks[:2], expected, strict=True):
            assert (decode_mask(rle) == mask).mean() > 0.99
        np.testing.assert_allclose(masks.lung_fraction, expected[0].mean(), atol=0.01)
    assert len(engine.screen(kernels.pictures(images[:1])).masks) == 1
    for n in (0, 9):
        with pytest.raises(ValueError, match="expected 1 to 8"):
            engine.screen(kernels.pictures(images[:1] * n))


def test_samples_that_do_not_fit_are_done_in_halves(
    kernels: CpuDevice, half: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = runtime.TensorRtEngine(half, batch_size=8, cache=tmp_path)
    images = kernels.pictures(samples_of(3))
    whole = engine.screen(images)
    start, tried = Preprocessor.start, []

    def short(self: Any, images: Any, *rest: Any) -> Any:
        tried.append(len(images))
        if len(images) > 1:
            raise MemoryError
        return start(self, images, *rest)

    monkeypatch.setattr(Preprocessor, "start", short)
    found = engine.screen(images)
    assert tried == [3, 1, 2, 1, 1]
    assert np.array_equal(found.scores, whole.scores)
    assert found.outcomes == whole.outcomes
    assert [encoded(m) for m in found.masks] == [encoded(m) for m in whole.masks]


# Without a GPU


def test_an_engine_file_is_not_for_other_engines(
    half: bytes, tiny_model: Path, tmp_path: Path
) -> None:
    content = builder.pack(about_of(half), half)
    path = tmp_path / "m.engine"
    path.write_bytes(content)
    card = replace(read_card(tiny_model), sha256=builder.sha256(content))
    card.write(path.with_suffix(".card.json"))
    with pytest.raises(ModelError, match="not ONNX"):
        load_engine(path, "onnxruntime", "cpu")
