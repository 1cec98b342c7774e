"""CUDA sources to machine code of one kind of GPU, by NVRTC, once for each machine.

NVRTC comes as a wheel and needs neither nvcc nor a GPU, so tests compile for every kind.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from comit.engine.cache import CACHE, publish, read
from comit.errors import MissingExtra

SOURCES = Path(__file__).parent / "cuda"
KERNELS = ("unfilter_rows", "average_area", "present_pixels", "encode_masks")
STANDARD = "c++17"


def cubin(arch: str, cache: Path = CACHE) -> bytes:
    """The kernels as a cubin for ``arch`` (sm_90); compiled on first use, then read from disk.

    Raises MissingExtra without cuda-core.
    """
    digest = hashlib.sha256(f"{arch} {_compiler()}".encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    path = cache / "kernels" / f"{arch}-{digest.hexdigest()[:32]}.cubin"
    found = read(path)
    if found is None:
        found = compile_cubin(arch)
        publish(path, found)
    return found


def compile_cubin(arch: str) -> bytes:
    """Compiles anew; products and sums are not contracted, so that values are those of NumPy."""
    if not find_spec("cuda") or not find_spec("cuda.core"):
        raise MissingExtra("compiling CUDA kernels (cuda-core)", "gpu")
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(
        arch=arch, std=STANDARD, fma=False, include_path=str(SOURCES), name="kernels.cu"
    )
    program = Program((SOURCES / "kernels.cu").read_text(encoding="utf-8"), "c++", options)
    return bytes(program.compile("cubin").code)


def _compiler() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("nvidia-cuda-nvrtc")
    except PackageNotFoundError:
        return ""
