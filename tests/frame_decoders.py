"""Decoders of compressed frames without a GPU: imagecodecs, and nvImageCodec's for CPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import imagecodecs
import numpy as np
from cpu_device import CpuMemory
from numpy.typing import NDArray

from comit.gpu.batch import Frame
from comit.gpu.decoder import NvImageCodec
from comit.gpu.device import Decoder, Device, Memory

CPU_ONLY = -99999  # NVIMGCODEC_DEVICE_CPU_ONLY of nvimgcodec.h
Pixels = NDArray[Any]


class ByImagecodecs(Decoder):
    """Decodes as comit does. ``alter`` is given stream and samples; None for what it refuses."""

    by = "imagecodecs"

    def __init__(
        self, alter: Callable[[bytes, Pixels], Pixels | None] = lambda data, found: found
    ) -> None:
        self.alter = alter
        self.decoded = 0

    def decode(self, frames: Sequence[Frame], stream: Any) -> list[Memory | None]:
        found = [self._one(frame) for frame in frames]
        self.decoded += sum(memory is not None for memory in found)
        return found

    def _one(self, frame: Frame) -> Memory | None:
        data = frame.data.tobytes()
        is_jpeg = data.startswith(b"\xff\xd8")
        try:
            found = (imagecodecs.jpeg8_decode if is_jpeg else imagecodecs.jpeg2k_decode)(data)
        except Exception:
            return None
        altered = self.alter(data, found)
        if altered is None or (altered.shape, altered.dtype) != (frame.shape, frame.dtype):
            return None
        memory = CpuMemory(altered.nbytes)
        memory.array[:] = np.frombuffer(altered.tobytes(), np.uint8)
        return memory


class OnHost(NvImageCodec):
    """nvImageCodec with its decoders for CPUs, whose pictures lie on the host."""

    def __init__(self, gpu: Device) -> None:
        super().__init__(gpu, CPU_ONLY, ("CPU_ONLY",))
        self.decoded = 0

    def decode(self, frames: Sequence[Frame], stream: Any) -> list[Memory | None]:
        found = super().decode(frames, stream)
        self.decoded += sum(memory is not None for memory in found)
        return found

    def _interface(self, image: Any) -> dict[str, Any]:
        return dict(image.__array_interface__)
