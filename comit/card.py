"""The model card: what a model file is, what it was trained on, and how its scores are cut.

``card.json`` lies beside the model (``NAME.card.json`` where a folder holds several) and carries
the model file's sha256, so a model and a card that do not belong together are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from comit import preprocess_version
from comit.errors import ModelError

CLASSES = ("unhealthy", "covid", "other")  # what a chest radiograph shows
OUTPUTS = (*CLASSES, "chest")  # of the model file's scores
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
    # that share of each source: score -> source -> share
    specificity: dict[str, dict[str, float]] = field(default_factory=dict)
    origin: str = ""  # whose scores these were

    def __post_init__(self) -> None:
        """Raises ValueError for a threshold below 0 or that is no finite number."""
        for value in (self.unhealthy, self.covid):
            if isinstance(value, bool) or not 0 <= value < math.inf:  # NaN is not
                raise ValueError(f"{value!r} is no threshold")

    def described(self, percent: str) -> str:
        """One line: both thresholds at ``percent`` % specificity, and how sure they are."""
        parts = []
        for name, said in (("unhealthy", "unhealthy"), ("covid", "COVID")):
            count = self.negatives.get(name)
            about = "unknown number of negatives" if count is None else f"{count:,} negatives"
            if name in self.interval:
                about += ", interval {:.1%} to {:.1%}".format(*self.interval[name])
            parts.append(f"{said} >= {getattr(self, name):.3f} ({about})")
        origin = f"; from {self.origin}" if self.origin else ""
        return f"at {percent} % specificity: {', '.join(parts)}{origin}"


@dataclass(frozen=True)
class Gate:
    """Below ``threshold`` of ``score_chest`` a picture is not taken for a frontal chest radiograph.

    Shares are those of images that the network has not learned from.
    """

    threshold: float  # in [0, 1]
    kept: dict[str, float] = field(default_factory=dict)  # source -> share of its chests
    rejected: dict[str, float] = field(default_factory=dict)  # kind, as "lateral" -> share
    images: dict[str, int] = field(default_factory=dict)  # source or kind -> images behind it
    origin: str = ""  # which images these were

    def __post_init__(self) -> None:
        """Raises ValueError for a threshold or a share outside [0, 1], and for what is no number.

        TypeError for what is not of the type above.
        """
        for value in (self.threshold, *self.kept.values(), *self.rejected.values()):
            if isinstance(value, bool) or not 0 <= value <= 1:  # NaN is not
                raise ValueError(f"{value!r} is not in [0, 1]")
        for count in self.images.values():
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise ValueError(f"{count!r} is not a number of images")


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
    gate: Gate | None = None  # None: not trained; no picture is rejected for what it shows
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
        """Reads a card of any version; raises ModelError where it is not one."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            points = {k: OperatingPoint(**v) for k, v in raw.pop("operating_points").items()}
            outputs = tuple(raw.pop("outputs"))
            gate = read_gate(raw.pop("gate", None))
            card = Card(**raw, operating_points=points, outputs=outputs, gate=gate)
            for name in ("name", "sha256", "precision", "preprocessing", "intended_use"):
                if not isinstance(getattr(card, name), str):
                    raise TypeError(name)
            for value in (card.width, card.mean, card.std):
                if not math.isfinite(value):
                    raise ValueError(value)
            for point in points.values():  # just above 1: of a score that is exactly 1
                if max(point.unhealthy, point.covid) > 1.001:
                    raise ValueError("a threshold that no score reaches")
            return card
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise ModelError(f"{path} is not a comit model card") from error

    def check(self, path: Path, gateless: bool = False) -> None:
        """Raises ModelError where a card, read from ``path``, is not for this version.

        ``gateless``: a model from before there was a gate will do.
        """
        if self.outputs == CLASSES and self.preprocessing == preprocess_version:
            if not gateless:
                raise ModelError(
                    f"{path} describes a model from before comit had a gate; export it again: "
                    "comit export onnx OLD.onnx --out NEW.onnx"
                )
        elif self.preprocessing != preprocess_version or self.outputs != OUTPUTS:
            raise ModelError(
                f"{path} asks for preprocessing {self.preprocessing} and outputs "
                f"{', '.join(self.outputs)}; this comit has {preprocess_version} and "
                f"{', '.join(OUTPUTS)}"
            )


def read_gate(raw: dict[str, Any] | None) -> Gate | None:
    """The ``gate`` of a card or of a run; raises ValueError and TypeError, as :class:`Gate`."""
    return None if raw is None else Gate(**raw)


def card_path(model: Path) -> Path:
    """Where the card of a model file is, or is to be written."""
    own = model.with_suffix(".card.json")
    shared = model.with_name("card.json")
    return shared if shared.exists() and not own.exists() else own


def open_model(model: Path, gateless: bool = False) -> tuple[Card, bytes]:
    """Card and content of a model file; the content is what the card's sha256 was checked on.

    Engines load these bytes, not the path: the file that was checked is the file that runs.
    ``gateless`` takes a model from before there was a gate too, which engines do not run.
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
    card.check(path, gateless)
    if card.sha256 != sha256(content):
        raise ModelError(f"{model} is not the file that {path.name} describes: their sha256 differ")
    return card, content


def read_card(model: Path) -> Card:
    """The card of ``model``, checked against the file's sha256; raises ModelError."""
    return open_model(model)[0]


def sha256(content: bytes) -> str:
    """Hex digest of a model file's content."""
    return hashlib.sha256(content).hexdigest()
