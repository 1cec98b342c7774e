"""Figures against worked numbers, and the page that a person reads."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from click.testing import CliRunner
from drawn_cohorts import cohort

from comit.card import Card, OperatingPoint
from comit.model.cli import evaluate as command
from comit.model.data import Cohort
from comit.model.evaluation import (
    EvaluationConfig,
    decisions,
    equal_error_rate,
    evaluation,
    intervals,
    questions,
    resampled,
    sensitivity_at,
)
from comit.model.metrics import Predictions, evaluate
from comit.model.stability import CHANGES

pytestmark = pytest.mark.usefixtures("one_thread")
CARD = Card(
    name="m",
    sha256="",
    width=1.0,
    mean=0.5,
    std=0.25,
    operating_points={"90": OperatingPoint(0.5, 0.5, {"unhealthy": 4, "covid": 4})},
)


def test_sensitivity_at_a_specificity_is_read_off_the_curve() -> None:
    labels = np.array([0] * 10 + [1] * 4)
    scores = np.array([*np.linspace(0, 0.9, 10), 0.05, 0.85, 0.95, 0.99])
    assert sensitivity_at(labels, scores, 0.90) == 0.75  # one negative of ten above 0.85
    assert sensitivity_at(labels, scores, 0.99) == 0.5  # none of ten above 0.95
    assert sensitivity_at(labels, scores, 0.0) == 1.0


def test_equal_error_rate_is_where_both_errors_meet() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert equal_error_rate(labels, labels.astype(float)) == 0.0
    one_wrong = np.array([0.1, 0.2, 0.3, 0.8, 0.4, 0.7, 0.9, 1.0])
    assert equal_error_rate(labels, one_wrong) == pytest.approx(0.25)
    assert equal_error_rate(labels, np.full(8, 0.5)) == pytest.approx(0.5)


def test_decisions_are_counted() -> None:
    labels, flagged = np.array([1, 1, 1, 0, 0]), np.array([True, True, False, True, False])
    said = decisions(labels, flagged, np.array([[1, 1, 1, 1, 1], [3, 0, 1, 0, 2]]))
    assert {k: v.tolist() for k, v in said.items()} == {
        "accuracy": [3 / 5, 5 / 6],
        "precision": [2 / 3, 1.0],
        "recall": [2 / 3, 3 / 4],
        "specificity": [1 / 2, 1.0],
        "f1": [2 / 3, 6 / 7],
    }
    nobody = decisions(np.array([1, 0]), np.array([False, False]), np.ones((1, 2), np.int64))
    assert np.isnan(nobody["precision"]) and nobody["f1"] == 0.0


def test_patients_are_drawn_whole() -> None:
    patients = np.array(["b", "a", "b", "c", "b"])
    draws = resampled(patients, EvaluationConfig(resamples=50, seed=1))
    assert len(draws) == 50
    for draw in draws:
        counts = np.bincount(draw, minlength=5)
        assert counts[0] == counts[2] == counts[4]
        assert counts[0] + counts[1] + counts[3] == 3  # as many patients as there are
    again = resampled(patients, EvaluationConfig(resamples=50, seed=1))
    assert all(np.array_equal(a, b) for a, b in zip(draws, again, strict=True))


def test_covid_within_a_source_is_the_first_question() -> None:
    labels = cohort([0, 0, 1, 1, 1], [0, 0, 1, 0, 1], ["a", "a", "b", "b", "b"])
    asked = list(questions(labels))
    assert asked[0].name == "covid against other disease, within b"
    assert asked[0].chosen.tolist() == [False, False, True, True, True]
    names = [q.name for q in asked]
    assert "unhealthy, within a" not in names  # healthy alone: nothing to tell apart
    assert "unhealthy, sources mixed" in names
    # Appearances called atypical, in b, are neither: COVID against healthy has no healthy there.
    assert not [name for name in names if "against healthy" in name]


def test_covid_is_also_asked_against_the_healthy_of_its_source() -> None:
    labels = cohort([0, 1, 1, 0], [0, 1, 0, 0], ["a", "a", "a", "b"])
    asked = {q.name: q for q in questions(labels)}
    for by, score in (("", 1), (" by disease_fraction", 4)):
        question = asked[f"covid{by} against healthy, within a"]
        assert question.score == score and question.label == 1
        assert question.chosen.tolist() == [True, True, False, False]


@pytest.fixture(scope="module")
def said() -> tuple[Predictions, Cohort]:
    n = 40
    labels = cohort([0] * 20 + [1] * 20, [0] * 30 + [1] * 10, ["a"] * 20 + ["b"] * 20)
    for i in range(20):
        labels.lung[i, :112] = 1
    labels.has_lung[:20] = True
    rising = np.linspace(0, 1, n, dtype=np.float32)
    masks = np.zeros((n, 2, 224, 224), np.uint8)
    masks[:10, 0, :112] = 255  # ten lungs right, ten wholly missed
    scores = np.repeat(rising[:, None], 3, axis=1)
    return Predictions(scores, masks), labels


@pytest.fixture(scope="module")
def found(said: tuple[Predictions, Cohort]) -> dict:
    predictions, labels = said
    return evaluation(predictions, labels, labels, CARD, EvaluationConfig(resamples=100))


def test_figures_stand_beside_their_interval_and_the_no_model_figure(found: dict) -> None:
    asked = found["questions"]["covid against other disease, within b"]
    assert (asked["positives"], asked["negatives"]) == (10, 10)
    expected = {"value": 1.0, "low": 1.0, "high": 1.0, "no_model": 0.5}
    assert asked["figures"]["auc"] == pytest.approx(expected)
    mixed = found["questions"]["covid, sources mixed"]["figures"]["auc"]
    assert mixed["no_model"] == pytest.approx((10 * 20 + 10 * 10 / 2) / (10 * 30))
    lung = found["masks"]["lung_iou"]
    assert lung["value"] == 0.5 and lung["images"] == 20
    assert 0.2 < lung["low"] < 0.5 < lung["high"] < 0.8
    assert lung["no_model"] == 1.0


def test_rectangles_around_the_lungs_are_compared_with_the_radiologists(
    said: tuple[Predictions, Cohort],
) -> None:
    predictions, labels = said
    lungs = np.zeros((224, 224), np.uint8)
    lungs[50:150, 30:90] = 255
    lungs[60:170, 130:200] = 255
    lungs[50:60, 30:50] = 0  # a corner is missing: the rectangle has it
    masks = predictions.masks.copy()
    masks[:, 0] = lungs
    drawn = np.zeros((224, 224), bool)
    drawn[50:150, 30:90] = drawn[60:170, 130:200] = True
    boxes = [drawn] * 3 + [None] * 37
    found = evaluation(
        predictions._replace(masks=masks), labels, labels, CARD, EvaluationConfig(10), boxes
    )
    figure = found["masks"]["lung_rectangles_iou"]
    assert (figure["value"], figure["images"]) == (1.0, 3) and figure["no_model"] < 1


def test_intervals_of_a_card_are_those_of_the_page(
    found: dict, said: tuple[Predictions, Cohort]
) -> None:
    card = intervals(*said, EvaluationConfig(resamples=100))
    assert card.keys() == {k for k in evaluate(*said) if not k.endswith("_images")}
    asked = found["questions"]
    page = {
        "covid_auc_within_b": asked["covid against other disease, within b"]["figures"]["auc"],
        "covid_auc_mixed": asked["covid, sources mixed"]["figures"]["auc"],
        "lung_iou": found["masks"]["lung_iou"],
    }
    for name, figure in page.items():
        assert card[name] == pytest.approx([figure["low"], figure["high"]])


def test_the_cards_threshold_is_used_as_screening_uses_it(found: dict) -> None:
    at = found["questions"]["unhealthy, sources mixed"]["at"]["90"]
    perfect = {"value": 1.0, "low": 1.0, "high": 1.0, "no_model": 1.0}  # as the sources are
    assert at["recall"] == at["specificity"] == perfect  # 0.5 falls between the two halves
    assert found["questions"]["other, sources mixed"]["at"] == {}  # no threshold on a card


def test_decisions_have_an_interval_and_a_no_model_figure(found: dict) -> None:
    at = found["questions"]["covid, sources mixed"]["at"]["90"]
    assert at["precision"]["value"] == 0.5  # 20 flagged, 10 of them COVID
    assert 0.2 < at["precision"]["low"] < 0.5 < at["precision"]["high"] < 0.8
    # the source alone flags all of b or nobody, and all of b is a specificity of 20 / 30
    assert at["precision"]["no_model"] is None and at["recall"]["no_model"] == 0.0
    assert at["specificity"]["no_model"] == 1.0
    json.dumps(found, allow_nan=False)


def test_briers_score_has_an_interval_and_a_no_model_figure(found: dict) -> None:
    brier = found["calibration"]["covid"]["raw"]["brier"]
    assert brier["low"] < brier["value"] < brier["high"]
    assert brier["no_model"] == pytest.approx(20 * 0.25 / 40)  # 0 of a; one half of b


def test_whole_lungs_stand_beside_disease() -> None:
    labels = cohort([1] * 4, [0] * 4, ["a"] * 4)
    labels.has_disease[:2] = True
    labels.disease[:2, 56:168, :112] = 1
    labels.has_lung[0] = True
    labels.lung[0, :, :112] = 1  # holds all of the disease, and as much again
    masks = np.zeros((4, 2, 224, 224), np.uint8)
    masks[1, 0, 56:112, :112] = 255  # the lungs that are seen hold half of it
    said = Predictions(np.full((4, 3), 0.9, np.float32), masks)
    found = evaluation(said, labels, labels, CARD, EvaluationConfig(resamples=0))["masks"]
    assert found["disease_tpr"]["whole_lung"] == pytest.approx((1.0 + 0.5) / 2)
    assert found["disease_dice"]["whole_lung"] == pytest.approx(2 / 3)
    assert found["disease_fp_area"]["whole_lung"] == pytest.approx((1 / 3 + 0) / 2)
    assert found["disease_tpr"]["value"] == 0.0 and "whole_lung" not in found["lung_iou"]


def test_the_papers_figures_stand_beside_ours(found: dict) -> None:
    rows = {r["figure"]: r for r in found["paper"]}
    assert rows["covid, sources mixed: sensitivity_at_90"]["paper"] == 0.968
    assert rows["lung_iou"]["ours"] == found["masks"]["lung_iou"]
    assert rows["disease_tpr"]["ours"] is None  # nobody drew disease here
    assert rows["covid, BIMCV-COVID19+ unseen: sensitivity_at_90"]["ours"] is None
    assert rows["covid, sources mixed: f1_at_99"]["paper"] == 0.739
    assert rows["covid, sources mixed: f1_at_99"]["ours"] is None  # the card has no such threshold


def test_the_command_writes_a_page_pictures_and_json(
    finished: Path, cohort_manifest: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "page"
    options = ["--out", str(out), "--resamples", "20", "--device", "cpu", "--changes"]
    done = CliRunner().invoke(command, [str(finished), str(cohort_manifest), *options])
    assert done.exit_code == 0, done.output
    text = (out / "evaluation.md").read_text()
    assert text.index("within one source") < text.index("The paper's figures")
    assert "Research use only" in text
    assert "not measured: no such images" in text and "| whole lungs |" in text
    assert "the card has no threshold for it" in text
    for name in re.findall(r"\]\((\S+\.png)\)", text):
        assert (out / name).read_bytes()[:4] == b"\x89PNG"
    assert len(re.findall(r"\.png\)", text)) == 5
    kept = json.loads((out / "evaluation.json").read_text())
    assert kept["images"] == 4 and kept["seed"] == 0
    assert {*kept["changes"]} == {*CHANGES} and "| white border of 10 % |" in text
    again = tmp_path / "again"
    options = ["--out", str(again), "--resamples", "20", "--device", "cpu", "--no-pictures"]
    assert CliRunner().invoke(command, [str(finished), str(cohort_manifest), *options])
    assert not list(again.glob("*.png"))
    repeated = json.loads((again / "evaluation.json").read_text())
    assert "changes" not in repeated
    assert repeated["questions"] == kept["questions"] and repeated["masks"] == kept["masks"]


def test_a_calibrated_card_shows_both_curves() -> None:
    labels = cohort([0] * 20 + [1] * 20, [0] * 40, ["a"] * 40)
    scores = np.repeat(np.linspace(0.4, 0.6, 40, dtype=np.float32)[:, None], 3, axis=1)
    sharp = {"unhealthy": {"method": "platt", "slope": 20.0, "intercept": 0.0}}
    kept = evaluation(
        Predictions(scores, np.zeros((40, 2, 224, 224), np.uint8)),
        labels,
        labels,
        replace(CARD, calibration=sharp),
        EvaluationConfig(resamples=2),
    )["calibration"]["unhealthy"]
    assert kept["calibrated"]["brier"]["value"] < kept["raw"]["brier"]["value"]
