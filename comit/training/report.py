"""What a finished run is worth: figures on val and test beside those one gets without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from comit.console import Console
from comit.training.data import Cohort
from comit.training.evaluation import intervals
from comit.training.loop import on_device, predict
from comit.training.metrics import Predictions, baselines, evaluate, operating_points
from comit.training.runs import load_run, read_description, write_description


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
    if "calibration" in before:  # comit calibrate set the thresholds, and they stay
        found["operating_points"] = before["operating_points"]
    description = before | found
    write_description(run, description)
    for line in table(description):
        console.line(line)
    return description


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
    return lines
