"""How good predictions are, and how good one gets without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comit.results import FOREGROUND
from comit.training.data import UNKNOWN, Cohort


class Predictions(NamedTuple):
    """A model's outputs for a cohort."""

    scores: NDArray[np.float32]  # (N, 3 or more): unhealthy, COVID, other; a network's chest
    masks: NDArray[np.uint8]  # (N, 2, 224, 224): probability of lung and disease times 255


def area_under_roc(labels: NDArray[np.generic], scores: NDArray[np.generic]) -> float:
    """Area under the ROC curve; NaN where only one class is present."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores)) if len(np.unique(labels)) == 2 else float("nan")


def resampled_area(
    labels: NDArray[np.generic], scores: NDArray[np.generic], times: NDArray[np.int64]
) -> NDArray[np.float64]:
    """:func:`area_under_roc` where image i counts ``times[d, i]`` times: (draws,), NaN likewise."""
    order = np.argsort(scores, kind="stable")
    first = np.unique(scores[order], return_index=True)[1]  # of those with the same score
    found = []
    for draw in times[:, order]:
        positive, negative = (np.add.reduceat(draw * (labels[order] == k), first) for k in (1, 0))
        won = np.sum(positive * (np.cumsum(negative) - negative / 2))
        pairs = positive.sum() * negative.sum()
        found.append(won / pairs if pairs else np.nan)
    return np.array(found)


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
    measured = mask_figures(lung, disease, cohort)
    figures = {k: _mean(v[~np.isnan(v)].tolist()) for k, v in measured.items()}
    figures["lung_images"] = float(np.count_nonzero(~np.isnan(measured["lung_iou"])))
    figures["disease_images"] = float(np.count_nonzero(~np.isnan(measured["disease_dice"])))
    return {k: v for k, v in figures.items() if not np.isnan(v)}


def mask_figures(
    lung: NDArray[np.bool_], disease: NDArray[np.bool_], cohort: Cohort
) -> dict[str, NDArray[np.float64]]:
    """What the means of :func:`segmentation` are of, (N,); NaN where an image does not count."""
    measured = per_image(lung, disease, cohort)
    found = measured["disease_dice"]
    for source in sorted(set(cohort.source[~np.isnan(found)].tolist())):
        here = cohort.source == source
        measured[f"disease_dice_within_{source}"] = np.where(here, found, np.nan)
    return measured


def per_image(
    lung: NDArray[np.bool_], disease: NDArray[np.bool_], cohort: Cohort
) -> dict[str, NDArray[np.float64]]:
    """Lung IoU, disease Dice, TPR and false-positive area of each image, (N,).

    NaN where it is not annotated.
    """
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


class Area(NamedTuple):
    """An area under the ROC curve: which score, against which labels, over which images."""

    name: str
    score: int  # column of the scores
    labels: NDArray[np.int8]  # (N,)
    chosen: NDArray[np.bool_]  # (N,)


def areas(cohort: Cohort) -> Iterator[Area]:
    """Every area of :func:`classification`."""
    unhealthy, covid, other = cohort.unhealthy, cohort.findings[:, 0], cohort.findings[:, 1]
    known = unhealthy != UNKNOWN
    sources = {s: cohort.source == s for s in sorted(set(cohort.source.tolist()))}
    sick = (unhealthy == 1) & (covid != UNKNOWN)
    for source, here in sources.items():
        yield Area(f"covid_auc_within_{source}", 1, covid, sick & here)
    for source, here in sources.items():
        yield Area(f"unhealthy_auc_within_{source}", 0, unhealthy, known & here)
    yield Area("unhealthy_auc_mixed", 0, unhealthy, known)
    yield Area("covid_auc_mixed", 1, covid, covid != UNKNOWN)
    yield Area("other_auc_mixed", 2, other, other != UNKNOWN)


def classification(scores: NDArray[np.generic], cohort: Cohort) -> dict[str, float]:
    """Areas under the ROC curve, within each source first, then mixed.

    Within a source COVID is against other disease. Read those figures: across sources a score
    can tell data sets apart instead. A figure with one class alone is left out.
    """
    figures = {
        a.name: area_under_roc(a.labels[a.chosen], scores[a.chosen, a.score]) for a in areas(cohort)
    }
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
