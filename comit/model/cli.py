"""``comit train``, ``calibrate``, ``evaluate``, ``baselines``, ``ablation`` and ``parts``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from comit.config import usable_cores
from comit.console import printable
from comit.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from comit.model.recipe import TrainConfig


MANIFEST = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)
WORKERS = click.option(
    "--workers", type=click.IntRange(1), help="Number of threads that read images."
)
RECIPE = click.option(
    "--recipe",
    type=click.Choice(["default", "paper", "strong"]),
    default="default",
    show_default=True,
    help="default: AdamW, one cycle, averaged weights. paper: section 3.3, as printed. strong: "
    "as the bundled model's last runs: sources balanced, more variation, small images first.",
)

WIDTH = click.option(
    "--width",
    type=click.FloatRange(0, 4, min_open=True),
    help="Width of the network; 1 is the paper's.",
)
EPOCHS = click.option(
    "--epochs", type=click.IntRange(1), help="Number of passes over the training images."
)
SMALL_EPOCHS = click.option(
    "--small-epochs", type=click.IntRange(0), help="Number of those passes that use small images."
)
LEARNING_RATE = click.option(
    "--lr",
    "learning_rate",
    type=click.FloatRange(0, min_open=True),
    help="Learning rate; its highest value where it varies.",
)


def recipe_config(recipe: str, given: dict[str, Any]) -> TrainConfig:
    """The recipe's options, except for those given that are not None."""
    from dataclasses import replace

    from comit.model.recipe import TrainConfig

    recipes = {"default": TrainConfig, "paper": TrainConfig.paper, "strong": TrainConfig.strong}
    config, given = recipes[recipe](), {k: v for k, v in given.items() if v is not None}
    loss = {k: given.pop(k) for k in ("mask_weight",) if k in given}
    return replace(config, loss=replace(config.loss, **loss), **given)


@click.command(short_help="Train COMiT-Net from a Parquet manifest.")
@click.argument("manifest", type=MANIFEST)
@click.option(
    "--out",
    type=FOLDER,
    required=True,
    metavar="RUN",
    help="Folder to write weights, checkpoint and figures to.",
)
@RECIPE
@WIDTH
@EPOCHS
@SMALL_EPOCHS
@click.option(
    "--balance",
    type=click.FloatRange(0, 1),
    help="How far rare groups of source and label weigh as much as large ones; 0: not at "
    "all, 1: wholly.",
)
@click.option(
    "--soften",
    type=click.FloatRange(0, 1),
    help="Share of the teachers' scores in the class labels.",
)
@click.option(
    "--adversary",
    type=click.FloatRange(0),
    help="Strength with which the network unlearns the source; 0: not at all.",
)
@click.option(
    "--mix",
    type=click.FloatRange(0),
    help="Mix images of two sources, with shares from Beta(X, X); 0: do not mix.",
)
@click.option(
    "--mask-weight",
    type=click.FloatRange(0, min_open=True),
    help="Weight of the mask losses relative to the class losses.",
)
@click.option("--batch-size", type=click.IntRange(2), help="Images per training step.")
@LEARNING_RATE
@click.option("--seed", type=click.IntRange(0), help="Seed of all random numbers.")
@DEVICE
@click.option(
    "--init",
    type=click.Path(path_type=Path),
    metavar="VGG16|MODEL",
    help="Local torchvision VGG16 weights (.pth, .safetensors) for the encoder, width 1 alone; or "
    "a network to go on from: an earlier run's folder, an .onnx file of comit's, or bundled.",
)
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="Network, named as for --init, whose masks stand in where an image has none; may be "
    "repeated.",
)
@click.option(
    "--gate",
    type=MANIFEST,
    help="Parquet manifest of images that are not frontal chest radiographs: path, split, kind.",
)
@click.option("--resume", is_flag=True, help="Go on after the last finished epoch of RUN.")
@click.option(
    "--test", is_flag=True, help="Also report on the test split. Use it once, after all choices."
)
@WORKERS
def train(
    manifest: Path,
    out: Path,
    recipe: str,
    device: str,
    init: Path | None,
    teachers: tuple[Path, ...],
    gate: Path | None,
    resume: bool,
    test: bool,
    workers: int | None,
    **given: Any,
) -> None:
    """Train COMiT-Net on the images of MANIFEST and write the folder RUN.

    MANIFEST is a Parquet file, a row an image: path (relative to it), split (train, val, test),
    healthy, covid, other (true, false or null for unknown); optional: source, lung_boxes,
    disease_boxes (lists of [x, y, w, h] in pixels), lung_mask, disease_mask (paths of PNG).
    val chooses the epoch and gives the thresholds. comit reads test only with --test (also later,
    with --resume). Beside every figure stands the baseline without a model: the source's name and
    a fixed mask.

    The recipe sets all options that you leave out. To continue a killed run, add --resume to the
    same options: it ends with the same weights.
    """
    try:
        from comit.model.train import train as run
    except ModuleNotFoundError as error:
        raise MissingExtra("comit train", "train") from error
    run(
        manifest,
        out,
        recipe_config(recipe, given),
        device=device,
        init=init,
        teachers=teachers,
        gate=gate,
        resume=resume,
        test=test,
        workers=workers or usable_cores(),
    )
    names = (str(out), f"{out}.onnx", str(manifest))
    written, file, table = (shlex.quote(printable(name)) for name in names)
    click.echo(f"the run is in {written}: weights, figures and what it was trained with; next:")
    click.echo(f"  comit evaluate {written} {table} --out evaluation")
    click.echo(f"  comit export onnx {written} --out {file}")
    click.echo(f"  comit screen INPUT --out results.parquet --model {file}")


@click.command(short_help="Write thresholds and a calibration into a model's card.")
@click.argument("model")
@click.argument("manifest", type=MANIFEST)
@click.option(
    "--method",
    type=click.Choice(["platt", "isotonic"]),
    default="platt",
    show_default=True,
    help="Curve that maps scores to shares: logistic (platt) or stepwise (isotonic).",
)
@click.option(
    "--folds",
    type=click.IntRange(2),
    help="Train this many networks and score train and val out of fold. "
    "Without it, MODEL scores val.",
)
@click.option(
    "--work", type=FOLDER, help="Folder for the networks of --folds; existing ones are resumed."
)
@RECIPE
@EPOCHS
@SMALL_EPOCHS
@WIDTH
@DEVICE
@WORKERS
def calibrate(
    model: str,
    manifest: Path,
    method: Any,
    folds: int | None,
    work: Path | None,
    recipe: str,
    device: str,
    workers: int | None,
    **given: Any,
) -> None:
    """Write thresholds at 90 % and 99 % specificity, and a calibration of the scores, into the
    card of MODEL. `comit screen` sets flags by these thresholds.

    MODEL is the folder of a training run or an .onnx file of comit. The card also gets the number
    of negatives and the 95 % interval of each specificity. If val has few negatives, use --folds:
    networks trained without a patient then score that patient, so that train counts as well.
    """
    try:
        from comit.model.calibrate import calibrate as run
    except ModuleNotFoundError as error:
        raise MissingExtra("comit calibrate", "train") from error
    if not folds and (work or any(v is not None for v in given.values())):
        raise UsageError("--work, --epochs, --small-epochs and --width are for what --folds trains")
    run(
        model,
        manifest,
        method=method,
        folds=folds or 0,
        config=recipe_config(recipe, given),
        work=work,
        device=device,
        workers=workers or usable_cores(),
    )


@click.command(short_help="Everything the paper measures, on one page.")
@click.argument("model")
@click.argument("manifest", type=MANIFEST)
@click.option(
    "--split", default="test", show_default=True, help="Split of MANIFEST to evaluate on."
)
@click.option(
    "--out", type=FOLDER, required=True, metavar="DIR", help="Folder to write the page to."
)
@click.option(
    "--resamples",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    help="Number of resamples of patients for each interval.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the resamples."
)
@click.option(
    "--pictures/--no-pictures", default=True, show_default=True, help="Draw curves and X-rays too."
)
@click.option(
    "--changes",
    is_flag=True,
    help="Also measure what borders, crops, tone, JPEG and turns change. Takes 12 times as long.",
)
@DEVICE
@WORKERS
def evaluate(
    model: str,
    manifest: Path,
    split: str,
    out: Path,
    resamples: int,
    seed: int,
    pictures: bool,
    changes: bool,
    device: str,
    workers: int | None,
) -> None:
    """Write evaluation.md, evaluation.json and pictures into DIR.

    MODEL is "bundled", the folder of a training run or an .onnx file of comit. The page starts with
    COVID-19 against other diseases within one source. Each figure has an interval, the baseline
    without a model, and the paper's figure if there is one. The pictures show X-rays of MANIFEST:
    keep them as safe as those.
    """
    try:
        from comit.model.evaluation import EvaluationConfig
        from comit.model.page import evaluate as run
    except ModuleNotFoundError as error:
        raise MissingExtra("comit evaluate", "train") from error
    run(
        model,
        manifest,
        out,
        split=split,
        config=EvaluationConfig(resamples=resamples, seed=seed),
        pictures=pictures,
        changes=changes,
        device=device,
        workers=workers or usable_cores(),
    )
