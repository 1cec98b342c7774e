"""A model file of any width without training: for speed alone, its answers mean nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from comit.errors import MissingExtra


@contextmanager
def untrained(width: float) -> Iterator[Path]:
    """An exported .onnx of random weights, gone afterwards; raises MissingExtra without torch."""
    try:
        import torch

        from comit.card import Card
        from comit.export.to_onnx import export_onnx
        from comit.model.network import COMiTNet, NetworkConfig
    except ModuleNotFoundError as error:
        raise MissingExtra("a network of another width", "train") from error
    torch.manual_seed(0)
    config = NetworkConfig(width=width)
    card = Card(f"untrained-{width:g}", "", width, config.mean, config.std)
    with tempfile.TemporaryDirectory(prefix="comit-bench-") as folder:
        path = Path(folder) / "untrained.onnx"
        export_onnx(COMiTNet(config).eval(), card, path)
        yield path
