"""Every engine against PyTorch and against the contract in comit.engine.base."""

import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest

from comit import engine as engines
from comit import modelfile
from comit.card import BUNDLED
from comit.engine import Backend, available, load_engine, load_model
from comit.engine.base import Engine, Inference, padded
from comit.errors import MissingExtra, ModelError, UsageError

NAMES = ("openvino", "onnxruntime", "torch")
MODULES = {"openvino": ["openvino"], "onnxruntime": ["onnxruntime"], "torch": ["torch", "onnx"]}


@pytest.fixture(scope="module")
def images():
    """(11, 1, 224, 224): grainy shapes, all different.

    Grain, because in a flat region the four values of a pooling window differ by rounding alone:
    which is the maximum is then the engine's choice, and masks there with it (0.02 % of pixels of
    real X-rays by 2/255 or more, 17 % of smooth drawings).
    """
    rng = np.random.default_rng(1)
    grid = np.linspace(-1, 1, 224)
    bumps = [
        np.exp(-((grid[:, None] - y) ** 2 + (grid - x) ** 2) * s)
        for y, x, s in rng.uniform([-1, -1, 1], [1, 1, 9], (11, 3))
    ]
    grain = rng.uniform(0, 0.2, (11, 224, 224))
    return np.asarray(0.8 * np.asarray(bumps) + grain, np.float32)[:, None]


@pytest.fixture(scope="module")
def reference(tiny_model, images):
    """What the network itself says in float32."""
    torch = pytest.importorskip("torch")
    from comit.model.stored import load_network

    with torch.inference_mode():
        outputs = load_network(tiny_model)(torch.from_numpy(images))
        return outputs.scores().numpy(), outputs.masks().numpy()


def require(name):
    """Skips where an engine's package is missing; imports none of them."""
    if missing := dict(available())[name]:
        pytest.skip(missing)


def load(name, model, **options):
    require(name)
    return load_engine(model, name, "cpu", **options)


def has_bf16(name):
    if name == "openvino":
        from comit.engine.openvino import import_openvino

        return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    import torch

    return name == "torch" and torch.cpu._is_avx512_bf16_supported()


@pytest.mark.parametrize("name", NAMES)
def test_fp32_agrees_with_the_network(name, tiny_model, images, reference):
    engine = load(name, tiny_model, precision="fp32")
    found = engine.predict(images)
    assert (engine.name, engine.precision, engine.device) == (name, "fp32", "cpu")
    assert found.scores.dtype == np.float32
    assert found.masks.dtype == np.uint8
    assert np.ptp(reference[0], axis=0).max() > 0.01  # the images differ
    assert np.abs(found.scores - reference[0]).max() < 1e-4
    assert (np.abs(found.masks - reference[1] * 255) > 1).mean() < 1e-3


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_bf16_is_near(name, tiny_model, images, reference):
    require(name)
    if not has_bf16(name):
        pytest.skip("this CPU has no bf16")
    engine = load(name, tiny_model)
    assert engine.precision == "bf16"
    assert np.abs(engine.predict(images).scores - reference[0]).max() < 0.03


@pytest.mark.parametrize("precision", ["auto", "fp32"])
@pytest.mark.parametrize("name", NAMES)
def test_same_image_same_bits(name, precision, tiny_model, images):
    """Whatever the neighbours, the place in the batch and how full it is."""
    engine = load(name, tiny_model, precision=precision, batch_size=4)
    full = engine.predict(images)
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 5, 8, 11):
        take = rng.permutation(len(images))[:n]
        again = engine.predict(images[take])
        assert np.array_equal(again.scores, full.scores[take])
        assert np.array_equal(again.masks, full.masks[take])


@pytest.mark.parametrize("name", NAMES)
def test_lanes_at_once_give_the_same_bits_and_results_stay(name, tiny_model, images):
    engine = load(name, tiny_model, batch_size=2, threads=2)
    alone = [engine.infer(images[i : i + 2]) for i in range(0, 10, 2)]
    kept = [Inference(a.scores.copy(), a.masks.copy()) for a in alone]
    with ThreadPoolExecutor(max(2, engine.lanes)) as pool:
        together = list(pool.map(lambda i: engine.infer(images[i : i + 2]), range(0, 10, 2)))
    for a, b, c in zip(alone, kept, together, strict=True):
        for first, second, third in zip(a, b, c, strict=True):
            assert np.array_equal(first, second)
            assert np.array_equal(first, third)


@pytest.mark.parametrize("name", NAMES)
def test_infer_lets_other_threads_run(name, tiny_model, images):
    engine = load(name, tiny_model, precision="fp32", batch_size=8, threads=1)
    engine.infer(images[:8])
    ticks, done = 0, threading.Event()
    worker = threading.Thread(target=lambda: (engine.infer(images[:8]), done.set()))
    worker.start()
    while not done.wait(0.001):
        ticks += 1
    worker.join()
    assert ticks > 3  # one tick alone means that the GIL was held throughout


@pytest.mark.parametrize("name", NAMES)
def test_not_a_number_passes_through(name, tiny_model, images):
    engine = load(name, tiny_model, precision="fp32", batch_size=4)
    batch = images[:2].copy()
    batch[1] = np.nan
    found = engine.infer(batch)
    assert np.isfinite(found.scores[0]).all()
    assert np.array_equal(found.scores[0], engine.infer(images[:1]).scores[0])


def test_no_images_is_no_results(tiny_model):
    found = load("onnxruntime", tiny_model).predict(np.empty((0, 1, 224, 224), np.float32))
    assert found.scores.shape == (0, 4)
    assert found.masks.shape == (0, 2, 224, 224)


def test_padding_keeps_images_and_refuses_other_shapes():
    batch = padded(np.ones((2, 1, 224, 224)), 3)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    assert batch.sum(axis=(1, 2, 3)).tolist() == [224 * 224, 224 * 224, 0]
    for shape in ((4, 1, 224, 224), (0, 1, 224, 224), (1, 224, 224), (1, 3, 224, 224)):
        with pytest.raises(ValueError, match="expected"):
            padded(np.ones(shape), 3)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_names_the_extra(name, tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, MODULES[name][0], None)
    with pytest.raises(MissingExtra, match=r"pip install 'comit\[(cpu|train)\]'"):
        load_engine(tiny_model, name, "cpu")
    assert dict(available())[name].endswith("]'")


def test_auto_takes_the_next_and_says_why(tiny_model, monkeypatch):
    require("onnxruntime")
    monkeypatch.setitem(sys.modules, "openvino", None)
    engine = load_engine(tiny_model, device="cpu")
    assert engine.name == "onnxruntime"
    assert len(engine.notes) == 1
    assert "engine openvino" in engine.notes[0]
    assert "comit[cpu]" in engine.notes[0]


def test_auto_with_nothing_installed_names_an_extra(tiny_model, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="comit"):
        load_engine(tiny_model, device="cpu")


def test_on_a_gpu_machine_the_order_is_fastest_first(monkeypatch):
    monkeypatch.setattr(engines, "gpu_present", lambda: True)
    assert engines._choices("auto", "auto") == [
        ("tensorrt", "cuda:0"),
        ("onnxruntime", "cuda:0"),
        ("torch", "cuda:0"),
        ("openvino", "cpu"),
        ("onnxruntime", "cpu"),
        ("torch", "cpu"),
    ]
    assert engines._choices("openvino", "auto") == [("openvino", "cpu")]
    assert engines._choices("auto", "cuda") == [
        ("tensorrt", "cuda:0"),
        ("onnxruntime", "cuda:0"),
        ("torch", "cuda:0"),
    ]


def test_a_gpu_machine_without_tensorrt_is_told(tiny_model, monkeypatch):
    require("openvino")
    monkeypatch.setattr(engines, "gpu_present", lambda: True)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    engine = load_engine(tiny_model)
    assert engine.notes[0].startswith("not used: engine tensorrt (")
    assert engine.notes[0].endswith("pip install 'comit[gpu]'")


def test_a_machine_without_a_gpu_is_told_nothing_of_tensorrt(tiny_model, monkeypatch):
    require("openvino")
    monkeypatch.setattr(engines, "gpu_present", lambda: False)
    for options in ({}, {"device": "cpu"}, {"name": "openvino"}):
        assert load_engine(tiny_model, **options).notes == ()


class Fake(Engine):
    """Answers with the number of its device; ``broken`` ones do not load."""

    name, precision, batch_size, lanes, takes_samples = "fake", "fp16", 2, 2, True
    closed: ClassVar[list[str]] = []
    broken = ""

    def __init__(self, model, device, precision, batch_size, threads, progress=print):
        if device == self.broken:
            raise UsageError(f"there is no {device}")
        self.device, self.notes = device, (f"note of {device}",)
        progress(f"preparing {device}")

    def infer(self, images):
        number = np.float32(self.device[-1])
        shape = (len(images), 2, 224, 224)
        return Inference(np.full((len(images), 4), number), np.zeros(shape, np.uint8))

    def close(self):
        self.closed.append(self.device)


@pytest.fixture
def fakes(monkeypatch):
    backend = Backend(__name__, "Fake", (), "gpu", tells=True)
    monkeypatch.setitem(engines.BACKENDS, "tensorrt", backend)
    Fake.closed.clear()


def test_several_gpus_are_one_engine(fakes, tiny_model):
    said = []
    engine = load_engine(tiny_model, "tensorrt", "cuda:0,cuda:2", progress=said.append)
    assert (engine.device, engine.lanes, engine.batch_size) == ("cuda:0,cuda:2", 4, 2)
    assert engine.takes_samples
    assert engine.notes == ("cuda:0: note of cuda:0", "cuda:2: note of cuda:2")
    assert said == ["preparing cuda:0", "preparing cuda:2"]
    images = np.zeros((8, 1, 224, 224), np.float32)
    assert engine.predict(images).scores[:, 0].tolist() == [0, 0, 2, 2, 0, 0, 2, 2]
    engine.close()
    assert Fake.closed == ["cuda:0", "cuda:2"]


def test_one_gpu_of_several_that_does_not_load_frees_the_others(fakes, tiny_model, monkeypatch):
    monkeypatch.setattr(Fake, "broken", "cuda:1")
    with pytest.raises(UsageError, match="there is no cuda:1"):
        load_engine(tiny_model, "tensorrt", "cuda:0,cuda:1")
    assert Fake.closed == ["cuda:0"]


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda:0,cpu", "device 'cpu': choose auto, cpu, cuda:0, or several"),
        ("cuda:0,", "device '': choose"),
        ("cuda,cuda:1", "device 'cuda': choose"),
        ("cuda:0, cuda:1", "device ' cuda:1': choose"),
        ("cuda:1,cuda:01", "names a GPU twice"),
        ("cuda:\u0663", "choose"),
    ],
)
def test_a_bad_list_of_gpus_is_one_clear_line(tiny_model, device, said):
    with pytest.raises(UsageError, match=re.escape(said)) as error:
        load_engine(tiny_model, device=device)
    assert "\n" not in str(error.value)


def test_tensorrt_says_what_is_missing(tiny_model, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    said = "engine tensorrt (tensorrt, pycuda) needs a package that is not here: pip install 'comit"
    with pytest.raises(MissingExtra) as error:
        load_engine(tiny_model, "tensorrt")
    assert str(error.value) == f"{said}[gpu]'" == dict(available())["tensorrt"]


@pytest.mark.parametrize(
    ("name", "device", "extra"),
    [("torch", "cuda:0", "train"), ("onnxruntime", "cuda:0", "gpu"), ("onnxruntime", "cpu", "cpu")],
)
def test_what_is_missing_is_in_the_extra_that_is_named(
    tiny_model, monkeypatch, name, device, extra
):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as error:
        load_engine(tiny_model, name, device)
    assert error.value.extra == extra


def test_any_of_the_tensorrt_packages_will_do(monkeypatch):
    here = {"tensorrt_rtx_bindings", "pycuda"}
    monkeypatch.setattr(engines, "find_spec", lambda name: name if name in here else None)
    assert dict(available())["tensorrt"] is None
    here.remove("pycuda")
    assert "engine tensorrt (pycuda)" in dict(available())["tensorrt"]


@pytest.mark.parametrize(
    "options",
    [
        {"name": "caffe"},
        {"device": "tpu"},
        {"device": "cuda:x"},
        {"batch_size": 0},
        {"name": "openvino", "device": "cuda:0"},
        {"name": "openvino", "precision": "int8"},
        {"name": "onnxruntime", "precision": "fp16"},
        {"name": "torch", "device": "cpu", "precision": "fp16"},
    ],
)
def test_what_cannot_be_had_is_a_usage_error(tiny_model, options):
    if "name" in options and options["name"] in MODULES:
        require(options["name"])
    with pytest.raises(UsageError):
        load_engine(tiny_model, **options)


def test_an_altered_model_is_refused(tiny_model, tmp_path):
    model = tmp_path / "tiny.onnx"
    shutil.copy(tiny_model, model)
    with pytest.raises(ModelError, match="no card"):
        load_engine(model)
    shutil.copy(tiny_model.with_suffix(".card.json"), tmp_path)
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(ModelError, match="sha256"):
        load_engine(model)
    with pytest.raises(ModelError, match="cannot be read"):
        load_engine(tmp_path / "absent.onnx")


@pytest.mark.parametrize("name", NAMES)
def test_weights_in_another_file_are_refused_before_it_is_opened(name, tiny_model, tmp_path):
    """The card of a hostile model is as hostile, so its sha256 fits."""
    onnx = pytest.importorskip("onnx")
    require(name)
    from dataclasses import replace

    from comit.card import card_path, read_card, sha256

    proto = onnx.load(tiny_model)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    model = tmp_path / "m.onnx"
    model.write_bytes(proto.SerializeToString())
    replace(read_card(tiny_model), sha256=sha256(model.read_bytes())).write(card_path(model))
    os.mkfifo(tmp_path / "secret.bin")  # opening it to read would wait for ever
    with pytest.raises(ModelError, match="another file"):
        load_engine(model, name, "cpu")


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_file_that_is_onnx_and_no_network_is_a_model_error(name, tiny_model, tmp_path):
    onnx = pytest.importorskip("onnx")
    require(name)
    from comit.engine.onnxruntime import OnnxRuntimeEngine
    from comit.engine.openvino import OpenVinoEngine

    proto = onnx.load(tiny_model)
    proto.graph.node[3].op_type = "NoSuchOperator"
    kind = {"openvino": OpenVinoEngine, "onnxruntime": OnnxRuntimeEngine}[name]
    with pytest.raises(ModelError, match=f"{name} cannot load"):
        kind(proto.SerializeToString())


def test_the_card_walk_is_a_no_op_on_ours(tiny_model):
    modelfile.check(tiny_model.read_bytes())


def test_load_model_takes_the_bundled_one_by_default(tiny_model, images, monkeypatch):
    require("openvino")
    assert load_model(tiny_model, precision="fp32").predict(images[:3]).scores.shape == (3, 4)
    asked = []
    monkeypatch.setattr(engines, "load_engine", lambda model, *a, **k: asked.append((model, a, k)))
    load_model(engine="torch", threads=1)
    assert asked == [(BUNDLED, ("torch",), {"threads": 1})]


def test_engines_print_nothing(tiny_model, capfd, caplog, images):
    for name in NAMES:
        load(name, tiny_model).infer(images[:1])
    assert capfd.readouterr() == ("", "")
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_a_fused_network_is_the_same_network(tiny_model, images):
    torch = pytest.importorskip("torch")
    from comit.engine.torch import ConvolutionRelu, fuse_relu, on_gpu
    from comit.model.graph import Graph
    from comit.model.network import fold_batch_norm
    from comit.model.stored import load_network

    cpu = torch.device("cpu")
    fused = on_gpu(load_network(tiny_model), torch.float32, cpu, "fused")
    layers = [m for m in fused.modules() if isinstance(m, ConvolutionRelu)]
    assert len(layers) == 37  # all but the last of either decoder
    plain = Graph(fold_batch_norm(load_network(tiny_model)))
    with torch.inference_mode():
        scores, masks = (
            (a.float() - b.float()).abs()
            for a, b in zip(*(net(torch.from_numpy(images)) for net in (plain, fused)), strict=True)
        )
    assert scores.max() < 1e-5
    # Sums in another order may move the position of a maximum: by AVX2 a few pixels differ by 2.
    assert masks.max() <= 2 and (masks > 1).float().mean() < 1e-4
    assert fuse_relu(fused.network) is fused.network
    with pytest.raises(UsageError, match="choose compiled"):
        on_gpu(plain.network, torch.float32, cpu, "other")


SIGNALLED = """
import os, signal, sys, threading
from comit.engine import load_model

signal.signal(signal.SIGUSR1, lambda number, frame: print("handled"))
engines = [load_model(sys.argv[1], "openvino")]
thread = threading.Thread(target=engines.clear)
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_signal_after_openvino_has_gone_in_another_thread_is_handled(tiny_model):
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", SIGNALLED, str(tiny_model)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_openvino_neither_reports_nor_leaves_files(tmp_path):
    """Its telemetry would write ~/intel and connect from a forked process, at import."""
    require("openvino")
    code = """
import sys
seen = []
watched = ("socket.", "os.fork")
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith(watched) else None)
from comit.engine.openvino import import_openvino
import_openvino().Core()
import time; time.sleep(1)  # it would send from a thread
print(seen, [m for m in sys.modules if "openvino_telemetry" in m])
"""
    home = {k: v for k, v in os.environ.items() if k != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=home, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[] []"
    assert list(tmp_path.iterdir()) == []


def test_looking_for_engines_loads_none():
    code = (
        "import sys, comit.engine as e; e.available(); e.gpu_present(); "
        "print([m for m in ('torch', 'onnxruntime', 'openvino', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_engine_is_a_small_contract(images):
    class Fake(Engine):
        name, precision, device, batch_size = "fake", "fp32", "cpu", 4

        def infer(self, images):
            assert 1 <= len(images) <= 4
            means = images.mean(axis=(1, 2, 3))
            return Inference(np.repeat(means[:, None], 3, 1), np.zeros((len(images), 2, 224, 224)))

    found = Fake().predict(images)
    assert np.array_equal(found.scores[:, 0], images.mean(axis=(1, 2, 3)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_scores_alone_are_the_same_bits(name, precision, tiny_model, images):
    if precision == "bf16" and (require(name) or name == "onnxruntime" or not has_bf16(name)):
        pytest.skip(f"{name} has no bf16 on this CPU")
    engine = load(name, tiny_model, precision=precision, batch_size=4)
    for part in (images[:4], images[4:5], images[5:8]):
        assert np.array_equal(engine.scores(part), engine.infer(part).scores)
