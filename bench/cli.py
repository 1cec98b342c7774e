"""``comit bench``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from comit.errors import UsageError

PATH = click.Path(path_type=Path)
JSON = click.option(
    "--json", "to", type=PATH, help="Also write figures and machine as JSON; - is stdout."
)
WIDTH = click.option(
    "--width", type=float, help="Use an untrained network of this width instead of --model."
)
SIDE = click.option(
    "--side",
    type=click.IntRange(224),
    help="Rows and columns of drawn files [default: a detector's].",
)
CHOICES = (
    click.option("--model", type=PATH, help="Exported .onnx model; default: the bundled one."),
    click.option("--engine", default="auto", show_default=True, help="As in comit screen."),
    click.option("--device", default="auto", show_default=True, help="cpu or cuda:0."),
    click.option("--precision", default="auto", show_default=True, help="fp32, bf16 or fp16."),
    JSON,
)
GENERATED = ("png", "jpeg", "dicom", "jpeg-lossless", "jpeg2000")  # comit.bench.files.KINDS


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which engine is measured."""
    for option in reversed(CHOICES):
        command = option(command)
    return command


@click.group()
def bench() -> None:
    """Measure how fast comit is on this machine."""


@bench.command()
@engine_options
@WIDTH
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(1),
    multiple=True,
    help="Batch size; repeat for several [default: 1, 8, 64, 256 as memory allows].",
)
@click.option(
    "--calls",
    type=click.IntRange(2),
    default=30,
    show_default=True,
    help="Timed calls per batch size.",
)
@click.option(
    "--seconds",
    default=3.0,
    show_default=True,
    help="Time to measure the rate with all lanes busy, in seconds.",
)
@click.option("--plot", "picture", type=PATH, help="Also draw the figures into this PNG file.")
def latency(
    model: Path | None,
    width: float | None,
    engine: str,
    device: str,
    precision: str,
    to: Path | None,
    batch_sizes: tuple[int, ...],
    calls: int,
    seconds: float,
    picture: Path | None,
) -> None:
    """Time the engine alone on random images, by batch size."""
    from comit.bench.latency import SIZES, by_batch, new_figure, plot
    from comit.engine import load_engine

    if picture is not None:
        new_figure()  # a missing package is said before minutes of measuring

    with chosen(model, width) as path:

        def load(size: int) -> Any:
            return load_engine(path, engine, device, precision, size)

        found = by_batch(load, batch_sizes or SIZES, calls, seconds, say)
    columns = ("engine", "precision", "device", "batch_size", "load_ms", "first_ms", "p50_ms")
    more = ("p90_ms", "p99_ms", "lanes", "images_per_second", "mhz_before", "mhz_after")
    show(found, (*columns, *more), to)
    if picture is not None:
        plot(found, picture)


@bench.command()
@click.argument("source", metavar="[INPUT]", type=PATH, required=False)
@engine_options
@WIDTH
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Images that the network takes at once [default: chosen by the engine].",
)
@click.option("--workers", type=click.IntRange(1, 512), help="Decoding processes.")
@click.option(
    "--masks",
    type=click.Choice(["all", "flagged", "none"]),
    default="all",
    help="Rows that get masks.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Number of measurements; the median counts.",
)
@click.option(
    "--seconds",
    default=2.0,
    show_default=True,
    help="Time to measure each stage alone, in seconds.",
)
@click.option(
    "--generate",
    type=click.Choice(GENERATED),
    help="Use drawn files of this format instead of INPUT.",
)
@click.option(
    "--files",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Number of files to draw.",
)
@SIDE
@click.option(
    "--images",
    type=click.IntRange(1),
    help="Images per run; files are used again [default: each file once].",
)
@click.option("--cold", is_flag=True, help="Drop the files from the page cache before each run.")
@click.option(
    "--sweep",
    is_flag=True,
    help="Also measure the rate by number of files, workers and batch size.",
)
def throughput(
    source: Path | None,
    model: Path | None,
    width: float | None,
    to: Path | None,
    repeat: int,
    seconds: float,
    generate: str | None,
    files: int,
    side: int | None,
    images: int | None,
    cold: bool,
    sweep: bool,
    **given: Any,
) -> None:
    """Screen the X-rays of INPUT, measure each stage alone, and discard the results.

    `efficiency` is the end-to-end rate divided by the smallest ceiling:
    docs/explanation/benchmarks.md.
    """
    from comit.bench.throughput import measure
    from comit.options import Options

    with drawn(source, generate, files, side) as folder, chosen(model, width) as path:
        options = Options(model=path, **given)
        found = measure(folder, options, seconds, repeat, images, cold, sweep)
    columns = ("images", "core_ms_total", "ceilings", "steady", "images_per_second", "efficiency")
    show([found], columns, to)
    if str(to) != "-":
        for name, value in found.core_ms.items():
            click.echo(f"{name:>12}  {value:9.3f} core-ms an image")
        for grown in found.sweep:
            click.echo(f"{grown.what:>12}  {grown.value:>6}  {grown.steady:9.2f} images/s")
        click.echo(f"bottleneck: {found.bottleneck}; what would lift it: {found.advice}")


@contextmanager
def chosen(model: Path | None, width: float | None) -> Iterator[Path]:
    """The model file that is measured."""
    from comit.bench.untrained import untrained
    from comit.card import BUNDLED

    if width is None:
        yield model or BUNDLED
    elif model is not None:
        raise UsageError("give --model or --width: one of the two")
    else:
        with untrained(width) as path:
            yield path


@contextmanager
def drawn(source: Path | None, kind: str | None, files: int, side: int | None) -> Iterator[Path]:
    """INPUT, or a folder of ``files`` drawn ones that is gone afterwards."""
    import tempfile

    from comit.bench.files import generate

    if (source is None) == (kind is None):
        raise UsageError("give INPUT, or --generate what to draw: one of the two")
    if source is not None:
        yield source
    else:
        with tempfile.TemporaryDirectory(prefix="comit-bench-") as folder:
            generate(str(kind), files, Path(folder), (side, side) if side else None)
            yield Path(folder)


@bench.command()
@click.argument("source", metavar="[INPUT]", type=PATH, required=False)
@click.option("--model", type=PATH, help="Exported .onnx model; default: the bundled one.")
@WIDTH
@click.option(
    "--generate",
    type=click.Choice(GENERATED),
    help="Use drawn files of this format instead of INPUT.",
)
@click.option(
    "--files",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Number of files to draw.",
)
@SIDE
@click.option("--images", type=click.IntRange(1), help="Images per run [default: each file once].")
@click.option(
    "--repeat",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Number of measurements; the median counts.",
)
@click.option("--peer", "peers", multiple=True, help="Measure only this peer; repeat for several.")
@JSON
def compare(
    source: Path | None,
    model: Path | None,
    width: float | None,
    generate: str | None,
    files: int,
    side: int | None,
    images: int | None,
    repeat: int,
    peers: tuple[str, ...],
    to: Path | None,
) -> None:
    """Screen the same files with comit and with other tools.

    Tools that run comit's network must give its scores. `ratio` is comit's steady rate divided by
    the other tool's at the same precision; `default_ratio` uses the precision that comit chooses.
    """
    from comit.bench.compare import measure
    from comit.options import Options

    with drawn(source, generate, files, side) as folder, chosen(model, width) as path:
        found = measure(folder, Options(model=path), repeat, images, peers, say)
    columns = ("peer", "precision", "steady", "ratio", "whole_ratio", "default_ratio")
    show(found, (*columns, "default_pair", "score_difference", "note"), to)


@bench.command()
@click.argument("sources", metavar="FOLDER...", type=PATH, nargs=-1, required=True)
@click.option(
    "--repeat",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Number of measurements; the median counts.",
)
@JSON
def decode(sources: tuple[Path, ...], repeat: int, to: Path | None) -> None:
    """Compare comit's DICOM decoder with each of pydicom's on the same files.

    `ratio` is the time of pydicom divided by the time of comit, on files with equal pixels.
    """
    from comit.bench.decoding import measure

    columns = ("syntax", "decoder", "files", "equal", "refused", "ours_ms", "theirs_ms", "ratio")
    show(measure(sources, repeat), (*columns, "least", "greatest", "largest_difference"), to)


@bench.command()
@click.option("--images", type=float, default=1e6, show_default=True, help="Images in the archive.")
@click.option(
    "--cores", type=click.IntRange(1), default=64, show_default=True, help="Cores of the machine."
)
@click.option(
    "--gpus", type=click.IntRange(0), default=0, show_default=True, help="GPUs of the machine."
)
@click.option(
    "--disk",
    type=float,
    default=1e9,
    show_default=True,
    help="Rate of the disk in bytes per second.",
)
@click.option(
    "--gpu-rate", type=float, help="Rate of one GPU in images per second [default: an estimate]."
)
@click.option(
    "--file-bytes", type=float, help="Mean size of a file in bytes [default: as measured]."
)
@click.option(
    "--stages",
    type=PATH,
    help="JSON file of comit bench throughput [default: figures that come with comit].",
)
@click.option(
    "--kind",
    type=click.Choice(GENERATED),
    default="dicom",
    help="Format of the files, with the figures that come with comit.",
)
@JSON
def plan(
    stages: Path | None, kind: str, gpu_rate: float | None, to: Path | None, **given: Any
) -> None:
    """Predict how long an archive takes on another machine, and what limits it."""
    from comit.bench.plan import GPU_RATE, SHIPPED, Wanted, read_rates
    from comit.bench.plan import plan as predict

    rates = read_rates(stages) if stages else SHIPPED[kind]
    found = predict(Wanted(**given, gpu_rate=gpu_rate or GPU_RATE), rates)
    show([found], ("images", "hours", "images_per_second", "bottleneck", "ceilings"), to)
    if str(to) != "-":
        click.echo(f"what would lift it: {found.advice}")
        click.echo(f"from {found.rates}; assumed: {'; '.join(found.assumed)}")


@bench.command()
@click.argument("source", metavar="FOLDER", type=PATH)
@engine_options
@click.option(
    "--rows",
    type=click.IntRange(1),
    multiple=True,
    help="Length of a manifest; repeat for several [default: 1000, 20000].",
)
@click.option("--null", is_flag=True, help="Measure the pipeline alone, without a network.")
def memory(
    source: Path,
    model: Path | None,
    engine: str,
    device: str,
    precision: str,
    to: Path | None,
    rows: tuple[int, ...],
    null: bool,
) -> None:
    """Screen manifests of growing length over the files of FOLDER and report peak memory."""
    from comit.bench.memory import measure

    arguments = ["--engine", engine, "--device", device, "--precision", precision]
    arguments += ["--model", str(model)] if model else []
    found = measure(source, list(rows or (1000, 20000)), arguments, network=not null)
    show(found, ("rows", "seconds", "peak_bytes", "ratio"), to)


@bench.command()
@click.option("--out", type=PATH, required=True, help="Write the figures to OUT.json and OUT.md.")
@click.option("--data", type=PATH, help="Folder of X-rays, for parity on real pictures.")
@click.option("--device", default="cuda:0", show_default=True, help="GPU to measure.")
@click.option(
    "--minutes", default=9.0, show_default=True, help="Start no further part after this time."
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(1),
    multiple=True,
    help="Batch size; repeat for several.",
)
@click.option("--width", default=1.0, show_default=True, help="Width of the network that is timed.")
def gpu(out: Path, batch_sizes: tuple[int, ...], **given: Any) -> None:
    """Measure everything that needs a GPU. Parts that cannot run are listed with the reason.

    Parity of engines and kernels, rates beside the ceilings of the same run, layers one by one.
    Exit code 1 where a part failed, 0 also where parts could not run.
    """
    from comit.errors import MissingExtra

    try:
        from comit.bench.gpu import Settings, run
    except ModuleNotFoundError as error:
        raise MissingExtra(f"bench gpu ({error.name})", "train") from error
    if batch_sizes:
        given["batch_sizes"] = batch_sizes
    settings = Settings(**given)
    parts = run(settings, out, click.echo)
    if any(p.status == "failed" for p in parts):
        raise SystemExit(1)


@bench.command()
@click.argument("results", type=PATH)
@click.option("--images", type=PATH, help="Screened folder or manifest, as in comit report.")
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    help="Number of rows to measure with.",
)
@click.option(
    "--top",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="Number of rows with a picture.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Number of measurements; the median counts.",
)
@JSON
def report(
    results: Path, images: Path | None, rows: int, top: int, repeat: int, to: Path | None
) -> None:
    """Repeat RESULTS to --rows, open their report in Chromium, and time its first answer."""
    from comit.bench.report import measure

    found = measure(results, images, rows, top, repeat)
    show(found, ("rows", "megabytes", "ready_s", "interactive_s", "end_key_ms"), to)


@bench.command()
@click.argument("results", type=PATH)
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    help="Number of rows to measure with.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Number of measurements; the median counts.",
)
@JSON
def differences(results: Path, rows: int, repeat: int, to: Path | None) -> None:
    """Repeat RESULTS to --rows and time comit compare, with equal and with other masks.

    RESULTS need masks. Peak memory is that of the whole process.
    """
    from comit.bench.differences import measure

    columns = ("masks", "rows", "seconds", "cpu_seconds", "peak_bytes")
    show(measure(results, rows, repeat), columns, to)


@bench.command()
@click.argument("source", metavar="INPUT", type=PATH)
@engine_options
@click.option(
    "--share",
    "shares",
    type=click.FloatRange(0, 1),
    multiple=True,
    help="Share of flagged rows; repeat for several.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Number of measurements; the median counts.",
)
def flagged(
    source: Path,
    model: Path | None,
    to: Path | None,
    shares: tuple[float, ...],
    repeat: int,
    **given: Any,
) -> None:
    """Compare --masks flagged with --masks all, where 5, 30 and 100 % are flagged."""
    from comit.bench.flagged import measure
    from comit.card import BUNDLED
    from comit.options import Options

    options = Options(model=model or BUNDLED, **given)
    found = measure(source, options, list(shares or (0.05, 0.3, 1.0)), repeat)
    columns = ("share", "images", "flagged_images", "all_per_second", "flagged_per_second")
    show(found, (*columns, "ratio", "lowest", "highest"), to)


@bench.command()
@click.option("--short", is_flag=True, help="Make a few faults of each kind; takes minutes.")
@click.option("--only", multiple=True, help="Make only this kind of fault; repeat for several.")
@click.option(
    "--data",
    type=PATH,
    multiple=True,
    help="Folder of real files to mutate; repeat for several [default: drawn phantoms].",
)
@click.option("--mutants", type=click.IntRange(1), help="Number of mutated files.")
@click.option(
    "--from", "first", type=click.IntRange(0), default=0, help="Number of the first mutated file."
)
@JSON
@click.pass_context
def faults(
    ctx: click.Context,
    /,
    short: bool,
    only: tuple[str, ...],
    data: tuple[Path, ...],
    mutants: int | None,
    first: int,
    to: Path | None,
) -> None:
    """Kill, starve and mislead comit, and count lost rows. Exit code 1 if any is lost."""
    from comit.bench.faults import SHORT, Extent, everything
    from comit.machine import machine

    extent = replace(SHORT if short else Extent(), first=first)
    if mutants is not None:
        extent = replace(extent, fuzzed=mutants)
    found = []
    for figure in everything(extent, list(data), only):
        line = f"{'ok ' if figure.passed else 'BAD'} {figure.fault}: {figure.figure}"
        click.echo(line, err=str(to) == "-")  # standard output is for the JSON then
        found.append(figure)
    if not found:
        raise UsageError(f"there is no such kind of fault: {', '.join(only)}")
    if to is not None:
        write_json(machine(), [figure._asdict() for figure in found], to)
    if not all(figure.passed for figure in found):
        ctx.exit(1)


def say(line: str) -> None:
    """How a long measurement goes, on standard error."""
    click.echo(line, err=True)


def shown(value: Any) -> str:
    """A figure in a table: a spread as median (min to max)."""
    if isinstance(value, dict):
        if set(value) == {"median", "min", "max"}:
            return f"{value['median']} ({value['min']} to {value['max']})"
        return ", ".join(f"{name} {shown(v)}" for name, v in value.items())
    return "-" if value is None else str(value)


def write_json(here: dict[str, Any], figures: list[dict[str, Any]], to: Path) -> None:
    """Figures and machine to a file, or - to standard output; raises UsageError."""
    import json

    text = json.dumps({"machine": here, "figures": figures}, indent=1) + "\n"
    if str(to) == "-":
        click.echo(text, nl=False)
        return
    try:
        to.write_text(text)
    except OSError as error:
        raise UsageError(f"{to} cannot be written") from error


def show(found: Sequence[Any], columns: Sequence[str], to: Path | None) -> None:
    """Prints a table of dataclasses; with ``to`` also writes them and the machine as JSON."""
    from dataclasses import asdict

    from comit.machine import machine

    here, lines = machine(), [asdict(f) for f in found]
    if str(to) == "-":
        write_json(here, lines, Path("-"))
        return
    cells = [list(columns), *([shown(line[c]) for c in columns] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    click.echo(f"{here['cpu']}, {here['cores']} cores, load {here['load']}")
    for gpu in here["gpus"]:
        click.echo(gpu)
    for row in cells:
        click.echo("  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)))
    if to is not None:
        write_json(here, lines, to)
