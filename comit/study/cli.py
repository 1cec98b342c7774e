"""``comit baselines``, ``comit ablation`` and ``comit parts``: the paper's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from comit.config import usable_cores
from comit.errors import MissingExtra
from comit.model.cli import (
    DEVICE,
    EPOCHS,
    FOLDER,
    LEARNING_RATE,
    MANIFEST,
    RECIPE,
    SMALL_EPOCHS,
    WIDTH,
    WORKERS,
    recipe_config,
)


def _comparison(table: str, help_text: str, short: str) -> click.Command:
    @click.command(table, help=help_text, short_help=short)
    @click.argument("manifest", type=MANIFEST)
    @click.option(
        "--out", type=FOLDER, required=True, metavar="DIR", help="Folder to write all rows to."
    )
    @click.option(
        "--only", multiple=True, metavar="ROW", help="Run only this row; repeat for several."
    )
    @click.option(
        "--seed",
        "seeds",
        type=click.IntRange(0),
        multiple=True,
        default=(0,),
        show_default=True,
        help="Seed of the first weights; repeat for several.",
    )
    @click.option(
        "--model",
        default="bundled",
        show_default=True,
        help="Model whose embeddings train scikit-learn's rows, and whose lung masks crop images.",
    )
    @click.option(
        "--init",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="VGG16",
        help="Local file of torchvision's VGG16 weights, for rows with COMiT-Net's encoder "
        "at width 1.",
    )
    @RECIPE
    @WIDTH
    @EPOCHS
    @SMALL_EPOCHS
    @LEARNING_RATE
    @DEVICE
    @WORKERS
    def command(
        manifest: Path,
        out: Path,
        only: tuple[str, ...],
        seeds: tuple[int, ...],
        model: str,
        init: Path | None,
        recipe: str,
        device: str,
        workers: int | None,
        **given: Any,
    ) -> None:
        try:
            from comit.study.comparison import compare
        except ModuleNotFoundError as error:
            raise MissingExtra(f"comit {table}", "train") from error
        lines = compare(
            table,
            manifest,
            out,
            recipe_config(recipe, given),
            only=only,
            seeds=seeds,
            model=model,
            init=init,
            device=device,
            workers=workers or usable_cores(),
        )
        for line in lines:
            click.echo(line)

    return command


_KEPT = "Finished rows are not run again; interrupted rows are resumed."
baselines = _comparison(
    "baselines",
    f"""Train and measure the networks that the paper compares with (table 4, section 4.1).

    DenseNet121, MobileNetV2, ResNet18 and VGG19 of torchvision with a fully connected head, from
    random weights; scikit-learn's random forest and SVM on embeddings; MONAI's U-Net; SegNet
    (COMiT-Net with its two mask tasks alone); and COMiT-Net, all on the same split, by the same
    loop, under the same recipe. torchvision's Mask R-CNN has a loop of its own, and needs its
    compiled operators. Writes baselines.md. {_KEPT}
    """,
    "Train and measure the networks of the paper's table 4.",
)
ablation = _comparison(
    "ablation",
    f"""Train COMiT-Net on the eight sets of tasks of the paper's table 5; write ablation.md.

    With --seed three times, the spread over initialisations as in figure 8. {_KEPT}
    """,
    "Train and measure the task subsets of the paper's table 5.",
)
parts = _comparison(
    "parts",
    f"""Train COMiT-Net without each part of a recipe, and in ways against the source shortcut.

    Meant for --recipe strong, all tasks. loss-...: the losses of equation 8 summed as printed,
    diseased pixels weighted as others, and both. recipe-default: what the default recipe has in
    place of each part. The rows called classes-... learn the class labels alone:
    with sources unbalanced and wholly balanced, with an adversary that names the source, with mixup
    across sources, and on images cropped to the lungs that --model sees. Writes parts.md. {_KEPT}
    """,
    "Train and measure what a recipe is made of.",
)
