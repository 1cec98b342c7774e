"""PyTorch itself: the reference, and for machines that have it and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from comit.engine.base import (
    IMAGE,
    Engine,
    Inference,
    Progress,
    Screened,
    ignore,
    padded,
)
from comit.engine.gpu.device import Borrowed, Device
from comit.engine.gpu.pycuda_device import open_device
from comit.engine.gpu.screening import Screening, in_halves
from comit.errors import UsageError
from comit.image.samples import Pictures
from comit.model.graph import Graph
from comit.model.network import fold_batch_norm
from comit.model.stored import load_network

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# How a GPU runs the network; all channels last and as a captured CUDA graph.
VARIANTS = (
    "compiled",  # torch.compile: Triton fuses everything but the convolutions
    "fused",  # convolution, bias and ReLU in one call of cuDNN
    "eager",
)
LANES = 2  # on a GPU: copies of one lane overlap the other's arithmetic


class TorchEngine(Engine):
    """PyTorch, channels last, batch norm folded into the convolutions.

    ``precision`` ``auto`` is fp16 on a GPU; on a CPU bf16 where it multiplies it in hardware,
    else fp32. ``threads`` is set for the whole process: PyTorch knows no other way. The CPU runs
    it eagerly, a GPU as :class:`Captured`, with comit's kernels where pycuda or CuPy is there; the
    GPU path is unverified: it was written without one.
    """

    name = "torch"
    two_stage = True
    _gpu: Device | None = None  # with comit's kernels

    def __init__(
        self,
        model: bytes,
        device: str = "cpu",
        precision: str = "auto",
        batch_size: int | None = None,
        threads: int | None = None,
        variant: str = VARIANTS[0],
        progress: Progress = ignore,
    ) -> None:
        gpu = device != "cpu"
        if gpu and not torch.cuda.is_available():
            raise UsageError("this torch has no CUDA, or finds no GPU; choose --device cpu")
        if precision == "auto":
            bf16 = torch.cpu._is_avx512_bf16_supported()
            precision = "fp16" if gpu else "bf16" if bf16 else "fp32"
        if precision not in DTYPES or precision == ("bf16" if gpu else "fp16"):
            raise UsageError(f"torch does not compute in {precision} on {device}; choose fp32")
        if threads is not None:
            torch.set_num_threads(threads)
        self.device, self.precision = device, precision
        self.batch_size = batch_size or (64 if gpu else 4)
        if gpu:
            self._capture(load_network(model), variant, progress)
            return
        network = fold_batch_norm(load_network(model))
        self._network = network.requires_grad_(False)
        self._network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._precision: Any = (
            torch.autocast(torch.device(device).type, DTYPES[precision], cache_enabled=False)
            if precision != "fp32"
            else nullcontext()
        )

    def _capture(self, network: Any, variant: str, progress: Progress) -> None:
        """A graph for each lane; a compiler that fails is a note, not an error."""
        device, dtype = torch.device(self.device), DTYPES[self.precision]
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self._captured: SimpleQueue[Captured] = SimpleQueue()
        self.lanes, self.two_stage = LANES, False
        self._gpu = kernels_on(self.device)
        self.takes_samples = self._gpu is not None
        given = self.batch_size, dtype, device, self._gpu
        progress(f"preparing the network for {self.device}")
        try:
            graph = on_gpu(network, dtype, device, variant)
            lanes = [Captured(graph, *given) for _ in range(LANES)]
        except Exception as error:
            if variant != "compiled" or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            self.notes = (f"torch.compile failed ({type(error).__name__}): not compiled",)
            graph = on_gpu(network, dtype, device, "eager")
            lanes = [Captured(graph, *given) for _ in range(LANES)]
        for lane in lanes:
            self._captured.put(lane)

    @contextmanager
    def _lane(self) -> Iterator[Captured]:
        """A lane that is free, in the GPU's context."""
        lane = self._captured.get()
        try:
            with self._gpu.current() if self._gpu else nullcontext():
                yield lane
        finally:
            self._captured.put(lane)

    def _replayed(self, images: NDArray[np.float32]) -> Inference:
        batch = torch.from_numpy(padded(images, self.batch_size))
        with self._lane() as lane:
            scores, masks = lane.run(batch)
        return Inference(scores[: len(images)], masks[: len(images)])

    def pictures(self) -> Pictures:
        """See :meth:`Engine.pictures`."""
        if self._gpu is None:
            return super().pictures()
        return self._gpu.pictures()

    def screen(self, pictures: Pictures) -> Screened:
        """See :meth:`Engine.screen`."""
        with self._lane() as lane:
            return in_halves(lane.screen, pictures)

    def scores(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Engine.scores`."""
        if self.device != "cpu":
            return super().scores(images)
        with torch.inference_mode(), self._precision:
            scores = self._network.score(self._batch(images))
        return np.asarray(scores.cpu().numpy()[: len(images)])

    def _batch(self, images: NDArray[np.float32]) -> torch.Tensor:
        batch = torch.from_numpy(padded(images, self.batch_size)).to(self.device)
        return batch.contiguous(memory_format=torch.channels_last)

    def infer(self, images: NDArray[np.float32]) -> Inference:
        """See :meth:`Engine.infer`."""
        if self.device != "cpu":
            return self._replayed(images)
        with torch.inference_mode(), self._precision:
            outputs = self._network(self._batch(images))
        with torch.inference_mode():
            scores = outputs.scores().cpu().numpy()
            masks = (outputs.masks() * 255).round().to(torch.uint8).cpu().numpy()
        return Inference(scores[: len(images)], masks[: len(images)])


def kernels_on(name: str) -> Device | None:
    """What runs comit's kernels beside PyTorch; None without pycuda and CuPy."""
    try:
        return open_device(name)
    except UsageError:
        return None


def on_gpu(network: Any, dtype: torch.dtype, device: torch.device, variant: str) -> Any:
    """The exported computation (:class:`comit.model.graph.Graph`) as a module on a GPU."""
    if variant not in VARIANTS:
        raise UsageError(f"variant {variant!r}: choose {', '.join(VARIANTS)}")
    graph = Graph(network, dtype)
    fold_batch_norm(graph.network)
    if variant == "fused":
        fuse_relu(graph.network)
    graph.requires_grad_(False).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if variant == "compiled":
        return torch.compile(graph, dynamic=False)
    # Eager, scattering by index moves fewer bytes than comparing four corners.
    graph.network.portable_unpooling = False
    return graph


class ConvolutionRelu(nn.Module):
    """Convolution, bias and ReLU in one call of cuDNN; on a CPU one after the other."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, D, H, W), 3x3 with a border of 1."""
        if x.is_cuda:
            one = (1, 1)
            return torch.cudnn_convolution_relu(x, self.weight, self.bias, one, one, one, 1)
        return torch.relu(nn.functional.conv2d(x, self.weight, self.bias, padding=1))


def fuse_relu(network: nn.Module) -> nn.Module:
    """Every convolution that a ReLU follows, with it, in place; batch norm must be folded."""
    for layers in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        kept = [i for i, layer in enumerate(layers) if not isinstance(layer, nn.Identity)]
        for i, after in pairwise(kept):
            layer = layers[i]
            if isinstance(layer, nn.Conv2d) and isinstance(layers[after], nn.ReLU):
                layers[i], layers[after] = ConvolutionRelu(layer), nn.Identity()
    return network


class Captured:
    """A network as one CUDA graph between buffers of its own, on a stream of its own.

    ``gpu`` runs comit's kernels on that stream, before and after it.
    """

    def __init__(
        self,
        graph: Any,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device,
        gpu: Device | None = None,
    ) -> None:
        shape = (batch_size, *IMAGE)
        stream = None
        if gpu is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        else:
            with gpu.current():
                stream = gpu.stream()
            self._stream = torch.cuda.ExternalStream(gpu.handle(stream), device)  # type: ignore[no-untyped-call]
        self._given = torch.empty(shape, dtype=dtype, pin_memory=True)
        self._images = torch.zeros(shape, dtype=dtype, device=device)
        self._images = self._images.contiguous(memory_format=torch.channels_last)
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.device(device):
            with torch.cuda.stream(self._stream):
                for _ in range(3):  # compiles, and lets cuDNN choose, before the capture
                    graph(self._images)
            self._stream.synchronize()
            with torch.cuda.graph(self._graph, stream=self._stream):
                scores, masks = graph(self._images)
                scores, masks = self._found = scores.contiguous(), masks.contiguous()
        self._host = [torch.empty_like(x, device="cpu", pin_memory=True) for x in self._found]
        if gpu is not None:
            images, found = (Borrowed(x, x.data_ptr(), x.nbytes) for x in (self._images, masks))
            self.screening = Screening(gpu, stream, images, found, dtype == torch.float16)

    def run(self, batch: torch.Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        """(batch size, 1, 224, 224) float32 on the host to scores and masks there."""
        self._given.copy_(batch)
        with torch.cuda.stream(self._stream):
            self._images.copy_(self._given, non_blocking=True)
            self.replay()
            for host, found in zip(self._host, self._found, strict=True):
                host.copy_(found, non_blocking=True)
        self._stream.synchronize()
        scores, masks = (x.numpy().copy() for x in self._host)
        return scores, masks

    def screen(self, pictures: Pictures) -> Screened:
        """Preprocessing, network and run lengths on one stream."""
        return self.screening.screen(pictures, self._start, self._host[0].numpy())

    def _start(self) -> None:
        """The network, and its scores on their way to the host."""
        with torch.cuda.stream(self._stream):
            self.replay()
            self._host[0].copy_(self._found[0], non_blocking=True)

    def replay(self) -> None:
        """The arithmetic alone, on what the buffers hold."""
        self._graph.replay()
