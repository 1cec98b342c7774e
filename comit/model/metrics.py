"""How good predictions are, and how good one gets without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comit.masks import FOREGROUND, dice, iou
from comit.model.data import UNKNOWN, Cohort


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
    for name in ("disease_dice", "disease_empty", "lung_iou"):
        found = measured[name]
        for source in sorted(set(cohort.source[~np.isnan(found)].tolist())):
            here = cohort.source == source
            measured[f"{name}_within_{source}"] = np.where(here, found, np.nan)
    return measured


def per_image(
    lung: NDArray[np.bool_], disease: NDArray[np.bool_], cohort: Cohort
) -> dict[str, NDArray[np.float64]]:
    """Lung IoU, disease Dice, TPR and false-positive area of each image, (N,).

    Lungs are not compared where ``cohort.ignore`` is set. ``disease_empty`` is whether at most 1 %
    of the lungs that were found are marked, of an image whose disease is known to be empty. NaN
    where an image is not annotated.
    """
    shape = (len(cohort), *lung.shape[-2:])
    lung, disease = np.broadcast_to(lung, shape), np.broadcast_to(disease, shape)
    names = ("lung_iou", "disease_dice", "disease_tpr", "disease_fp_area", "disease_empty")
    found = {name: np.full(len(cohort), np.nan) for name in names}
    for i in np.flatnonzero(cohort.has_lung):
        seen = cohort.ignore[i] == 0
        found["lung_iou"][i] = iou(lung[i][seen], cohort.lung[i][seen] > 0)
    drawn = (cohort.disease > 0).any(axis=(1, 2))
    for i in np.flatnonzero(cohort.has_disease & ~drawn):
        found["disease_empty"][i] = np.mean(disease[i][lung[i]]) <= 0.01 if lung[i].any() else 1
    for i in np.flatnonzero(cohort.has_disease & drawn):
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
    known, asked = unhealthy != UNKNOWN, covid != UNKNOWN
    chests = cohort.chest == 1
    sources = {s: cohort.source == s for s in sorted(set(cohort.source[chests].tolist()))}
    sick = (unhealthy == 1) & (covid != UNKNOWN)
    for source, here in sources.items():
        yield Area(f"covid_auc_within_{source}", 1, covid, sick & here)
    for source, here in sources.items():
        if (covid[asked & here & (unhealthy == 0)] == 0).any():
            yield Area(f"covid_auc_with_healthy_within_{source}", 1, covid, asked & here)
    for source, here in sources.items():
        yield Area(f"unhealthy_auc_within_{source}", 0, unhealthy, known & here)
    yield Area("unhealthy_auc_mixed", 0, unhealthy, known)
    yield Area("covid_auc_mixed", 1, covid, covid != UNKNOWN)
    yield Area("other_auc_mixed", 2, other, other != UNKNOWN)
    if not chests.all():
        yield Area("gate_auc", 3, cohort.chest, np.ones(len(cohort), np.bool_))


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
    return {k: scores[here, i] for i, (k, here) in enumerate(_without(cohort).items())}


def _without(cohort: Cohort) -> dict[str, NDArray[np.bool_]]:
    """Which images (N,) are known to be without it, in the order of the scores."""
    return {"unhealthy": cohort.unhealthy == 0, "covid": cohort.findings[:, 0] == 0}


def operating_points(scores: NDArray[np.float32], cohort: Cohort) -> dict[str, dict[str, Any]]:
    """Thresholds at 90 % and 99 % specificity, in the shape of comit.card.OperatingPoint.

    A score at or above its threshold is flagged, so the specificity of ``t`` is the share of
    :func:`negatives` below ``t``. It is aimed at over sources, not over their mixture, in which the
    largest source decides (:func:`threshold`). With fewer than 100 negatives 99 % is above the
    highest; their number stands beside the thresholds, and what each source gets. Raises
    ValueError where there are none.
    """
    below = negatives(scores, cohort)
    sources = {k: cohort.source[here] for k, here in _without(cohort).items()}
    found: dict[str, dict[str, Any]] = {}
    for percent in (90, 99):
        cuts = {k: threshold(v, percent, sources[k]) for k, v in below.items()}
        found[str(percent)] = {
            **cuts,
            "negatives": {k: len(v) for k, v in below.items()},
            "specificity": {
                k: {
                    str(s): float(np.mean(v[sources[k] == s] < np.float32(cuts[k])))
                    for s in np.unique(sources[k])
                }
                for k, v in below.items()
            },
        }
    return found


FEWEST = 20  # negatives of a source whose specificity counts alone; smaller ones count as one


def threshold(
    negatives: NDArray[np.float32], percent: int, sources: NDArray[np.str_] | None = None
) -> float:
    """The smallest float32 whose specificity on ``negatives`` is at least ``percent`` %.

    Given their ``sources`` (N,), the mean over sources has to be, and the worst source may flag
    half as many again as the mean: at 90 %, 15 % of its negatives.
    """
    if not len(negatives):
        raise ValueError("a threshold at a specificity needs images without the finding")
    groups = [np.sort(negatives.astype(np.float32))]
    if sources is not None:
        names, which, counts = np.unique(sources, return_inverse=True, return_counts=True)
        few = counts[which] < FEWEST
        split = [negatives[which == k] for k in range(len(names)) if counts[k] >= FEWEST]
        if few.sum() >= FEWEST or not split:
            split.append(negatives[few])
        groups = [np.sort(g.astype(np.float32)) for g in split]
    cuts = np.nextafter(np.unique(np.concatenate(groups)), np.float32(np.inf))
    below = np.stack([np.searchsorted(g, cuts) / len(g) for g in groups])  # (sources, cuts)
    wanted = percent / 100 - 1e-9
    worst = wanted if len(groups) == 1 else 1 - 1.5 * (1 - wanted)
    enough = (below.mean(axis=0) >= wanted) & (below.min(axis=0) >= worst)
    return float(cuts[np.argmax(enough)])


KEPT, REJECTED = 0.995, 0.98  # shares that the gate's threshold aims at


def gate_of(
    chests: NDArray[np.float32],
    sources: NDArray[np.str_],
    others: NDArray[np.float32],
    kinds: NDArray[np.str_],
) -> dict[str, Any]:
    """The gate's threshold and what it does, in the shape of comit.card.Gate.

    ``chests`` (N,) are scores of chest radiographs of ``sources``, ``others`` (M,) of what is none,
    of ``kinds``. At the threshold every source keeps 99.5 % of its chests or more: the worst source
    counts. Where 98 % of the others lie below that with room to spare, it is halfway (in logits)
    between them and the chests.
    """
    least = min(
        np.sort(chests[sources == s])[int((1 - KEPT) * np.count_nonzero(sources == s))]
        for s in np.unique(sources)
    )
    most = np.quantile(others, REJECTED, method="inverted_cdf")
    cut = float(least)
    if most < least:
        logits = [np.log(p / (1 - p)) for p in np.clip([least, most], 1e-6, 1 - 1e-6)]
        cut = float(1 / (1 + np.exp(-np.mean(logits))))
    groups = [(chests >= cut, sources), (others < cut, kinds)]
    kept, rejected = (
        {str(k): float(right[of == k].mean()) for k in np.unique(of)} for right, of in groups
    )
    images = {str(k): int(np.count_nonzero(of == k)) for _, of in groups for k in np.unique(of)}
    return {"threshold": cut, "kept": kept, "rejected": rejected, "images": images}


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
        + [0.5]  # the source's name says nothing of the gate
        for s in sorted(set(train.source[train.chest == 1].tolist()))
    }
    unseen = [0.5] * 4
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
