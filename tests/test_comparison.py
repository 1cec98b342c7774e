"""The tables of rivals and of task subsets, with networks too small to learn anything."""

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from click.testing import CliRunner  # noqa: E402
from drawn_cohorts import cohort  # noqa: E402
from training_runs import QUIET, TINY  # noqa: E402

from comit.errors import UsageError  # noqa: E402
from comit.model.data import load, read_manifest  # noqa: E402
from comit.model.metrics import Predictions  # noqa: E402
from comit.model.network import COMiTNet, NetworkConfig, Outputs  # noqa: E402
from comit.model.recipe import TrainConfig  # noqa: E402
from comit.model.resident import Resident  # noqa: E402
from comit.study import mask_rcnn  # noqa: E402
from comit.study.cli import baselines as command  # noqa: E402
from comit.study.comparison import ABLATION, BASELINES, compare, measured  # noqa: E402
from comit.study.crop import box, crop_to_lungs  # noqa: E402
from comit.study.rivals import CLASSIFIERS, builder, torchvision  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
ONE = replace(TINY, epochs=1)


def cells(lines: list[str], row: str) -> list[str]:
    (line,) = [li for li in lines if li.startswith(f"| {row} |")]
    return [c.strip() for c in line.strip("|").split("|")]


def test_tasks_left_out_are_switched_off_for_every_image(cohort_manifest: Path) -> None:
    images = load(read_manifest(cohort_manifest)[1:4], cohort_manifest.parent)
    data = Resident.of(images, torch.device("cpu"), config=TrainConfig(spoil=0.1, tasks=(1, 4)))
    assert (data.switches > 0).tolist() == [[True, False, False, True, True, False]] * 3


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
    only = ("embedding-forest", "embedding-svm-rbf", "segnet", "resnet18")
    where = {"model": str(finished), "device": "cpu", "console": QUIET}
    lines = compare("baselines", cohort_manifest, tmp_path, ONE, only=only, **where)
    assert all(cells(lines, row.name) for row in BASELINES)  # each once
    assert cells(lines, "resnet18")[1].startswith("not run: the classifiers of torchvision")
    assert cells(lines, "vgg19")[1] == "not run" and "(0.824)" in cells(lines, "vgg19")[4]
    assert cells(lines, "segnet")[1] == "0" and cells(lines, "segnet")[2] == ""
    assert 0 <= float(cells(lines, "segnet")[6].split()[0]) <= 1
    assert 0 <= float(cells(lines, "embedding-forest")[5].split()[0]) <= 1
    kept = json.loads((tmp_path / "segnet-0" / "row.json").read_text())
    assert kept["training"]["tasks"] == [1, 2] and kept["seed"] == 0 and kept["command"]
    shared = json.loads((tmp_path / "table.json").read_text())
    assert shared["recipe"]["epochs"] == 1 and shared["init"] is None
    assert shared["images"][:12] in "".join(lines)
    before = (tmp_path / "segnet-0" / "row.json").stat().st_mtime_ns
    again = compare(
        "baselines", cohort_manifest, tmp_path, ONE, only=("segnet",), seeds=(0, 1), **where
    )
    assert (tmp_path / "segnet-0" / "row.json").stat().st_mtime_ns == before
    assert cells(again, "segnet")[1] == "0, 1" and "±" in cells(again, "segnet")[6]
    seeds = {"only": ("embedding-svm-rbf",), "seeds": (1, 2)}
    again = compare("baselines", cohort_manifest, tmp_path, ONE, **seeds, **where)
    assert cells(again, "embedding-svm-rbf")[1] == "0, 1"  # no random start: one more, not two
    assert (tmp_path / "baselines.md").read_text() == "\n".join(again) + "\n"


def test_a_row_of_another_recipe_is_not_put_beside(cohort_manifest: Path, tmp_path: Path) -> None:
    only = {"only": ("tasks-4",), "device": "cpu", "console": QUIET}
    compare("ablation", cohort_manifest, tmp_path, ONE, **only)
    other = {**only, "only": ("tasks-34",)}
    with pytest.raises(UsageError, match="is of another recipe"):
        compare("ablation", cohort_manifest, tmp_path, replace(ONE, ema=0.5), **other)
    with pytest.raises(UsageError, match="is of another images"):
        fewer = pq.read_table(cohort_manifest).slice(1)
        shorter = cohort_manifest.with_name("shorter.parquet")
        pq.write_table(fewer, shorter)
        compare("ablation", shorter, tmp_path, ONE, **other)
    assert not (tmp_path / "tasks-34-0").exists()
    path = tmp_path / "tasks-4-0" / "row.json"
    kept = json.loads(path.read_text())
    kept["training"]["ema"] = 0.5  # as an earlier version might have had for this row
    path.write_text(json.dumps(kept))
    with pytest.raises(UsageError, match="tasks-4-0 is of another training"):
        compare("ablation", cohort_manifest, tmp_path, ONE, **only)
    (tmp_path / "table.json").unlink()
    with pytest.raises(UsageError, match="has rows of which nothing is known"):
        compare("ablation", cohort_manifest, tmp_path, ONE, **other)
    path.unlink()  # as if it had been killed after its epochs
    with pytest.raises(UsageError, match="was started with another ema"):
        compare("ablation", cohort_manifest, tmp_path, replace(ONE, ema=0.5), **only)


def test_the_ablation_trains_the_tasks_of_its_row(cohort_manifest: Path, tmp_path: Path) -> None:
    lines = compare(
        "ablation",
        cohort_manifest,
        tmp_path,
        ONE,
        only=("tasks-4",),
        device="cpu",
        console=QUIET,
    )
    assert all("not run" in cells(lines, row.name) for row in ABLATION if row.name != "tasks-4")
    kept = json.loads((tmp_path / "tasks-4-0" / "row.json").read_text())
    assert "sensitivity_at_90" in kept["test"] and "lung_iou" not in kept["test"]
    line = (tmp_path / "tasks-4-0" / "metrics.csv").read_text().splitlines()
    losses = dict(zip(line[0].split(","), line[1].split(","), strict=True))
    assert float(losses["loss_lung"]) == 0 and float(losses["loss_findings"]) > 0


def test_the_losses_as_printed_are_rows_and_val_comes_first(
    cohort_manifest: Path, tmp_path: Path
) -> None:
    only = ("loss-paper", "recipe-default")
    strong = replace(TINY, balance=0.5, small=32, small_epochs=1, ema_warmup=True)
    lines = compare(
        "parts", cohort_manifest, tmp_path, strong, only=only, device="cpu", console=QUIET
    )
    summed, plain = (
        json.loads((tmp_path / f"{r}-0" / "row.json").read_text())["training"] for r in only
    )
    expected = {"mean": False, "disease_weight": 1.0, "mask_weight": 1.0, "overlap": 0.0}
    assert summed["loss"] == expected and summed["balance"] == 0.5
    assert plain["loss"]["mean"] and plain["balance"] == plain["small_epochs"] == 0
    assert not plain["ema_warmup"] and plain["epochs"] == 2
    assert lines.index("On val:") < lines.index("On test:")


def test_the_encoder_starts_from_vgg16_where_a_row_has_one(
    cohort_manifest: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "vgg16.pth"
    damaged.write_bytes(b"no weights")
    only = {"only": ("tasks-4",), "device": "cpu", "console": QUIET, "init": damaged}
    with pytest.raises(UsageError, match="cannot be read as VGG16 weights"):
        compare("ablation", cohort_manifest, tmp_path / "out", ONE, **only)
    with pytest.raises(UsageError, match="is of another init"):
        compare("ablation", cohort_manifest, tmp_path / "out", ONE, **{**only, "init": None})


def test_an_unknown_row_is_refused(cohort_manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no row 'vgg20'"):
        compare("baselines", cohort_manifest, tmp_path, ONE, only=("vgg20",))
    options = ["--out", str(tmp_path), "--only", "vgg20", "--device", "cpu"]
    done = CliRunner().invoke(command, [str(cohort_manifest), *options])
    assert "no row 'vgg20'" in str(done.exception)


def test_parts_are_left_out_and_images_cropped(
    cohort_manifest: Path, finished: Path, tmp_path: Path
) -> None:
    only = ("without-small-images", "classes-cropped")
    strong = replace(TINY, balance=0.5, small=32, small_epochs=1)
    where = {"model": str(finished), "device": "cpu", "console": QUIET}
    compare("parts", cohort_manifest, tmp_path, strong, only=only, **where)
    whole, cropped = (json.loads((tmp_path / f"{r}-0" / "row.json").read_text()) for r in only)
    assert whole["training"]["small_epochs"] == 0 and whole["training"]["balance"] == 0.5
    assert "lung_iou" in whole["test"] and "lung_iou" in whole["val"]
    assert "lung_iou" not in cropped["test"]
    low, high = cropped["covid_auc_within_interval"]
    assert low <= cropped["test"]["covid_auc_within"] <= high


def test_a_crop_holds_the_lungs_and_its_masks_move_with_it() -> None:
    images = cohort([1], [1], ["a"])
    images.lung[0, 50:150, 20:120] = 1
    images.images[0] = images.lung[0]
    network = COMiTNet(NetworkConfig(width=1 / 64))
    flat = torch.zeros(1, 2)
    network.forward = lambda x: Outputs(  # type: ignore[method-assign]
        torch.cat([0.5 - x, x - 0.5], dim=1), x.expand(-1, 2, -1, -1), flat, flat, flat
    )
    cut = crop_to_lungs(images, network, torch.device("cpu"))
    assert box(images.lung[0] > 0) == (slice(45, 155), slice(15, 125))
    assert cut.lung[0].mean() == pytest.approx((100 / 110) ** 2, abs=0.01)
    assert np.abs(cut.images[0] - cut.lung[0]).mean() < 0.02
    assert box(np.zeros((3, 4), bool)) == (slice(0, 3), slice(0, 4))


def test_decoders_of_tasks_left_out_cost_nothing_and_change_nothing() -> None:
    made = []
    for tasks in ((1, 2, 3, 4), (1, 4)):
        torch.manual_seed(0)
        made.append(builder("comit", tasks)(NetworkConfig(width=1 / 64)).eval())
    image = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        whole, part = (network(image) for network in made)
    assert torch.equal(whole.findings, part.findings) and torch.equal(whole.lung, part.lung)
    assert part.disease.shape == whole.disease.shape and not part.disease.any()
    assert not list(made[1].disease_decoder.parameters())


@pytest.mark.nightly
@pytest.mark.parametrize("name", [*CLASSIFIERS, "unet"])
def test_rivals_answer_their_tasks_and_learn(name: str) -> None:
    pytest.importorskip("monai" if name == "unet" else "PIL")
    if name != "unet" and find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    torch.manual_seed(0)
    network = builder(name, (1, 2, 3, 4))(NetworkConfig(width=1 / 8, mean=0.5, std=0.3)).train()
    out = network(torch.rand(2, 1, 64, 64))
    assert out.scores().shape == (2, 4) and out.masks().shape == (2, 2, 64, 64)
    answered = (out.lung, out.disease) if name == "unet" else (out.health, out.findings)
    sum(x.square().mean() for x in answered).backward()
    learned = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters()]
    assert np.mean(learned) > 0.9


def test_instances_are_connected_parts_and_their_union_is_the_mask() -> None:
    mask = np.zeros((224, 224), bool)
    mask[10:60, 20:50] = mask[30:90, 100:140] = True
    mask[200:203, 0:3] = True  # a splinter
    found = mask_rcnn.instances(mask)
    assert found["boxes"].tolist() == [[20, 10, 50, 60], [100, 30, 140, 90]]
    assert found["labels"].tolist() == [1, 1]
    scores = torch.tensor([0.9, 0.4])
    said = {"masks": found["masks"][:, None].float() * 0.8, "scores": scores}
    (drawn,) = mask_rcnn.union([said], 224)
    assert drawn[30, 30] == 204 and drawn[50, 120] == 0 and drawn[0, 0] == 0
    nothing = mask_rcnn.instances(np.zeros((4, 4), bool))
    assert nothing["boxes"].shape == (0, 4) and nothing["masks"].shape == (0, 4, 4)


def test_mask_rcnn_without_its_operators_says_so(
    cohort_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = SimpleNamespace(models=None, ops=SimpleNamespace(nms=Mock(side_effect=RuntimeError)))
    monkeypatch.setattr(mask_rcnn, "torchvision", lambda: lacking)
    options = ["--out", str(tmp_path), "--only", "mask-rcnn", "--device", "cpu"]
    done = CliRunner().invoke(command, [str(cohort_manifest), *options])
    assert done.exit_code == 0, done.output
    (line,) = [li for li in done.output.splitlines() if li.startswith("| mask-rcnn |")]
    assert "not run: Mask R-CNN needs torchvision's compiled operators" in line


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
def test_mask_rcnn_trains_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torchvision's ``nms`` does not load, the best 20 boxes stand in for its answer."""
    vision = torchvision()
    try:
        vision.ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    except RuntimeError:
        implemented = torch.library.Library("torchvision", "IMPL")
        implemented.impl("nms", lambda _, scores, __: scores.argsort(descending=True)[:20], "CPU")
        monkeypatch.setattr(vision.extension, "_has_ops", lambda: True)
    torch.compiler.set_stance("force_eager")  # its roi_align in Python asks to be compiled
    two = cohort([1, 1], [0, 0], ["a", "a"])
    two.lung[:, 50:150, 20:90] = two.lung[:, 50:150, 120:200] = 1
    two.images[:] = two.lung * 0.5
    two.has_lung[:] = True
    cohorts = dict.fromkeys(("train", "val", "test"), two)
    options = replace(ONE, batch_size=2)
    run = (1, cohorts, tmp_path, options, torch.device("cpu"), QUIET)
    drawn = mask_rcnn.masks(*run)
    assert drawn["val"].shape == drawn["test"].shape == (2, 224, 224)
    before = (tmp_path / mask_rcnn.CHECKPOINT).stat().st_mtime_ns
    assert np.array_equal(mask_rcnn.masks(*run)["test"], drawn["test"])
    assert (tmp_path / mask_rcnn.CHECKPOINT).stat().st_mtime_ns == before  # not trained again
