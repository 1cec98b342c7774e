"""What a training run leaves in its folder, and how it is read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comit.errors import UsageError
from comit.model.network import COMiTNet, NetworkConfig, with_gate

if TYPE_CHECKING:
    from comit.card import Card
    from comit.model.network import COMiTNet

WEIGHTS = "weights.safetensors"  # the averaged weights of the best epoch
CONFIG = "run.json"  # what the weights are: network, schedule, epoch, figures


def read_description(run: Path) -> dict[str, Any]:
    """What ``run.json`` holds; raises UsageError."""
    try:
        described: dict[str, Any] = json.loads((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{run} is not a training run: {CONFIG} is missing or damaged") from error
    return described


def write_description(run: Path, description: dict[str, Any]) -> None:
    """Replaces ``run.json``."""
    text = json.dumps(description, indent=1) + "\n"
    replace_file(run / CONFIG, lambda p: p.write_text(text, encoding="utf-8"))


def load_run(run: Path) -> COMiTNet:
    """The trained network of a run folder, in evaluation mode; raises UsageError.

    Weights from before there was a gate get an untrained one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    described = read_description(run)
    try:
        model = COMiTNet(replace(NetworkConfig(), **described["network"]))
        model.load_state_dict(with_gate(model, load_file(run / WEIGHTS)))
    except (OSError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UsageError(
            f"{run} is not a training run: {WEIGHTS} is missing, damaged or of another network"
        ) from error
    return model.eval()


def claim(path: Path, note: dict[str, Any]) -> list[str]:
    """Writes ``note``, JSON, where ``path`` is not; the keys in which one that is there differs."""
    asked = json.loads(json.dumps(note))
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        return [k for k in asked if kept.get(k) != asked[k]]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(note, indent=1) + "\n"
    replace_file(path, lambda p: p.write_text(text, encoding="utf-8"))
    return []


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes beside ``path`` and renames over it: a kill leaves the old file or the new one."""
    temporary = path.with_suffix(path.suffix + ".new")
    write(temporary)
    temporary.replace(path)


def run_card(run: Path) -> Card:
    """What a training run's ``run.json`` says about its network; sha256 is filled in at export.

    Raises UsageError.
    """
    import json

    from comit.card import Card, OperatingPoint, read_gate
    from comit.errors import UsageError

    try:
        described = json.loads((run / "run.json").read_text(encoding="utf-8"))
        taught = {k: described[k] for k in ("init", "teachers") if described.get(k)}
        keys = ("epoch", "train_images")
        splits = [s for s in ("val", "test") if s in described]
        return Card(
            name=run.resolve().name,
            sha256="",
            **described["network"],
            operating_points={
                k: OperatingPoint(**v) for k, v in described.get("operating_points", {}).items()
            },
            gate=read_gate(described.get("gate")),
            calibration=described.get("calibration", {}),
            training=described["training"] | {k: described[k] for k in keys} | taught,
            metrics={s: described[s] for s in splits},
            intervals={s: described.get(f"{s}_intervals", {}) for s in splits},
            baselines={s: described[f"{s}_baselines"] for s in splits},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{run} is not a finished training run: run.json is damaged") from error
