"""nvImageCodec, which decodes JPEG and JPEG 2000 on an NVIDIA GPU (nvJPEG, nvJPEG 2000).

*Unverified on a GPU*: it was written without one. Tests run this class with the decoders of the
same package for CPUs. The API is that of 0.9.0; what it does with streams and memory was read in
the source of 0.8.0 (python/decoder.cpp, extensions/nvjpeg, extensions/nvjpeg2k).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from comit.config import usable_cores
from comit.gpu.batch import Frame
from comit.gpu.device import Borrowed, Decoder, Device, Memory

# Not CPU_ONLY: libjpeg-turbo and OpenJPEG on hostile files belong into processes of their own.
BACKENDS = ("GPU_ONLY", "HYBRID_CPU_GPU", "HW_GPU_ONLY")
THREADS = 8  # at most, for the part of a frame's decoding that the CPU does


class NvImageCodec(Decoder):
    """Memory and threads of its own. Frames are decoded on the stream that is given.

    ``index`` is the GPU's number.
    """

    by = "nvImageCodec"

    def __init__(self, gpu: Device, index: int, backends: Sequence[str] = BACKENDS) -> None:
        """Raises ImportError without the package, RuntimeError where it finds no decoder."""
        from nvidia import nvimgcodec

        self._gpu, self._package = gpu, nvimgcodec
        self._decoder = nvimgcodec.Decoder(
            device_id=index,
            max_num_cpu_threads=min(THREADS, usable_cores()),
            backends=[nvimgcodec.Backend(getattr(nvimgcodec.BackendKind, b)) for b in backends],
        )
        # Values as they are stored: no turn, no colour conversion, no scaling to 8 bits.
        self._as_stored = nvimgcodec.DecodeParams(
            apply_exif_orientation=False,
            color_spec=nvimgcodec.ColorSpec.UNCHANGED,
            allow_any_depth=True,
        )

    def decode(self, frames: Sequence[Frame], stream: Any) -> list[Memory | None]:
        """See :meth:`Decoder.decode`. What breaks a batch of nvJPEG takes others of it along."""
        parsed = {i: s for i, f in enumerate(frames) if (s := self._parse(f)) is not None}
        found: list[Memory | None] = [None] * len(frames)
        try:
            images = self._decoder.decode(
                list(parsed.values()), params=self._as_stored, cuda_stream=self._gpu.handle(stream)
            )
            for i, image in zip(parsed, images, strict=True):
                if image is not None:
                    found[i] = self._memory(image, frames[i])
        except Exception:  # its own errors have no common base, and their text is not ours to show
            return [None] * len(frames)
        return found

    def _parse(self, frame: Frame) -> Any:
        """A stream whose picture, as this library reads its header, is the one expected."""
        try:
            stream = self._package.CodeStream(frame.data)
            size, dtype = (stream.height, stream.width), np.dtype(stream.dtype)
            fits = (size, stream.num_channels, dtype) == (frame.shape, 1, frame.dtype)
        except Exception:
            return None
        return stream if fits else None

    def _memory(self, image: Any, frame: Frame) -> Memory | None:
        """Where an image's samples are, if they lie there as they should."""
        about = self._interface(image)
        rows, columns = frame.shape
        size = frame.dtype.itemsize
        if about["shape"] != (rows, columns, 1) or np.dtype(about["typestr"]) != frame.dtype:
            return None
        if about.get("strides") not in (None, (columns * size, size, size)):
            return None
        return Borrowed(image, about["data"][0], rows * columns * size)

    def _interface(self, image: Any) -> dict[str, Any]:
        return dict(image.__cuda_array_interface__)


def open_decoder(gpu: Device) -> Decoder | None:
    """nvImageCodec's decoder on a GPU; None where it is not installed or finds nothing there."""
    try:
        return NvImageCodec(gpu, int(gpu.name.partition(":")[2] or 0))
    except (ImportError, RuntimeError):
        return None
