"""The tables of rivals and of task subsets, with networks too small to learn anything."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from click.testing import CliRunner  # noqa: E402
from drawn_cohorts import cohort  # noqa: E402
from training_runs import QUIET, TINY  # noqa: E402

from comit.errors import UsageError  # noqa: E402
from comit.model.network import NetworkConfig  # noqa: E402
from comit.training.cli import baselines as command  # noqa: E402
from comit.training.comparison import ABLATION, BASELINES, compare, measured  # noqa: E402
from comit.training.data import load, read_manifest  # noqa: E402
from comit.training.loop import Resident  # noqa: E402
from comit.training.metrics import Predictions  # noqa: E402
from comit.training.rivals import CLASSIFIERS, builder  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
ONE = replace(TINY, epochs=1)


def cells(lines: list[str], row: str) -> list[str]:
    (line,) = [li for li in lines if li.startswith(f"| {row} |")]
    return [c.strip() for c in line.strip("|").split("|")]


def test_the_rows_are_the_papers() -> None:
    assert {r.name: r.paper.get("sensitivity_at_90") for r in BASELINES}["vgg19"] == 0.824
    assert len(ABLATION) == 8 and all(4 in r.tasks for r in ABLATION)  # table 5 is about COVID
    assert len({r.name for r in (*BASELINES, *ABLATION)}) == len(BASELINES) + len(ABLATION)


def test_tasks_left_out_are_switched_off_for_every_image(cohort_manifest: Path) -> None:
    images = load(read_manifest(cohort_manifest)[1:4], cohort_manifest.parent)
    data = Resident.of(images, torch.device("cpu"), tasks=(1, 4))
    assert (data.switches > 0).tolist() == [[True, False, False, True]] * 3


def test_figures_are_of_the_tasks_alone() -> None:
    labels = cohort([0, 0, 1, 1, 1], [0, 0, 0, 1, 1], ["a"] * 5)
    labels.lung[:, :112] = 1
    labels.has_lung[:] = True
    scores = np.zeros((5, 3), np.float32)
    scores[:, 1] = [0.1, 0.2, 0.9, 0.8, 0.95]
    masks = np.zeros((5, 2, 224, 224), np.uint8)
    masks[:, 0, :112] = 255
    said = measured(Predictions(scores, masks), labels, (1, 4))
    assert said["covid_auc_within"] == 0.5  # of two pairs with another disease, one in order
    assert said["sensitivity_at_90"] == 0.5 and said["lung_iou"] == 1.0
    assert set(measured(Predictions(scores, masks), labels, (1,))) == {"lung_iou"}


def test_a_table_is_filled_row_by_row_and_says_what_was_not_run(
    cohort_manifest: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    only = ("embedding-forest", "embedding-svm-rbf", "segnet", "resnet18", "mask-rcnn")
    where = {"model": str(finished), "device": "cpu", "console": QUIET}
    lines = compare("baselines", cohort_manifest, tmp_path, ONE, only=only, **where)
    assert cells(lines, "resnet18")[1].startswith("not run: the classifiers of torchvision")
    assert "compiled operators" in cells(lines, "mask-rcnn")[1]
    assert cells(lines, "vgg19")[1] == "not run" and "(0.824)" in cells(lines, "vgg19")[4]
    assert cells(lines, "segnet")[1] == "0" and cells(lines, "segnet")[2] == ""
    assert 0 <= float(cells(lines, "segnet")[6].split()[0]) <= 1
    assert 0 <= float(cells(lines, "embedding-forest")[5].split()[0]) <= 1
    kept = json.loads((tmp_path / "segnet-0" / "row.json").read_text())
    assert kept["training"]["tasks"] == [1, 2] and kept["seed"] == 0
    before = (tmp_path / "segnet-0" / "row.json").stat().st_mtime_ns
    again = compare(
        "baselines", cohort_manifest, tmp_path, ONE, only=("segnet",), seeds=(0, 1), **where
    )
    assert (tmp_path / "segnet-0" / "row.json").stat().st_mtime_ns == before
    assert cells(again, "segnet")[1] == "0, 1" and "±" in cells(again, "segnet")[6]
    assert (tmp_path / "baselines.md").read_text() == "\n".join(again) + "\n"


def test_the_ablation_trains_the_tasks_of_its_row(cohort_manifest: Path, tmp_path: Path) -> None:
    compare(
        "ablation",
        cohort_manifest,
        tmp_path,
        ONE,
        only=("tasks-4",),
        device="cpu",
        console=QUIET,
    )
    kept = json.loads((tmp_path / "tasks-4-0" / "row.json").read_text())
    assert "sensitivity_at_90" in kept["figures"] and "lung_iou" not in kept["figures"]
    line = (tmp_path / "tasks-4-0" / "metrics.csv").read_text().splitlines()
    losses = dict(zip(line[0].split(","), line[1].split(","), strict=True))
    assert float(losses["loss_lung"]) == 0 and float(losses["loss_findings"]) > 0


def test_an_unknown_row_is_refused(cohort_manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no row 'vgg20'"):
        compare("baselines", cohort_manifest, tmp_path, ONE, only=("vgg20",))
    options = ["--out", str(tmp_path), "--only", "mask-rcnn", "--device", "cpu"]
    done = CliRunner().invoke(command, [str(cohort_manifest), *options])
    assert done.exit_code == 0, done.output
    assert "| mask-rcnn | not run" in done.output


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CLASSIFIERS, "unet"])
def test_rivals_answer_their_tasks_and_learn(name: str) -> None:
    pytest.importorskip("monai" if name == "unet" else "PIL")
    if name != "unet":
        from importlib.util import find_spec

        if find_spec("torchvision") is None:
            pytest.skip("torchvision is not installed")
    torch.manual_seed(0)
    network = builder(name)(NetworkConfig(width=1 / 8, mean=0.5, std=0.3)).train()
    out = network(torch.rand(2, 1, 64, 64))
    assert out.scores().shape == (2, 3) and out.masks().shape == (2, 2, 64, 64)
    answered = (out.lung, out.disease) if name == "unet" else (out.health, out.findings)
    sum(x.square().mean() for x in answered).backward()
    learned = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters()]
    assert np.mean(learned) > 0.9
