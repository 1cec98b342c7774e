"""From a network to a file and back, and what is not written."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
from safetensors.torch import save_file  # noqa: E402

from comit import modelfile  # noqa: E402
from comit.card import BUNDLED, Card, OperatingPoint, read_card  # noqa: E402
from comit.engine.onnxruntime import OnnxRuntimeEngine  # noqa: E402
from comit.errors import ModelError, ParityError, UsageError  # noqa: E402
from comit.export import parity, to_onnx  # noqa: E402
from comit.export.cli import export  # noqa: E402
from comit.export.to_onnx import export_onnx  # noqa: E402
from comit.model.graph import Graph  # noqa: E402
from comit.model.runs import run_card  # noqa: E402
from comit.model.stored import load_network, to_bytes  # noqa: E402

POINT = {"unhealthy": 0.4, "covid": 0.3, "negatives": {"unhealthy": 7, "covid": 9}}
DESCRIBED = {
    "training": {"epochs": 2},
    "epoch": 2,
    "train_images": 16,
    "init": None,
    "teachers": ["w025"],
    "val": {"lung_iou": 0.5},
    "val_intervals": {"lung_iou": [0.45, 0.55]},
    "val_baselines": {"lung_iou": 0.4},
}


def command(*arguments):
    """Runs ``comit export onnx`` in this process; what it raises comes through."""
    result = CliRunner().invoke(export, ["onnx", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.fixture(scope="module")
def images():
    """(4, 1, 224, 224): grain under a wave of another length each."""
    rng, waves = np.random.default_rng(0), np.sin(np.outer([3, 5, 9, 17], np.linspace(0, 6, 224)))
    grain = rng.uniform(0.2, 0.6, (4, 1, 224, 224))
    return np.asarray(grain + 0.2 * waves[:, None, None], np.float32)


@pytest.fixture(scope="module")
def network(tiny_model):
    return load_network(tiny_model)


@pytest.fixture(scope="module")
def run(network, tmp_path_factory):
    """The folder of a training run that left the tiny network."""
    run = tmp_path_factory.mktemp("runs") / "night"
    run.mkdir()
    save_file(network.state_dict(), run / "weights.safetensors")
    (run / "run.json").write_text(json.dumps({"network": asdict(network.config), **DESCRIBED}))
    return run


@pytest.fixture(scope="module")
def exported(run):
    """The run as an fp32 file."""
    out = run.parent / "m.onnx"
    about = ["--name", "tiny", "--note", "Of 16 images.", "--note", "Of one source."]
    said = command(run, "--out", out, *about)
    assert "synthetic phantoms (no X-rays were given)" in said
    return out


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The bundled model as an fp16 file."""
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    command("bundled", "--out", path, "--precision", "fp16")
    return path


def altered(tiny_model, name, change):
    """The tiny model's bytes with ``change`` added to one of its weights."""
    model = onnx.load(tiny_model)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            value = onnx.numpy_helper.to_array(tensor) + np.float32(change)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, name))
    return model.SerializeToString()


def test_the_file_says_what_it_is(exported):
    model = onnx.load(exported)
    assert {p.key: p.value for p in model.metadata_props} == {
        "name": "tiny",
        "width": "0.03125",
        "mean": "0.45",
        "std": "0.3",
        "preprocessing": "1",
        "precision": "fp32",
    }
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert [i.name for i in model.graph.input] == ["images"]
    assert [o.name for o in model.graph.output] == ["scores", "masks"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_the_file_tells_nothing_of_the_machine_that_wrote_it(exported):
    content = exported.read_bytes()
    assert b".py" not in content
    assert b"stack_trace" not in content


def test_weights_keep_their_names_and_values(exported, network):
    held = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(exported).graph.initializer}
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert np.array_equal(held[name], tensor.numpy()), name


def test_batch_norm_is_kept_and_the_graph_is_plain(exported):
    kinds = [n.op_type for n in onnx.load(exported).graph.node]
    assert kinds.count("BatchNormalization") == 37  # 39 convolutions, 2 of them last layers
    assert kinds.count("Slice") == 20 + 8  # corners of 5 poolings; 2 logits of 4 softmaxes
    assert kinds.count("DepthToSpace") == 5  # positions are interleaved once, for both decoders
    assert "MaxUnpool" not in kinds
    assert {n.domain for n in onnx.load(exported).graph.node} == {""}


def shape(model):
    """What a file computes, without its numbers."""
    graph = model.graph
    return (
        Counter(node.op_type for node in graph.node),
        {i.name: (i.data_type, tuple(i.dims)) for i in graph.initializer if "." in i.name},
        [str(value) for value in (*graph.input, *graph.output)],
        {p.key: p.value for p in model.metadata_props},
    )


def compute_the_same(kept, now, images):
    """Other versions of torch give other bytes. If this fails: ``python tests/make_tiny.py``."""
    assert shape(onnx.load_model_from_string(kept)) == shape(onnx.load_model_from_string(now))
    found, expected = (OnnxRuntimeEngine(c, batch_size=4).predict(images) for c in (now, kept))
    assert np.abs(found.scores - expected.scores).max() < 1e-5
    assert (found.masks != expected.masks).mean() < 1e-3


def test_the_model_in_tests_data_is_what_the_export_gives(tiny_model, exported, images):
    compute_the_same(tiny_model.read_bytes(), exported.read_bytes(), images)


@pytest.mark.nightly
def test_its_fp16_file_is_what_the_export_gives(tiny_half, network, images):
    compute_the_same(tiny_half, to_bytes(network, "fp16", "tiny"), images)


@pytest.mark.nightly
def test_the_same_weights_give_the_same_bytes(exported, network):
    assert to_bytes(network, "fp32", "tiny") == exported.read_bytes()


def test_fp16_convolutions_are_fp16_and_branches_fp32(half):
    model = onnx.load(half)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    types = {"branch": set(), "coder": set()}
    for tensor in model.graph.initializer:
        for part, found in types.items():
            if part in tensor.name:
                found.add(tensor.data_type)
    assert types == {"branch": {onnx.TensorProto.FLOAT}, "coder": {onnx.TensorProto.FLOAT16}}
    nodes = [n.op_type for n in model.graph.node]
    assert "BatchNormalization" not in nodes  # folded: a layer rounds once
    casts = [n.input[0] for n in model.graph.node if n.op_type == "Cast"]
    kinds = {o: n.op_type for n in model.graph.node for o in n.output}
    # The features, to be averaged; the logits of both masks; the masks to uint8; from bool, the
    # corners of the pooling windows.
    corners = ["And"] * 15 + ["GreaterOrEqual"] * 5
    rest = ["MaxPool", "Round", *["Slice"] * 4]
    assert sorted(kinds[name] for name in casts) == sorted(corners + rest)
    assert half.stat().st_size < 0.6 * BUNDLED.stat().st_size


def test_fp16_average_pooling_does_not_overflow(network):
    # 49 cells of 4,000 sum to 196,000, above float16's 65,504.
    graph = Graph(network, torch.float16)
    image = torch.zeros(1, 1, 224, 224, dtype=torch.float16)
    seen = []
    with torch.inference_mode():
        positions = graph.network.encode(image)[1]
        features = torch.full((1, 16, 7, 7), 4000.0, dtype=torch.float16)
        graph.network.encode = lambda images: (features, positions)
        graph.network.health_branch.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
        graph(image)
    assert torch.equal(seen[0], torch.full((1, 16), 4000.0))


@pytest.mark.nightly
def test_fp16_again_from_fp16_is_the_same_network_and_fp32_is_refused(half, tmp_path):
    command(half, "--out", tmp_path / "again.onnx", "--precision", "fp16")
    before, after = (onnx.load(path) for path in (half, tmp_path / "again.onnx"))
    assert shape(before) == shape(after)
    for a, b in zip(before.graph.initializer, after.graph.initializer, strict=True):  # -0 is 0
        assert np.array_equal(onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b)), a.name
    with pytest.raises(UsageError, match="rounded"):
        command(half, "--out", tmp_path / "up.onnx", "--precision", "fp32")


def test_a_run_is_exported_with_its_card(exported, run):
    card = read_card(exported)
    assert (card.name, card.precision, card.width) == ("tiny", "fp32", 1 / 32)
    assert card.training == {
        "epochs": 2,
        "epoch": 2,
        "train_images": 16,
        "teachers": ["w025"],
    }
    assert card.metrics == {"val": {"lung_iou": 0.5}}
    assert card.intervals == {"val": {"lung_iou": [0.45, 0.55]}}
    assert card.operating_points == {}
    assert card.notes == ["Of 16 images.", "Of one source."]
    assert run_card(run).name == "night"


def test_a_run_s_card_has_its_operating_points(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "calibrated")
    described = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(described | {"operating_points": {"90": POINT}}))
    assert run_card(copy).operating_points["90"] == OperatingPoint(**POINT)


def test_a_card_is_carried_over_from_an_onnx_file(half):
    before, after = read_card(BUNDLED), read_card(half)
    assert after.operating_points == before.operating_points != {}
    assert after.sha256 != before.sha256
    assert after.precision == "fp16"


def test_a_file_that_computes_something_else_is_not_written(
    tiny_model, network, images, tmp_path, monkeypatch
):
    tampered = altered(tiny_model, "health_branch.4.bias", [0, 0.01])
    monkeypatch.setattr(to_onnx, "to_bytes", lambda *a: tampered)
    card = Card("x", "", 1 / 32, 0.45, 0.3)
    with pytest.raises(ParityError, match="differs from PyTorch"):
        export_onnx(network, card, tmp_path / "m.onnx", images=images)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("weight", "change"),
    [
        ("disease_decoder.stages.4.1.bias", [0, 1]),  # masks differ, scores do not
        ("findings_branch.4.bias", [0, 1e-3]),  # scores differ, masks do not
        ("findings_branch.4.bias", [0, np.nan]),
    ],
)
def test_scores_and_masks_are_each_enough_to_refuse(tiny_model, network, images, weight, change):
    with pytest.raises((ParityError, ModelError)):  # the latter of what is no number
        parity.check(altered(tiny_model, weight, change), network, "fp32", images)


def external(content, where):
    """A model whose ``where`` (initializer or attribute) lies in another file."""
    model = onnx.load_model_from_string(content)
    if where == "initializer":
        tensor = next(i for i in model.graph.initializer if i.name == "encoder.0.0.0.weight")
    else:
        node = model.graph.node.add(op_type="Constant", output=["stolen"])
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
        tensor = node.attribute[0].t
        tensor.data_type, tensor.dims[:] = 1, [1]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    return model.SerializeToString()


@pytest.mark.parametrize("where", ["initializer", "attribute"])
def test_weights_in_another_file_are_refused_before_it_is_opened(tiny_model, tmp_path, where):
    hostile = tmp_path / "hostile.onnx"
    hostile.write_bytes(external(tiny_model.read_bytes(), where))
    os.mkfifo(tmp_path / "secret.bin")  # opening it to read would wait for ever
    with pytest.raises(ModelError, match="another file"):
        load_network(hostile)


def test_other_hiding_places_are_refused(tiny_model):
    content = tiny_model.read_bytes()
    nested = onnx.load_model_from_string(content)
    attribute = nested.graph.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH)
    attribute.g.name = "inner"
    function = onnx.load_model_from_string(content)
    function.functions.add(name="f")
    sparse = onnx.load_model_from_string(content)
    sparse.graph.sparse_initializer.add(dims=[1])
    for model in (nested, function, sparse):
        with pytest.raises(ModelError, match="not ours"):
            modelfile.check(model.SerializeToString())


def test_noise_is_refused(tiny_model):
    content = tiny_model.read_bytes()
    for damaged in (b"", b"PK\x03\x04 not a model", content[: len(content) // 2], content * 2):
        with pytest.raises(ModelError):
            modelfile.check(damaged)
            load_network(damaged)


def test_a_foreign_onnx_file_is_not_a_network():
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(n, 1, [1]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    with pytest.raises(ModelError, match="lacks the outputs scores and masks"):
        load_network(onnx.helper.make_model(graph).SerializeToString())


def test_wrong_arguments_are_told_before_anything_is_loaded(tmp_path):
    with pytest.raises(UsageError, match=r"end in \.onnx"):
        command("bundled", "--out", tmp_path / "m.pt")
    with pytest.raises(UsageError, match="not a folder"):
        command("bundled", "--out", tmp_path / "no" / "m.onnx")
    with pytest.raises(ModelError, match="cannot be read"):
        command(tmp_path / "absent.onnx", "--out", tmp_path / "m.onnx")


def test_the_command_loads_only_click():
    code = (
        "import sys, comit.export.cli; "
        "print([m for m in ('torch', 'onnx', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.real
def test_parity_holds_on_real_x_rays(tiny_model, half, network, shared):
    images = parity.read_images(shared / "cxr" / "images")
    assert images.shape == (16, 1, 224, 224)
    bundled = load_network(BUNDLED)
    for path, given, precision in ((tiny_model, network, "fp32"), (half, bundled, "fp16")):
        found = parity.check(path.read_bytes(), given, precision, images)
        assert str(found).startswith("on 16 X-rays: scores within ")


def test_onnxruntime_runs_the_fp16_file_in_fp16(half):
    assert OnnxRuntimeEngine(half.read_bytes()).precision == "fp16"
