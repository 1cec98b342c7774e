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
WORKERS = click.option("--workers", type=click.IntRange(1), help="Threads that read images.")
RECIPE = click.option(
    "--recipe",
    type=click.Choice(["default", "paper", "strong"]),
    default="default",
    show_default=True,
    help="default: AdamW, one cycle, averaged weights. paper: section 3.3, as printed. strong: "
    "as the bundled model's last runs: sources balanced, more variation, small images first.",
)

WIDTH = click.option("--width", type=click.FloatRange(0, 4, min_open=True), help="Channel factor.")
EPOCHS = click.option("--epochs", type=click.IntRange(1), help="Passes over the training images.")
SMALL_EPOCHS = click.option(
    "--small-epochs", type=click.IntRange(0), help="How many of them see small images."
)
LEARNING_RATE = click.option(
    "--lr", "learning_rate", type=click.FloatRange(0, min_open=True), help="Step size."
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
    help="Folder of the run: weights, checkpoint, figures.",
)
@RECIPE
@WIDTH
@EPOCHS
@SMALL_EPOCHS
@click.option("--balance", type=click.FloatRange(0, 1), help="Weight of rare groups; 0 is none.")
@click.option("--soften", type=click.FloatRange(0, 1), help="Teachers' share in class labels.")
@click.option("--adversary", type=click.FloatRange(0), help="Unlearning of the source; 0 is none.")
@click.option(
    "--mix",
    type=click.FloatRange(0),
    help="Mixup across sources, shares from Beta(X, X); 0 is none.",
)
@click.option(
    "--mask-weight",
    type=click.FloatRange(0, min_open=True),
    help="Weight of the masks' losses against the classes'.",
)
@click.option("--batch-size", type=click.IntRange(2), help="Images a step.")
@LEARNING_RATE
@click.option("--seed", type=click.IntRange(0), help="Start of every random number.")
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
    help="Parquet manifest of pictures that are no frontal chest radiograph: path, split, kind.",
)
@click.option("--resume", is_flag=True, help="Go on after the last finished epoch of RUN.")
@click.option("--test", is_flag=True, help="Report on test as well, once all choices are made.")
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
    """Trains COMiT-Net on the images of MANIFEST and writes the folder RUN.

    MANIFEST is a Parquet file, a row an image: path (relative to it), split (train, val, test),
    healthy, covid, other (true, false or null for unknown); optional: source, lung_boxes,
    disease_boxes (lists of [x, y, w, h] in pixels), lung_mask, disease_mask (paths of PNG).
    The epoch is chosen on val, the thresholds come from val, test is not read without --test
    (later: with --resume). Every figure stands beside the one that the source's name and a fixed
    mask give without a model.

    Options left out are the recipe's. A run that was killed goes on with --resume and the same
    options, and ends with the weights it would have had.
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
    help="Curve from scores to shares: logistic, or steps.",
)
@click.option(
    "--folds",
    type=click.IntRange(2),
    help="Score train and val out of fold, by networks trained for it; else val by MODEL.",
)
@click.option("--work", type=FOLDER, help="Folder of what --folds trains; resumed if there.")
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
    """Writes thresholds at 90 % and 99 % specificity into the card of MODEL, which `comit screen`
    takes its flags from, and a calibration of the scores.

    MODEL is a training run's folder or an .onnx file of comit's. Each threshold stands beside the
    number of negatives behind it and the 95 % interval of its specificity. Val has few negatives:
    --folds trains as many networks, patients apart, so that train counts as well.
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
@click.option("--split", default="test", show_default=True, help="Which rows of MANIFEST.")
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="Folder of the page.")
@click.option(
    "--resamples",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    help="Draws of patients behind each interval.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--pictures/--no-pictures", default=True, show_default=True)
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
    """Writes evaluation.md, evaluation.json and pictures into DIR.

    MODEL is "bundled", a training run's folder or an .onnx file of comit's. COVID-19 against
    other diseases within one source comes first; each figure has an interval and stands beside
    the one that needs no model, and beside the paper's where it has one. The pictures show X-rays
    of MANIFEST: keep them as you keep those.
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
