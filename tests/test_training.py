"""A training run end to end on drawn images: what it writes, resumes and refuses."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from training_runs import QUIET, TINY, rows, write

from comit.card import OperatingPoint
from comit.errors import ModelError, UsageError
from comit.model.cli import train as command
from comit.model.curves import draw_curves
from comit.model.data import load, read_gate, read_manifest
from comit.model.inference import pick_device
from comit.model.loop import Trainer, averaging, selection_score
from comit.model.network import COMiTNet, NetworkConfig
from comit.model.opened import open_network
from comit.model.recipe import TrainConfig
from comit.model.report import table
from comit.model.resident import Resident, label_weights
from comit.model.runs import load_run, write_description
from comit.model.train import train

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL: dict[str, Any] = {"width": 1 / 64, "epochs": 2, "batch_size": 4}
STRONG = replace(TrainConfig.strong(), **SMALL, small_epochs=1, adversary=1.0)
MIXED = replace(TINY, mix=2.0)
KILLED = """
import os, signal, sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
import torch
from comit.console import Console
from comit.model.train import train
from comit.model.recipe import TrainConfig

torch.set_num_threads(1)  # as here: OMP_NUM_THREADS=1 rounds otherwise on a CPU without AVX-512

class Killer(Console):
    @contextmanager
    def progress(self, label, total):
        steps = iter(range(total))
        def step(n=1):
            if label == "epoch 2/2" and next(steps) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        yield step

small = {"width": 1 / 64, "epochs": 2, "batch_size": 4}
config = TrainConfig(**small)
if sys.argv[3] == "strong":
    config = replace(TrainConfig.strong(), **small, small_epochs=1, adversary=1.0)
if sys.argv[3] == "mixed":
    config = replace(config, mix=2.0)
train(Path(sys.argv[1]), Path(sys.argv[2]), config, device="cpu", console=Killer(quiet=True))
"""


@pytest.fixture(scope="module")
def manifest(cohort_manifest: Path) -> Path:
    return cohort_manifest


def lines(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_weights_figures_and_thresholds(finished: Path) -> None:
    described = json.loads((finished / "run.json").read_text())
    assert [int(r["epoch"]) for r in lines(finished)] == [1, 2]
    assert {"val", "val_baselines", "test", "test_baselines"} <= set(described)
    low, high = described["test_intervals"]["lung_iou"]
    assert 0 <= low <= described["test"]["lung_iou"] <= high <= 1
    assert described["test"]["lung_images"] == described["test_baselines"]["lung_images"] == 4
    points = {k: OperatingPoint(**v) for k, v in described["operating_points"].items()}
    assert points["90"].negatives == {"unhealthy": 2, "covid": 3}
    assert points["99"].covid >= points["90"].covid
    image = torch.rand(1, 1, 224, 224)
    assert load_run(finished)(image).scores().shape == (1, 4)


@pytest.fixture(scope="module")
def finished_strong(
    manifest: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> Path:
    out = tmp_path_factory.mktemp("runs") / "strong"
    train(manifest, out, STRONG, device="cpu", console=QUIET)
    return out


@pytest.fixture(scope="module")
def finished_mixed(
    manifest: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> Path:
    out = tmp_path_factory.mktemp("runs") / "mixed"
    train(manifest, out, MIXED, device="cpu", console=QUIET)
    return out


def test_curves_are_drawn_of_the_epochs_that_were_measured(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert cv2.imread(str(finished / "curves.png")).std() > 0
    log = tmp_path / "metrics.csv"
    log.write_text("epoch,seconds,loss_lung,lung_iou\n1,3,0.5,\n2,6,0.4,0.7\n")
    draw_curves(log, tmp_path / "small.png")
    assert cv2.imread(str(tmp_path / "small.png")).std() > 0


@pytest.mark.parametrize(
    ("recipe", "config", "reference"),
    [
        ("strong", STRONG, "finished_strong"),  # all that a run can hold
        pytest.param("default", TINY, "finished", marks=pytest.mark.nightly),
        pytest.param("mixed", MIXED, "finished_mixed", marks=pytest.mark.nightly),
    ],
)
def test_killed_and_resumed_is_bit_identical(
    recipe: str,
    config: TrainConfig,
    reference: str,
    manifest: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    whole = request.getfixturevalue(reference)
    out = tmp_path / "run"
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(manifest), str(out), recipe],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert child.returncode == -9
    assert [int(r["epoch"]) for r in lines(out)] == [1]
    (out / "metrics.csv").write_text(  # as if the kill had come between this and the checkpoint
        (out / "metrics.csv").read_text() + lines_of_epoch_two(out)
    )
    train(manifest, out, config, device="cpu", resume=True, console=QUIET)
    ours, theirs = (torch.load(run / "checkpoint.pt", weights_only=True) for run in (out, whole))
    for part in ("model", "average", *(["adversary"] if recipe == "strong" else [])):
        for name, value in theirs[part].items():
            assert torch.equal(ours[part][name], value), (part, name)
    weights, expected = (load_file(run / "weights.safetensors") for run in (out, whole))
    assert all(torch.equal(weights[k], v) for k, v in expected.items())
    assert [{**r, "seconds": ""} for r in lines(out)] == [
        {**r, "seconds": ""} for r in lines(whole)
    ]


def lines_of_epoch_two(run: Path) -> str:
    last = (run / "metrics.csv").read_text().splitlines()[-1]
    return "2," + last.split(",", 1)[1] + "\n"


def test_test_is_reported_when_asked_for(finished_strong: Path, manifest: Path) -> None:
    assert "test" not in json.loads((finished_strong / "run.json").read_text())
    train(manifest, finished_strong, STRONG, device="cpu", resume=True, test=True, console=QUIET)
    assert json.loads((finished_strong / "run.json").read_text())["test"]["lung_images"] == 4


def test_resuming_a_finished_run_changes_nothing(finished: Path, manifest: Path) -> None:
    before = (finished / "weights.safetensors").read_bytes(), lines(finished)
    train(manifest, finished, TINY, device="cpu", resume=True, console=QUIET)
    assert ((finished / "weights.safetensors").read_bytes(), lines(finished)) == before


def trainer(manifest: Path, out: Path, config: TrainConfig) -> Trainer:
    made = read_manifest(manifest)
    cohort = load([r for r in made if r["split"] == "train"], manifest.parent)
    return Trainer(cohort, cohort, out, config, torch.device("cpu"), None, QUIET)


def test_without_averaging_the_last_weights_are_published(manifest: Path, tmp_path: Path) -> None:
    run = trainer(manifest, tmp_path, replace(TINY, ema=0.0))
    run._epoch()
    last = run.model.state_dict()
    assert all(torch.equal(last[k], v) for k, v in run.averaged.state_dict().items())


def test_warm_averages_forget_the_start_in_tens_of_steps() -> None:
    cold, warm = (
        torch.optim.swa_utils.AveragedModel(
            torch.nn.Linear(1, 1, bias=False), multi_avg_fn=averaging(0.995, warmup)
        )
        for warmup in (False, True)
    )
    model = torch.nn.Linear(1, 1, bias=False)
    values = [1.0] + [0.0] * 60  # the random start, then what was learned
    for value in values:
        torch.nn.init.constant_(model.weight, value)
        cold.update_parameters(model)
        warm.update_parameters(model)
    assert cold.module.weight.item() == pytest.approx(0.995**60)
    decays = [(1 + n) / (10 + n) for n in range(1, 61)]
    assert warm.module.weight.item() == pytest.approx(np.prod(decays), abs=1e-7)
    assert warm.module.weight.item() < 1e-3


def test_heads_that_are_not_trained_do_not_choose_the_epoch() -> None:
    figures = {
        "covid_auc_within_a": 0.6,
        "unhealthy_auc_within_a": 0.9,
        "unhealthy_auc_within_b": 0.9,
        "lung_iou": 0.8,
        "disease_dice": 0.4,
    }
    assert selection_score(figures) == pytest.approx((0.8 + 0.4 + 0.8) / 3)
    assert selection_score(figures, (4,)) == pytest.approx(0.6)
    assert selection_score(figures, (1, 2)) == pytest.approx(0.6)
    assert selection_score(figures, (1, 3)) == pytest.approx((0.8 + 0.9) / 2)


def test_thresholds_that_were_calibrated_outlive_a_later_report(
    manifest: Path, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", replace(TINY, epochs=1)
    found = train(manifest, run, config, device="cpu", console=QUIET)
    points = {k: v | {"origin": "val"} for k, v in found["operating_points"].items()}
    points["90"]["covid"] = 0.123
    write_description(run, found | {"operating_points": points, "calibration": {"origin": "val"}})
    again = train(manifest, run, config, device="cpu", resume=True, test=True, console=QUIET)
    assert again["operating_points"] == points and "test" in again


def test_small_epochs_have_no_figures_and_are_never_published(finished_strong: Path) -> None:
    first, second = lines(finished_strong)
    assert not first["lung_iou"] and float(second["lung_iou"]) >= 0
    assert json.loads((finished_strong / "run.json").read_text())["epoch"] == 2


def test_balanced_groups_weigh_the_same(manifest: Path) -> None:
    cohort = load(read_manifest(manifest), manifest.parent)
    cohort = replace(cohort, source=np.array(["a"] * 6 + ["b"] * 10))
    assert (label_weights(cohort, 0.0) == 1).all()
    weights = label_weights(cohort, 1.0)
    sums = {}
    for i in np.flatnonzero(cohort.unhealthy >= 0):
        group = (cohort.source[i], int(cohort.unhealthy[i]))
        sums[group] = sums.get(group, 0) + weights[i, 2]
    assert len(sums) == 4 and np.ptp(list(sums.values())) < 1e-5
    assert weights[1:, 2].mean() == pytest.approx(1)  # the first image has no label
    assert (weights[:, 5] == 1).all()
    boxed = cohort.has_lung
    sums = [weights[boxed & (cohort.source == s), 0].sum() for s in "ab"]
    assert sums[0] == pytest.approx(sums[1]) and (weights[~boxed, 0] == 1).all()


def test_teachers_soften_class_labels_by_their_share(manifest: Path) -> None:
    cohort = load(read_manifest(manifest)[1:2], manifest.parent)  # unhealthy, COVID
    teacher = COMiTNet(NetworkConfig(width=1 / 64)).eval()
    image = torch.from_numpy(cohort.images).float()[:, None]
    with torch.no_grad():
        said = (teacher(image).scores() + teacher(image.flip(3)).scores()) / 2
    data = Resident.of(cohort, torch.device("cpu"), [teacher], TrainConfig(soften=0.25))
    assert data.unhealthy.item() == pytest.approx(0.75 + 0.25 * said[0, 0].item(), abs=1e-3)
    assert data.findings[0, 1].item() == pytest.approx(0.25 * said[0, 2].item(), abs=1e-3)


def test_a_run_starts_from_the_weights_of_another(finished: Path, manifest: Path) -> None:
    cohort = load(read_manifest(manifest)[:4], manifest.parent)
    run = Trainer(cohort, cohort, finished, TINY, torch.device("cpu"), finished, QUIET)
    start = load_file(finished / "weights.safetensors")
    assert all(torch.equal(v, start[k]) for k, v in run.model.state_dict().items())
    with pytest.raises(UsageError, match="another width"):
        wide = replace(TINY, width=1 / 16)
        Trainer(cohort, cohort, finished, wide, torch.device("cpu"), finished, QUIET)


def test_a_run_goes_on_from_the_bundled_model_and_is_taught_by_it(
    manifest: Path, tmp_path: Path
) -> None:
    cohort = load(read_manifest(manifest)[:4], manifest.parent)
    bundled, config = Path("bundled"), replace(TINY, width=0.25)
    device = torch.device("cpu")
    trainer = Trainer(cohort, cohort, tmp_path, config, device, bundled, QUIET, [bundled])
    state = open_network("bundled").network.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in trainer.model.state_dict().items())
    assert trainer.data.taught.any() and (trainer.data.switches[:, :2] == 1).all()
    with pytest.raises(UsageError, match="bundled holds a network of another width"):
        Trainer(cohort, cohort, tmp_path, TINY, device, bundled, QUIET)
    nowhere = tmp_path / "nowhere"
    with pytest.raises((UsageError, ModelError), match="nowhere"):
        train(manifest, tmp_path / "run", TINY, device="cpu", init=nowhere, console=QUIET)


def test_paper_recipe_keeps_its_learning_rate(manifest: Path, tmp_path: Path) -> None:
    config = TrainConfig.paper()
    assert (config.width, config.batch_size, config.epochs) == (1.0, 16, 30)
    run = trainer(manifest, tmp_path, replace(config, width=1 / 64, batch_size=4))
    run._epoch()
    group = run.optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (5e-5, (0.9, 0.999), 0.0)


def test_one_cycle_rises_to_the_learning_rate_and_falls(manifest: Path, tmp_path: Path) -> None:
    run = trainer(manifest, tmp_path, replace(TINY, epochs=5))  # of two steps
    rates = []
    for _ in range(10):
        rates.append(run.optimizer.param_groups[0]["lr"])
        run.optimizer.step()
        run.schedule.step()
    assert max(rates) == pytest.approx(TINY.learning_rate, rel=0.2)
    assert rates[0] < max(rates) / 10 and rates[-1] < rates[0]


def test_unknown_labels_are_switched_off(manifest: Path) -> None:
    cohort = load(read_manifest(manifest)[:2], manifest.parent)
    data = Resident.of(cohort, torch.device("cpu"))
    assert data.switches.tolist() == [[0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]]
    batch = data.batch(torch.tensor([1]), torch.device("cpu"))
    assert batch.unhealthy.tolist() == [1] and batch.findings.tolist() == [[1, 0]]


def test_teachers_give_the_masks_that_an_image_lacks(manifest: Path) -> None:
    cohort = load(read_manifest(manifest)[:2], manifest.parent)
    teacher = COMiTNet(NetworkConfig(width=1 / 64)).eval()
    data = Resident.of(cohort, torch.device("cpu"), [teacher])
    assert data.taught.tolist() == [[True, True], [False, False]]
    assert data.switches.tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]]
    image = torch.from_numpy(cohort.images[:1]).float()[None]
    with torch.no_grad():
        said = teacher(image).masks() / 2 + teacher(image.flip(3)).masks().flip(3) / 2
    assert torch.allclose(data.masks[0, :2] / 255, said[0], atol=0.01)
    assert torch.equal(data.masks[1, 0], torch.from_numpy(cohort.lung[1]) * 255)


def test_boxes_land_where_the_image_has_them(manifest: Path) -> None:
    cohort = load(read_manifest(manifest)[1:2], manifest.parent)
    drawn = np.argwhere(cohort.disease[0])  # x 10..40 of 80, y 40..70 of 100
    top, left = drawn.min(axis=0)
    bottom, right = drawn.max(axis=0) + 1
    expected = [40 / 100, 70 / 100, 10 / 80, 40 / 80]
    assert [top, bottom, left, right] == [round(224 * e) for e in expected]


def test_the_last_epochs_see_whole_images() -> None:
    with pytest.raises(UsageError, match="28 of 20 epochs would see small images"):
        replace(TrainConfig.strong(), epochs=20)


def test_the_table_puts_model_and_no_model_side_by_side() -> None:
    shown = table(
        {
            "epoch": 7,
            "test": {"lung_iou": 0.8125, "lung_images": 4.0},
            "test_baselines": {"lung_iou": 0.73},
            "operating_points": {
                "90": {"unhealthy": 0.5, "covid": 0.25, "negatives": {"unhealthy": 9, "covid": 8}}
            },
        }
    )
    assert shown[2].split() == ["lung_iou", "0.812", "0.730"]
    assert "covid >= 0.2500 (8 negatives)" in shown[-1]


def test_vgg16_file_starts_the_encoder(manifest: Path, tmp_path: Path) -> None:
    network = COMiTNet(NetworkConfig(width=1 / 64))
    convolutions = [m for m in network.encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    file = {}
    for i, c in enumerate(convolutions):
        inputs = 3 if i == 0 else c.in_channels
        file[f"features.{i * 3}.weight"] = torch.full((c.out_channels, inputs, 3, 3), 0.01 * i + 1)
        file[f"features.{i * 3}.bias"] = torch.full((c.out_channels,), 0.5)
    save_file(file, tmp_path / "vgg.safetensors")
    cohort = load(read_manifest(manifest)[:4], manifest.parent)
    run = Trainer(
        cohort, cohort, tmp_path, TINY, torch.device("cpu"), tmp_path / "vgg.safetensors", QUIET
    )
    first = next(m for m in run.model.encoder.modules() if isinstance(m, torch.nn.Conv2d))
    assert first.weight.unique().tolist() == [3.0]  # summed over the three inputs
    (tmp_path / "not.pth").write_bytes(b"no weights")
    with pytest.raises(UsageError, match=r"not\.pth cannot be read as VGG16"):
        Trainer(cohort, cohort, tmp_path, TINY, torch.device("cpu"), tmp_path / "not.pth", QUIET)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: [{k: v for k, v in r.items() if k != "covid"} for r in made], "'covid'"),
        (lambda made: [{**r, "healthy": "yes"} for r in made], "must be boolean"),
        (lambda made: [{**r, "path": None if i else "0.png"} for i, r in enumerate(made)], "path"),
        (lambda made: [{**r, "path": "gone-" + r["path"]} for r in made], "gone-0.png"),
        (lambda made: [{**r, "patient_id": "x"} for r in made], "patients in more than one split"),
        (lambda made: [{**r, "split": "train"} for r in made], "split 'val'"),
        (lambda made: [{**r, "healthy": False} for r in made], "healthy images"),
    ],
)
def test_unfit_manifests_are_refused_by_name(change: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.parquet", change(rows(tmp_path)))
    with pytest.raises(UsageError, match=words):
        train(path, tmp_path / "run", TINY, device="cpu", console=QUIET)
    assert not (tmp_path / "run").exists()


def test_a_run_is_neither_overwritten_nor_mixed(
    finished: Path, manifest: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="add --resume"):
        train(manifest, finished, TINY, device="cpu", console=QUIET)
    with pytest.raises(UsageError, match="another epochs"):
        train(manifest, finished, replace(TINY, epochs=4), device="cpu", resume=True, console=QUIET)
    with pytest.raises(UsageError, match="other teachers"):
        options = {"teachers": [finished], "resume": True, "console": QUIET}
        train(manifest, finished, TINY, device="cpu", **options)
    relabelled = pq.read_table(manifest).to_pylist()
    relabelled[2]["healthy"] = None
    other = write(manifest.with_name("relabelled.parquet"), relabelled)
    with pytest.raises(UsageError, match="other training images"):
        train(other, finished, TINY, device="cpu", resume=True, console=QUIET)
    with pytest.raises(UsageError, match="no checkpoint"):
        train(manifest, tmp_path, TINY, device="cpu", resume=True, console=QUIET)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="no GPU"):
        pick_device("cuda:99")
    with pytest.raises(UsageError, match="is no device"):
        pick_device("toaster")


def test_the_command_trains_and_prints_baselines(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = "--width 0.015625 --epochs 1 --batch-size 4 --lr 0.002 --seed 3 --mask-weight 2"
    options += " --device cpu"
    done = CliRunner().invoke(command, [str(manifest), "--out", str(out), *options.split()])
    assert done.exit_code == 0, done.output
    assert "no model" in done.stderr and "specificity" in done.stderr
    assert f"the run is in {out}" in done.stdout
    assert f"comit export onnx {out} --out {out}.onnx" in done.stdout
    training = json.loads((out / "run.json").read_text())["training"]
    assert (training["seed"], training["learning_rate"], training["ema"]) == (3, 0.002, 0.995)
    assert training["loss"] == {
        "mean": True,
        "disease_weight": 4.0,
        "mask_weight": 2.0,
        "overlap": 0.0,
    }


def test_pictures_for_the_gate_teach_it_and_nothing_else(manifest: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    listed = []
    for i, split in enumerate(["train", "train", "val", "test"]):
        cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(0, 256, (100, 80), np.uint8))
        listed.append({"path": f"{i}.png", "split": split, "kind": "hand"})
    pq.write_table(pa.Table.from_pylist(listed), tmp_path / "gate.parquet")
    found = read_gate(tmp_path / "gate.parquet")
    cohort = load(found[:2], manifest.parent)
    assert not cohort.chest.any() and (cohort.source == "hand").all()
    assert (cohort.switches()[:, :5] == 0).all() and (cohort.switches()[:, 5] == 1).all()
    described = train(
        manifest,
        tmp_path / "run",
        replace(TINY, spoil=0.2),
        device="cpu",
        gate=tmp_path / "gate.parquet",
        console=QUIET,
    )
    assert 0 <= described["val"]["gate_auc"] <= 1
    assert not any("hand" in name for name in described["val"])
    assert all(float(line["loss_gate"]) > 0 for line in lines(tmp_path / "run"))
    pq.write_table(pa.table({"path": ["a"], "split": ["train"]}), tmp_path / "bad.parquet")
    with pytest.raises(UsageError, match=r"bad\.parquet lacks the column 'kind'"):
        read_gate(tmp_path / "bad.parquet")


def test_a_report_s_text_is_believed_less_than_a_reader(manifest: Path) -> None:
    cohort = load(read_manifest(manifest)[:3], manifest.parent)  # unknown, sick, healthy
    cohort = replace(cohort, basis=np.array(["", "text of the report", "two physicians"]))
    data = Resident.of(cohort, torch.device("cpu"), config=TrainConfig(smooth=0.2))
    assert data.unhealthy[1:].tolist() == pytest.approx([0.9, 0.0])
