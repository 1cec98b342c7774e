"""What holds memory on a GPU and runs kernels there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comit.image.preprocess import Presentation
from comit.image.samples import Pictures, Source

Size = tuple[int, int, int]


class Memory(ABC):
    """Bytes on a GPU; freed with the last reference to them."""

    address: int
    nbytes: int


class Device(ABC):
    """One GPU. Work of one stream is done in order; streams overlap.

    Copies are asynchronous: arrays of :meth:`pinned` must live until :meth:`wait`. A kernel's
    arguments are Memory, or NumPy scalars of the type it declares.
    """

    name: str  # cuda:0
    arch: str  # sm_90
    by: str  # the package that does it

    @abstractmethod
    def empty(self, nbytes: int) -> Memory:
        """Memory of at least one byte, not cleared; raises MemoryError where there is none."""

    @abstractmethod
    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Page-locked host memory, which copies go to and from at full speed."""

    @abstractmethod
    def stream(self) -> Any:
        """A new stream."""

    @abstractmethod
    def upload(self, to: Memory, array: NDArray[Any], stream: Any) -> None:
        """Copies a contiguous array to the start of ``to``."""

    @abstractmethod
    def download(self, array: NDArray[Any], source: Memory, stream: Any) -> None:
        """Fills a contiguous array from the start of ``source``."""

    @abstractmethod
    def clear(self, memory: Memory, nbytes: int, stream: Any) -> None:
        """Sets the first bytes to 0."""

    @abstractmethod
    def launch(
        self, kernel: str, grid: Size, block: Size, arguments: Sequence[Any], stream: Any
    ) -> None:
        """Starts a kernel of ``cuda/kernels.cu``."""

    @abstractmethod
    def handle(self, stream: Any) -> int:
        """The CUstream of a stream, for other libraries."""

    @abstractmethod
    def describe(self) -> tuple[str, int]:
        """(name and compute capability, CUDA version of the driver: 13000 is 13.0)."""

    @abstractmethod
    def wait(self, stream: Any) -> None:
        """Returns once all work of ``stream`` is done."""

    def graph(self, work: Callable[[], object], stream: Any) -> Callable[[], None] | None:
        """What ``work`` puts on ``stream`` as one launch, see :func:`.cuda_graph.captured`."""
        from comit.engine.gpu.cuda_graph import captured

        return captured(work, self.handle(stream))

    def pictures(self, images: Iterable[tuple[Source, Presentation]] = ()) -> Pictures:
        """A batch in page-locked memory, for any thread to add to."""

        def pinned(nbytes: int) -> NDArray[np.uint8]:
            with self.current():
                return self.pinned(nbytes)

        found = Pictures(pinned)
        for image in images:
            found.add(*image)
        return found

    @contextmanager
    def current(self) -> Iterator[None]:
        """For the calling thread: everything else of this class is called inside."""
        yield


class Room:
    """Memory on host and GPU that grows with what is asked of it and is used again."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._held: dict[str, Memory] = {}
        self._pinned: dict[str, NDArray[np.uint8]] = {}

    def on_gpu(self, name: str, nbytes: int) -> Memory:
        """At least ``nbytes`` on the GPU; what was there is lost where it must grow."""
        held = self._held.get(name)
        if held is None or held.nbytes < nbytes:
            self._held.pop(name, None)
            held = self._held[name] = self._device.empty(nbytes)
        return held

    def on_host(self, name: str, nbytes: int) -> NDArray[np.uint8]:
        """``nbytes`` of page-locked memory."""
        held = self._pinned.get(name)
        if held is None or len(held) < nbytes:
            self._pinned.pop(name, None)
            held = self._pinned[name] = self._device.pinned(nbytes)
        return held[:nbytes]

    def send(self, name: str, array: NDArray[Any], stream: Any) -> Memory:
        """A copy of a small array on the GPU, through page-locked memory."""
        staged = self.on_host(name, array.nbytes)
        staged[:] = np.frombuffer(array.tobytes(), np.uint8)
        memory = self.on_gpu(name, array.nbytes)
        if array.nbytes:
            self._device.upload(memory, staged, stream)
        return memory


class Borrowed(Memory):
    """Memory of another library, which ``owner`` keeps alive."""

    def __init__(self, owner: Any, address: int, nbytes: int) -> None:
        self._owner, self.address, self.nbytes = owner, address, nbytes


def given(arguments: Sequence[Any]) -> list[Any]:
    """Memory as its address, a 64-bit pointer; scalars as they are."""
    return [np.uint64(a.address) if isinstance(a, Memory) else a for a in arguments]
