"""A network's answers in PyTorch, and the device that gives them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from comit.errors import UsageError
from comit.model.metrics import Predictions
from comit.model.network import COMiTNet


def predict(model: COMiTNet, images: NDArray[np.float16], device: torch.device) -> Predictions:
    """(N, 224, 224) images in [0, 1] to scores and masks, in fp32 (convolutions TF32 on CUDA)."""
    model.eval()
    scores, masks = [], []
    with torch.inference_mode():
        for i in range(0, len(images), 16):
            x = torch.from_numpy(images[i : i + 16].astype(np.float32))[:, None].to(device)
            outputs = model(x.contiguous(memory_format=torch.channels_last))
            scores.append(outputs.scores().cpu().numpy())
            masks.append((outputs.masks() * 255).round().to(torch.uint8).cpu().numpy())
    return Predictions(np.concatenate(scores), np.concatenate(masks))


def teach(
    teachers: Sequence[COMiTNet], images: NDArray[np.float16], device: torch.device
) -> Predictions:
    """The teachers' mean scores and masks of (N, 224, 224) images, each also seen mirrored."""
    scores = np.zeros((len(images), 4), np.float32)
    masks = np.zeros((len(images), 2, *images.shape[1:]), np.float32)
    for teacher in teachers:
        for mirror in (1, -1):
            with autocast(device):  # as they were trained: a label is never exact to 0.01
                said = predict(teacher, np.ascontiguousarray(images[..., ::mirror]), device)
            scores += said.scores
            masks += said.masks[..., ::mirror]
    shares = np.float32(2 * len(teachers))
    return Predictions(scores / shares, np.rint(masks / shares).astype(np.uint8))


def pick_device(name: str) -> torch.device:
    """``auto`` is the first GPU there is, else the CPU; raises UsageError for a missing GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name!r} is no device; use auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"{name!r}: comit trains on cpu or cuda")
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise UsageError(f"this PyTorch finds no GPU for {name!r}; use --device cpu")
        torch.set_float32_matmul_precision("high")  # TF32 for what is left in fp32
    return device


def on_device(model: COMiTNet, device: torch.device) -> COMiTNet:
    """Moves the network, its weights channels last: the layout in which convolutions are fast."""
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision where the machine computes it faster: bf16, or fp16 on an older GPU."""
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported()
        return torch.autocast("cuda", torch.bfloat16 if bf16 else torch.float16)
    if torch.cpu._is_avx512_bf16_supported():  # without it bf16 is emulated, and slower
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()
