"""COMiT-Net rebuilt from an ONNX file of comit's."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from comit import modelfile, preprocess_version
from comit.errors import ModelError, UsageError
from comit.model.graph import Graph
from comit.model.network import COMiTNet, NetworkConfig, with_gate


def load_network(model: Path | bytes) -> COMiTNet:
    """The network in an ONNX file of ours (its path or content), float32, in evaluation mode.

    A file from before there was a gate gives an untrained one. Raises ModelError.
    """
    try:
        content = model if isinstance(model, bytes) else model.read_bytes()
    except OSError as error:
        raise ModelError(f"{model!s} cannot be read") from error
    modelfile.check(content)
    try:
        proto = onnx.load_model_from_string(content)
        about = {p.key: p.value for p in proto.metadata_props}
        config = NetworkConfig(*(float(about[k]) for k in ("width", "mean", "std")))
        with torch.device("meta"):  # shapes alone: a hostile width allocates nothing
            network = COMiTNet(config)
        held = {i.name: i for i in proto.graph.initializer}
        state = {
            k: torch.from_numpy(np.array(numpy_helper.to_array(held[k]), np.float32))
            for k in network.state_dict()
            if k in held
        }
        for name, layer in network.named_modules():
            if isinstance(layer, nn.BatchNorm2d):
                identity = {
                    "weight": torch.ones(layer.num_features),
                    "bias": torch.zeros(layer.num_features),
                    "running_mean": torch.zeros(layer.num_features),
                    "running_var": torch.full((layer.num_features,), 1 - layer.eps),
                    "num_batches_tracked": torch.zeros((), dtype=torch.int64),  # not in evaluation
                }
                if about["precision"] == "fp32":  # in fp16 the norm is in the convolution
                    identity = {"num_batches_tracked": identity["num_batches_tracked"]}
                state |= {f"{name}.{k}": v for k, v in identity.items()}
        network.load_state_dict(with_gate(network, state), strict=True, assign=True)
    except Exception as error:  # protobuf, numpy_helper and torch raise what they like
        raise ModelError(
            "the model file does not hold a COMiT-Net; comit export onnx writes those that do"
        ) from error
    return network.eval()


OPSET = 20


DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def to_bytes(network: COMiTNet, precision: str, name: str) -> bytes:
    """The ONNX file: ``images`` (N, 1, 224, 224) to ``scores`` and ``masks``, N free."""
    if precision not in DTYPES:
        raise UsageError(f"precision {precision!r}: choose {' or '.join(DTYPES)}")
    dtype = DTYPES[precision]
    graph = Graph(network, dtype)
    device = next(graph.parameters()).device
    with _quiet():
        program = torch.onnx.export(
            graph,
            (torch.zeros(2, 1, 224, 224, dtype=dtype, device=device),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["scores", "masks"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            external_data=False,
            optimize=False,  # it would fold batch norm into the convolutions
            verbose=False,
        )
    model = _simplified(program)
    for key, value in {
        "name": name,
        "width": network.config.width,
        "mean": network.config.mean,
        "std": network.config.std,
        "preprocessing": preprocess_version,
        "precision": precision,
    }.items():
        model.metadata_props.add(key=key, value=str(value))
    onnx.checker.check_model(model)
    content = bytes(model.SerializeToString(deterministic=True))
    modelfile.check(content)
    return content


def _simplified(program: Any) -> onnx.ModelProto:
    """Constants computed, unused and doubled nodes and notes about the source removed."""
    import onnx_ir.passes.common as passes
    import onnxscript.optimizer

    onnxscript.optimizer.fold_constants(program.model)
    for step in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.ClearMetadataAndDocStringPass(),
    ):
        step(program.model)
    model: onnx.ModelProto = program.model_proto
    graph = model.graph
    rename: dict[str, str] = {}
    constants: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    for tensor in graph.initializer:
        if tensor.name.startswith("network."):  # a weight, never merged with one of equal values
            rename[tensor.name] = tensor.name.removeprefix("network.")
        else:
            same = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
            rename[tensor.name] = constants.setdefault(same, tensor.name)
        tensor.name = rename[tensor.name]
    for node in graph.node:
        node.input[:] = [rename.get(name, name) for name in node.input]
    _compare_uncast(graph)
    _merge_slices(graph)
    _shuffle_whole_channels(graph)
    _drop_unused(graph)
    del graph.value_info[:]
    for item in (model, graph, *graph.input, *graph.output, *graph.node, *graph.initializer):
        del item.metadata_props[:]
    graph.name = "comit"
    model.producer_name, model.producer_version, model.doc_string = "comit", "", ""
    return model


def _compare_uncast(graph: onnx.GraphProto) -> None:
    """Compares float16 as it is: PyTorch compares after a cast to float32, with the same answer."""
    casts = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Cast"}
    for node in graph.node:
        if node.op_type == "GreaterOrEqual" and all(name in casts for name in node.input):
            node.input[:] = [casts[name] for name in node.input]


def _merge_slices(graph: onnx.GraphProto) -> None:
    """One Slice for each corner of the pooling windows, where PyTorch writes rows, then columns."""
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    slices = {n.output[0]: n for n in graph.node if n.op_type == "Slice"}
    for node in slices.values():
        before = slices.get(node.input[0])
        if before is None:
            continue
        merged = []
        for first, second in zip(list(before.input)[1:], list(node.input)[1:], strict=True):
            name = f"{first}+{second}"  # starts, ends, axes, steps: rows first
            if name not in constants:
                constants[name] = np.concatenate([constants[first], constants[second]])
                graph.initializer.append(numpy_helper.from_array(constants[name], name))
            merged.append(name)
        node.input[:] = [before.input[0], *merged]


def _shuffle_whole_channels(graph: onnx.GraphProto) -> None:
    """DepthToSpace of four tensors one after the other (DCR), not channel by channel (CRD).

    PyTorch's pixel shuffle takes a channel's four values together, which a channels-last engine
    has to reorder for; the same pixels come out.
    """
    made = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "DepthToSpace":
            stack = made[made[node.input[0]].input[0]]  # Unsqueeze, Concat, Reshape
            stack.input[:] = [made[name].input[0] for name in stack.input]
            stack.attribute[0].i = 1  # its axis
            node.input[:] = stack.output
            next(a for a in node.attribute if a.name == "mode").s = b"DCR"


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Removes nodes and constants that nothing reads, and constants of one name but the last."""
    needed = {o.name for o in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    kept = list({i.name: i for i in graph.initializer if i.name in needed}.values())
    nodes.reverse()
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks: on torchvision's absence, and on its own deprecations."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        log.setLevel(level)
