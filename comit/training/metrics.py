"""How good predictions are, and how good one gets without a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comit.results import FOREGROUND
from comit.training.data import UNKNOWN, Cohort


class Predictions(NamedTuple):
    """A model's outputs for a cohort."""

    scores: NDArray[np.float32]  # (N, 3): unhealthy, COVID, other
    masks: NDArray[np.uint8]  # (N, 2, 224, 224): probability of lung and disease times 255


def area_under_roc(labels: NDArray[np.generic], scores: NDArray[np.generic]) -> float:
    """Area under the ROC curve; NaN where only one class is present."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores)) if len(np.unique(labels)) == 2 else float("nan")


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks; 1 where both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Dice coefficient of two masks; 1 where both are empty."""
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / total if total else 1.0


def segmentation(
    lung: NDArray[np.bool_], disease: NDArray[np.bool_], cohort: Cohort
) -> dict[str, float]:
    """Means over the annotated images: lung IoU; disease Dice, TPR and false-positive area.

    The Dice is also given within each source: one may draw outlines and another boxes.

    TPR (4.1) is the share of diseased pixels found; the false-positive area is the share of the
    other pixels called diseased. ``lung`` and ``disease`` are (N, 224, 224), or one (224, 224)
    for all. A figure that no image is annotated for is left out.
    """
    measured = per_image(lung, disease, cohort)
    figures = {k: _mean(v[~np.isnan(v)].tolist()) for k, v in measured.items()}
    found = measured["disease_dice"]
    diseased = ~np.isnan(found)
    figures["lung_images"] = float(np.count_nonzero(~np.isnan(measured["lung_iou"])))
    figures["disease_images"] = float(np.count_nonzero(diseased))
    for source in sorted(set(cohort.source[diseased].tolist())):
        here = found[diseased & (cohort.source == source)]
        figures[f"disease_dice_within_{source}"] = _mean(here.tolist())
    return {k: v for k, v in figures.items() if not np.isnan(v)}


def per_image(
    lung: NDArray[np.bool_], disease: NDArray[np.bool_], cohort: Cohort
) -> dict[str, NDArray[np.float64]]:
    """The figures of :func:`segmentation` for each image, (N,); NaN where it is not annotated."""
    shape = (len(cohort), *lung.shape[-2:])
    lung, disease = np.broadcast_to(lung, shape), np.broadcast_to(disease, shape)
    names = ("lung_iou", "disease_dice", "disease_tpr", "disease_fp_area")
    found = {name: np.full(len(cohort), np.nan) for name in names}
    for i in np.flatnonzero(cohort.has_lung):
        found["lung_iou"][i] = iou(lung[i], cohort.lung[i] > 0)
    for i in np.flatnonzero(cohort.has_disease & (cohort.disease.sum(axis=(1, 2)) > 0)):
        truth = cohort.disease[i] > 0
        found["disease_dice"][i] = dice(disease[i], truth)
        found["disease_tpr"][i] = disease[i][truth].mean()
        found["disease_fp_area"][i] = disease[i][~truth].mean()
    return found


def classification(scores: NDArray[np.generic], cohort: Cohort) -> dict[str, float]:
    """Areas under the ROC curve, within each source first, then mixed.

    Within a source COVID is against other disease. Read those figures: across sources a score
    can tell data sets apart instead. A figure with one class alone is left out.
    """
    unhealthy, covid, other = cohort.unhealthy, cohort.findings[:, 0], cohort.findings[:, 1]
    sources = sorted(set(cohort.source.tolist()))
    figures = {}
    for source in sources:
        sick = (cohort.source == source) & (unhealthy == 1) & (covid != UNKNOWN)
        figures[f"covid_auc_within_{source}"] = area_under_roc(covid[sick], scores[sick, 1])
    for source in sources:
        known = (cohort.source == source) & (unhealthy != UNKNOWN)
        figures[f"unhealthy_auc_within_{source}"] = area_under_roc(
            unhealthy[known], scores[known, 0]
        )
    known = unhealthy != UNKNOWN
    figures["unhealthy_auc_mixed"] = area_under_roc(unhealthy[known], scores[known, 0])
    for i, (name, label) in enumerate((("covid", covid), ("other", other)), start=1):
        known = label != UNKNOWN
        figures[f"{name}_auc_mixed"] = area_under_roc(label[known], scores[known, i])
    return {k: v for k, v in figures.items() if not np.isnan(v)}


def negatives(scores: NDArray[np.float32], cohort: Cohort) -> dict[str, NDArray[np.float32]]:
    """Scores of healthy images for ``unhealthy``, of images without COVID-19 for ``covid``."""
    return {
        "unhealthy": scores[cohort.unhealthy == 0, 0],
        "covid": scores[cohort.findings[:, 0] == 0, 1],
    }


def operating_points(scores: NDArray[np.float32], cohort: Cohort) -> dict[str, dict[str, Any]]:
    """Thresholds at 90 % and 99 % specificity, in the shape of comit.card.OperatingPoint.

    A score at or above its threshold is flagged, so the specificity of ``t`` is the share of
    negatives below ``t``; the threshold is the smallest float32 whose specificity reaches the
    aim. With fewer than 100 :func:`negatives` 99 % is above the highest; their number stands
    beside the thresholds. Raises ValueError where there are none.
    """
    below = negatives(scores, cohort)
    counts = {k: len(v) for k, v in below.items()}
    return {
        str(percent): {
            **{k: threshold(v, percent) for k, v in below.items()},
            "negatives": counts,
        }
        for percent in (90, 99)
    }


def threshold(negatives: NDArray[np.float32], percent: int) -> float:
    """The smallest float32 above at least ``percent`` % of the scores of ``negatives``."""
    if not len(negatives):
        raise ValueError("a threshold at a specificity needs images without the finding")
    below = -(-percent * len(negatives) // 100)  # how many at least, rounded up
    highest = np.sort(negatives.astype(np.float32))[below - 1]
    return float(np.nextafter(highest, np.float32(np.inf)))


def evaluate(predictions: Predictions, cohort: Cohort) -> dict[str, float]:
    """All figures of a model on a cohort, masks at probability 0.5 (the paper's 4.1)."""
    masks = predictions.masks >= FOREGROUND
    return {
        **classification(predictions.scores, cohort),
        **segmentation(masks[:, 0], masks[:, 1], cohort),
    }


def without_model(train: Cohort, cohort: Cohort) -> Predictions:
    """What one would say of ``cohort`` from the source's name alone, shaped as a model's outputs.

    The score of an image is the share of its source's training images that have the label. Its
    masks (255 or 0) are the mean of its source's training masks, cut where that does best on
    them; of all training masks, where its source has none.
    """
    labels = np.stack([train.unhealthy, train.findings[:, 0], train.findings[:, 1]], axis=1)
    by_source = {
        s: [
            _mean(labels[(train.source == s) & (labels[:, i] != UNKNOWN), i].tolist())
            for i in range(3)
        ]
        for s in sorted(set(train.source.tolist()))
    }
    unseen = [0.5] * 3
    scores = np.array([by_source.get(s, unseen) for s in cohort.source.tolist()], np.float32)
    lung = _templates(train.lung, train.has_lung, train.source, iou)
    diseased = train.has_disease & (train.disease > 0).any(axis=(1, 2))
    disease = _templates(train.disease, diseased, train.source, dice)
    sources = [s if s in by_source else "" for s in cohort.source.tolist()]
    masks = np.stack([np.stack([lung[s], disease[s]]) for s in sources])
    return Predictions(scores, masks * np.uint8(255))


def baselines(train: Cohort, cohort: Cohort) -> dict[str, float]:
    """The figures of :func:`without_model`."""
    return evaluate(without_model(train, cohort), cohort)


def _templates(
    masks: NDArray[np.uint8],
    has: NDArray[np.bool_],
    source: NDArray[np.str_],
    measure: Callable[[NDArray[np.bool_], NDArray[np.bool_]], float],
) -> dict[str, NDArray[np.bool_]]:
    """A (224, 224) mask for each source, and one of all under ``""``."""
    whole = _template(masks[has] > 0, measure)
    found = {"": whole}
    for name in sorted(set(source.tolist())):
        here = has & (source == name)
        found[name] = _template(masks[here] > 0, measure) if here.any() else whole
    return found


def _template(
    masks: NDArray[np.bool_], measure: Callable[[NDArray[np.bool_], NDArray[np.bool_]], float]
) -> NDArray[np.bool_]:
    """(N, H, W) to the (H, W) mean mask, cut at the level with the best mean measure."""
    if not len(masks):
        return np.zeros(masks.shape[1:], np.bool_)
    mean = masks.mean(axis=0)
    levels = np.linspace(0.1, 0.7, 13)
    return np.asarray(
        mean >= max(levels, key=lambda t: _mean([measure(mean >= t, m) for m in masks]))
    )


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
