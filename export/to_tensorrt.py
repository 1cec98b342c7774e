"""An ONNX file to a TensorRT engine file, with its card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from comit.card import card_path, open_model, sha256
from comit.engine.base import Progress, ignore
from comit.engine.builder import About, Options, cached, import_tensorrt, machine_for, pack
from comit.engine.cache import CACHE, replace_file
from comit.errors import UsageError


def export_engine(
    model: Path,
    out: Path,
    options: Options,
    device: str = "cuda:0",
    cache: Path | None = None,
    progress: Progress = ignore,
) -> About:
    """Writes the fp16 engine of an ONNX file to ``out`` (mode 0600) and its card beside it.

    Raises UsageError, with nothing written.
    """
    card, onnx = open_model(model)
    trt = import_tensorrt()
    machine = machine_for(trt, device)
    about, plan = cached(trt, onnx, options, machine, "fp16", cache or CACHE, progress)
    content = pack(about, plan)
    try:
        replace_file(out, content)
        replace(card, sha256=sha256(content), precision=about.precision).write(card_path(out))
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}") from error
    return about
