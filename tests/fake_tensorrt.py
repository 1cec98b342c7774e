"""TensorRT's runtime for tests without a GPU: a plan is an ONNX file, computed by ONNX Runtime.

It reads and writes at the addresses it is given, as TensorRT does, so what runs it must hand over
the right memory, shapes and profile.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from comit.engine.builder import SMALL
from comit.engine.onnxruntime import OnnxRuntimeEngine

MOST = 16  # images a context has memory for
recording: list[Callable[[], None]] | None = None  # what is enqueued while a graph is captured


class ILogger:
    ERROR = 1

    def __init__(self) -> None:
        pass


class LayerInformationFormat:
    JSON = 1


class Context:
    def __init__(self, plan: bytes) -> None:
        self._plan, self._addresses = plan, {}
        self._shape: tuple[int, ...] = ()
        self.profile = -1

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name != "images" or (self.profile == 0 and shape[0] > SMALL):
            return False  # as for a shape outside its profile's range
        self._shape = shape
        if shape[0] > MOST:
            raise MemoryError
        self._engine = OnnxRuntimeEngine(self._plan, batch_size=shape[0])
        return True

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        if recording is None:
            self._execute()
        else:
            recording.append(self._execute)
        return True

    def _execute(self) -> None:
        dtype = self._engine._dtype
        nbytes = int(np.prod(self._shape)) * np.dtype(dtype).itemsize
        raw = (ctypes.c_uint8 * nbytes).from_address(self._addresses["images"])
        images = np.frombuffer(raw, dtype).reshape(self._shape)
        found = self._engine.infer(images)
        for name, array in (("scores", found.scores), ("masks", found.masks)):
            ctypes.memmove(self._addresses[name], array.ctypes.data, array.nbytes)


class EngineInspector:
    def __init__(self, layers: str) -> None:
        self._layers = layers

    def get_engine_information(self, form: int) -> str:
        return self._layers


class CudaEngine:
    num_optimization_profiles = 2

    def __init__(self, plan: bytes, layers: str) -> None:
        self._plan, self._layers = plan, layers

    def create_execution_context(self) -> Context:
        return Context(self._plan)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._layers)


def convolution(kind: str) -> dict[str, Any]:
    """What TensorRT's inspector says of a convolution, kind Half or Float."""
    return {
        "Name": "conv1 + relu1",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Format/Datatype": kind}],
        "Outputs": [{"Name": "y", "Format/Datatype": kind}],
        "ParameterType": "Convolution",
        "Weights": {"Type": kind, "Count": 9},
    }


def module(kind: str = "Half") -> Any:
    """A module in place of ``tensorrt`` whose engines compute in ``kind``."""
    layers = json.dumps({"Layers": [convolution(kind)]})

    class Runtime:
        def __init__(self, log: ILogger) -> None:
            self._log = log

        def deserialize_cuda_engine(self, plan: bytes) -> CudaEngine:
            return CudaEngine(plan, layers)

    fake = ModuleType("tensorrt")
    fake.__version__ = "11.4.0"  # type: ignore[attr-defined]
    for thing in (ILogger, LayerInformationFormat, Runtime):
        setattr(fake, thing.__name__, thing)
    return fake
