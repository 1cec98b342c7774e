"""OpenVINO (2025.0 or later), the fastest engine on a CPU."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comit import modelfile
from comit.config import usable_cores
from comit.engine.base import IMAGE, SCORES, Engine, Inference, padded
from comit.errors import ModelError, UsageError
from comit.rounding import round_kernels, to_bfloat16

HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoEngine(Engine):
    """One compiled model and ``lanes`` infer requests, each with its share of the threads.

    ``precision`` ``auto`` is bf16 where the CPU multiplies it in hardware (avx512_bf16, AMX),
    else fp32. Trained weights differ in bf16 from fp32 by at most 0.025 in a score.
    """

    name = "openvino"
    two_stage = True

    def __init__(
        self,
        model: bytes,
        device: str = "cpu",
        precision: str = "auto",
        batch_size: int | None = None,
        threads: int | None = None,
        lanes: int | None = None,
    ) -> None:
        # The plugin gives the thread that makes it a signal stack of its own, and when it goes
        # unmaps it without asking that thread (2026.4): the next signal in it, such as Ctrl-C,
        # would end the process. So a thread makes it that ends at once.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(self._load, model, device, precision, batch_size, threads, lanes).result()

    def _load(
        self,
        model: bytes,
        device: str,
        precision: str,
        batch_size: int | None,
        threads: int | None,
        lanes: int | None,
    ) -> None:
        ov = import_openvino()
        modelfile.check(model)
        if device != "cpu":
            raise UsageError(f"openvino runs on the CPU here, not on {device}")
        core = ov.Core()
        capable = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "auto":
            precision = "bf16" if capable else "fp32"
        if precision not in HINTS or (precision == "bf16" and not capable):
            raise UsageError(
                f"openvino on this CPU computes in {'fp32 or bf16' if capable else 'fp32'}, "
                f"not {precision}"
            )
        cores = threads or usable_cores()
        # One core a lane, batches of 4: 110 img/s where one lane of both cores gave 94 (width
        # 0.25, bf16, two cores). More lanes than 4 were not measured; each holds activations.
        self.lanes = lanes = lanes or min(cores, 4)
        self.device, self.precision = device, precision
        self.batch_size = batch_size or 4
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "NUM_STREAMS": lanes,
            "INFERENCE_NUM_THREADS": cores,
            "PERFORMANCE_HINT": "THROUGHPUT" if lanes > 1 else "LATENCY",
        }
        try:
            network = core.read_model(model=model, weights=b"")
            network.reshape({"images": [self.batch_size, *IMAGE]})
            if precision == "bf16":
                _round_weights(network)
            compiled = core.compile_model(network, "CPU", properties)
            # The encoder and the branches, without the decoders: the same operations, so the
            # same bits.
            scoring = ov.Model([network.output("scores")], network.get_parameters(), "scores")
            scoring = core.compile_model(scoring, "CPU", properties)
        except RuntimeError as error:
            raise ModelError("openvino cannot load the model file") from error
        self._dtype = compiled.input("images").element_type.to_dtype()
        self._tensor = ov.Tensor
        self._requests: SimpleQueue[Any] = SimpleQueue()
        self._scoring: SimpleQueue[Any] = SimpleQueue()
        for _ in range(lanes):
            self._requests.put(compiled.create_infer_request())
            self._scoring.put(scoring.create_infer_request())

    def infer(self, images: NDArray[np.float32]) -> Inference:
        """See :meth:`Engine.infer`. The request writes into the arrays that are returned."""
        batch = padded(images, self.batch_size, self._dtype)
        scores = np.empty((self.batch_size, SCORES), np.float32)
        masks = np.empty((self.batch_size, 2, *IMAGE[1:]), np.uint8)
        request = self._requests.get()
        try:
            for name, array in (("scores", scores), ("masks", masks)):
                request.set_tensor(name, self._tensor(array, shared_memory=True))
            request.infer({"images": batch}, share_inputs=True, share_outputs=True)
        finally:
            self._requests.put(request)
        return Inference(scores[: len(images)], masks[: len(images)])

    def scores(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Engine.scores`."""
        batch = padded(images, self.batch_size, self._dtype)
        request = self._scoring.get()
        try:
            found = request.infer({"images": batch}, share_inputs=True)["scores"]
            return np.array(found[: len(images)], np.float32)
        finally:
            self._scoring.put(request)


def import_openvino() -> Any:
    """The package, without its telemetry.

    ``import openvino`` writes ~/intel/openvino_ga_cid and reports the import to Google Analytics
    where its dependency openvino-telemetry is found (2026.4, openvino/tools/ovc/__init__.py), and
    has a stub for where it is not. Hospitals' machines report nothing to anybody.
    """
    absent = "openvino_telemetry"
    if "openvino" not in sys.modules and absent not in sys.modules:
        sys.modules[absent] = None  # type: ignore[assignment]  # not to be found
        try:
            import openvino
        finally:
            del sys.modules[absent]
    import openvino

    return openvino


def _round_weights(network: Any) -> None:
    """Gives convolutions weights that bfloat16 holds once a batch norm is in them, in place.

    OpenVINO multiplies a norm's scale into the weights and rounds each to the nearest. Rounded by
    :func:`.rounding.round_kernels` before, the bundled model's disease masks agree with fp32 to
    0.982 in place of 0.973 (IoU, pooled), and a score's largest error falls from 0.014 to 0.006.
    """
    opset = import_module("openvino.opset15")
    for conv in network.get_ops():
        if conv.get_type_name() != "Convolution":
            continue
        weight = conv.input_value(1).get_node().data.astype(np.float32)
        scale = np.ones((len(weight), 1, 1, 1), np.float32)
        biased = _reader(conv, "Add")  # the convolution's own bias
        if (norm := _reader(biased or conv, "BatchNormInference")) is not None:
            gamma, variance = (norm.input_value(i).get_node().data for i in (1, 4))
            scale[:, 0, 0, 0] = gamma / np.sqrt(variance + norm.get_attributes()["epsilon"])
        scale[scale == 0] = 1
        rounded = round_kernels(weight * scale, to_bfloat16) / scale
        conv.input(1).replace_source_output(opset.constant(rounded).output(0))


def _reader(node: Any, kind: str) -> Any:
    """The operation of a kind that takes a node's result, or None.

    Others may take it too (ShapeOf), and their order is another in every process.
    """
    readers = (taken.get_node() for taken in node.output(0).get_target_inputs())
    return next((reader for reader in readers if reader.get_type_name() == kind), None)
