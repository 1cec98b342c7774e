"""A GPU through pycuda, and the choice between pycuda and CuPy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comit.engine.gpu.device import Device, Memory, Size, given
from comit.errors import MissingExtra, UsageError


class PycudaMemory(Memory):
    """An allocation of pycuda."""

    def __init__(self, allocation: Any, nbytes: int) -> None:
        self._allocation, self.address, self.nbytes = allocation, int(allocation), nbytes


class PycudaDevice(Device):
    """A GPU through pycuda, in its primary context, which PyTorch and CUDA's runtime share.

    Unverified: it was written without a GPU. The API is that of pycuda 2026.1.
    """

    by = "pycuda"

    def __init__(self, name: str = "cuda:0") -> None:
        """Raises MissingExtra without pycuda, UsageError without a driver or that GPU."""
        try:
            import pycuda.driver as cuda
        except ModuleNotFoundError as error:
            raise MissingExtra("the GPU pipeline (pycuda)", "gpu") from error
        except ImportError as error:
            if "libcuda" not in str(error):
                raise UsageError(f"pycuda does not load ({error}); install it anew") from error
            raise UsageError(
                "pycuda finds no NVIDIA driver (libcuda.so.1); install it, or use --device cpu"
            ) from error
        index = int(name.partition(":")[2] or 0)
        try:
            cuda.init()
            count = cuda.Device.count()
            if index >= count:
                raise UsageError(f"there is no {name}: NVIDIA GPUs on this machine: {count}")
            self.gpu = cuda.Device(index)
            self._context = self.gpu.retain_primary_context()
        except cuda.Error as error:
            raise UsageError(f"{name} cannot be used: {error}; use --device cpu") from error
        self._cuda, self.name = cuda, f"cuda:{index}"
        self.arch = "sm_{}{}".format(*self.gpu.compute_capability())
        self._functions: dict[str, Any] = {}

    @contextmanager
    def current(self) -> Iterator[None]:
        """See :meth:`Device.current`; contexts are a stack of each thread."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def empty(self, nbytes: int) -> PycudaMemory:
        """See :meth:`Device.empty`."""
        try:
            return PycudaMemory(self._cuda.mem_alloc(max(1, nbytes)), nbytes)
        except self._cuda.MemoryError as error:
            raise MemoryError(f"{self.name} has no {nbytes} bytes left") from error

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """See :meth:`Device.pinned`."""
        array: NDArray[np.uint8] = self._cuda.pagelocked_empty(max(1, nbytes), np.uint8)
        return array[:nbytes]

    def stream(self) -> Any:
        """See :meth:`Device.stream`."""
        return self._cuda.Stream()

    def upload(self, to: Memory, array: NDArray[Any], stream: Any) -> None:
        """See :meth:`Device.upload`."""
        self._cuda.memcpy_htod_async(to.address, array, stream)

    def download(self, array: NDArray[Any], source: Memory, stream: Any) -> None:
        """See :meth:`Device.download`."""
        self._cuda.memcpy_dtoh_async(array, source.address, stream)

    def clear(self, memory: Memory, nbytes: int, stream: Any) -> None:
        """See :meth:`Device.clear`."""
        self._cuda.memset_d8_async(memory.address, 0, nbytes, stream)

    def launch(
        self, kernel: str, grid: Size, block: Size, arguments: Sequence[Any], stream: Any
    ) -> None:
        """See :meth:`Device.launch`."""
        self._function(kernel)(*given(arguments), grid=grid, block=block, stream=stream)

    def handle(self, stream: Any) -> int:
        """See :meth:`Device.handle`."""
        return int(stream.handle)

    def describe(self) -> tuple[str, int]:
        """See :meth:`Device.describe`."""
        return f"{self.gpu.name()} {self.arch}", int(self._cuda.get_driver_version())

    def wait(self, stream: Any) -> None:
        """See :meth:`Device.wait`; lets other threads run meanwhile."""
        stream.synchronize()

    def _function(self, kernel: str) -> Any:
        if not self._functions:
            from comit.engine.gpu.compile import KERNELS, cubin

            module = self._cuda.module_from_buffer(cubin(self.arch))
            self._functions = {k: module.get_function(k) for k in KERNELS}
        return self._functions[kernel]


def open_device(name: str) -> Device:
    """A GPU to run the kernels on: through pycuda, else CuPy. Raises as PycudaDevice does."""
    try:
        return PycudaDevice(name)
    except UsageError as error:
        from comit.engine.gpu.cupy_device import CupyDevice

        try:
            return CupyDevice(name)
        except ModuleNotFoundError:
            raise error from None
