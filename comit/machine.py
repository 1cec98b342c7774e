"""What a figure was measured on: without it a rate means nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from comit import __version__
from comit.config import usable_cores

PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "pydicom",
    "imagecodecs",
    "pyarrow",
    "openvino",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "torch",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "python-gdcm",
    "pillow",
    "monai",
    "ray",
    "torchxrayvision",
)
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def machine() -> dict[str, Any]:
    """CPU, cores and memory given to this process, GPUs, versions, commit and time (UTC).

    ``load`` is the number of processes that ran in the last minute: beside others on the same
    cores, trust ratios only.
    """
    cpu = _cpu(Path("/proc/cpuinfo"))
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu.get("model name", platform.processor()),
        "cpu_flags": [f for f in CPU_FLAGS if f in cpu.get("flags", "").split()],
        "cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "mhz": clock(),
        "load": round(os.getloadavg()[0], 2),
        "gpus": gpus(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "comit": __version__,
        "packages": {p: v for p in PACKAGES if (v := _version(p))},
        "commit": commit(Path(__file__).resolve().parent),
    }


def clock() -> float | None:
    """Mean MHz of the cores just now, as /proc/cpuinfo says; None where it does not.

    A virtual machine often reports the nominal clock, whatever the cores do.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    found = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return round(sum(found) / len(found), 1) if found else None


def gpus() -> list[str]:
    """Name, driver and memory of each NVIDIA GPU, as nvidia-smi says; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return _said(query).splitlines()


def commit(folder: Path) -> str | None:
    """The git commit of a checkout, ``+`` after it where files differ; None outside of one."""
    head = _said(["git", "-C", str(folder), "rev-parse", "HEAD"])
    changed = _said(["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"])
    return head + "+" * bool(changed) if head else None


def _said(command: list[str]) -> str:
    """What a command prints; empty where it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu(path: Path) -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is no such file."""
    try:
        first = path.read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
