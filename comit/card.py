"""The model card: what a model file is, what it was trained on, and how its scores are cut.

``card.json`` lies beside the model (``NAME.card.json`` where a folder holds several) and carries
the model file's sha256, so a model and a card that do not belong together are refused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from comit import preprocess_version
from comit.errors import ModelError

OUTPUTS = ("unhealthy", "covid", "other")
BUNDLED = Path(__file__).parent / "weights" / "model.onnx"
INTENDED_USE = (
    "Research use only. Not a medical device; not for diagnosis or any clinical decision."
)


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds on the scores at one specificity; a score at or above its threshold is flagged."""

    unhealthy: float
    covid: float
    negatives: dict[str, int] = field(default_factory=dict)  # images behind each threshold
    # 95 % interval of the specificity that each threshold has: [low, high], see calibrate
    interval: dict[str, list[float]] = field(default_factory=dict)
    origin: str = ""  # whose scores these were


@dataclass(frozen=True)
class Card:
    """Everything about a model that is not its weights."""

    name: str
    sha256: str  # of the model file
    width: float  # channel factor; 1.0 is the paper's network
    mean: float  # of training pixels; applied inside the model file
    std: float
    precision: str = "fp32"
    preprocessing: str = preprocess_version
    operating_points: dict[str, OperatingPoint] = field(default_factory=dict)  # "90", "99"
    calibration: dict[str, Any] = field(default_factory=dict)  # score -> how it becomes a share
    training: dict[str, Any] = field(default_factory=dict)  # data, schedule, epoch
    metrics: dict[str, Any] = field(default_factory=dict)  # split -> figure -> value
    intervals: dict[str, Any] = field(default_factory=dict)  # of those: 95 %, [low, high]
    baselines: dict[str, Any] = field(default_factory=dict)  # the same figures without a model
    outputs: tuple[str, ...] = OUTPUTS
    intended_use: str = INTENDED_USE
    notes: list[str] = field(default_factory=list)  # data, licences, limits: a sentence each

    def write(self, path: Path) -> None:
        """Writes the card as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Card:
        """Reads a card; raises ModelError where it is not one or not for this version."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            points = {k: OperatingPoint(**v) for k, v in raw.pop("operating_points").items()}
            outputs = tuple(raw.pop("outputs"))
            card = Card(**raw, operating_points=points, outputs=outputs)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path} is not a comit model card") from error
        if card.preprocessing != preprocess_version or card.outputs != OUTPUTS:
            raise ModelError(
                f"{path} asks for preprocessing {card.preprocessing} and outputs "
                f"{', '.join(card.outputs)}; this comit has {preprocess_version} and "
                f"{', '.join(OUTPUTS)}"
            )
        return card


def card_path(model: Path) -> Path:
    """Where the card of a model file is, or is to be written."""
    own = model.with_suffix(".card.json")
    shared = model.with_name("card.json")
    return shared if shared.exists() and not own.exists() else own


def open_model(model: Path) -> tuple[Card, bytes]:
    """Card and content of a model file; the content is what the card's sha256 was checked on.

    Engines load these bytes, not the path: the file that was checked is the file that runs.
    Raises ModelError.
    """
    if model.is_dir():
        raise ModelError(
            f"{model} is a folder; make a model file of a training run with: comit export onnx "
            f"{model} --out model.onnx"
        )
    try:
        content = model.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{model} cannot be read; give the path of an exported .onnx file"
        ) from error
    path = card_path(model)
    if not path.exists():
        raise ModelError(f"{model} has no card beside it ({path.name}); comit export writes both")
    card = Card.read(path)
    if card.sha256 != sha256(content):
        raise ModelError(f"{model} is not the file that {path.name} describes: their sha256 differ")
    return card, content


def read_card(model: Path) -> Card:
    """The card of ``model``, checked against the file's sha256; raises ModelError."""
    return open_model(model)[0]


def sha256(content: bytes) -> str:
    """Hex digest of a model file's content."""
    return hashlib.sha256(content).hexdigest()
