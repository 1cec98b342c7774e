"""How long an archive will take on a machine that is not here, from stages measured on one that is.

    rate    = efficiency x min(ceilings)
    seconds = start-up + images / rate

    cpu       1000 x cores / sum of core-milliseconds an image over the stages on the CPU
    gpu       GPUs x images a second of one
    disk      bytes a second / bytes of a file
    dispatch  1000 / core-milliseconds an image of the one thread that hands everything on,
              times the number of comits: one a GPU, or one

The model takes a core to be a core and stages to share them freely, which a measurement with all
cores busy supports; that memory and disk keep up with more cores than were measured is assumed,
and for a GPU, where the stages were measured without one, that dispatch and efficiency are as then.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comit.bench.throughput import ADVICE
from comit.errors import UsageError

START_UP = 1.0  # seconds: processes start, the model compiles, files are listed, parts are merged
GPU_RATE = 5000.0  # images a second: estimated for the full width on an H200, measured nowhere


@dataclass(frozen=True)
class Rates:
    """What was measured of one kind of file."""

    source: str  # where these figures are from
    core_ms: dict[str, float]  # core-milliseconds an image of each stage
    dispatch_core_ms: float
    file_bytes: float
    efficiency: float


@dataclass(frozen=True)
class Wanted:
    """An archive and a machine."""

    images: float
    cores: int
    gpus: int = 0
    disk: float = 1e9  # bytes a second
    gpu_rate: float = GPU_RATE  # images a second of one GPU
    file_bytes: float | None = None  # of a file; None is as measured


@dataclass(frozen=True)
class Plan:
    """What to expect."""

    images: float
    seconds: float
    hours: float
    images_per_second: float
    bottleneck: str
    advice: str
    ceilings: dict[str, float]  # images a second
    rates: str  # which figures it is from
    assumed: list[str] = field(default_factory=list)  # what was not measured


MEASURED = "bench/results/2026-11-23-cpu.md (2 cores, AMX, bf16, width 0.25)"
SHIPPED: dict[str, Rates] = {
    "png": Rates(
        MEASURED,
        {
            "read": 0.165,
            "decode": 3.02,
            "preprocess": 0.93,
            "engine": 12.149,
            "postprocess": 0.091,
            "write": 0.02,
        },
        0.263,
        505087.7,
        0.898,
    ),
    "jpeg": Rates(
        MEASURED,
        {
            "read": 0.086,
            "decode": 2.934,
            "preprocess": 0.886,
            "engine": 11.374,
            "postprocess": 0.083,
            "write": 0.019,
        },
        0.2447,
        258537.0,
        0.89,
    ),
    "dicom": Rates(
        MEASURED,
        {
            "read": 2.473,
            "decode": 1.672,
            "preprocess": 2.964,
            "engine": 10.8,
            "postprocess": 0.072,
            "write": 0.016,
        },
        0.2335,
        10241144.0,
        0.956,
    ),
    "jpeg-lossless": Rates(
        MEASURED,
        {
            "read": 1.351,
            "decode": 32.102,
            "preprocess": 3.137,
            "engine": 10.968,
            "postprocess": 0.073,
            "write": 0.016,
        },
        0.4684,
        4688580.2,
        0.932,
    ),
    "jpeg2000": Rates(
        MEASURED,
        {
            "read": 2.51,
            "decode": 582.739,
            "preprocess": 3.091,
            "engine": 10.715,
            "postprocess": 0.068,
            "write": 0.014,
        },
        0.8062,
        4416676.5,
        1.0,
    ),
}


def plan(wanted: Wanted, rates: Rates) -> Plan:
    """Time and bottleneck; raises UsageError for what cannot be planned."""
    if min(wanted.images, wanted.cores, wanted.disk, wanted.gpu_rate) <= 0:
        raise UsageError("images, cores, disk and GPU rate must be positive")
    on_cpu = {k: v for k, v in rates.core_ms.items() if not wanted.gpus or k != "engine"}
    limits = {
        "cpu": 1000 * wanted.cores / sum(on_cpu.values()),
        "disk": wanted.disk / (wanted.file_bytes or rates.file_bytes),
        "dispatch": 1000 * max(wanted.gpus, 1) / max(rates.dispatch_core_ms, 1e-9),
    }
    if wanted.gpus:
        limits["gpu"] = wanted.gpus * wanted.gpu_rate
    elif "engine" not in rates.core_ms:
        raise UsageError("these stages were measured on a GPU: give --gpus, or stages of a CPU")
    smallest = min(limits, key=limits.__getitem__)
    rate = min(rates.efficiency, 1.0) * limits[smallest]
    name = max(on_cpu, key=on_cpu.__getitem__) if smallest == "cpu" else smallest
    seconds = START_UP + wanted.images / rate
    assumed = [f"start-up of {START_UP:g} s", "memory and disk keep up with that many cores"]
    if wanted.gpus:
        assumed.append(f"{wanted.gpu_rate:g} images a second of a GPU, one comit on each")
    if wanted.gpus and "engine" in rates.core_ms:
        assumed.append("dispatch and efficiency as measured with the engine on the CPU")
    return Plan(
        images=wanted.images,
        seconds=round(seconds, 1),
        hours=round(seconds / 3600, 2),
        images_per_second=round(rate, 2),
        bottleneck=name,
        advice=ADVICE[name],
        ceilings={k: round(v, 1) for k, v in limits.items()},
        rates=rates.source,
        assumed=assumed,
    )


def read_rates(path: Path) -> Rates:
    """The last figures of what ``comit bench throughput --json`` wrote; raises UsageError."""
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["figures"][-1]
        return Rates(
            source=str(path),
            core_ms={k: float(v) for k, v in raw["core_ms"].items()},
            dispatch_core_ms=float(raw["dispatch_core_ms"]),
            file_bytes=float(raw["file_bytes"]),
            efficiency=float(raw["efficiency"]["median"]),
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not what comit bench throughput --json writes") from error
