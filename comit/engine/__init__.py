"""Engines: one contract (:mod:`.base`), one module for each backend.

:func:`load_model` for a program, :func:`load_engine` for all the choices.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comit.errors import MissingExtra, ModelError, UsageError

if TYPE_CHECKING:
    from comit.engine.base import Engine, Progress


@dataclass(frozen=True)
class Backend:
    """A kind of engine and what it needs."""

    module: str
    engine: str  # the class in it
    packages: tuple[str, ...]  # "a|b": either
    extra: str
    tells: bool = False  # whether making one takes `progress`


BACKENDS = {
    "tensorrt": Backend(
        "comit.engine.tensorrt",
        "TensorRtEngine",
        ("tensorrt|tensorrt_rtx|tensorrt_rtx_bindings", "pycuda|cupy"),
        "gpu",
        tells=True,
    ),
    "openvino": Backend("comit.engine.openvino", "OpenVinoEngine", ("openvino",), "cpu"),
    "onnxruntime": Backend(
        "comit.engine.onnxruntime", "OnnxRuntimeEngine", ("onnxruntime",), "cpu"
    ),
    "torch": Backend("comit.engine.torch", "TorchEngine", ("torch", "onnx"), "train", tells=True),
}
FASTEST = {  # first is fastest, measured on the CPU (bench/results), published for GPUs
    "cpu": ("openvino", "onnxruntime", "torch"),
    "cuda": ("tensorrt", "onnxruntime", "torch"),
}


def available() -> list[tuple[str, str | None]]:
    """(engine, why it cannot be had, or None) of every engine; imports none of them."""
    return [(name, _lacking(name)) for name in BACKENDS]


def load_engine(
    model: Path,
    name: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Engine:
    """Loads a model file, checked against its card, on an engine.

    ``name``: tensorrt, openvino, onnxruntime, torch, or auto, the fastest that is installed.
    ``device``: cpu, cuda:N, several such with commas, between which batches are split, or auto,
    the first GPU with an engine for it, else the CPU.
    ``precision``: fp32, bf16, fp16, or auto, the engine's fastest that keeps the results.
    ``batch_size`` and ``threads`` (cores to use): None is what measured best, and all.
    ``progress`` is told what takes long: a GPU's engine may be minutes in the making.
    Raises ModelError, MissingExtra, UsageError.
    """
    from comit.card import open_model

    if name not in ("auto", *BACKENDS):
        raise UsageError(f"engine {name!r}: choose auto, {', '.join(BACKENDS)}")
    check_device(device)
    if batch_size is not None and batch_size < 1:
        raise UsageError("the batch size must be at least 1")
    _, content = open_model(model)
    refused: list[UsageError] = []
    for choice, where in _choices(name, device):
        try:
            engine = _load(choice, content, where, precision, batch_size, threads, progress)
        except ModelError:
            raise
        except UsageError as error:
            refused.append(error)
            continue
        engine.notes = (*(f"not used: {error}" for error in refused), *engine.notes)
        return engine
    # The most telling refusal: of an engine that is here, else of the one to install.
    raise next((e for e in reversed(refused) if not isinstance(e, MissingExtra)), refused[-1])


def load_model(path: Path | str | None = None, engine: str = "auto", **options: Any) -> Engine:
    """The bundled model, or the one at ``path``; ``options`` are :func:`load_engine`'s.

    ``load_model().predict(images)`` takes (N, 1, 224, 224) float32 images as
    :func:`comit.image.preprocess.preprocess` makes them.
    """
    from comit.card import BUNDLED

    return load_engine(BUNDLED if path is None else Path(path), engine, **options)


def gpu_present() -> bool:
    """Whether an NVIDIA driver runs on this machine; loads no library."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


def check_device(device: str) -> None:
    """Raises UsageError for what names no device, or one GPU twice."""
    listed = device.split(",")
    if len(listed) == 1 and device in ("auto", "cpu", "cuda"):
        return
    wrong = next((d for d in listed if not re.fullmatch(r"cuda:\d+", d, re.ASCII)), None)
    if wrong is not None:
        raise UsageError(
            f"device {wrong!r}: choose auto, cpu, cuda:0, or several GPUs as in cuda:0,cuda:1"
        )
    if len({int(d.partition(":")[2]) for d in listed}) < len(listed):
        raise UsageError(f"device {device!r} names a GPU twice")


def _choices(name: str, device: str) -> list[tuple[str, str]]:
    """(engine, device) to try, fastest first."""
    devices = [device]
    if device == "auto":
        devices = ["cuda:0", "cpu"] if gpu_present() else ["cpu"]
    return [
        (engine, "cuda:0" if where == "cuda" else where)
        for where in devices
        for engine in FASTEST["cpu" if where == "cpu" else "cuda"]
        if name in ("auto", engine)
    ] or [(name, device)]


def _load(
    name: str,
    content: bytes,
    device: str,
    precision: str,
    batch_size: int | None,
    threads: int | None,
    progress: Progress | None,
) -> Engine:
    backend = BACKENDS[name]
    if missing := _missing(name):
        extra = "gpu" if name == "onnxruntime" and device != "cpu" else backend.extra
        raise MissingExtra(f"engine {name} ({', '.join(missing)})", extra)
    kind = getattr(import_module(backend.module), backend.engine)
    told = {"progress": progress} if backend.tells and progress else {}
    engines: list[Engine] = []
    try:
        for one in device.split(","):
            engines.append(kind(content, one, precision, batch_size, threads, **told))
    except BaseException:
        for engine in engines:
            engine.close()
        raise
    if len(engines) == 1:
        return engines[0]
    from comit.engine.several import Several

    return Several(engines)


def _lacking(name: str) -> str | None:
    """What to install for an engine, or None."""
    if missing := _missing(name):
        what = f"engine {name} ({', '.join(missing)})"
        return str(MissingExtra(what, BACKENDS[name].extra))
    return None


def _missing(name: str) -> list[str]:
    """The packages of an engine that are not here; of alternatives, the first."""
    choices = [package.split("|") for package in BACKENDS[name].packages]
    return [choice[0] for choice in choices if not any(map(find_spec, choice))]
