"""PyTorch itself: the reference, and for machines that have it and nothing else."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from comit.engine.base import Engine, Inference, padded
from comit.errors import UsageError
from comit.export.to_onnx import load_network
from comit.model.network import fold_batch_norm

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine(Engine):
    """Eager PyTorch, channels last, batch norm folded into the convolutions.

    ``precision`` ``auto`` is fp16 on a GPU; on a CPU bf16 where it multiplies it in hardware,
    else fp32. ``threads`` is set for the whole process: PyTorch knows no other way. The GPU path
    is unverified: it was written without one.
    """

    name = "torch"

    def __init__(
        self,
        model: bytes,
        device: str = "cpu",
        precision: str = "auto",
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> None:
        gpu = device != "cpu"
        if gpu and not torch.cuda.is_available():
            raise UsageError("this torch has no CUDA, or finds no GPU; choose --device cpu")
        if precision == "auto":
            bf16 = torch.cpu._is_avx512_bf16_supported()
            precision = "fp16" if gpu else "bf16" if bf16 else "fp32"
        if precision not in DTYPES or (precision == "fp16" and not gpu):
            raise UsageError(f"torch does not compute in {precision} on {device}; choose fp32")
        if threads is not None:
            torch.set_num_threads(threads)
        self.device, self.precision = device, precision
        self.batch_size = batch_size or (32 if gpu else 4)
        network = fold_batch_norm(load_network(model))
        self._network: nn.Module = network.requires_grad_(False)
        self._network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._precision: Any = (
            torch.autocast(torch.device(device).type, DTYPES[precision], cache_enabled=False)
            if precision != "fp32"
            else nullcontext()
        )

    def infer(self, images: NDArray[np.float32]) -> Inference:
        """See :meth:`Engine.infer`."""
        batch = torch.from_numpy(padded(images, self.batch_size)).to(self.device)
        with torch.inference_mode(), self._precision:
            outputs = self._network(batch.contiguous(memory_format=torch.channels_last))
        with torch.inference_mode():
            scores = outputs.scores().cpu().numpy()
            masks = (outputs.masks() * 255).round().to(torch.uint8).cpu().numpy()
        return Inference(scores[: len(images)], masks[: len(images)])
