"""``comit train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from comit.config import usable_cores
from comit.errors import MissingExtra


@click.command(short_help="Train COMiT-Net from a Parquet manifest.")
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="RUN",
    help="Folder of the run: weights, checkpoint, figures.",
)
@click.option(
    "--recipe",
    type=click.Choice(["default", "paper", "strong"]),
    default="default",
    show_default=True,
    help="default: AdamW, one cycle, averaged weights. paper: section 3.3, as printed. strong: "
    "the best measured: sources balanced, more variation, small images first.",
)
@click.option("--width", type=click.FloatRange(0, 4, min_open=True), help="Channel factor.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training images.")
@click.option("--small-epochs", type=click.IntRange(0), help="How many of them see small images.")
@click.option("--balance", type=click.FloatRange(0, 1), help="Weight of rare groups; 0 is none.")
@click.option("--soften", type=click.FloatRange(0, 1), help="Teachers' share in class labels.")
@click.option("--batch-size", type=click.IntRange(2), help="Images a step.")
@click.option("--lr", "learning_rate", type=click.FloatRange(0, min_open=True), help="Step size.")
@click.option("--seed", type=click.IntRange(0), help="Start of every random number.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--init",
    type=click.Path(exists=True, path_type=Path),
    metavar="VGG16|RUN",
    help="Local torchvision VGG16 weights (.pth, .safetensors) for the encoder, width 1 alone; or "
    "an earlier run's folder.",
)
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="RUN",
    help="Earlier run whose masks stand in where an image has none; may be repeated.",
)
@click.option("--resume", is_flag=True, help="Go on after the last finished epoch of RUN.")
@click.option("--workers", type=click.IntRange(1), help="Threads that read images.")
def train(
    manifest: Path,
    out: Path,
    recipe: str,
    device: str,
    init: Path | None,
    teachers: tuple[Path, ...],
    resume: bool,
    workers: int | None,
    **given: Any,
) -> None:
    """Trains COMiT-Net on the images of MANIFEST and writes the folder RUN.

    MANIFEST is a Parquet file, a row an image: path (relative to it), split (train, val, test),
    healthy, covid, other (true, false or null for unknown); optional: source, lung_boxes,
    disease_boxes (lists of [x, y, w, h] in pixels), lung_mask, disease_mask (paths of PNG).
    The epoch is chosen on val, the thresholds come from val, test is only reported. Every figure
    stands beside the one that the source's name and a fixed mask give without a model.

    Options left out are the recipe's. A run that was killed goes on with --resume and the same
    options, and ends with the weights it would have had.
    """
    from dataclasses import replace

    try:
        from comit.training.loop import TrainConfig
        from comit.training.loop import train as run
    except ModuleNotFoundError as error:
        raise MissingExtra("comit train", "train") from error
    recipes = {
        "default": TrainConfig,
        "paper": TrainConfig.paper,
        "strong": TrainConfig.strong,
    }
    config = recipes[recipe]()
    run(
        manifest,
        out,
        replace(config, **{k: v for k, v in given.items() if v is not None}),
        device=device,
        init=init,
        teachers=teachers,
        resume=resume,
        workers=workers or usable_cores(),
    )
