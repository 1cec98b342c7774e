"""Loss and figures over the epochs of a run, as a picture."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = "curves.png"


def canvas(columns: int, rows: int = 1, side: float = 3.6) -> tuple[Figure, Any]:
    """A picture and its (rows, columns) array of axes, without a window system; inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side * columns, side * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def draw_curves(metrics: Path, out: Path) -> None:
    """Draws ``metrics.csv`` of a run as a PNG: loss terms, areas under the curve, masks.

    Epochs that were not measured on val have no point. Raises ModuleNotFoundError without
    matplotlib.
    """
    with metrics.open(newline="") as file:
        lines = list(csv.DictReader(file))
    epochs = [int(line["epoch"]) for line in lines]
    names = [n for n in (lines[0] if lines else {}) if n not in ("epoch", "seconds")]
    panels = {
        "training loss": [n for n in names if n.startswith("loss_")],
        "val: area under the ROC curve": [n for n in names if "_auc_" in n],
        "val: masks": [n for n in names if n.startswith(("lung_iou", "disease_"))],
    }
    figure, axes = canvas(len(panels), side=4.5)
    for axis, (title, shown) in zip(axes[0], panels.items(), strict=True):
        for name in (n for n in shown if not n.endswith("_images")):
            points = [
                (epoch, float(line[name]))
                for epoch, line in zip(epochs, lines, strict=True)
                if line[name]
            ]
            axis.plot(*zip(*points, strict=True), ".-", label=name.removeprefix("loss_"))
        axis.set(title=title, xlabel="epoch")
        if axis.lines:
            axis.legend(fontsize=6)
    figure.savefig(out, dpi=110)
