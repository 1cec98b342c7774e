"""Everything the paper measures, and what it leaves out: intervals, sources, no-model baselines.

A figure here is a dictionary: ``value``, ``low`` and ``high`` (95 %, by resampling patients) and
``no_model``, what the source's name and a fixed mask give. All are shares in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comit.card import OUTPUTS, Card
from comit.results import FOREGROUND
from comit.training.calibrate import calibrated, labels_of
from comit.training.data import UNKNOWN, Cohort
from comit.training.metrics import Predictions, area_under_roc, per_image, without_model

PAPER = {  # figure -> what the paper has for it, on its own test set, and where
    ("covid, sources mixed", "sensitivity_at_90"): (0.9680, "table 4"),
    ("covid, sources mixed", "sensitivity_at_99"): (0.8720, "table 4"),
    ("covid, sources mixed", "equal_error_rate"): (0.0730, "table 4"),
    ("unhealthy, sources mixed", "accuracy"): (0.7517, "section 4.2"),
    ("other, sources mixed", "accuracy"): (0.7387, "section 4.2"),
    ("masks", "lung_iou"): (0.85, "section 4.1"),
    ("masks", "disease_tpr"): (0.87, "section 4.1"),
    ("masks", "covid_called_unhealthy"): (0.9725, "section 4.2"),
}


@dataclass(frozen=True)
class EvaluationConfig:
    """How intervals are made."""

    resamples: int = 1000  # draws of patients with replacement
    seed: int = 0
    bins: int = 10  # of the calibration curve, each of about as many images


class Question(NamedTuple):
    """One yes or no that a score answers, over the images that it concerns."""

    name: str
    score: int  # column of the scores
    chosen: NDArray[np.bool_]  # (N,)


def questions(cohort: Cohort) -> Iterator[Question]:
    """COVID against other disease within each source first; then the rest, sources and views.

    Those without images of both answers are left out.
    """
    labels = labels_of(cohort)
    covid_known = labels[:, 1] != UNKNOWN
    sick = (labels[:, 0] == 1) & covid_known
    views = {"PA": cohort.view == "PA", "AP": np.char.startswith(cohort.view, "AP")}
    sources = sorted(set(cohort.source.tolist()))
    asked = [
        Question(f"covid against other disease, within {s}", 1, sick & (cohort.source == s))
        for s in sources
    ]
    for s in sources:
        asked += [
            Question(
                f"covid against other disease, within {s}, {view}",
                1,
                sick & (cohort.source == s) & here,
            )
            for view, here in views.items()
        ]
    for i, name in ((0, "unhealthy"), (1, "covid"), (2, "other")):
        known = labels[:, i] != UNKNOWN
        within = [(f"within {s}", cohort.source == s) for s in sources] if i == 0 else []
        everywhere = [("sources mixed", np.ones(len(cohort), np.bool_))]
        for place, here in within + everywhere:
            asked.append(Question(f"{name}, {place}", i, known & here))
            asked += [
                Question(f"{name}, {place}, {view}", i, known & here & seen)
                for view, seen in views.items()
            ]
    for question in asked:
        if len(np.unique(labels[question.chosen, question.score])) == 2:
            yield question


def evaluation(
    predictions: Predictions,
    cohort: Cohort,
    train: Cohort,
    card: Card,
    config: EvaluationConfig | None = None,
) -> dict[str, Any]:
    """All figures on ``cohort``; ``train`` is what the no-model baselines are made from.

    Keys: ``questions`` (name -> counts, ``figures``, ``at`` each operating point of the card),
    ``masks`` (figure -> ...; over all images and per source), ``calibration``, ``paper`` (rows
    of figure, ours, no model, the paper's), ``images``, ``patients``. JSON throughout.
    """
    config = config or EvaluationConfig()
    labels = labels_of(cohort)
    without = without_model(train, cohort)
    draws = resampled(cohort.patient, config)
    asked: dict[str, Any] = {}
    for question in questions(cohort):
        chosen, i = question.chosen, question.score
        asked[question.name] = {
            "positives": int((labels[chosen, i] == 1).sum()),
            "negatives": int((labels[chosen, i] == 0).sum()),
            "patients": len(np.unique(cohort.patient[chosen])),
            "figures": _with_intervals(
                _curve_figures,
                labels[:, i],
                predictions.scores[:, i],
                without.scores[:, i],
                chosen,
                draws,
            ),
            "at": {
                percent: decisions(
                    labels[chosen, i], predictions.scores[chosen, i] >= np.float32(threshold)
                )
                for percent, point in card.operating_points.items()
                if (threshold := getattr(point, OUTPUTS[i], None)) is not None
            },
        }
    found = {
        "images": len(cohort),
        "patients": len(np.unique(cohort.patient)),
        "questions": asked,
        "masks": _masks(predictions, without, cohort, draws),
        "calibration": _calibration(predictions.scores, labels, card, config.bins),
    }
    found["paper"] = _beside_the_paper(found)
    return found


def sensitivity_at(
    labels: NDArray[np.generic], scores: NDArray[np.generic], specificity: float
) -> float:
    """The highest share of positives flagged by a threshold of at least that specificity."""
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    return float(true[false <= 1 - specificity + 1e-9].max())


def equal_error_rate(labels: NDArray[np.generic], scores: NDArray[np.generic]) -> float:
    """Where the ROC curve, drawn with straight lines, misses as many as it flags wrongly."""
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    gap = (1 - true) - false  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(false[after - 1] + share * (false[after] - false[after - 1]))


def decisions(labels: NDArray[np.generic], flagged: NDArray[np.bool_]) -> dict[str, float | None]:
    """Accuracy, precision, recall, specificity and F1 of yes-or-no answers; None is 0 / 0."""
    positive = labels == 1
    hit, wrong = int((flagged & positive).sum()), int((flagged & ~positive).sum())
    missed, right = int((~flagged & positive).sum()), int((~flagged & ~positive).sum())
    return {
        "accuracy": _ratio(hit + right, len(labels)),
        "precision": _ratio(hit, hit + wrong),
        "recall": _ratio(hit, hit + missed),
        "specificity": _ratio(right, right + wrong),
        "f1": _ratio(2 * hit, 2 * hit + wrong + missed),
    }


def resampled(patients: NDArray[np.str_], config: EvaluationConfig) -> list[NDArray[np.int64]]:
    """Indices of images, a list a draw: all images of patients drawn with replacement."""
    _, which = np.unique(patients, return_inverse=True)
    order = np.argsort(which, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(which))[:-1])
    random = np.random.default_rng(config.seed)
    return [
        np.concatenate([members[k] for k in random.integers(0, len(members), len(members))])
        for _ in range(config.resamples)
    ]


def _curve_figures(labels: NDArray[Any], scores: NDArray[Any]) -> dict[str, float]:
    """What a score is worth at no threshold in particular, and its answer at one half."""
    return {
        "auc": area_under_roc(labels, scores),
        "sensitivity_at_90": sensitivity_at(labels, scores, 0.90),
        "sensitivity_at_99": sensitivity_at(labels, scores, 0.99),
        "equal_error_rate": equal_error_rate(labels, scores),
        "accuracy": float(np.mean((scores >= 0.5) == (labels == 1))),
    }


def _with_intervals(
    measure: Callable[[NDArray[Any], NDArray[Any]], dict[str, float]],
    labels: NDArray[Any],
    scores: NDArray[Any],
    without: NDArray[Any],
    chosen: NDArray[np.bool_],
    draws: list[NDArray[np.int64]],
) -> dict[str, dict[str, Any]]:
    """``measure`` on the chosen images, on each draw of them, and for the no-model scores."""
    ours, theirs = (measure(labels[chosen], s[chosen]) for s in (scores, without))
    drawn = []
    for draw in draws:
        here = draw[chosen[draw]]
        if len(np.unique(labels[here])) == 2:
            drawn.append(measure(labels[here], scores[here]))
    return {k: _figure(v, [d[k] for d in drawn], theirs[k]) for k, v in ours.items()}


def _masks(
    predictions: Predictions,
    without: Predictions,
    cohort: Cohort,
    draws: list[NDArray[np.int64]],
) -> dict[str, dict[str, Any]]:
    """Means over annotated images, in all and within each source; COVID called unhealthy."""
    ours, theirs = (
        per_image(p.masks[:, 0] >= FOREGROUND, p.masks[:, 1] >= FOREGROUND, cohort)
        for p in (predictions, without)
    )
    covid = cohort.findings[:, 0] == 1
    for figures, said in ((ours, predictions), (theirs, without)):
        figures["covid_called_unhealthy"] = np.where(covid, said.scores[:, 0] >= 0.5, np.nan)
    places = {"": np.ones(len(cohort), np.bool_)}
    places |= {f", within {s}": cohort.source == s for s in sorted(set(cohort.source.tolist()))}
    found = {}
    for place, here in places.items():
        for name, values in ours.items():
            measured = here & ~np.isnan(values)
            if not measured.any() or (place and measured.sum() == (~np.isnan(values)).sum()):
                continue  # nobody has it, or all who have it are of this source
            drawn = [values[d[measured[d]]] for d in draws]
            found[name + place] = _figure(
                float(values[measured].mean()),
                [float(d.mean()) for d in drawn if len(d)],
                float(theirs[name][measured].mean()),
            ) | {"images": int(measured.sum())}
    return found


def _calibration(
    scores: NDArray[np.float32], labels: NDArray[np.int8], card: Card, bins: int
) -> dict[str, Any]:
    """Mean score and share of positives by bins, and Brier's score, raw and calibrated."""
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss

    kinds = {"raw": scores.astype(np.float64)}
    if card.calibration:
        kinds["calibrated"] = calibrated(scores, card.calibration)
    found: dict[str, Any] = {}
    for i, name in enumerate(OUTPUTS):
        known = labels[:, i] != UNKNOWN
        if len(np.unique(labels[known, i])) < 2:
            continue
        found[name] = {}
        for kind, said in kinds.items():
            share, mean = calibration_curve(
                labels[known, i], said[known, i], n_bins=bins, strategy="quantile"
            )
            found[name][kind] = {
                "mean": mean.tolist(),
                "share": share.tolist(),
                "brier": float(brier_score_loss(labels[known, i], said[known, i])),
            }
    return found


def _beside_the_paper(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for (part, name), (theirs, where) in PAPER.items():
        figures = (
            found["masks"]
            if part == "masks"
            else found["questions"].get(part, {}).get("figures", {})
        )
        label = name if part == "masks" else f"{part}: {name}"
        rows.append({"figure": label, "paper": theirs, "where": where, "ours": figures.get(name)})
    return rows


def _figure(value: float, drawn: list[float], without: float) -> dict[str, Any]:
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist() if drawn else (None, None)
    return {"value": value, "low": low, "high": high, "no_model": without}


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
