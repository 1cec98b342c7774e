"""Thresholds and calibration of a model's scores, from images it has not learned from."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from comit.card import CLASSES, Card, OperatingPoint
from comit.console import Console
from comit.errors import UsageError
from comit.model.data import UNKNOWN, Cohort, load, read_manifest
from comit.model.inference import pick_device, predict
from comit.model.loop import Trainer
from comit.model.metrics import negatives, operating_points
from comit.model.opened import open_network
from comit.model.recipe import TrainConfig
from comit.model.runs import claim

Method = Literal["platt", "isotonic"]
FEWEST = 100  # negatives below which 99 % of them are all of them


def calibrate(
    model: str,
    manifest: Path,
    *,
    method: Method = "platt",
    folds: int = 0,
    config: TrainConfig | None = None,
    work: Path | None = None,
    device: str = "auto",
    workers: int = 2,
    console: Console | None = None,
) -> Card:
    """Writes thresholds at 90 % and 99 % specificity and a calibration into the model's card.

    Without ``folds`` they come from the split ``val``. With ``folds`` (2 or more) they come from
    out-of-fold scores on train and val together: networks are trained with ``config`` on all but
    one fold, whole patients in each, and score that one. Those networks are not the model whose
    card is written, only made in the same way; the card says so. ``work`` keeps what was trained,
    and a second call goes on from there. Raises UsageError.
    """
    console = console or Console()
    if model == "bundled":
        raise UsageError("the bundled model stays as it is; give a copy: comit export onnx bundled")
    if folds and work is None:
        raise UsageError("folds need a folder for what is trained; give --work")
    opened = open_network(model)
    chosen = pick_device(device)
    rows = read_manifest(manifest)
    wanted = ("train", "val") if folds else ("val",)
    rows = [r for r in rows if r["split"] in wanted]
    if not rows:
        raise UsageError(f"{manifest} has no rows with split {' or '.join(map(repr, wanted))}")
    with console.progress("reading", len(rows)) as step:
        cohort = load(rows, manifest.parent, workers, step)
    if work is not None and folds:
        scores = out_of_fold(cohort, folds, config or TrainConfig(), work, chosen, console)
        origin = f"{folds} folds of train and val by patient, each scored by a network of the rest"
    else:
        scores = predict(opened.network.to(chosen), cohort.images, chosen).scores
        origin = "val"
    card = replace(
        opened.card,
        operating_points=points(scores, cohort, origin),
        calibration=calibration(scores, cohort, method) | {"origin": origin},
    )
    for percent, point in sorted(card.operating_points.items()):
        console.line(point.described(percent))
    if min(card.operating_points["99"].negatives.values()) < FEWEST:
        console.line(f"fewer than {FEWEST} negatives: the 99 % threshold is above all their scores")
    console.line(f"{opened.write(card)} has the thresholds")
    return card


def points(scores: NDArray[np.float32], cohort: Cohort, origin: str) -> dict[str, OperatingPoint]:
    """:func:`.metrics.operating_points` with the interval of each specificity.

    The interval is Clopper and Pearson's, 95 %, for the negatives below the threshold: with 34
    of them all below, the true specificity may be 90 %. It takes images for independent; several
    of one patient make it a little too narrow. Raises UsageError without negatives.
    """
    from scipy.stats import binomtest

    try:
        found = operating_points(scores, cohort)
    except ValueError as error:
        raise UsageError(str(error)) from error
    made = {}
    for percent, point in found.items():
        interval = {}
        for task, values in negatives(scores, cohort).items():
            below = int(np.count_nonzero(values < np.float32(point[task])))
            low, high = binomtest(below, len(values)).proportion_ci(0.95, "exact")
            interval[task] = [float(low), float(high)]
        made[percent] = OperatingPoint(**point, interval=interval, origin=origin)
    return made


def labels_of(cohort: Cohort) -> NDArray[np.int8]:
    """(N, 3) in {-1, 0, 1}: unhealthy, COVID, other disease, as the scores are ordered."""
    return np.column_stack([cohort.unhealthy, cohort.findings])


def calibration(
    scores: NDArray[np.float32], cohort: Cohort, method: Method = "platt"
) -> dict[str, Any]:
    """How each score becomes the share of images that have the finding, for :func:`calibrated`.

    ``platt``: a logistic curve over the score's logit (Platt, "Probabilistic outputs for support
    vector machines", 1999). ``isotonic``: steps that only rise. A share holds for a mixture like
    this cohort's, not for another hospital. A score with one class alone is left out.
    """
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    found: dict[str, Any] = {}
    for i, name in enumerate(CLASSES):
        label = labels_of(cohort)[:, i]
        known = label != UNKNOWN
        if len(np.unique(label[known])) < 2:
            continue
        about = {"images": int(known.sum()), "positives": int(label[known].sum())}
        if method == "platt":
            fit = LogisticRegression(C=1e6).fit(_logit(scores[known, i])[:, None], label[known])
            curve: dict[str, Any] = {
                "method": "platt",
                "slope": float(fit.coef_[0, 0]),
                "intercept": float(fit.intercept_[0]),
            }
        else:
            steps = IsotonicRegression(out_of_bounds="clip").fit(scores[known, i], label[known])
            curve = {
                "method": "isotonic",
                "scores": [float(v) for v in steps.X_thresholds_],
                "shares": [float(v) for v in steps.y_thresholds_],
            }
        found[name] = curve | about
    return found


def calibrated(scores: NDArray[np.float32], calibration: dict[str, Any]) -> NDArray[np.float64]:
    """(N, 4) scores to shares in [0, 1]; a score that has no calibration stays as it is."""
    shares = scores.astype(np.float64)
    for i, name in enumerate(CLASSES):
        curve = calibration.get(name)
        if curve is None:
            continue
        if curve["method"] == "platt":
            shares[:, i] = _sigmoid(curve["slope"] * _logit(scores[:, i]) + curve["intercept"])
        else:
            shares[:, i] = np.interp(scores[:, i], curve["scores"], curve["shares"])
    return shares


def out_of_fold(
    cohort: Cohort,
    folds: int,
    config: TrainConfig,
    work: Path,
    device: torch.device,
    console: Console,
) -> NDArray[np.float32]:
    """(N, 4) scores, each by a network that was trained without any image of that patient.

    The last epoch's weights count: choosing an epoch by the fold it scores would be looking.
    ``work/fold-K`` keeps each run; a fold that is finished is not trained again, one that was
    interrupted goes on after its last epoch. Raises UsageError where ``work`` is of other folds.
    """
    assignment = fold_of(cohort, folds, config.seed)
    _claim(work, assignment, config)
    scores = np.zeros((len(cohort), 4), np.float32)
    for fold in range(folds):
        out = work / f"fold-{fold}"
        held = assignment == fold
        done = out / "scores.npy"
        if not done.exists():
            console.line(f"fold {fold + 1} of {folds}: {held.sum()} images held out")
            out.mkdir(exist_ok=True)
            rest, here = subset(cohort, ~held), subset(cohort, held)
            trainer = Trainer(rest, here, out, config, device, None, console)
            if (out / "checkpoint.pt").exists():
                trainer.restore()
            trainer.run()
            found = predict(trainer.averaged, here.images, device).scores
            with done.with_suffix(".new").open("wb") as file:
                np.save(file, found)
            done.with_suffix(".new").replace(done)
        scores[held] = np.load(done)
    return scores


def fold_of(cohort: Cohort, folds: int, seed: int) -> NDArray[np.int64]:
    """(N,) number of each image's fold: patients whole, sources and labels spread evenly."""
    from sklearn.model_selection import StratifiedGroupKFold

    if len(np.unique(cohort.patient)) < folds:
        raise UsageError(f"{folds} folds need as many patients")
    kinds = [
        f"{s}/{u}/{c}"
        for s, u, c in zip(cohort.source, cohort.unhealthy, cohort.findings[:, 0], strict=True)
    ]
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    assignment = np.zeros(len(cohort), np.int64)
    with warnings.catch_warnings():  # a kind rarer than the folds: some fold goes without it
        warnings.filterwarnings("ignore", message="The least populated class")
        for number, (_, held) in enumerate(split.split(kinds, kinds, cohort.patient)):
            assignment[held] = number
    return assignment


def subset(cohort: Cohort, chosen: NDArray[np.bool_]) -> Cohort:
    """The images of ``chosen``, (N,) bool."""
    return Cohort(**{k: v[chosen] for k, v in vars(cohort).items()})


def _claim(work: Path, assignment: NDArray[np.int64], config: TrainConfig) -> None:
    """Notes in ``work`` what its folds are; refuses a folder that holds others."""
    note = {
        "training": asdict(config),
        "folds": hashlib.sha256(assignment.tobytes()).hexdigest(),
    }
    if claim(work / "folds.json", note):
        raise UsageError(f"{work} holds folds of another manifest or recipe")


def _logit(scores: NDArray[np.floating[Any]] | Sequence[float]) -> NDArray[np.float64]:
    p = np.clip(np.asarray(scores, np.float64), 1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-values)))
