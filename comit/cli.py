"""The command line. Only click is imported here: everything heavy loads inside a command."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import click

from comit import __version__
from comit.bench.cli import bench
from comit.data.cli import data
from comit.errors import ComitError
from comit.export.cli import export
from comit.training.cli import ablation, baselines, calibrate, evaluate, train


class Comit(click.Group):
    """Ends with the exit code of a ComitError and its message on one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; the library raises, the command line exits."""
        hold_standard_streams()
        try:
            return super().invoke(ctx)
        except ComitError as error:
            click.echo(f"comit: {printable(str(error))}", err=True)
            ctx.exit(error.exit_code)


def hold_standard_streams() -> None:
    """Opens /dev/null for each of stdin, stdout and stderr that the caller closed.

    Else the next file opened would get its number, and a child process close it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@click.group(cls=Comit, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="comit")
def main() -> None:
    """Screen chest X-rays with COMiT-Net: scores and masks to Parquet.

    Research use only. Not a medical device; not for diagnosis.

    \b
      comit demo phantoms                                 draw a few synthetic X-rays
      comit screen phantoms --out results.parquet         screen a folder
      comit info                                          version, engines, model card
    """


PATH = click.Path(path_type=Path)


@main.command()
@click.argument("source", metavar="INPUT", type=PATH)
@click.option("--out", "-o", type=PATH, required=True, help="Parquet file to write.")
@click.option("--model", type=PATH, help="Exported .onnx model; default: the bundled one.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "openvino", "onnxruntime", "torch", "tensorrt"]),
    default="auto",
    show_default=True,
    help="What runs the network; auto is the fastest there is.",
)
@click.option("--device", default="auto", show_default=True, help="cpu or cuda:0.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Arithmetic of the engine; fp32 is the reference.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Images at once [default: engine's].")
@click.option(
    "--workers", type=click.IntRange(1), help="Decoding processes [default: usable cores]."
)
@click.option("--pattern", default="*", show_default=True, help="File names to take of a folder.")
@click.option(
    "--masks",
    type=click.Choice(["all", "flagged", "none"]),
    default="all",
    show_default=True,
    help="Rows that get masks; flagged: flag_unhealthy or flag_covid.",
)
@click.option(
    "--operating-point",
    type=click.Choice(["90", "99"]),
    default="90",
    show_default=True,
    help="Specificity in % of the thresholds behind the flags.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds to read and decode one file.",
)
@click.option("--report", "report_to", type=PATH, help="Write what the run did as JSON.")
@click.option("--restart", is_flag=True, help="Forget an unfinished run of this output.")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no summary.")
def screen(
    source: Path, out: Path, model: Path | None, report_to: Path | None, quiet: bool, **given: Any
) -> None:
    """Screen every X-ray of INPUT: one row each, whatever happens to it.

    INPUT is a folder (searched through all its subfolders), one image, or a manifest: a Parquet
    or CSV table with a column `path` (relative to the table), an optional `id`, and any others,
    which are passed through. DICOM, PNG and JPEG are told apart by content.

    A row is `ok` with scores, flags and COCO run-length masks; `skipped` because it is not a
    frontal chest radiograph; or `failed`, with the reason as a code.

    The output is replaced as a whole at the end. Stop a run with Ctrl-C: the same command
    resumes it.

    \b
    Exit code  0  every row is ok or skipped
               2  nothing done: wrong arguments, input, output or model
               3  finished; some rows failed
               4  stopped before the end; the same command resumes

    \b
    Examples
      comit screen ./xrays --out results.parquet
      comit screen archive.csv --out night.parquet --masks flagged --report night.json
      comit screen ./xrays --out fp32.parquet --precision fp32 --pattern '*.dcm'
    """
    from comit.console import Console
    from comit.screen import Options
    from comit.screen import screen as run

    options = Options(**given) if model is None else Options(model=model, **given)
    stop, console = threading.Event(), Console(quiet=quiet)

    def ask_to_stop(number: int, frame: object) -> None:
        if stop.is_set():  # asked twice: at once
            raise KeyboardInterrupt
        stop.set()
        console.line("stopping after the images in hand; again to stop at once")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    if report_to is not None:
        check_writable(report_to)
    try:
        report = run(source, out, options, console=console, stop=stop)
    except KeyboardInterrupt:
        click.echo(f"comit: stopped; the same command resumes {printable(str(out))}", err=True)
        sys.exit(4)
    if report_to is not None:
        import json
        from dataclasses import asdict

        report_to.write_text(json.dumps(asdict(report), indent=1) + "\n")
    if not quiet:
        from comit.summary import summary

        for line in summary(report):
            console.line(line)
    if report.status["failed"]:
        sys.exit(3)


def check_writable(path: Path) -> None:
    """Raises UsageError now rather than after a night where a report cannot be written."""
    from comit.errors import UsageError

    try:
        path.open("a").close()
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


@main.command()
@click.argument("directory", type=PATH)
@click.option("--count", type=click.IntRange(1), default=12, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def demo(directory: Path, count: int, seed: int) -> None:
    """Draw synthetic chest phantoms into DIRECTORY, to try comit without data.

    They are drawings, labelled as such; what a model says of them means nothing.
    """
    from comit.demo import demo as draw

    paths = draw(directory, count, seed)
    click.echo(f"{len(paths)} synthetic pictures in {printable(str(directory))}; next:")
    click.echo(f"  comit screen {printable(str(directory))} --out results.parquet")


@main.command()
@click.option("--model", type=PATH, help="Exported .onnx model; default: the bundled one.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def info(model: Path | None, as_json: bool) -> None:
    """Show the version, the engines found, and the model card."""
    from comit.summary import information

    click.echo(information(model, as_json))


for command in (train, calibrate, evaluate, baselines, ablation, data, export, bench):
    main.add_command(command)
