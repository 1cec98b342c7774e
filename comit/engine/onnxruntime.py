"""ONNX Runtime (1.20 or later), on the CPU or an NVIDIA GPU.

On the GPU this is *unverified*: it was written without one. The CPU has few float16 kernels, so
a float16 file runs there through casts, slower than float32 (see bench/results).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from comit import modelfile
from comit.engine.base import IMAGE, SCORES, Engine, Inference, padded
from comit.errors import ModelError, UsageError

DTYPES = {"tensor(float)": (np.float32, "fp32"), "tensor(float16)": (np.float16, "fp16")}


class OnnxRuntimeEngine(Engine):
    """Runs the file in its own precision; ``threads`` 0 takes all the cores there are."""

    name = "onnxruntime"

    def __init__(
        self,
        model: bytes,
        device: str = "cpu",
        precision: str = "auto",
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> None:
        import onnxruntime as ort

        modelfile.check(model)
        self.device = device
        self.batch_size = batch_size or (32 if device != "cpu" else 4)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # only what is fatal: what is raised says the rest
        options.add_free_dimension_override_by_name("N", self.batch_size)
        try:
            self._session = ort.InferenceSession(model, options, providers=_providers(ort, device))
        except UsageError:
            raise
        except Exception as error:  # onnxruntime has no common base of its errors
            raise ModelError("onnxruntime cannot load the model file") from error
        images = self._session.get_inputs()[0]
        self._dtype, self.precision = DTYPES[images.type]
        if precision not in ("auto", self.precision):
            raise UsageError(
                f"onnxruntime runs this {self.precision} file in {self.precision}, not "
                f"{precision}; export it again with --precision, or choose another engine"
            )

    def infer(self, images: NDArray[np.float32]) -> Inference:
        """See :meth:`Engine.infer`."""
        batch = padded(images, self.batch_size, self._dtype)
        run = self._run if self.device == "cpu" else self._run_bound
        scores, masks = run(batch)
        return Inference(scores[: len(images)], masks[: len(images)])

    def _run(self, batch: NDArray[Any]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = self._session.run(["scores", "masks"], {"images": batch})
        return outputs

    def _run_bound(self, batch: NDArray[Any]) -> list[NDArray[Any]]:
        """On the GPU, outputs in arrays of ours, so that only they are copied. Unverified."""
        binding = self._session.io_binding()
        outputs: list[NDArray[Any]] = [
            np.empty((len(batch), SCORES), np.float32),
            np.empty((len(batch), 2, *IMAGE[1:]), np.uint8),
        ]
        binding.bind_cpu_input("images", batch)
        for name, array in zip(("scores", "masks"), outputs, strict=True):
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        return outputs


def _providers(ort: Any, device: str) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise UsageError(
            "this onnxruntime has no CUDA: pip uninstall onnxruntime, then pip install 'comit[gpu]'"
        )
    index = int(device.partition(":")[2] or 0)
    return [
        ("CUDAExecutionProvider", {"device_id": index, "use_tf32": 0}),
        "CPUExecutionProvider",
    ]
