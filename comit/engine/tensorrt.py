"""TensorRT (10.16, 11, or TensorRT for RTX) on an NVIDIA GPU, through pycuda or CuPy.

*Unverified on a GPU*: it was written without one. Tests run this class with an engine that
computes on the CPU; see docs/explanation/gpu.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comit.engine import builder
from comit.engine.base import IMAGE, SCORES, Engine, Inference, Progress, Screened, ignore
from comit.engine.builder import SMALL, Options
from comit.engine.cache import CACHE
from comit.engine.gpu.device import Device
from comit.engine.gpu.pycuda_device import open_device
from comit.engine.gpu.screening import Screening, in_halves
from comit.errors import ModelError, UsageError
from comit.image.samples import Pictures

BATCH = 64
RUNS = 20  # to time an engine by, a few milliseconds
LANES = 2  # execution contexts: copies of one overlap the other's arithmetic
DTYPES = {"fp16": np.float16, "fp32": np.float32}


class TensorRtEngine(Engine):
    """One engine and ``lanes`` execution contexts, each with a stream and memory of its own.

    ``model`` is an ONNX file, whose engine is built on first use and then kept in ``cache``, or an
    engine file of ``comit export tensorrt``. ``precision`` ``auto`` is fp16. Where the GPU's memory
    does not do for ``batch_size``, half of it is tried; ``notes`` says so.
    """

    name = "tensorrt"
    takes_samples = True
    graph = False  # whether a batch is one CUDA graph

    def __init__(
        self,
        model: bytes,
        device: str = "cuda:0",
        precision: str = "auto",
        batch_size: int | None = None,
        threads: int | None = None,
        cache: Path = CACHE,
        progress: Progress = ignore,
    ) -> None:
        if device == "cpu":
            raise UsageError("tensorrt runs on NVIDIA GPUs, not on cpu")
        if precision not in ("auto", *DTYPES):
            raise UsageError(f"tensorrt computes in fp16 or fp32, not {precision}")
        trt = builder.import_tensorrt()
        self._gpu = open_device("cuda:0" if device == "auto" else device)
        self.device, self.lanes, self.notes = self._gpu.name, LANES, ()
        with self._gpu.current():
            here = builder.this_machine(trt, *self._gpu.describe())
            if model.startswith(builder.MAGIC):
                about, plan = builder.unpack(model)
                builder.check_machine(about, here)
            else:
                wanted = "fp16" if precision == "auto" else precision
                options = Options(batch_size or BATCH)
                about, plan = builder.cached(trt, model, options, here, wanted, cache, progress)
            self.precision = about.precision
            if precision not in ("auto", self.precision):
                raise UsageError(f"this engine computes in {self.precision}, not {precision}")
            most = about.options.batch_size
            self.batch_size = batch_size or most
            if self.batch_size > most:
                raise UsageError(f"this engine takes batches of up to {most}; export it anew")
            progress("loading the engine")
            self._load(trt, plan)

    def _load(self, trt: Any, plan: bytes) -> None:
        self._log = builder.logger(trt)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise UsageError(f"TensorRT does not take the engine: {self._log.last}")
        layers = self._engine.create_engine_inspector().get_engine_information(
            trt.LayerInformationFormat.JSON
        )
        if not builder.check_layers(layers, self.precision):
            self.notes = (*self.notes, "TensorRT does not tell the precision of convolutions")
        asked = self.batch_size
        while True:
            try:
                self._lanes = self._open_lanes()
                break
            except MemoryError as error:
                if self.batch_size == 1:
                    raise UsageError(f"{self.device} has no memory for a single image") from error
                self.batch_size //= 2
        if self.batch_size < asked:
            self.notes = (*self.notes, f"batches of {self.batch_size}: no memory for {asked}")

    def _open_lanes(self) -> SimpleQueue[_Lane]:
        lanes: SimpleQueue[_Lane] = SimpleQueue()
        for _ in range(self.lanes):
            lane = _Lane(self._gpu, self._engine, self.batch_size, DTYPES[self.precision])
            self.graph = lane.graph is not None
            lanes.put(lane)
        return lanes

    def infer(self, images: NDArray[np.float32]) -> Inference:
        """See :meth:`Engine.infer`."""
        n = len(images)
        if images.shape[1:] != IMAGE or not 1 <= n <= self.batch_size:
            raise ValueError(f"expected (1 to {self.batch_size}, 1, 224, 224), got {images.shape}")
        with self._lane() as lane:
            lane.images[:n] = images  # rounds to float16 on the way into page-locked memory
            lane.images[n:] = 0
            lane.run()
            return Inference(lane.scores[:n].copy(), lane.masks[:n].copy())

    def pictures(self) -> Pictures:
        """See :meth:`Engine.pictures`."""
        return self._gpu.pictures()

    def screen(self, pictures: Pictures) -> Screened:
        """See :meth:`Engine.screen`."""
        if not 1 <= len(pictures) <= self.batch_size:
            raise ValueError(f"expected 1 to {self.batch_size} images, got {len(pictures)}")
        with self._lane() as lane:
            return in_halves(lane.screen, pictures)

    @contextmanager
    def _lane(self) -> Iterator[_Lane]:
        """A lane that is free, in the GPU's context."""
        lane = self._lanes.get()
        try:
            with self._gpu.current():
                yield lane
        finally:
            self._lanes.put(lane)

    def close(self) -> None:
        """Frees the GPU's memory; the engine is of no use after. A second call does nothing."""
        if self._engine is None:
            return
        with self._gpu.current():
            for _ in range(self.lanes):
                self._lanes.get()
            self._engine = self._runtime = None


class _Lane:
    """An execution context with its stream, its memory and the host's side of both copies."""

    def __init__(self, gpu: Device, engine: Any, batch_size: int, dtype: Any) -> None:
        self._gpu, self._context = gpu, engine.create_execution_context()
        if self._context is None:
            raise MemoryError("no execution context")
        self._stream = gpu.stream()
        handle = gpu.handle(self._stream)
        # The large profile where there is one and the batch is not a small one.
        profile = engine.num_optimization_profiles - 1 if batch_size > SMALL else 0
        shape = (batch_size, *IMAGE)
        if not self._context.set_optimization_profile_async(
            profile, handle
        ) or not self._context.set_input_shape("images", shape):
            raise ModelError(f"the engine takes no batches of {batch_size}; export it again")
        self.images = self._array(shape, dtype)
        self.scores = self._array((batch_size, SCORES), np.float32)
        self.masks = self._array((batch_size, 2, *IMAGE[1:]), np.uint8)
        arrays = {"images": self.images, "scores": self.scores, "masks": self.masks}
        self._memory = {name: gpu.empty(a.nbytes) for name, a in arrays.items()}
        for name, memory in self._memory.items():
            self._context.set_tensor_address(name, memory.address)
        # What a batch leaves unfilled is computed too: it must be numbers.
        gpu.clear(self._memory["images"], self.images.nbytes, self._stream)
        self.graph = self._faster_graph() if batch_size <= SMALL else None
        images, masks = self._memory["images"], self._memory["masks"]
        self.screening = Screening(gpu, self._stream, images, masks, dtype == np.float16)

    def _array(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        array: NDArray[Any] = self._gpu.pinned(nbytes).view(dtype).reshape(shape)
        return array

    def run(self) -> None:
        """``images`` to ``scores`` and ``masks``, all on the host; other threads run meanwhile."""
        self._gpu.upload(self._memory["images"], self.images, self._stream)
        self._start()
        self._gpu.download(self.masks, self._memory["masks"], self._stream)
        self._gpu.wait(self._stream)

    def screen(self, pictures: Pictures) -> Screened:
        """Preprocessing, engine and run lengths on one stream."""
        return self.screening.screen(pictures, self._start, self.scores)

    def _start(self) -> None:
        """The engine, and its scores on their way to the host."""
        (self.graph or self._execute)()
        self._gpu.download(self.scores, self._memory["scores"], self._stream)

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._gpu.handle(self._stream)):
            raise RuntimeError("TensorRT did not run the engine")

    def _faster_graph(self) -> Callable[[], None] | None:
        """The engine as one CUDA graph, where that gives the same answers in less time.

        For few images, starting kernels one by one takes longer than running them.
        """
        self._answers(self._execute)  # TensorRT settles what depends on the shape in the first run
        graph = self._gpu.graph(self._execute, self._stream)
        expected = self._answers(self._execute)
        if graph is None or self._answers(graph) != expected:
            return None
        return graph if self._seconds(graph) < self._seconds(self._execute) else None

    def _answers(self, run: Callable[[], None]) -> list[bytes]:
        """What ``run`` makes of the images that are there."""
        answers = {"scores": self.scores, "masks": self.masks}
        for name, array in answers.items():
            self._gpu.clear(self._memory[name], array.nbytes, self._stream)
        run()
        for name, array in answers.items():
            self._gpu.download(array, self._memory[name], self._stream)
        self._gpu.wait(self._stream)
        return [array.tobytes() for array in answers.values()]

    def _seconds(self, run: Callable[[], None]) -> float:
        """Of the fastest of some runs, with nothing beside them."""
        found = []
        for _ in range(RUNS):
            started = time.perf_counter()
            run()
            self._gpu.wait(self._stream)
            found.append(time.perf_counter() - started)
        return min(found)
