"""Kernels through CuPy, for machines that have it and not pycuda."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comit.engine.gpu.compile import SOURCES, STANDARD
from comit.engine.gpu.device import Device, Memory, Size, given
from comit.errors import UsageError


class CupyMemory(Memory):
    """An allocation of CuPy's pool."""

    def __init__(self, allocation: Any, nbytes: int) -> None:
        self._allocation, self.address, self.nbytes = allocation, int(allocation.ptr), nbytes


class CupyDevice(Device):
    """A GPU through CuPy, in the context it shares with PyTorch. Unverified: no GPU was at hand.

    CuPy compiles the kernels with the NVRTC it brings, and keeps them in its own cache.
    """

    by = "CuPy"

    def __init__(self, name: str = "cuda:0") -> None:
        """Raises ModuleNotFoundError without CuPy, UsageError without a driver or that GPU."""
        import cupy

        index = int(name.partition(":")[2] or 0)
        self._cupy, self.name = cupy, f"cuda:{index}"
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise UsageError(f"{name} cannot be used: {error}; use --device cpu") from error
        if index >= count:
            raise UsageError(f"there is no {name}: NVIDIA GPUs on this machine: {count}")
        self._index = cupy.cuda.Device(index)
        self.arch = f"sm_{self._index.compute_capability}"
        options = (f"-std={STANDARD}", "--fmad=false", f"-I{SOURCES}")
        source = (SOURCES / "kernels.cu").read_text(encoding="utf-8")
        self._module = cupy.RawModule(code=source, options=options)

    @contextmanager
    def current(self) -> Iterator[None]:
        """See :meth:`Device.current`."""
        with self._index:
            yield

    def empty(self, nbytes: int) -> CupyMemory:
        """See :meth:`Device.empty`."""
        try:
            return CupyMemory(self._cupy.cuda.alloc(max(1, nbytes)), nbytes)
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            raise MemoryError(f"{self.name} has no {nbytes} bytes left") from error

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """See :meth:`Device.pinned`."""
        held = self._cupy.cuda.alloc_pinned_memory(max(1, nbytes))
        return np.frombuffer(held, np.uint8, nbytes)

    def stream(self) -> Any:
        """See :meth:`Device.stream`."""
        return self._cupy.cuda.Stream(non_blocking=True)

    def upload(self, to: Memory, array: NDArray[Any], stream: Any) -> None:
        """See :meth:`Device.upload`."""
        runtime = self._cupy.cuda.runtime
        kind = runtime.memcpyHostToDevice
        runtime.memcpyAsync(to.address, array.ctypes.data, array.nbytes, kind, stream.ptr)

    def download(self, array: NDArray[Any], source: Memory, stream: Any) -> None:
        """See :meth:`Device.download`."""
        runtime = self._cupy.cuda.runtime
        kind = runtime.memcpyDeviceToHost
        runtime.memcpyAsync(array.ctypes.data, source.address, array.nbytes, kind, stream.ptr)

    def clear(self, memory: Memory, nbytes: int, stream: Any) -> None:
        """See :meth:`Device.clear`."""
        self._cupy.cuda.runtime.memsetAsync(memory.address, 0, nbytes, stream.ptr)

    def launch(
        self, kernel: str, grid: Size, block: Size, arguments: Sequence[Any], stream: Any
    ) -> None:
        """See :meth:`Device.launch`."""
        with stream:
            self._module.get_function(kernel)(grid, block, tuple(given(arguments)))

    def handle(self, stream: Any) -> int:
        """See :meth:`Device.handle`."""
        return int(stream.ptr)

    def describe(self) -> tuple[str, int]:
        """See :meth:`Device.describe`."""
        runtime = self._cupy.cuda.runtime
        name = runtime.getDeviceProperties(self._index.id)["name"].decode()
        return f"{name} {self.arch}", int(runtime.driverGetVersion())

    def wait(self, stream: Any) -> None:
        """See :meth:`Device.wait`."""
        stream.synchronize()
