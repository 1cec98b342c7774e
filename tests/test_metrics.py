"""Figures against worked numbers, and the figures one gets without a model."""

from pathlib import Path

import numpy as np
import pytest
from drawn_cohorts import cohort

from comit.card import OperatingPoint
from comit.training.metrics import (
    Predictions,
    area_under_roc,
    baselines,
    classification,
    dice,
    evaluate,
    iou,
    operating_points,
    resampled_area,
    segmentation,
    threshold,
)


def test_iou_and_dice_of_half_overlapping_masks() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    a[:2], b[1:3] = True, True  # 8 cells each, 4 shared, 12 together
    assert iou(a, b) == pytest.approx(4 / 12)
    assert dice(a, b) == pytest.approx(8 / 16)
    nothing = np.zeros((4, 4), bool)
    assert iou(nothing, nothing) == dice(nothing, nothing) == 1.0


def test_threshold_is_the_smallest_that_reaches_the_specificity() -> None:
    negatives = np.linspace(0.01, 0.10, 10, dtype=np.float32)  # 90 %: nine of them below
    t = threshold(negatives, 90)
    assert np.mean(negatives < t) == pytest.approx(0.9)
    below = np.nextafter(np.float32(t), np.float32(0))
    assert np.mean(negatives < below) < 0.9
    assert threshold(negatives, 99) > negatives.max()  # ten images cannot show 99 %


def test_equal_scores_are_flagged_together_or_not_at_all() -> None:
    negatives = np.array([0.1] * 8 + [0.5] * 2, np.float32)
    t = threshold(negatives, 90)
    assert not (negatives >= t).any()


def test_threshold_without_negatives_is_refused() -> None:
    with pytest.raises(ValueError, match="without the finding"):
        threshold(np.zeros(0, np.float32), 90)


def test_operating_points_count_their_negatives_and_fit_the_card() -> None:
    labels = cohort([0] * 20 + [1] * 20, [0] * 30 + [1] * 10, ["a"] * 40)
    scores = np.tile(np.linspace(0, 1, 40, dtype=np.float32)[:, None], (1, 3))
    points = operating_points(scores, labels)
    assert set(points) == {"90", "99"}
    point = OperatingPoint(**points["90"])
    assert point.negatives == {"unhealthy": 20, "covid": 30}
    assert np.mean(scores[:20, 0] < point.unhealthy) == pytest.approx(0.9)
    assert np.mean(scores[:30, 1] < point.covid) == pytest.approx(0.9)
    assert points["99"]["unhealthy"] > point.unhealthy


def test_within_source_covid_is_against_other_disease_and_comes_first() -> None:
    # In "b" the healthy image scores highest; it must not count, nor must the unknown one.
    labels = cohort([0, 1, 1, 1, 0, -1], [0, 0, 1, 1, 0, -1], ["a", "b", "b", "b", "b", "b"])
    labels.findings[5] = -1
    scores = np.zeros((6, 3), np.float32)
    scores[:, 1] = [0, 0.1, 0.2, 0.3, 0.9, 0.9]
    figures = classification(scores, labels)
    assert next(iter(figures)) == "covid_auc_within_b"
    assert figures["covid_auc_within_b"] == 1.0
    assert figures["covid_auc_mixed"] == pytest.approx(4 / 6)  # of 2 x 3 pairs, 4 in order
    assert "covid_auc_within_a" not in figures  # one class alone has no curve


def test_area_of_a_draw_is_that_of_its_images_repeated() -> None:
    rng = np.random.default_rng(3)
    labels, scores = rng.integers(0, 2, 30), rng.integers(0, 8, 30) / 8  # many scores are equal
    draws = rng.integers(0, 30, (20, 30))
    times = np.array([np.bincount(draw, minlength=30) for draw in draws])
    expected = [area_under_roc(labels[draw], scores[draw]) for draw in draws]
    assert resampled_area(labels, scores, times) == pytest.approx(expected)
    assert np.isnan(resampled_area(labels, scores, times * labels)).all()  # positives alone


def test_segmentation_counts_annotated_images_only() -> None:
    labels = cohort([1, 1, 1], [0, 0, 0], ["a"] * 3)
    labels.lung[0, :112] = 1
    labels.has_lung[0] = True
    labels.disease[1, :56] = 1
    labels.has_disease[1:] = True  # image 2: annotated, and empty
    found = np.zeros((3, 224, 224), bool)
    found[:, :112] = True
    figures = segmentation(found, found, labels)
    assert figures["lung_iou"] == 1.0 and figures["lung_images"] == 1
    assert figures["disease_images"] == 1
    assert figures["disease_dice"] == pytest.approx(2 * 56 / (56 + 112))
    assert figures["disease_tpr"] == 1.0
    assert figures["disease_fp_area"] == pytest.approx(56 / 168)


def test_masks_are_cut_above_one_half() -> None:
    labels = cohort([1, 0], [0, 0], ["a", "a"])
    labels.lung[:] = 1
    labels.has_lung[:] = True
    masks = np.full((2, 2, 224, 224), 128, np.uint8)  # 128 / 255 = 0.502
    masks[1] = 127
    figures = evaluate(Predictions(np.zeros((2, 3), np.float32), masks), labels)
    assert figures["lung_iou"] == 0.5


def test_the_source_alone_separates_two_data_sets() -> None:
    """Every COVID image from one source: mixed AUC is high, within-source it is chance."""
    sick = [0, 0, 0, 1] * 2
    train = cohort(sick + [1] * 8, [0] * 8 + [0, 1, 1, 1] * 2, ["healthy set"] * 8 + ["covid"] * 8)
    figures = baselines(train, train)
    assert figures["covid_auc_within_covid"] == 0.5
    assert figures["covid_auc_mixed"] == pytest.approx(0.9)  # 10 x 6 pairs: 48 in order, 12 tied

    assert "lung_iou" not in figures


@pytest.mark.real
def test_baselines_of_the_real_test_split(shared: Path) -> None:
    from comit.training.data import load, read_manifest

    manifest = shared / "cxr" / "manifest.parquet"
    rows = read_manifest(manifest)
    train, test = (
        load([r for r in rows if r["split"] == s], manifest.parent) for s in ("train", "test")
    )
    figures = baselines(train, test)
    assert figures["covid_auc_within_covid-chestxray"] == 0.5
    assert figures["covid_auc_mixed"] == pytest.approx(0.93, abs=0.01)
    assert figures["unhealthy_auc_mixed"] == pytest.approx(0.80, abs=0.01)
    assert figures["lung_iou"] == pytest.approx(0.73, abs=0.01)
    assert figures["disease_dice_within_covid-chestxray"] == pytest.approx(0.52, abs=0.01)
