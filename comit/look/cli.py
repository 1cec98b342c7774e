"""``comit report``, ``overlay``, ``worklist``, ``dicom`` and ``compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from comit.terminal.arguments import Output

if TYPE_CHECKING:
    from comit.look.output import Made
    from comit.send.send import Sent

PATH = click.Path(path_type=Path)
RESULTS = click.argument("results", type=PATH)
IMAGES = click.option(
    "--images",
    type=PATH,
    help="The screened folder or manifest [default: the folder that the results name].",
)
OUT = click.option(
    "--out", "-o", type=Output(path_type=Path), required=True, help="File or folder to write."
)
BY = click.option(
    "--by",
    type=click.Choice(["score_unhealthy", "score_covid", "score_other", "disease_fraction"]),
    default="score_unhealthy",
    show_default=True,
    help="Column to sort by, highest first.",
)
COLUMN = click.option(
    "--column", "extra", multiple=True, help="Also show this column of the manifest."
)


@click.command()
@RESULTS
@IMAGES
@OUT
@BY
@COLUMN
@click.option(
    "--top",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="Number of rows with a picture.",
)
@click.option(
    "--model", type=PATH, help="Model that draws the heat maps [default: the bundled model]."
)
@click.option(
    "--run", type=PATH, help="JSON file of comit screen --report, to show the throughput."
)
def report(results: Path, images: Path | None, out: Path, **given: Any) -> None:
    """Write RESULTS as one HTML page that needs no network.

    The page contains X-rays, and the paths and UIDs of RESULTS. Keep it as safe as those.
    """
    from comit.console import Console
    from comit.look.report import write_report

    made = write_report(results, images, out, console=Console(), **given)
    _close(made, f"the report is {out}")


@click.command()
@RESULTS
@IMAGES
@OUT
@click.option(
    "--style",
    type=click.Choice(["contour", "fill"]),
    default="contour",
    show_default=True,
    help="Draw outlines, or fill the masks.",
)
@click.option("--flagged", is_flag=True, help="Draw only rows with a flag.")
@click.option(
    "--explain",
    type=click.Choice(["gradcam"]),
    help="Also show as heat what the network looked at.",
)
@click.option(
    "--task",
    type=click.Choice(["unhealthy", "covid"]),
    default="unhealthy",
    show_default=True,
    help="The score to explain.",
)
@click.option(
    "--model",
    type=PATH,
    help="The training run or .onnx file to explain; default: the bundled one.",
)
def overlay(
    results: Path,
    images: Path | None,
    out: Path,
    style: str,
    flagged: bool,
    explain: str | None,
    task: Any,
    model: Path | None,
) -> None:
    """Write PNG pictures of RESULTS into the folder OUT: lungs blue, disease orange.

    --explain runs the network again in PyTorch. Needs: pip install 'comit[train]'
    """
    from comit.console import Console
    from comit.look.overlay import overlay as run

    explained = None
    if explain:
        from comit.look.explain import GradCam

        explained = GradCam(model, task)
    made = run(
        results,
        images,
        out,
        fill=style == "fill",
        flagged=flagged,
        explain=explained,
        console=Console(),
    )
    _close(made, f"{len(made.files):,} pictures in {out}; {made.without:,} rows without")


@click.command()
@RESULTS
@OUT
@BY
@COLUMN
def worklist(results: Path, out: Path, by: str, extra: tuple[str, ...]) -> None:
    """Write RESULTS as CSV in reading order; failed rows come last."""
    from comit.look.worklist import worklist as run

    rows = run(results, out, by, extra)
    _say(f"{rows:,} rows in {out}, by {by}. Research use only")


@click.command()
@RESULTS
@IMAGES
@OUT
@click.option(
    "--to",
    "kind",
    type=click.Choice(["seg", "sr", "sc"]),
    required=True,
    help="The kind of object to make.",
)
@click.option(
    "--send",
    metavar="ADDRESS",
    help="Send them to dicomweb+https://HOST/PATH or dimse://AET@HOST:PORT.",
)
@click.option(
    "--send-now",
    is_flag=True,
    help="Agree to an address; at its first use nothing is sent without this.",
)
@click.option(
    "--read-back",
    metavar="ADDRESS",
    help="DICOMweb server that is asked what arrived [default: the one of --send].",
)
@click.option("--retry-refused", is_flag=True, help="Send again what was refused.")
def dicom(
    results: Path,
    images: Path | None,
    out: Path,
    kind: Any,
    send: str | None,
    send_now: bool,
    read_back: str | None,
    retry_refused: bool,
) -> None:
    """Write DICOM objects for the DICOM radiographs of RESULTS into the folder OUT.

    \b
      seg  segmentation of lungs and disease
      sr   measurement report (TID 1500): scores, flags, disease fraction
      sc   secondary capture with burned-in contours

    Needs: pip install 'comit[dicom]', and 'comit[dimse]' for --send dimse://

    --send keeps an outbox in OUT: run the same command to resume, or every night.
    """
    from comit.console import Console
    from comit.errors import UsageError
    from comit.look.dicom import export

    if send is None:
        if send_now or read_back or retry_refused:
            raise UsageError("--send-now, --read-back and --retry-refused go with --send")
        made = export(results, images, out, kind, Console())
        _close(made, _dicom(made, kind, out))
        return

    from comit.look.output import make_folder
    from comit.send.send import Sending

    make_folder(out)
    sending = Sending(send, read_back, out)
    try:
        made = export(results, images, out, kind, Console(), sending.add)
        sent = sending.run(send_now, retry_refused, Console())
    finally:
        sending.close()
    complete = _tell(sent)
    _close(made, _dicom(made, kind, out))
    if not complete:
        sys.exit(3)


def _dicom(made: Made, kind: str, out: Path) -> str:
    return f"{len(made.files):,} {kind.upper()} objects in {out}; {made.without:,} rows without"


def _tell(sent: Sent) -> bool:
    """Says what became of the objects; whether all of them arrived, or none was to be sent."""
    size = (
        f"{sent.waiting:,} objects of {sent.studies:,} studies, {sent.waiting_bytes / 1e6:,.1f} MB"
    )
    if sent.dry:
        _say(f"would send {size} to {sent.address}; nothing was sent")
        _say("this is the first use of the address: add --send-now to send")
        return True
    states = sent.states
    _say(f"sent to {sent.address}: {size} were waiting")
    _say(
        f"  {states['confirmed']:,} confirmed, {states['sent']:,} accepted and not confirmed, "
        f"{states['refused']:,} refused, {states['made']:,} not sent; the table is {sent.table}"
    )
    return not states["refused"] and not states["made"]


@click.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def compare(a: Path, b: Path, as_json: bool) -> None:
    """Show how scores, flags and masks of the results B differ from A."""
    import json

    from comit import heap
    from comit.console import printable
    from comit.look.compare import as_dict, lines
    from comit.look.compare import compare as run

    heap.share()
    heap.reuse()
    found = run(a, b)
    said = [printable(line) for line in lines(found)]
    click.echo(json.dumps(as_dict(found), indent=1) if as_json else "\n".join(said))


def _say(text: str) -> None:
    from comit.console import Console

    Console().line(text)


def _close(made: Made, text: str) -> None:
    """Sums up what was made; exit code 3 where pictures were not found or not readable."""
    from comit.console import printable
    from comit.reasons import REASONS, Fail, Unmade

    meanings = {str(c): c.meaning for c in (*REASONS.values(), *Unmade)}
    _say(f"{text}. Research use only")
    for path, reason in made.problems[:10]:
        _say(f"  {printable(path)}: {reason} ({meanings[reason]})")
    if made.problems:
        elsewhere = {reason for _, reason in made.problems} & {Fail.CHANGED, Fail.VANISHED}
        advice = "; is --images the screened folder or manifest?" if elsewhere else ""
        _say(f"{len(made.problems):,} rows could not be shown{advice}")
        sys.exit(3)


COMMANDS = (report, overlay, worklist, dicom, compare)
