"""Figures against worked numbers, and the figures one gets without a model."""

from pathlib import Path

import numpy as np
import pytest
from drawn_cohorts import cohort

from comit.card import Gate, OperatingPoint
from comit.masks import dice, iou
from comit.model.metrics import (
    Predictions,
    area_under_roc,
    baselines,
    classification,
    evaluate,
    gate_of,
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


def test_a_threshold_is_chosen_over_sources_not_over_their_mixture() -> None:
    low, high = (np.linspace(a, a + 0.2, n, dtype=np.float32) for a, n in ((0.1, 1000), (0.5, 40)))
    scores, sources = np.concatenate([low, high]), np.array(["many"] * 1000 + ["few"] * 40)
    assert threshold(scores, 90) < 0.35  # of the mixture: the few may all be flagged
    cut = threshold(scores, 90, sources)
    assert np.mean(high < cut) == pytest.approx(0.85)  # the worst source at 90 %
    tiny = np.append(sources[:-1], "one")  # a source with one negative does not decide
    assert threshold(np.append(scores[:-1], np.float32(0.99)), 90, tiny) < 0.71


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
    assert point.specificity == {"unhealthy": {"a": 0.9}, "covid": {"a": 0.9}}


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
    from comit.model.data import load, read_manifest

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


def test_lungs_are_not_compared_where_the_outline_says_nothing() -> None:
    labels = cohort([0], [0], ["jsrt"])
    labels.has_lung[:] = True
    labels.lung[0, :100] = 1
    labels.ignore[0, :, 112:] = 1
    said = np.zeros((1, 224, 224), bool)
    said[0, :100, :112] = True  # as drawn on the left; nothing on the right, which is ignored
    nothing = np.zeros_like(said)
    figures = segmentation(said, nothing, labels)
    assert figures["lung_iou"] == figures["lung_iou_within_jsrt"] == 1
    labels.ignore[:] = 0
    assert segmentation(said, nothing, labels)["lung_iou"] == 0.5


def test_a_mask_known_to_be_empty_may_mark_a_hundredth_of_the_lungs() -> None:
    labels = cohort([0, 0, 0], [0, 0, 0], ["siim"] * 3)
    labels.has_disease[:2] = True  # of the third nobody knows
    lung, disease = np.zeros((2, 3, 224, 224), bool)
    lung[:, :100] = True
    disease[0, 0] = True  # 1 of 100 rows
    disease[1, :2] = True
    disease[0, 150:] = True  # outside the lungs
    figures = segmentation(lung, disease, labels)
    assert figures["disease_empty"] == figures["disease_empty_within_siim"] == 0.5
    assert "disease_dice" not in figures


def test_covid_is_told_from_healthy_within_a_source_that_has_both() -> None:
    labels = cohort([0, 0, 1, 1, 0], [0, 0, 1, 1, 0], ["siim"] * 4 + ["other"])
    scores = np.array([[0, s, 0, s] for s in (0.1, 0.8, 0.7, 0.9, 0.5)], np.float32)
    figures = classification(scores, labels)
    assert figures["covid_auc_with_healthy_within_siim"] == 0.75
    assert "covid_auc_with_healthy_within_other" not in figures and "gate_auc" not in figures


def test_the_gates_threshold_keeps_the_worst_source_and_leaves_room() -> None:
    chests = np.array([0.9] * 400 + [0.6] + [0.8] * 9, np.float32)
    sources = np.array(["many"] * 400 + ["few"] * 10)
    others = np.array([0.1] * 98 + [0.95] * 2, np.float32)
    found = gate_of(chests, sources, others, np.array(["hand"] * 50 + ["page"] * 50))
    assert 0.1 < found["threshold"] < 0.6
    assert found["kept"] == {"few": 1, "many": 1}
    assert found["rejected"] == {"hand": 1, "page": 0.96}
    assert found["images"] == {"few": 10, "many": 400, "hand": 50, "page": 50}
    close = gate_of(chests, sources, np.full(100, 0.7, np.float32), np.array(["hand"] * 100))
    assert close["threshold"] == pytest.approx(0.6) and close["rejected"] == {"hand": 0}
    assert Gate(**found).threshold == found["threshold"]
