"""``comit export``: trained weights to files that engines run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from comit.console import Console
from comit.terminal.arguments import Output

if TYPE_CHECKING:
    from comit.card import Card
    from comit.model.network import COMiTNet


@click.group()
def export() -> None:
    """Turn a trained network into a file that engines run."""


@export.command()
@click.argument("run")
@click.option(
    "--out",
    type=Output(path_type=Path, dir_okay=False),
    required=True,
    help="The .onnx file to write; its card is written beside it.",
)
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True)
@click.option(
    "--images",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of X-rays on which the file is compared with PyTorch; recommended.",
)
@click.option("--name", help="Name of the model in its card and in results.")
@click.option(
    "--note", "notes", multiple=True, help="Sentence to add to the card; repeat for several."
)
def onnx(
    run: str,
    out: Path,
    precision: str,
    images: Path | None,
    name: str | None,
    notes: tuple[str, ...],
) -> None:
    """Write RUN as ONNX. RUN is the folder of a training run, an .onnx file of comit or "bundled".

    comit first compares the file with PyTorch. If scores or masks differ, it writes no file.
    """
    from comit.errors import MissingExtra, UsageError

    if out.suffix != ".onnx":
        raise UsageError(f"{out} must end in .onnx")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is not a folder")
    try:
        from dataclasses import replace

        from comit.export.parity import read_images
        from comit.export.to_onnx import export_onnx
    except ModuleNotFoundError as error:
        raise MissingExtra(f"exporting ({error.name})", "train") from error

    network, card = _load(run, precision)
    if name is not None:
        card = replace(card, name=name)
    if notes:
        card = replace(card, notes=list(notes))
    console = Console()
    with console.stage(f"reading X-rays of {images}"):
        pixels = None if images is None else read_images(images)
    with console.stage("exporting, and comparing the file with PyTorch"):
        written, parity = export_onnx(network, card, out, precision, pixels)
    click.echo(f"{out}: {written.name}, {precision}; agrees with PyTorch {parity}")


@export.command()
@click.argument("model")
@click.option(
    "--out",
    type=Output(path_type=Path, dir_okay=False),
    required=True,
    help="The .engine file to write; its card is written beside it.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Largest batch; TensorRT tunes the engine for it.",
)
@click.option(
    "--level",
    type=click.IntRange(0, 5),
    default=3,
    show_default=True,
    help="Effort with which TensorRT looks for fast kernels.",
)
@click.option("--device", default="cuda:0", show_default=True)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to keep compiled engines in [default: ~/.cache/comit].",
)
def tensorrt(
    model: str, out: Path, batch_size: int, level: int, device: str, cache: Path | None
) -> None:
    """Compile MODEL, an .onnx file of comit or "bundled", to a TensorRT FP16 engine.

    The engine runs only with this version of TensorRT on this kind of GPU. TensorRT for RTX can
    compile without a GPU. `comit screen --engine tensorrt` with an .onnx file compiles on
    first use and keeps the engine; with --model FILE.engine it takes this one.
    """
    from comit.card import BUNDLED
    from comit.engine.builder import Options
    from comit.errors import UsageError
    from comit.export.to_tensorrt import export_engine

    if out.suffix != ".engine":
        raise UsageError(f"{out} must end in .engine")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is not a folder")
    about = export_engine(
        BUNDLED if model == "bundled" else Path(model),
        out,
        Options(batch_size, level),
        device,
        cache,
        lambda line: click.echo(line, err=True),
    )
    made = about.machine
    gpu = made.gpu or "any GPU it knows"
    click.echo(f"{out}: {about.precision}, {made.tensorrt} {made.version}, for {gpu}")


def _load(run: str, precision: str) -> tuple[COMiTNet, Card]:
    from comit.errors import UsageError
    from comit.model.opened import open_network

    found = open_network(run)
    if found.card.precision == "fp16" and precision == "fp32":
        raise UsageError(f"{found.path} is fp16: its weights are rounded; export fp32 from the run")
    return found.network, found.card
