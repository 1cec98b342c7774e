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
from comit.console import Console, printable
from comit.data.cli import data
from comit.errors import ComitError, Stopped, UsageError
from comit.export.cli import export
from comit.look.cli import COMMANDS
from comit.model.cli import calibrate, evaluate, train
from comit.options import CHOICES, MOST_WORKERS
from comit.study.cli import ablation, baselines, parts
from comit.terminal.arguments import Output


class Comit(click.Group):
    """Ends with the exit code of a ComitError and its message on one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; the library raises, the command line exits."""
        hold_standard_streams()
        try:
            return super().invoke(ctx)
        except ComitError as error:
            console(ctx).error(str(error), error.exit_code)
            ctx.exit(error.exit_code)
        except BrokenPipeError:  # whoever read standard output has enough: click's to end
            raise
        except OSError as error:
            console(ctx).error(unforeseen(error), UsageError.exit_code)
            ctx.exit(UsageError.exit_code)


def unforeseen(error: OSError) -> str:
    """What the operating system says, of what was typed; any other name could be a patient's."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    path = os.path.abspath(name)  # noqa: PTH100
    typed = [os.path.abspath(arg) for arg in sys.argv[1:]]  # noqa: PTH100
    what = name if name and any(arg.startswith(path) for arg in typed) else "a file or a folder"
    return f"{what} cannot be used: {error.strerror or 'an error of the disk'}"


def console(ctx: click.Context, **how: Any) -> Console:
    """The console of this command, made when it is first asked for."""
    made: Console = ctx.meta.setdefault("comit.console", Console(**how))
    return made


def hold_standard_streams() -> None:
    """Opens /dev/null for each of stdin, stdout and stderr that the caller closed.

    Else the next file opened would get its number, and a child process close it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


@click.group(cls=Comit, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="comit")
def main() -> None:
    """Screen chest X-rays with COMiT-Net: scores and masks to Parquet.

    Research use only. Not a medical device; not for diagnosis.

    \b
      comit demo phantoms                                 draw a few synthetic X-rays
      comit screen phantoms --out results.parquet         screen a folder
      comit report results.parquet --out report.html --images phantoms
      comit info                                          version, engines, model card
    """
    # Before pyarrow is imported: its own pool keeps 30 MB that the C library's gives back.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


PATH = click.Path(path_type=Path)


@main.command()
@click.argument("source", metavar="INPUT...", type=click.Path(), nargs=-1, required=True)
@click.option(
    "--out",
    "-o",
    type=Output(),
    required=True,
    help="Parquet file to replace, or folder to add to (ends in / or has no suffix).",
)
@click.option("--model", type=PATH, help="Exported .onnx model; default: the bundled one.")
@click.option(
    "--engine",
    type=click.Choice(CHOICES["engine"]),
    default="auto",
    show_default=True,
    help="Program that runs the network; auto: the fastest one that is installed.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cpu, cuda:0, or several GPUs: cuda:0,cuda:1.",
)
@click.option(
    "--precision",
    type=click.Choice(CHOICES["precision"]),
    default="auto",
    show_default=True,
    help="Number format of the engine; fp32 is the reference, auto the fastest.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Images that the network takes at once [default: chosen by the engine].",
)
@click.option(
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    help="Number of decoding processes [default: by cores and memory, at most 32].",
)
@click.option(
    "--pattern",
    default="*",
    show_default=True,
    help="Screen only files whose names match; the case of the suffix does not matter.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave out files and folders that match, as .gitignore does; repeat for several.",
)
@click.option(
    "--include-hidden",
    is_flag=True,
    help="Also screen hidden files, and the snapshots, thumbnails and trash of file servers.",
)
@click.option(
    "--root",
    type=PATH,
    help="Folder that contains all files of the manifest; paths are relative to it "
    "[default: the manifest's folder].",
)
@click.option(
    "--endpoint",
    metavar="URL",
    help="Server for s3:// addresses, such as MinIO [default: Amazon S3].",
)
@click.option(
    "--masks",
    type=click.Choice(CHOICES["masks"]),
    default="all",
    show_default=True,
    help="Rows that get masks; flagged: rows with flag_unhealthy or flag_covid.",
)
@click.option(
    "--operating-point",
    type=click.Choice(CHOICES["operating_point"]),
    default="90",
    show_default=True,
    help="Choose the thresholds of the flags by their specificity in %.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Longest time to read and decode one file, in seconds.",
)
@click.option(
    "--view-policy",
    type=click.Choice(CHOICES["view_policy"]),
    default="tagged",
    show_default=True,
    help="strict: only images tagged as frontal chest. tagged: also images with no contradicting "
    "tag, unless the model's gate takes the picture for something else. all: every radiograph.",
)
@click.option(
    "--identifiers",
    type=click.Choice(CHOICES["identifiers"]),
    default="plain",
    show_default=True,
    help="Write paths and UIDs as they are (plain), as keyed hashes (hashed), "
    "or not at all (none).",
)
@click.option("--key", type=PATH, help="File that holds your key for --identifiers hashed.")
@click.option(
    "--keep",
    multiple=True,
    metavar="COLUMN",
    help="Manifest column to pass through though identifiers are not plain; repeat for several.",
)
@click.option(
    "--report", "report_to", type=PATH, help="Write a summary of the run as JSON; - is stdout."
)
@click.option(
    "--metrics-file",
    type=Output(path_type=Path),
    help="Write the progress of the run to this file, in Prometheus text format.",
)
@click.option("--retry-failed", is_flag=True, help="Screen again the files whose rows are failed.")
@click.option(
    "--upgrade",
    type=click.Choice(CHOICES["upgrade"]),
    default="refuse",
    show_default=True,
    help="Results folder of another model or version: keep its rows and screen what is new, or "
    "rescreen every file.",
)
@click.option(
    "--restart", is_flag=True, help="Discard an unfinished run of this output and start again."
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Format of messages; json: one object a line.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print no progress and no summary.")
@click.pass_context
def screen(
    ctx: click.Context,
    /,
    source: tuple[str, ...],
    out: str,
    model: Path | None,
    report_to: Path | None,
    log_format: str,
    quiet: bool,
    **given: Any,
) -> None:
    """Screen every X-ray of INPUT. Every file gets one row, whatever happens to it.

    INPUT is a folder (searched through all its subfolders), one image, or a manifest: a Parquet
    or CSV table with a column `path` (relative to the table) and an optional `id`; other columns
    are copied into the results. Several folders and images are screened as parts of the folder
    that contains them all. comit recognises DICOM, PNG and JPEG by their content.
    INPUT, and a path of a manifest, may also be an address: s3://BUCKET/PREFIX/, gs://, az://,
    https://HOST/FILE, or dicomweb+https://HOST/PATH?FILTERS.

    A row is `ok` with scores, flags and COCO run-length masks, or `skipped` because the image is
    not a frontal chest radiograph, or `failed`. Skipped and failed rows have a reason code.

    If OUT is a file, it is replaced as a whole at the end. If OUT is a folder, each run adds a
    file with the rows of new and changed files; `comit compact` merges these files. Stop a run
    with Ctrl-C: the same command resumes it.

    \b
    Exit code  0  every row is ok or skipped
               1  finished, but the --report could not be written; or an error of comit's own
               2  nothing done: wrong arguments, input, output or model
               3  finished; some rows failed
               4  stopped before the end; the same command resumes

    \b
    Examples
      comit screen ./xrays --out results.parquet
      comit screen archive.csv --out night.parquet --masks flagged --report night.json
      comit screen /archive --out results/ --identifiers hashed --key comit.key
      comit screen ./xrays --out fp32.parquet --precision fp32 --pattern '*.dcm'
      comit screen /archive --out results/ --exclude '#old/' --exclude 'test-*'
      comit screen xrays/*.jpg --out results.parquet
      comit screen s3://archive/xrays/ --out results/
    """
    from comit import heap
    from comit.options import Options
    from comit.pipeline.confine import forbid_core_dumps
    from comit.screening import screen as run

    options = Options(**given) if model is None else Options(model=model, **given)
    if options.identifiers != "plain":
        forbid_core_dumps()
    heap.share()
    stop, said = threading.Event(), console(ctx, quiet=quiet, log_format=log_format)

    def ask_to_stop(number: int, frame: object) -> None:
        if stop.is_set():  # asked twice: at once
            raise KeyboardInterrupt
        stop.set()
        said.line("stopping after the images in hand; again to stop at once", "stopping")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, ask_to_stop)
    for path in (report_to, options.metrics_file):
        if path is not None and str(path) != "-":
            check_writable(path, Path(out))
    try:
        report = run(source, out, options, console=said, stop=stop)
    except KeyboardInterrupt:
        raise Stopped(f"stopped at once; the same command resumes {out}") from None
    if report_to is not None:
        import json
        from dataclasses import asdict

        text = json.dumps(asdict(report), indent=1)
        try:
            if str(report_to) == "-":
                click.echo(text)
            else:
                report_to.write_text(text + "\n")
        except OSError as error:
            raise ComitError(
                f"the results are complete; the report {report_to} cannot be written: "
                f"{error.strerror}"
            ) from error
    if not quiet:
        from comit.terminal.summary import summary

        said.summary(summary(report), report)
    if report.status["failed"]:
        sys.exit(3)


def check_writable(path: Path, out: Path) -> None:
    """Raises UsageError now rather than after a night where a report cannot be written."""
    if path.resolve() == out.resolve():
        raise UsageError(f"{path} is the output; give each file a name of its own")
    there = path.exists()
    if there and not path.is_file():
        raise UsageError(f"{path} is not a file")
    try:
        path.open("a").close()
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    if not there:  # an empty file would be one more to screen, or be left by a run that is refused
        path.unlink()


@main.command()
@click.argument("folder", type=PATH)
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=1_000_000,
    show_default=True,
    help="Leave files with at least this many rows as they are.",
)
def compact(folder: Path, rows: int) -> None:
    """Merge the small files of a results FOLDER into one.

    No run may be writing to FOLDER; an interrupted run stays as it is. If a compaction is killed,
    the next command that writes to FOLDER finishes or undoes it.
    """
    from comit.run.run import compact as run

    files, merged = run(folder, rows)
    click.echo(
        f"{files} files of {printable(str(folder))} merged: {merged:,} rows"
        if files
        else f"{printable(str(folder))} has nothing to merge"
    )


@main.command()
@click.argument("directory", type=PATH)
@click.option(
    "--count", type=click.IntRange(1), default=12, show_default=True, help="Number of files."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Another seed draws other phantoms."
)
def demo(directory: Path, count: int, seed: int) -> None:
    """Draw synthetic chest phantoms into DIRECTORY, to try comit without data.

    The phantoms are drawings and labelled as drawings. Scores of them mean nothing.
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
    from comit.terminal.summary import information

    click.echo(information(model, as_json))


for command in (
    train,
    calibrate,
    evaluate,
    baselines,
    ablation,
    parts,
    data,
    export,
    bench,
    *COMMANDS,
):
    main.add_command(command)
