"""The paper's tables 4 and 5, section 4.1 and figure 8, and what our recipes are made of.

Each row is trained by the same code on the same split.

A row is trained into its own folder and leaves ``row.json``; the table is made of those, so that
it can be filled over many nights. ``table.json`` says what all of them share: recipe, images and
model. A row that was not run says so.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from comit.console import Console
from comit.errors import Unavailable, UsageError
from comit.machine import machine
from comit.masks import FOREGROUND
from comit.model.augment import Augmentation
from comit.model.data import UNKNOWN, Cohort, read_manifest
from comit.model.evaluation import (
    EvaluationConfig,
    equal_error_rate,
    interval_of,
    resampled,
    sensitivity_at,
)
from comit.model.inference import on_device, pick_device, predict
from comit.model.loop import Trainer, weights_sha256
from comit.model.loss import LossConfig
from comit.model.metrics import Predictions, area_under_roc, segmentation, without_model
from comit.model.opened import open_network
from comit.model.page import embed
from comit.model.recipe import TrainConfig
from comit.model.runs import WEIGHTS, claim, replace_file
from comit.model.train import load_splits, splits
from comit.study import mask_rcnn
from comit.study.crop import crop_to_lungs
from comit.study.rivals import builder

FIGURES = (
    "covid_auc_within",
    "sensitivity_at_99",
    "sensitivity_at_90",
    "equal_error_rate",
    "lung_iou",
    "disease_tpr",
    "disease_dice",
)


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    network: str = "comit"  # see .rivals.builder; "embedding" is scikit-learn on COMiT-Net's
    tasks: tuple[int, ...] = (1, 2, 3, 4)
    paper: dict[str, float] = field(default_factory=dict)
    change: dict[str, Any] = field(default_factory=dict)  # options of TrainConfig it sets
    crop: bool = False  # to the lungs that the model of ``compare`` sees
    seeded: bool = True  # else every seed gives the same, and the first is run


def _table_4(s99: float, s90: float, eer: float) -> dict[str, float]:
    return {"sensitivity_at_99": s99, "sensitivity_at_90": s90, "equal_error_rate": eer}


BASELINES = (
    Row("densenet121", "densenet121", (3, 4), _table_4(0.608, 0.904, 0.0982)),
    Row("mobilenet_v2", "mobilenet_v2", (3, 4), _table_4(0.672, 0.936, 0.0804)),
    Row("resnet18", "resnet18", (3, 4), _table_4(0.560, 0.816, 0.1378)),
    Row("vgg19", "vgg19", (3, 4), _table_4(0.504, 0.824, 0.1370)),
    Row("embedding-forest", "embedding", (4,), _table_4(0.792, 0.952, 0.0734)),
    Row("embedding-svm-sigmoid", "embedding", (4,), _table_4(0.064, 0.240, 0.4146), seeded=False),
    # The paper has "Gaussian" and "RBF" as two rows with the same figures; they are one kernel.
    Row("embedding-svm-rbf", "embedding", (4,), _table_4(0.824, 0.888, 0.1138), seeded=False),
    Row("unet", "unet", (1, 2), {"lung_iou": 0.82, "disease_tpr": 0.42}),
    Row("segnet", "comit", (1, 2), {"lung_iou": 0.83, "disease_tpr": 0.31}),
    Row("mask-rcnn", "mask-rcnn", (1, 2), {"lung_iou": 0.85, "disease_tpr": 0.51}),
    Row("comit", paper=_table_4(0.872, 0.968, 0.073) | {"lung_iou": 0.85, "disease_tpr": 0.87}),
)
ABLATION = tuple(
    Row(f"tasks-{''.join(map(str, tasks))}", tasks=tasks, paper={"sensitivity_at_90": value})
    for tasks, value in (
        ((1, 2, 3, 4), 0.968),
        ((4,), 0.844),
        ((1, 4), 0.944),
        ((2, 4), 0.576),
        ((3, 4), 0.678),
        ((1, 2, 4), 0.928),
        ((1, 3, 4), 0.872),
        ((2, 3, 4), 0.544),
    )
)


def _schedule(recipe: TrainConfig) -> dict[str, Any]:
    """What one recipe has in place of another's, but for the budget: width, epochs, step size."""
    names = ("balance", "small_epochs", "augmentation", "ema_warmup", "ema", "one_cycle")
    return {name: getattr(recipe, name) for name in names}


CLASSES = (3, 4)  # what the source shortcut is a matter of; without decoders it trains fast
PARTS = (
    Row("all-parts"),
    Row("without-balance", change={"balance": 0.0}),
    Row("without-small-images", change={"small_epochs": 0}),
    Row("without-variation", change={"augmentation": Augmentation()}),
    Row("without-warm-up", change={"ema_warmup": False}),
    Row("recipe-default", change=_schedule(TrainConfig())),
    Row("loss-summed", change={"loss": LossConfig(mean=False)}),  # over pixels and images, eq. 8
    Row("loss-unweighted", change={"loss": LossConfig(disease_weight=1.0)}),
    Row("loss-paper", change={"loss": LossConfig(mean=False, disease_weight=1.0)}),
    Row("loss-masks-10", change={"loss": LossConfig(mask_weight=10.0)}),
    Row("loss-masks-100", change={"loss": LossConfig(mask_weight=100.0)}),
    Row("classes", tasks=CLASSES),
    Row("classes-unbalanced", tasks=CLASSES, change={"balance": 0.0}),
    Row("classes-balanced", tasks=CLASSES, change={"balance": 1.0}),
    Row("classes-adversary", tasks=CLASSES, change={"adversary": 1.0}),
    Row("classes-mixed", tasks=CLASSES, change={"mix": 2.0}),
    Row("classes-cropped", tasks=CLASSES, crop=True),
)
TABLES = {"baselines": BASELINES, "ablation": ABLATION, "parts": PARTS}


def compare(
    table: str,
    manifest: Path,
    out: Path,
    config: TrainConfig,
    *,
    only: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0,),
    model: str = "bundled",
    init: Path | None = None,
    device: str = "auto",
    workers: int = 2,
    console: Console | None = None,
) -> list[str]:
    """Trains and measures rows of ``table``, a key of ``TABLES``; returns lines of its page.

    ``only`` names rows; without it all. Each is run once a seed: with three the page has the
    spread of figure 8. ``model`` gives the embeddings for scikit-learn's rows, and the lungs that
    are cropped to. ``init`` is a local VGG16 file, for the rows that have COMiT-Net's encoder.
    Figures are of ``test``, those of ``parts`` of ``val`` as well, which choices are made on, as
    that of the epoch is. ``out/ROW-SEED`` keeps a run: a finished one is not repeated, an
    interrupted one goes on. Rows that cannot be run, for want of a package, say so. Raises
    UsageError, also where ``out`` is of another recipe, other images or another model.
    """
    console = console or Console()
    rows = {r.name: r for r in TABLES[table]}
    if unknown := [n for n in only if n not in rows]:
        raise UsageError(f"no row {unknown[0]!r}; there are {', '.join(rows)}")
    chosen = pick_device(device)
    cohorts = load_splits(splits(read_manifest(manifest), manifest), manifest, workers, console)
    if "test" not in cohorts:
        raise UsageError(f"{manifest} has no rows with split 'test'")
    shared = _shared(config, cohorts, model, init)
    _claim(out, shared)
    missing: dict[str, str] = {}
    for name in only or rows:
        row = rows[name]
        for seed in seeds if row.seeded else seeds[:1]:
            place = out / f"{name}-{seed}"
            options = replace(config, seed=seed, tasks=row.tasks, **row.change)
            about = _about(row, options)
            if (place / "row.json").exists():
                kept = json.loads((place / "row.json").read_text(encoding="utf-8"))
                if changed := [k for k in about if kept.get(k) != about[k]]:
                    raise UsageError(f"{place} is of another {changed[0]}; choose another --out")
                continue
            place.mkdir(parents=True, exist_ok=True)
            console.line(f"{name}, seed {seed}")
            try:
                if row.network == "embedding":
                    said = _embedded(name, model, cohorts, chosen, seed)
                elif row.network == "mask-rcnn":
                    said = _detected(row, cohorts, place, options, chosen, console)
                else:
                    said = _trained(row, cohorts, model, init, place, options, chosen, console)
            except Unavailable as error:
                missing[name] = str(error)
                continue
            figures = {s: measured(p, cohorts[s], row.tasks) for s, p in said.items()}
            interval = None
            if "covid_auc_within" in figures["test"]:
                interval = within_interval(said["test"].scores[:, 1], cohorts["test"])
            _keep(place, about, figures, interval)
    lines = page(table, out, shared, missing, cohorts)
    text = "\n".join(lines) + "\n"
    replace_file(out / f"{table}.md", lambda p: p.write_text(text, encoding="utf-8"))
    return lines


def measured(predictions: Predictions, cohort: Cohort, tasks: tuple[int, ...]) -> dict[str, float]:
    """The figures of tables 4 and 5 and of section 4.1 that these tasks answer."""
    figures: dict[str, float] = {}
    covid, score = cohort.findings[:, 0], predictions.scores[:, 1]
    known = covid != UNKNOWN
    if 4 in tasks and len(np.unique(covid[known])) == 2:
        within = covid_within(score, cohort, np.arange(len(cohort)))
        if within is not None:
            figures["covid_auc_within"] = within
        figures["sensitivity_at_99"] = sensitivity_at(covid[known], score[known], 0.99)
        figures["sensitivity_at_90"] = sensitivity_at(covid[known], score[known], 0.90)
        figures["equal_error_rate"] = equal_error_rate(covid[known], score[known])
    masks = predictions.masks >= FOREGROUND
    drawn = segmentation(masks[:, 0], masks[:, 1], cohort)
    wanted = {1: ("lung_iou",), 2: ("disease_tpr", "disease_dice")}
    return figures | {
        k: drawn[k] for task, names in wanted.items() if task in tasks for k in names if k in drawn
    }


def covid_within(
    score: NDArray[np.float32], cohort: Cohort, chosen: NDArray[np.int64]
) -> float | None:
    """COVID-19 against other disease: the mean over sources of the area under the ROC curve."""
    covid, score, source = cohort.findings[chosen, 0], score[chosen], cohort.source[chosen]
    sick = (covid != UNKNOWN) & (cohort.unhealthy[chosen] == 1)
    areas = [
        area_under_roc(covid[sick & (source == s)], score[sick & (source == s)])
        for s in sorted(set(source.tolist()))
    ]
    areas = [a for a in areas if not np.isnan(a)]
    return float(np.mean(areas)) if areas else None


def within_interval(score: NDArray[np.float32], cohort: Cohort) -> list[float] | None:
    """95 % of :func:`covid_within`, patients resampled; None where no draw has both answers."""
    draws = resampled(cohort.patient, EvaluationConfig())
    areas = [a for d in draws if (a := covid_within(score, cohort, d)) is not None]
    return interval_of(areas)


def page(
    table: str,
    out: Path,
    shared: dict[str, Any],
    missing: dict[str, str],
    cohorts: dict[str, Cohort],
) -> list[str]:
    """Markdown of what ``out`` holds: mean of the seeds, and their standard deviation."""
    recipe = json.dumps(shared["recipe"])
    lines = [
        f"# {table.capitalize()}",
        "",
        "The paper's figures, on its own test set, in brackets. COVID-19 against "
        "other diseases within a source comes first: the other COVID-19 figures are across "
        "sources, and the source's name alone has those of the first row. With several seeds: "
        "mean and standard deviation; with one: the 95 % interval, patients resampled.",
        "",
        f"All rows: recipe `{recipe}`, but for what the row's name says; images "
        f"`{shared['images'][:12]}`, model `{shared['model'][:12]}`, initial weights "
        f"{shared['init'] or 'random'}. Each `row.json` has its own command, machine and commit.",
    ]
    for split in ("val", "test") if table == "parts" else ("test",):
        lines += [
            "",
            f"On {split}:",
            "",
            f"| row | seeds | {' | '.join(FIGURES)} |",
            "| --- " * (len(FIGURES) + 2) + "|",
        ]
        without = without_model(cohorts["train"], cohorts[split])
        nothing = measured(without, cohorts[split], (1, 2, 3, 4))
        cells = [f"{nothing[k]:.3f}" if k in nothing else "" for k in FIGURES]
        lines.append(f"| no model | | {' | '.join(cells)} |")
        lines += [_line(row, out, split, missing.get(row.name, "")) for row in TABLES[table]]
    return lines


def _line(row: Row, out: Path, split: str, why: str) -> str:
    """A row of the page; ``why`` it was not run."""
    runs = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(out.glob(f"{row.name}-[0-9]*/row.json"))
    ]
    cells = []
    for name in FIGURES:
        values = [r[split][name] for r in runs if name in r[split]]
        cell = f"{np.mean(values):.3f}" if values else ""
        interval = runs[0]["covid_auc_within_interval"] if runs else None
        if len(values) > 1:
            cell += f" ± {np.std(values, ddof=1):.3f}"
        elif values and name == "covid_auc_within" and interval and split == "test":
            low, high = interval
            cell += f" [{low:.3f}, {high:.3f}]"
        cells.append(cell + (f" ({row.paper[name]:.3f})" if name in row.paper else ""))
    ran = ", ".join(str(r["seed"]) for r in runs) or f"not run{': ' + why if why else ''}"
    return f"| {row.name} | {ran} | {' | '.join(cells)} |"


def _trained(
    row: Row,
    cohorts: dict[str, Cohort],
    model: str,
    init: Path | None,
    place: Path,
    config: TrainConfig,
    device: torch.device,
    console: Console,
) -> dict[str, Predictions]:
    from safetensors.torch import load_file

    if row.crop:
        network = on_device(open_network(model).network, device)
        cohorts = {s: crop_to_lungs(c, network, device) for s, c in cohorts.items()}
    trainer = Trainer(
        cohorts["train"],
        cohorts["val"],
        place,
        config,
        device,
        init if row.network == "comit" else None,
        console,
        build=builder(row.network, row.tasks),
    )
    if (place / "checkpoint.pt").exists():
        trainer.restore()
    trainer.run()
    best = trainer.averaged
    best.load_state_dict(load_file(place / WEIGHTS))
    best = on_device(best, device)
    return {s: predict(best, cohorts[s].images, device) for s in ("val", "test")}


def _detected(
    row: Row,
    cohorts: dict[str, Cohort],
    place: Path,
    config: TrainConfig,
    device: torch.device,
    console: Console,
) -> dict[str, Predictions]:
    """Mask R-CNN's masks, without scores."""
    found = []
    for task in row.tasks:
        here = place / str(task)
        here.mkdir(exist_ok=True)
        found.append(mask_rcnn.masks(task, cohorts, here, config, device, console))
    return {
        s: Predictions(np.zeros((len(cohorts[s]), 3), np.float32), np.stack(drawn, axis=1))
        for s in ("val", "test")
        if (drawn := [f[s] for f in found])
    }


def _embedded(
    name: str, model: str, cohorts: dict[str, Cohort], device: torch.device, seed: int
) -> dict[str, Predictions]:
    """scikit-learn's classifiers of COVID-19 on the embeddings of a trained COMiT-Net."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    network = on_device(open_network(model).network, device)
    train, *held = (embed(network, cohorts[s].images) for s in ("train", "val", "test"))
    label = cohorts["train"].findings[:, 0]
    known = label != UNKNOWN
    said: list[NDArray[Any]]
    if name == "embedding-forest":
        forest = RandomForestClassifier(500, random_state=seed).fit(train[known], label[known])
        said = [forest.predict_proba(e)[:, 1] for e in held]
    else:
        kernel = name.removeprefix("embedding-svm-")
        svm = make_pipeline(StandardScaler(), SVC(kernel=kernel, random_state=seed))
        svm.fit(train[known], label[known])
        said = [svm.decision_function(e) for e in held]
    nothing = np.zeros((2, *cohorts["test"].images.shape[1:]), np.uint8)
    return {
        s: Predictions(
            np.column_stack([np.zeros_like(a), a, np.zeros_like(a)]).astype(np.float32),
            np.broadcast_to(nothing, (len(a), *nothing.shape)),
        )
        for s, a in zip(("val", "test"), said, strict=True)
    }


def _shared(
    config: TrainConfig, cohorts: dict[str, Cohort], model: str, init: Path | None
) -> dict[str, Any]:
    """What the figures of all rows depend on."""
    images = hashlib.sha256("".join(c.sha256() for c in cohorts.values()).encode())
    return {
        "recipe": {k: v for k, v in asdict(config).items() if k not in ("seed", "tasks")},
        "images": images.hexdigest(),
        "model": weights_sha256(open_network(model).network),
        "init": hashlib.sha256(init.read_bytes()).hexdigest() if init else None,
    }


def _claim(out: Path, shared: dict[str, Any]) -> None:
    """Notes in ``out`` what its rows share; refuses a folder of others."""
    path = out / "table.json"
    if not path.exists() and any(out.glob("*/row.json")):
        raise UsageError(f"{out} has rows of which nothing is known; choose another --out")
    if changed := claim(path, shared):
        raise UsageError(f"{out} is of another {changed[0]}; choose another --out")


def _about(row: Row, options: TrainConfig) -> dict[str, Any]:
    """What ``table.json`` does not say of a row, as JSON gives it back."""
    about: dict[str, Any] = {"row": row.name, "seed": options.seed}
    if row.network != "embedding":
        about["training"] = json.loads(json.dumps(asdict(options)))
    return about


def _keep(
    place: Path,
    about: dict[str, Any],
    figures: dict[str, dict[str, float]],
    interval: list[float] | None,
) -> None:
    kept = {
        **about,
        "test": figures["test"],
        "covid_auc_within_interval": interval,
        "val": figures["val"],
        "command": shlex.join(["comit", *sys.argv[1:]]),
        "machine": machine(),
    }
    text = json.dumps(kept, indent=1) + "\n"
    replace_file(place / "row.json", lambda p: p.write_text(text, encoding="utf-8"))
