"""What a finished run is worth: figures on val and test beside those one gets without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from comit.console import Console
from comit.model.data import Cohort
from comit.model.evaluation import intervals
from comit.model.inference import on_device, predict
from comit.model.metrics import Predictions, baselines, evaluate, gate_of, operating_points
from comit.model.network import COMiTNet
from comit.model.runs import load_run, read_description, write_description
from comit.model.spoil import draw, spoil

SEED = 20_000  # of what is spoilt and drawn to set the gate's threshold: none that was learned from


def report(predictions: dict[str, Predictions], cohorts: dict[str, Cohort]) -> dict[str, Any]:
    """Figures and baselines of each split in ``predictions``; thresholds from ``val``.

    ``cohorts`` also holds ``train``, from which the baselines are made. Keys: ``val``,
    ``val_baselines``, ``test``, ``test_baselines`` (figure -> value), ``val_intervals``,
    ``test_intervals`` (figure -> [low, high], 95 % by patient), ``operating_points``.
    """
    found: dict[str, Any] = {}
    for split, predicted in predictions.items():
        found[split] = evaluate(predicted, cohorts[split])
        found[f"{split}_intervals"] = intervals(predicted, cohorts[split])
        found[f"{split}_baselines"] = baselines(cohorts["train"], cohorts[split])
    found["operating_points"] = operating_points(predictions["val"].scores, cohorts["val"])
    return found


def write_report(
    run: Path, cohorts: dict[str, Cohort], device: torch.device, console: Console
) -> dict[str, Any]:
    """Adds the report of the best epoch's weights to ``run.json``; returns all of that."""
    model = on_device(load_run(run), device)
    with console.stage("evaluating the best epoch"):
        predictions: dict[str, Predictions] = {
            split: predict(model, cohorts[split].images, device)
            for split in ("val", "test")
            if split in cohorts
        }
        before, found = read_description(run), report(predictions, cohorts)
        if before["training"]["spoil"] or not cohorts["train"].chest.all():
            found["gate"] = _gate(model, predictions["val"], cohorts["val"], device)
    if "calibration" in before:  # comit calibrate set the thresholds, and they stay
        found["operating_points"] = before["operating_points"]
    description = before | found
    write_description(run, description)
    for line in table(description):
        console.line(line)
    return description


def _gate(model: COMiTNet, said: Predictions, val: Cohort, device: torch.device) -> dict[str, Any]:
    """:func:`.metrics.gate_of` val: its chests, its pictures of other kinds, spoilt chests."""
    chest = val.chest == 1
    images = torch.from_numpy(val.images[chest][::2]).float()[:, None]
    numbers = torch.Generator().manual_seed(SEED)
    spoilt, _ = spoil(images, 1.0, draw(SEED), numbers)
    theirs = predict(model, spoilt[:, 0].numpy().astype(np.float16), device).scores[:, 3]
    others = np.concatenate([said.scores[~chest, 3], theirs])
    kinds = np.concatenate([val.source[~chest], np.full(len(theirs), "spoilt or drawn")])
    return gate_of(said.scores[chest, 3], val.source[chest], others, kinds) | {"origin": "val"}


def table(description: dict[str, Any]) -> list[str]:
    """Lines with each figure of the model beside the one without a model."""
    held = [s for s in ("val", "test") if s in description]
    names = [k for k in description[held[-1]] if not k.endswith("_images")]
    wide = max(map(len, names))
    lines = [
        f"epoch {description['epoch']}",
        " " * wide + "".join(f"  {s:>6}  no model" for s in held),
    ]
    for name in names:
        line = f"{name:{wide}}"
        for split in held:
            for figures, width in (
                (description[split], 6),
                (description[f"{split}_baselines"], 8),
            ):
                value = figures.get(name)
                line += f"  {'' if value is None else format(value, '.3f'):>{width}}"
        lines.append(line)
    for percent, point in description["operating_points"].items():
        lines.append(
            f"{percent} % specificity on val: "
            + ", ".join(
                f"{k} >= {point[k]:.4f} ({point['negatives'][k]} negatives)"
                for k in ("unhealthy", "covid")
            )
        )
    if gate := description.get("gate"):
        lines.append(f"gate on val: a chest radiograph at score_chest >= {gate['threshold']:.4f}")
        for what in ("kept", "rejected"):
            shares = ", ".join(f"{k} {v:.3f} of {gate['images'][k]}" for k, v in gate[what].items())
            lines.append(f"  {what}: {shares}")
    return lines
