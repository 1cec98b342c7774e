"""``comit bench``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from comit.errors import UsageError

PATH = click.Path(path_type=Path)
CHOICES = (
    click.option("--model", type=PATH, help="Exported .onnx model; default: the bundled one."),
    click.option("--engine", default="auto", show_default=True, help="As in comit screen."),
    click.option("--device", default="auto", show_default=True, help="cpu or cuda:0."),
    click.option("--precision", default="auto", show_default=True, help="fp32, bf16 or fp16."),
    click.option(
        "--json", "to", type=PATH, help="Also write figures and machine as JSON; - is stdout."
    ),
)


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which engine is measured."""
    for option in reversed(CHOICES):
        command = option(command)
    return command


@click.group()
def bench() -> None:
    """Measure how fast comit is here."""


@bench.command()
@engine_options
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(1),
    multiple=True,
    help="Images at once; repeat for several [default: 1, 8, 32].",
)
@click.option("--calls", type=click.IntRange(2), default=30, show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="For the rate with all lanes busy.")
def latency(
    model: Path | None,
    engine: str,
    device: str,
    precision: str,
    to: Path | None,
    batch_sizes: tuple[int, ...],
    calls: int,
    seconds: float,
) -> None:
    """Time the engine alone on random images, by batch size."""
    from comit.bench.latency import measure
    from comit.card import BUNDLED
    from comit.engine import load_engine

    found = []
    for size in batch_sizes or (1, 8, 32):
        loaded = load_engine(model or BUNDLED, engine, device, precision, size)
        found.append(measure(loaded, calls, seconds))
        loaded.close()
    columns = ("engine", "precision", "device", "batch_size", "first_ms", "p50_ms", "p90_ms")
    show(found, (*columns, "p99_ms", "lanes", "images_per_second"), to)


@bench.command()
@click.argument("source", metavar="INPUT", type=PATH)
@engine_options
@click.option("--batch-size", type=click.IntRange(1), help="Images at once [default: engine's].")
@click.option("--workers", type=click.IntRange(1), help="Decoding processes.")
@click.option("--masks", type=click.Choice(["all", "flagged", "none"]), default="all")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True)
@click.option("--seconds", default=5.0, show_default=True, help="For the engine alone, each time.")
def throughput(
    source: Path,
    model: Path | None,
    to: Path | None,
    repeat: int,
    seconds: float,
    **given: Any,
) -> None:
    """Screen the X-rays of INPUT, beside the same engine alone; the results are thrown away.

    `ratio` is what is left of the engine's own rate once files are read, decoded, prepared and
    written as well.
    """
    from comit.bench.throughput import measure
    from comit.card import BUNDLED
    from comit.screen import Options

    options = Options(model=model or BUNDLED, **given)
    found = [measure(source, options, seconds) for _ in range(repeat)]
    columns = ("screened", "seconds", "images_per_second", "alone_before", "alone_after", "ratio")
    show(found, columns, to)


@bench.command()
@click.argument("source", metavar="FOLDER", type=PATH)
@engine_options
@click.option("--rows", type=click.IntRange(1), multiple=True, help="[default: 1000, 20000]")
def memory(
    source: Path,
    model: Path | None,
    engine: str,
    device: str,
    precision: str,
    to: Path | None,
    rows: tuple[int, ...],
) -> None:
    """Screen manifests of growing length over the files of FOLDER; peak memory of each."""
    from comit.bench.memory import measure

    arguments = ["--engine", engine, "--device", device, "--precision", precision]
    arguments += ["--model", str(model)] if model else []
    found = measure(source, list(rows or (1000, 20000)), arguments)
    show(found, ("rows", "seconds", "peak_bytes", "ratio"), to)


@bench.command()
@click.option("--short", is_flag=True, help="A few of each, in minutes.")
@click.option("--only", multiple=True, help="One kind of fault; repeat for several.")
@click.option(
    "--data",
    type=PATH,
    multiple=True,
    help="Folder of real files to mutate; repeat for several [default: drawn phantoms].",
)
@click.option("--json", "to", type=PATH, help="Also write figures and machine as JSON.")
@click.pass_context
def faults(
    ctx: click.Context,
    /,
    short: bool,
    only: tuple[str, ...],
    data: tuple[Path, ...],
    to: Path | None,
) -> None:
    """Kill, starve and mislead comit, and count what it lost: nothing, or exit code 1."""
    import json

    from comit.bench.faults import SHORT, Extent, everything
    from comit.bench.machine import machine

    found = []
    for figure in everything(SHORT if short else Extent(), list(data), only):
        click.echo(f"{'ok ' if figure.passed else 'BAD'} {figure.fault}: {figure.figure}")
        found.append(figure)
    if to is not None:
        figures = [figure._asdict() for figure in found]
        to.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=1) + "\n")
    if not found:
        raise UsageError(f"there is no such kind of fault: {', '.join(only)}")
    if not all(figure.passed for figure in found):
        ctx.exit(1)


def show(found: Sequence[Any], columns: Sequence[str], to: Path | None) -> None:
    """Prints a table of dataclasses; with ``to`` also writes them and the machine as JSON."""
    import json
    from dataclasses import asdict

    from comit.bench.machine import machine

    here, lines = machine(), [asdict(f) for f in found]
    text = json.dumps({"machine": here, "figures": lines}, indent=1) + "\n"
    if str(to) == "-":
        click.echo(text, nl=False)
        return
    cells = [list(columns), *([str(line[c]) for c in columns] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    click.echo(f"{here['cpu']}, {here['cores']} cores, load {here['load']}")
    for gpu in here["gpus"]:
        click.echo(gpu)
    for row in cells:
        click.echo("  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)))
    if to is not None:
        try:
            to.write_text(text)
        except OSError as error:
            raise UsageError(f"{to} cannot be written") from error
