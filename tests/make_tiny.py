"""Makes the models in tests/data: ``python tests/make_tiny.py`` after a change to the export.

A nightly test of test_export.py holds the files against what the export gives today.
"""

from __future__ import annotations

from pathlib import Path

import torch

from comit.card import Card, OperatingPoint
from comit.export.to_onnx import export_onnx
from comit.model.network import COMiTNet, NetworkConfig
from comit.model.stored import to_bytes

DATA = Path(__file__).parent / "data"
WIDTH = 1 / 32  # 8 channels in the first blocks, 16 in the last
NEGATIVES = {"unhealthy": 10, "covid": 10}
CARD = Card(
    name="tiny",
    sha256="",
    width=WIDTH,
    mean=0.45,
    std=0.3,
    operating_points={
        "90": OperatingPoint(0.5, 0.5, NEGATIVES),
        "99": OperatingPoint(0.9, 0.9, NEGATIVES),
    },
)


def network() -> COMiTNet:
    """Random weights of which no layer fades, so that scores and masks vary by image."""
    torch.manual_seed(6)  # one of few that spread the scores on both sides of 0.5
    made = COMiTNet(NetworkConfig(WIDTH, CARD.mean, CARD.std)).eval()
    for layer in made.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(layer.weight)
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.running_mean, 0.0, 0.1)
            torch.nn.init.uniform_(layer.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(layer.weight, 0.6, 1.4)
            torch.nn.init.normal_(layer.bias, 0.0, 0.1)
    return made


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    export_onnx(network(), CARD, DATA / "tiny.onnx")
    (DATA / "tiny-fp16.onnx").write_bytes(to_bytes(network(), "fp16", CARD.name))
