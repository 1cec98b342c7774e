"""What an ONNX file may be before any engine sees it: one flat graph with its weights inside.

An ONNX tensor may say that its values lie in another file (``external_data``), which the runtime
then opens: a model from elsewhere could so read any file of this machine. The format is
Protocol Buffers (onnx.proto, protobuf.dev/programming-guides/encoding); walking it takes no
package, so engines check without ``onnx`` and before they parse.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from comit.errors import ModelError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; groups (3, 4) are not in ONNX

# Field numbers of onnx.proto.
MODEL_GRAPH, MODEL_METADATA, MODEL_TRAINING, MODEL_FUNCTIONS = 7, 14, 20, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_OUTPUT, GRAPH_SPARSE = 1, 5, 12, 15
VALUE_NAME = 1
NODE_ATTRIBUTE = 5
ATTRIBUTE_TENSOR, ATTRIBUTE_NESTED = 5, {6, 10, 11, 22, 23}  # graphs, tensors, sparse tensors
TENSOR_TYPE, TENSOR_FLOATS, TENSOR_RAW = 2, 4, 9
TENSOR_EXTERNAL, TENSOR_LOCATION = 13, 14
FLOATS = {1: "<f4", 10: "<f2"}  # TensorProto.DataType: FLOAT, FLOAT16
OUTPUTS = {"scores", "masks"}


def check(content: bytes) -> None:
    """Raises ModelError where the file refers to other files or is more than one flat graph.

    So it does where an output is missing, or a weight is not finite.
    """
    try:
        graphs = 0
        for field, value in _fields(memoryview(content)):
            if field in (MODEL_TRAINING, MODEL_FUNCTIONS):
                raise ModelError("the model file holds functions or training graphs: not ours")
            if field == MODEL_GRAPH:
                graphs += 1
                _check_graph(_message(value))
    except (IndexError, ValueError) as error:
        raise ModelError("the model file is not ONNX, or is damaged") from error
    if graphs != 1:
        raise ModelError("the model file is not ONNX, or is damaged")


def metadata(content: bytes) -> dict[str, str]:
    """The notes that ``comit export onnx`` left in a file; raises ModelError for noise."""
    notes: dict[str, str] = {}
    try:
        for field, value in _fields(memoryview(content)):
            if field == MODEL_METADATA:  # StringStringEntryProto: key 1, value 2
                pair = {k: str(_message(v), "utf-8") for k, v in _fields(_message(value))}
                notes[pair.get(1, "")] = pair.get(2, "")
    except (IndexError, ValueError) as error:
        raise ModelError("the model file is not ONNX, or is damaged") from error
    return notes


def _check_graph(graph: memoryview) -> None:
    outputs = set()
    for field, value in _fields(graph):
        if field == GRAPH_INITIALIZER:
            _check_tensor(_message(value))
        elif field == GRAPH_OUTPUT:
            names = (v for f, v in _fields(_message(value)) if f == VALUE_NAME)
            outputs |= {str(_message(name), "utf-8") for name in names}
        elif field == GRAPH_SPARSE:
            raise ModelError("the model file holds sparse weights: not ours")
        elif field == GRAPH_NODE:
            for node_field, attribute in _fields(_message(value)):
                if node_field == NODE_ATTRIBUTE:
                    _check_attribute(_message(attribute))
    if not outputs >= OUTPUTS:
        raise ModelError("the model file lacks the outputs scores and masks: not ours")


def _check_attribute(attribute: memoryview) -> None:
    for field, value in _fields(attribute):
        if field == ATTRIBUTE_TENSOR:
            _check_tensor(_message(value))
        elif field in ATTRIBUTE_NESTED:
            raise ModelError("the model file holds nested graphs: not ours")


def _check_tensor(tensor: memoryview) -> None:
    kind: object = None
    values: list[memoryview] = []
    for field, value in _fields(tensor):
        if field == TENSOR_EXTERNAL or (field == TENSOR_LOCATION and value != 0):
            raise ModelError("the model file keeps weights in another file; export it again")
        if field == TENSOR_TYPE:
            kind = value
        elif field in (TENSOR_RAW, TENSOR_FLOATS) and not isinstance(value, int):
            values.append(value)
    if isinstance(kind, int) and kind in FLOATS:
        for part in values:
            if not np.isfinite(np.frombuffer(part, FLOATS[kind])).all():
                raise ModelError("the model file holds weights that are no finite numbers")


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of a message, in order."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _varint(message, at)
            yield field, value
            continue
        if wire == BYTES:
            length, at = _varint(message, at)
        elif wire in (FIXED64, FIXED32):
            length = 8 if wire == FIXED64 else 4
        else:
            raise ValueError("wire type")
        if at + length > len(message):
            raise ValueError("truncated")
        yield field, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Value and the position after it; at most ten bytes, seven bits each."""
    value = 0
    for i in range(10):
        byte = message[at + i]
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, at + i + 1
    raise ValueError("varint")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("wire type")
    return value
