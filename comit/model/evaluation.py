"""Everything the paper measures, and what it leaves out: intervals, sources, no-model baselines.

A figure here is a dictionary: ``value``, ``low`` and ``high`` (95 %, by resampling patients) and
``no_model``, what the source's name and a fixed mask give. All are shares in [0, 1]; None is 0 / 0.
Beside the area under each ROC curve stands that of picture statistics (:mod:`.statistics`), and by
how much the model is better, paired by patient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from comit.card import CLASSES, Card
from comit.masks import FOREGROUND, iou, rectangles
from comit.model.calibrate import calibrated, labels_of
from comit.model.data import UNKNOWN, Cohort, filled
from comit.model.metrics import (
    Predictions,
    area_under_roc,
    areas,
    mask_figures,
    per_image,
    resampled_area,
    threshold,
    without_model,
)
from comit.model.statistics import from_statistics

PAPER = {  # figure -> what the paper has for it, on its own test set, and where
    ("covid, sources mixed", "sensitivity_at_90"): (0.9680, "table 4"),
    ("covid, sources mixed", "sensitivity_at_99"): (0.8720, "table 4"),
    ("covid, sources mixed", "equal_error_rate"): (0.0730, "table 4"),
    ("covid, sources mixed", "accuracy"): (0.9879, "section 4.2"),
    ("covid, sources mixed", "precision_at_99"): (0.6412, "section 4.2"),
    ("covid, sources mixed", "f1_at_99"): (0.7390, "section 4.2"),
    ("covid, BIMCV-COVID19+ unseen", "sensitivity_at_90"): (0.8546, "section 4.4"),
    ("unhealthy, sources mixed", "accuracy"): (0.7517, "section 4.2"),
    ("other, sources mixed", "accuracy"): (0.7387, "section 4.2"),
    ("masks", "lung_iou"): (0.85, "section 4.1"),
    ("masks", "disease_tpr"): (0.87, "section 4.1"),
    ("masks", "covid_called_unhealthy"): (0.9725, "section 4.2"),
}


FRACTION = 4  # behind the four scores


@dataclass(frozen=True)
class EvaluationConfig:
    """How intervals are made."""

    resamples: int = 1000  # draws of patients with replacement
    seed: int = 0
    bins: int = 10  # of the calibration curve, each of about as many images


class Question(NamedTuple):
    """One yes or no that a score answers, over the images that it concerns."""

    name: str
    score: int  # column of the scores; FRACTION for the share of the lungs that is diseased
    chosen: NDArray[np.bool_]  # (N,)
    label: int  # column of the labels


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
        Question(f"covid against other disease, within {s}", 1, sick & (cohort.source == s), 1)
        for s in sources
    ]
    healthy = labels[:, 0] == 0
    typical = covid_known & ((labels[:, 1] == 1) | healthy)
    asked += [
        Question(f"covid{by} against healthy, within {s}", score, typical & (cohort.source == s), 1)
        for s in sources
        for by, score in (("", 1), (" by disease_fraction", FRACTION))
    ]
    for s in sources:
        asked += [
            Question(
                f"covid against other disease, within {s}, {view}",
                1,
                sick & (cohort.source == s) & here,
                1,
            )
            for view, here in views.items()
        ]
    for i, name in ((0, "unhealthy"), (1, "covid"), (2, "other")):
        known = labels[:, i] != UNKNOWN
        within = [(f"within {s}", cohort.source == s) for s in sources] if i < 2 else []
        everywhere = [("sources mixed", np.ones(len(cohort), np.bool_))]
        for place, here in within + everywhere:
            asked.append(Question(f"{name}, {place}", i, known & here, i))
            asked += [
                Question(f"{name}, {place}, {view}", i, known & here & seen, i)
                for view, seen in views.items()
            ]
    asked += [
        Question(
            f"covid by disease_fraction, within {s}",
            FRACTION,
            covid_known & (cohort.source == s),
            1,
        )
        for s in sources
    ]
    for question in asked:
        if len(np.unique(labels[question.chosen, question.label])) == 2:
            yield question


def evaluation(
    predictions: Predictions,
    cohort: Cohort,
    train: Cohort,
    card: Card,
    config: EvaluationConfig | None = None,
    boxes: Sequence[NDArray[np.bool_] | None] = (),
) -> dict[str, Any]:
    """All figures on ``cohort``; ``train`` is what the no-model baselines are made from.

    ``boxes`` are each image's lungs as radiologists' rectangles, (224, 224), where there are any.

    Keys: ``questions`` (name -> counts, ``figures``, ``statistics``: the ``auc`` of picture
    statistics and what the model has ``over`` it, as a figure; ``at`` each operating point of the
    card: their ``no_model`` is its score cut at the same specificity on these very images),
    ``masks`` (figure -> ...; over all images and per source; those of disease with
    ``whole_lung``, what the lungs give that are annotated, else seen), ``calibration``, ``paper``
    (rows of figure, ours, no model, the paper's), ``images``, ``patients``. JSON throughout.
    """
    config = config or EvaluationConfig()
    labels = labels_of(cohort)
    without = without_model(train, cohort)
    draws = resampled(cohort.patient, config)
    times = _counts(draws, len(cohort))
    statistics = from_statistics(train, cohort)
    ours, theirs = (with_fraction(p) for p in (predictions, without))
    asked: dict[str, Any] = {}
    for question in questions(cohort):
        chosen, i, label = question.chosen, question.score, question.label
        truth, said, guessed = labels[chosen, label], ours[chosen, i], theirs[chosen, i]
        asked[question.name] = {
            "positives": int((truth == 1).sum()),
            "negatives": int((truth == 0).sum()),
            "patients": len(np.unique(cohort.patient[chosen])),
            "figures": _with_intervals(
                _curve_figures,
                labels[:, label],
                ours[:, i],
                theirs[:, i],
                chosen,
                draws,
            ),
            "statistics": _over(
                truth, said, statistics[chosen, label].astype(np.float32), times[:, chosen]
            ),
            "at": {
                percent: _decided(
                    truth,
                    said >= np.float32(cut),
                    guessed >= threshold(guessed[truth == 0], int(percent)),
                    times[:, chosen],
                )
                for percent, point in card.operating_points.items()
                if i < len(CLASSES) and (cut := getattr(point, CLASSES[i], None)) is not None
            },
        }
    found = {
        "images": len(cohort),
        "patients": len(np.unique(cohort.patient)),
        "questions": asked,
        "masks": _masks(predictions, without, cohort, times, boxes),
        "calibration": _calibration(predictions, without, labels, times, card, config.bins),
    }
    found["paper"] = _beside_the_paper(found)
    return found


def with_fraction(predictions: Predictions) -> NDArray[np.float32]:
    """(N, 5): the scores and the share of the lungs that is diseased, 0 without lungs."""
    lung, disease = np.moveaxis(predictions.masks >= FOREGROUND, 1, 0)
    lungs = np.count_nonzero(lung, axis=(1, 2))
    inside = np.count_nonzero(lung & disease, axis=(1, 2))
    share = (inside / np.maximum(lungs, 1)).astype(np.float32)
    scores = np.zeros((len(share), FRACTION), np.float32)
    scores[:, : predictions.scores.shape[1]] = predictions.scores
    return np.column_stack([scores, share])


def intervals(
    predictions: Predictions, cohort: Cohort, config: EvaluationConfig | None = None
) -> dict[str, list[float]]:
    """95 % intervals, [low, high], of the figures of :func:`.metrics.evaluate`."""
    times = _counts(resampled(cohort.patient, config or EvaluationConfig()), len(cohort))
    drawn = {
        a.name: resampled_area(
            a.labels[a.chosen], predictions.scores[a.chosen, a.score], times[:, a.chosen]
        )
        for a in areas(cohort)
        if len(np.unique(a.labels[a.chosen])) == 2
    }
    masks = predictions.masks >= FOREGROUND
    for name, values in mask_figures(masks[:, 0], masks[:, 1], cohort).items():
        drawn[name] = _resampled_mean(values, ~np.isnan(values), times)
    found = {k: interval_of(v) for k, v in drawn.items()}
    return {k: v for k, v in found.items() if v is not None}


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


def decisions(
    labels: NDArray[np.generic], flagged: NDArray[np.bool_], times: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Accuracy, precision, recall, specificity and F1 of yes-or-no answers; NaN is 0 / 0.

    Of (draws, N) ``times`` that each image counts, (draws,) of each.
    """
    positive = labels == 1
    hit, wrong = times @ (flagged & positive), times @ (flagged & ~positive)
    missed, right = times @ (~flagged & positive), times @ (~flagged & ~positive)
    shares = {
        "accuracy": (hit + right, times.sum(axis=1)),
        "precision": (hit, hit + wrong),
        "recall": (hit, hit + missed),
        "specificity": (right, right + wrong),
        "f1": (2 * hit, 2 * hit + wrong + missed),
    }
    with np.errstate(invalid="ignore"):
        return {k: part / whole for k, (part, whole) in shares.items()}


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


def _counts(draws: list[NDArray[np.int64]], images: int) -> NDArray[np.int64]:
    """How often each image is in each draw, (draws, images)."""
    counts = [np.bincount(draw, minlength=images) for draw in draws]
    return np.array(counts, np.int64).reshape(len(draws), images)


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


def _over(
    labels: NDArray[Any], ours: NDArray[Any], theirs: NDArray[Any], times: NDArray[np.int64]
) -> dict[str, Any]:
    """The AUC of other scores of the same images, and by how much ours is above it."""
    first, second = (area_under_roc(labels, s) for s in (ours, theirs))
    drawn = resampled_area(labels, ours, times) - resampled_area(labels, theirs, times)
    low, high = interval_of(drawn) or (None, None)
    return {"auc": second, "over": {"value": first - second, "low": low, "high": high}}


def _decided(
    labels: NDArray[Any],
    flagged: NDArray[np.bool_],
    without: NDArray[np.bool_],
    times: NDArray[np.int64],
) -> dict[str, dict[str, Any]]:
    """:func:`decisions` on all images, on each draw of them, and of the no-model answers."""
    once = np.ones((1, len(labels)), np.int64)
    ours, theirs = (decisions(labels, said, once) for said in (flagged, without))
    drawn = decisions(labels, flagged, times)
    return {k: _figure(v.item(), drawn[k], theirs[k].item()) for k, v in ours.items()}


def _masks(
    predictions: Predictions,
    without: Predictions,
    cohort: Cohort,
    times: NDArray[np.int64],
    boxes: Sequence[NDArray[np.bool_] | None],
) -> dict[str, dict[str, Any]]:
    """Means over annotated images, in all and within each source; COVID called unhealthy.

    ``lung_rectangles_iou`` is that of the rectangles around the lungs with the radiologists'.
    """
    ours, theirs = (
        per_image(p.masks[:, 0] >= FOREGROUND, p.masks[:, 1] >= FOREGROUND, cohort)
        for p in (predictions, without)
    )
    lungs = np.where(
        cohort.has_lung[:, None, None], cohort.lung > 0, predictions.masks[:, 0] >= FOREGROUND
    )
    whole = per_image(lungs, lungs, cohort)
    covid = cohort.findings[:, 0] == 1
    for figures, said in ((ours, predictions), (theirs, without)):
        figures["covid_called_unhealthy"] = np.where(covid, said.scores[:, 0] >= 0.5, np.nan)
        if boxes:
            figures["lung_rectangles_iou"] = np.array(
                [
                    np.nan if box is None else iou(filled(rectangles(lungs)), box)
                    for lungs, box in zip(said.masks[:, 0] >= FOREGROUND, boxes, strict=True)
                ]
            )
    places = {"": np.ones(len(cohort), np.bool_)}
    places |= {f", within {s}": cohort.source == s for s in sorted(set(cohort.source.tolist()))}
    found = {}
    for place, here in places.items():
        for name, values in ours.items():
            measured = here & ~np.isnan(values)
            if not measured.any() or (place and measured.sum() == (~np.isnan(values)).sum()):
                continue  # nobody has it, or all who have it are of this source
            found[name + place] = _figure(
                float(values[measured].mean()),
                _resampled_mean(values, measured, times),
                float(theirs[name][measured].mean()),
            ) | {"images": int(measured.sum())}
            if name.startswith("disease"):
                found[name + place]["whole_lung"] = float(whole[name][measured].mean())
    return found


def _resampled_mean(
    values: NDArray[np.float64], measured: NDArray[np.bool_], times: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean of the measured values in each draw, (draws,); NaN where it has none of them."""
    here = times[:, measured]
    with np.errstate(invalid="ignore"):
        return np.asarray(here @ values[measured] / here.sum(axis=1))


def _calibration(
    predictions: Predictions,
    without: Predictions,
    labels: NDArray[np.int8],
    times: NDArray[np.int64],
    card: Card,
    bins: int,
) -> dict[str, Any]:
    """Mean score and share of positives by bins, and Brier's score, raw and calibrated."""
    from sklearn.calibration import calibration_curve

    kinds = {"raw": predictions.scores.astype(np.float64)}
    if card.calibration:
        kinds["calibrated"] = calibrated(predictions.scores, card.calibration)
    found: dict[str, Any] = {}
    for i, name in enumerate(CLASSES):
        known = labels[:, i] != UNKNOWN
        if len(np.unique(labels[known, i])) < 2:
            continue
        found[name] = {}
        counted = times[:, known]
        no_model = float(np.mean((without.scores[known, i] - labels[known, i]) ** 2))
        for kind, said in kinds.items():
            share, mean = calibration_curve(
                labels[known, i], said[known, i], n_bins=bins, strategy="quantile"
            )
            errors = (said[known, i] - labels[known, i]) ** 2
            with np.errstate(invalid="ignore"):  # a draw may have none of these images
                drawn = counted @ errors / counted.sum(axis=1)
            found[name][kind] = {
                "mean": mean.tolist(),
                "share": share.tolist(),
                "brier": _figure(float(errors.mean()), drawn, no_model),
            }
    return found


def _beside_the_paper(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for (part, name), (theirs, where) in PAPER.items():
        asked = found["questions"].get(part, {"figures": {}, "at": {}})
        decided = {
            f"{k}_at_{percent}": v for percent, at in asked["at"].items() for k, v in at.items()
        }
        figures = found["masks"] if part == "masks" else decided | asked["figures"]
        label = name if part == "masks" else f"{part}: {name}"
        rows.append({"figure": label, "paper": theirs, "where": where, "ours": figures.get(name)})
    return rows


def _figure(value: float, drawn: ArrayLike, without: float) -> dict[str, Any]:
    """NaN becomes None."""
    low, high = interval_of(drawn) or (None, None)
    found = {"value": value, "low": low, "high": high, "no_model": without}
    return {k: None if v is None or np.isnan(v) else v for k, v in found.items()}


def interval_of(drawn: ArrayLike) -> list[float] | None:
    """The middle 95 %; draws that are NaN do not count."""
    kept = np.asarray(drawn, np.float64)
    kept = kept[~np.isnan(kept)]
    return np.quantile(kept, [0.025, 0.975]).tolist() if len(kept) else None
