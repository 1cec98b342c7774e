"""How good predictions are, and how good one gets without a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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

    TPR (4.1) is the share of diseased pixels found; the false-positive area is the share of the
    other pixels called diseased. ``lung`` and ``disease`` are (N, 224, 224), or one (224, 224)
    for all.
    """
    shape = (len(cohort), *lung.shape[-2:])
    lung, disease = np.broadcast_to(lung, shape), np.broadcast_to(disease, shape)
    lungs = [iou(lung[i], cohort.lung[i] > 0) for i in np.flatnonzero(cohort.has_lung)]
    diseased = np.flatnonzero(cohort.has_disease & (cohort.disease.sum(axis=(1, 2)) > 0))
    truth = cohort.disease > 0
    return {
        "lung_iou": _mean(lungs),
        "disease_dice": _mean([dice(disease[i], truth[i]) for i in diseased]),
        "disease_tpr": _mean([float(disease[i][truth[i]].mean()) for i in diseased]),
        "disease_fp_area": _mean([float(disease[i][~truth[i]].mean()) for i in diseased]),
        "lung_images": float(len(lungs)),
        "disease_images": float(len(diseased)),
    }


def classification(scores: NDArray[np.generic], cohort: Cohort) -> dict[str, float]:
    """Areas under the ROC curve, within each source and mixed. COVID is against other disease.

    Read the within-source figures: across sources a score can tell data sets apart instead.
    """
    unhealthy, covid, other = cohort.unhealthy, cohort.findings[:, 0], cohort.findings[:, 1]
    figures = {}
    for source in sorted(set(cohort.source.tolist())):
        here = cohort.source == source
        sick = here & (unhealthy == 1) & (covid != UNKNOWN)
        known = here & (unhealthy != UNKNOWN)
        figures[f"covid_auc_within_{source}"] = area_under_roc(covid[sick], scores[sick, 1])
        figures[f"unhealthy_auc_within_{source}"] = area_under_roc(
            unhealthy[known], scores[known, 0]
        )
    known = unhealthy != UNKNOWN
    figures["unhealthy_auc_mixed"] = area_under_roc(unhealthy[known], scores[known, 0])
    for i, (name, label) in enumerate((("covid", covid), ("other", other)), start=1):
        known = label != UNKNOWN
        figures[f"{name}_auc_mixed"] = area_under_roc(label[known], scores[known, i])
    return {k: v for k, v in figures.items() if not np.isnan(v)}


def evaluate(predictions: Predictions, cohort: Cohort) -> dict[str, float]:
    """All figures of a model on a cohort, masks at probability 0.5 (the paper's 4.1)."""
    masks = predictions.masks >= 128  # 128 / 255 is the first value above 0.5
    return {
        **classification(predictions.scores, cohort),
        **segmentation(masks[:, 0], masks[:, 1], cohort),
    }


def baselines(train: Cohort, cohort: Cohort) -> dict[str, float]:
    """The same figures without a model: the source's name as score, one mask for every image.

    The score of an image is the share of its source's training images that have the label; the
    masks are the training mean, cut where it does best on the training images.
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
    scores = np.array([by_source.get(s, unseen) for s in cohort.source.tolist()])
    lung, disease = (
        _template(masks[has] > 0, measure)
        for masks, has, measure in (
            (train.lung, train.has_lung, iou),
            (train.disease, train.has_disease, dice),
        )
    )
    return {**classification(scores, cohort), **segmentation(lung, disease, cohort)}


def _template(
    masks: NDArray[np.bool_], measure: Callable[[NDArray[np.bool_], NDArray[np.bool_]], float]
) -> NDArray[np.bool_]:
    """(N, H, W) to the (H, W) mean mask, cut at the level with the best mean measure."""
    mean = masks.mean(axis=0)
    levels = np.linspace(0.1, 0.7, 13)
    return np.asarray(
        mean >= max(levels, key=lambda t: _mean([measure(mean >= t, m) for m in masks]))
    )


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
