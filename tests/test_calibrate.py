"""Thresholds, intervals and calibration: worked numbers, then a card that screening reads."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from click.testing import CliRunner  # noqa: E402
from training_runs import QUIET, TINY  # noqa: E402

from comit.card import card_path, read_card  # noqa: E402
from comit.errors import UsageError  # noqa: E402
from comit.model.calibrate import (  # noqa: E402
    calibrate,
    calibrated,
    calibration,
    fold_of,
    out_of_fold,
    points,
    subset,
)
from comit.model.cli import calibrate as command  # noqa: E402
from comit.model.data import Cohort, load, read_manifest  # noqa: E402
from comit.options import Options  # noqa: E402
from comit.screening import screen  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def cohort(unhealthy: np.ndarray, patients: np.ndarray | None = None) -> Cohort:
    """Labels alone; every unhealthy image has COVID."""
    n = len(unhealthy)
    none = np.zeros((n, 1, 1), np.uint8)
    flags = np.zeros(n, np.bool_)
    return Cohort(
        images=none.astype(np.float16),
        lung=none,
        disease=none,
        ignore=none,
        has_lung=flags,
        has_disease=flags,
        unhealthy=unhealthy.astype(np.int8),
        findings=np.column_stack([unhealthy, 0 * unhealthy]).astype(np.int8),
        chest=np.ones(n, np.int8),
        shape=np.full((n, 2), 512, np.int32),
        basis=np.array([""] * n),
        source=np.array(["a"] * n),
        patient=np.arange(n).astype(str) if patients is None else patients,
        view=np.array(["PA"] * n),
    )


def three(scores: np.ndarray) -> np.ndarray:
    return np.repeat(scores.astype(np.float32)[:, None], 3, axis=1)


def test_the_interval_is_clopper_and_pearsons() -> None:
    labels = cohort(np.array([0] * 34 + [1] * 10))
    found = points(three(np.linspace(0, 1, 44)), labels, "somewhere")
    point = found["99"]  # of 34 negatives all must lie below: 34 of 34
    assert point.interval["unhealthy"] == pytest.approx([0.025 ** (1 / 34), 1.0])
    assert point.negatives == {"unhealthy": 34, "covid": 34}
    assert point.origin == "somewhere"
    low, high = found["90"].interval["covid"]  # 31 of 34: 0.912
    assert low < 31 / 34 < high < 1


def test_platt_recovers_the_curve_that_drew_the_labels() -> None:
    random = np.random.default_rng(0)
    scores = random.uniform(0.02, 0.98, 20_000)
    logit = np.log(scores / (1 - scores))
    share = 1 / (1 + np.exp(-(0.5 * logit - 1)))
    labels = cohort((random.random(len(scores)) < share).astype(int))
    found = calibration(three(scores), labels)
    assert found["covid"]["slope"] == pytest.approx(0.5, abs=0.05)
    assert found["covid"]["intercept"] == pytest.approx(-1, abs=0.05)
    assert np.abs(calibrated(three(scores), found)[:, 1] - share).max() < 0.02
    assert "other" not in found  # nobody has another disease: no curve, and scores stay
    assert np.allclose(calibrated(three(scores), found)[:, 2], scores, atol=1e-6)


def test_isotonic_gives_the_share_of_each_step() -> None:
    scores = np.repeat([0.2, 0.5, 0.8], 10)
    labels = cohort(np.array([0] * 10 + [1] * 4 + [0] * 6 + [1] * 9 + [0]))
    shares = calibrated(three(scores), calibration(three(scores), labels, "isotonic"))
    assert shares[[0, 10, 20], 0] == pytest.approx([0.0, 0.4, 0.9], abs=1e-6)


def test_folds_keep_patients_whole_and_cover_every_image() -> None:
    patients = np.repeat(np.arange(20), 3).astype(str)
    labels = cohort(np.repeat(np.arange(20) % 2, 3), patients)
    fold = fold_of(labels, 4, seed=0)
    assert set(fold) == {0, 1, 2, 3}
    for patient in np.unique(patients):
        assert len(set(fold[patients == patient])) == 1
    sick = [labels.unhealthy[fold == k].mean() for k in range(4)]
    assert max(sick) - min(sick) <= 0.3
    with pytest.raises(UsageError, match="as many patients"):
        fold_of(cohort(np.array([0, 1])), 3, seed=0)


def test_each_image_is_scored_by_a_network_that_has_not_seen_its_patient(
    cohort_manifest: Path, tmp_path: Path
) -> None:
    rows = [r for r in read_manifest(cohort_manifest) if r["split"] != "test"]
    images = load(rows, cohort_manifest.parent)
    config = replace(TINY, epochs=1)
    scores = out_of_fold(images, 2, config, tmp_path, torch.device("cpu"), QUIET)
    fold = fold_of(images, 2, config.seed)
    for k in range(2):
        held = np.load(tmp_path / f"fold-{k}" / "scores.npy")
        assert np.array_equal(scores[fold == k], held)
        seen = json.loads((tmp_path / f"fold-{k}" / "run.json").read_text())["train_images"]
        assert seen == (fold != k).sum()
    weights = (tmp_path / "fold-0" / "checkpoint.pt").stat().st_mtime_ns
    again = out_of_fold(images, 2, config, tmp_path, torch.device("cpu"), QUIET)
    assert np.array_equal(again, scores)
    assert (tmp_path / "fold-0" / "checkpoint.pt").stat().st_mtime_ns == weights
    other = subset(images, np.arange(len(images)) > 1)
    with pytest.raises(UsageError, match="another manifest or recipe"):
        out_of_fold(other, 2, config, tmp_path, torch.device("cpu"), QUIET)


def test_screening_takes_its_flags_from_the_new_card(
    tiny_model: Path, cohort_manifest: Path, tmp_path: Path, pictures: Path
) -> None:
    model = tmp_path / "model.onnx"
    shutil.copy(tiny_model, model)
    shutil.copy(card_path(tiny_model), card_path(model))
    before = read_card(model)
    done = CliRunner().invoke(command, [str(model), str(cohort_manifest), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    card = read_card(model)
    point = card.operating_points["90"]
    low, high = point.interval["covid"]
    assert f"COVID >= {point.covid:.3f} (3 negatives, interval {low:.1%} to {high:.1%})" in (
        done.output
    )
    assert "fewer than 100 negatives" in done.output
    assert point.negatives == {"unhealthy": 2, "covid": 3} and point.origin == "val"
    assert card.calibration["covid"]["images"] == 4
    assert replace(card, operating_points=before.operating_points, calibration={}) == before
    report = screen(
        pictures, tmp_path / "r.parquet", Options(model=model, precision="fp32"), console=QUIET
    )
    assert report.settings["operating point"]["covid"] == point.covid


def test_a_run_keeps_its_calibration_for_the_export(
    finished: Path, cohort_manifest: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    card = calibrate(str(run), cohort_manifest, device="cpu", method="isotonic", console=QUIET)
    from comit.model.opened import open_network

    assert open_network(str(run)).card == card
    assert card.calibration["unhealthy"]["method"] == "isotonic"


def test_the_bundled_model_and_folds_without_a_folder_are_refused(
    finished: Path, cohort_manifest: Path
) -> None:
    with pytest.raises(UsageError, match="bundled model stays"):
        calibrate("bundled", cohort_manifest)
    with pytest.raises(UsageError, match="--work"):
        calibrate(str(finished), cohort_manifest, folds=2, device="cpu", console=QUIET)


def test_options_of_folds_alone_are_refused_without_them(
    finished: Path, cohort_manifest: Path, tmp_path: Path
) -> None:
    for option in (["--work", str(tmp_path / "work")], ["--epochs", "3"]):
        done = CliRunner().invoke(command, [str(finished), str(cohort_manifest), *option])
        assert isinstance(done.exception, UsageError) and "--folds" in str(done.exception)


def test_what_info_shows_of_a_calibrated_card(tiny_model: Path, tmp_path: Path) -> None:
    from comit.terminal.summary import information

    model = tmp_path / "model.onnx"
    shutil.copy(tiny_model, model)
    labels = cohort(np.array([0] * 34 + [1] * 10))
    scores = three(np.linspace(0, 1, 44))
    card = replace(
        read_card(tiny_model),
        operating_points=points(scores, labels, "val"),
        calibration=calibration(scores, labels) | {"origin": "val"},
        metrics={"test": {"lung_iou": 0.8, "lung_images": 3.0, "disease_dice": 0.5}},
        intervals={"test": {"lung_iou": [0.7, 0.9]}},
        baselines={"test": {"lung_iou": 0.6}},
        notes=["Learned from drawings."],
    )
    card.write(card_path(model))
    said = information(model, as_json=False)
    assert "(34 negatives, interval 89.7% to 100.0%)" in said and "; from val" in said
    assert "covid: calibrated (platt) on 44 images, 10 of them positive" in said
    assert "Learned from drawings." in said
    rows = {words[0]: words[1:] for line in said.splitlines() if (words := line.split())}
    assert rows["lung_iou"] == ["0.800", "[0.700,", "0.900]", "0.600"]
    assert rows["disease_dice"] == ["0.500"] and rows["lung_images"] == ["3"]
