"""A Device without a GPU: runs the kernels' own sources, compiled by g++."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comit.engine.gpu.compile import KERNELS, SOURCES, STANDARD
from comit.engine.gpu.device import Device, Memory, Size, given

HARNESS = Path(__file__).parent / "kernels_host.cpp"


def build(to: Path) -> ctypes.CDLL:
    """Compiles the harness with every warning an error."""
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared", "-fPIC"]
    command = ["g++", f"-std={STANDARD}", *flags, f"-I{SOURCES}", str(HARNESS), "-o", str(to)]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(to))
    library.half_of.argtypes, library.half_of.restype = [ctypes.c_float], ctypes.c_uint16
    return library


class CpuMemory(Memory):
    """Filled with 0xAA, so that what no kernel wrote is seen."""

    def __init__(self, nbytes: int) -> None:
        self.array = np.full(max(1, nbytes), 0xAA, np.uint8)
        self.address, self.nbytes = self.array.ctypes.data, nbytes


class CpuDevice(Device):
    """``backwards``: threads of a step and blocks of a grid in the other order."""

    name, arch, by = "cpu", "none", "g++"

    def __init__(self, library: ctypes.CDLL, backwards: bool = False) -> None:
        self._library, self._backwards, self.launches = library, backwards, 0

    def empty(self, nbytes: int) -> CpuMemory:
        return CpuMemory(nbytes)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        return CpuMemory(nbytes).array[:nbytes]

    def stream(self) -> None:
        return None

    def upload(self, to: Memory, array: NDArray[Any], stream: Any) -> None:
        assert array.nbytes <= to.nbytes
        ctypes.memmove(to.address, array.ctypes.data, array.nbytes)

    def download(self, array: NDArray[Any], source: Memory, stream: Any) -> None:
        assert array.nbytes <= source.nbytes
        ctypes.memmove(array.ctypes.data, source.address, array.nbytes)

    def clear(self, memory: Memory, nbytes: int, stream: Any) -> None:
        ctypes.memset(memory.address, 0, nbytes)

    def launch(
        self, kernel: str, grid: Size, block: Size, arguments: Sequence[Any], stream: Any
    ) -> None:
        self.launches += 1
        assert kernel in KERNELS and block[1:] == (1, 1)
        shape = np.array([*grid, block[0], self._backwards], np.int32)
        call = [ctypes.c_void_p(shape.ctypes.data)]
        for argument in given(arguments):
            pointer = argument.dtype == np.uint64
            call.append((ctypes.c_void_p if pointer else ctypes.c_int)(int(argument)))
        getattr(self._library, kernel)(*call)

    def handle(self, stream: Any) -> int:
        return 0

    def describe(self) -> tuple[str, int]:
        return "a CPU none", 13000

    def wait(self, stream: Any) -> None:
        pass
