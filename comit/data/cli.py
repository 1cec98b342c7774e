"""``comit data``: public data sets to training manifests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from comit.terminal.arguments import Output

if TYPE_CHECKING:
    from comit.data.tables import Found, Row

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def data() -> None:
    """Turn published data sets into manifests for `comit train`.

    Nothing is downloaded: get each data set where it is published and agree to its licence. The
    split is by patient, 70 % train, 10 % val, 20 % test (or --split puts all into one), and
    printed with the counts of the paper's tables 1 to 3.
    """


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.argument("folder", type=FOLDER),
        click.option(
            "--out",
            type=Output(dir_okay=False, path_type=Path),
            required=True,
            help="Parquet manifest to write; its paths are relative to its folder.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of the split."),
        click.option(
            "--balance-views",
            is_flag=True,
            help="Take as many AP as PA images, among healthy and unhealthy ones.",
        ),
        click.option(
            "--split",
            type=click.Choice(["train", "val", "test"]),
            help="Put all images into this split, for example to keep a collection for testing.",
        ),
    ):
        command = option(command)
    return command


def _finish(found: Found, out: Path, seed: int, balance: bool, split: str | None) -> None:
    from comit.data.manifest import balance_views, split_by_patient, write

    rows, missing = found
    if balance:
        rows = balance_views(rows, seed)
    split_by_patient(rows, seed)
    if split is not None:
        rows = [row | {"split": split} for row in rows]
    write(rows, out)
    if missing:
        click.echo(f"{missing:,} listed pictures are not there and were left out")
    _report(rows, out)


def _report(rows: list[Row], out: Path) -> None:
    from comit.data.manifest import counts

    for line in counts(rows):
        click.echo(line)
    click.echo(f"{len(rows):,} pictures in {out}")


def _plain(name: str, help_text: str) -> None:
    @data.command(name, help=help_text)
    @_options
    def command(folder: Path, out: Path, seed: int, balance_views: bool, split: str | None) -> None:
        from comit.data.readers import READERS

        _finish(READERS[name](folder), out, seed, balance_views, split)


_plain("chestxray14", "ChestX-ray14: Data_Entry_2017*.csv, BBox_List_2017.csv, images*/.")
_plain("bimcv", "BIMCV-COVID19+: sub-*/ses-*/mod-rx and derivatives/EHR; labels as in 4.4.")
_plain("radiography", "COVID-19 Radiography Database: COVID, Normal, Lung_Opacity, ...")
_plain("kermany", "Kermany's children with and without pneumonia: train/, test/, val/.")


def _boxed(name: str, help_text: str) -> None:
    @data.command(name, help=help_text)
    @_options
    @click.option(
        "--copies",
        type=FOLDER,
        help="List the PNG or JPEG copies in this folder, named as the DICOM files are, and scale "
        "the boxes to them. Default: list the DICOM files.",
    )
    def command(
        folder: Path,
        out: Path,
        seed: int,
        balance_views: bool,
        split: str | None,
        copies: Path | None,
    ) -> None:
        from comit.data.readers import BOXED

        _finish(BOXED[name](folder, copies), out, seed, balance_views, split)


_boxed("siim", "SIIM-FISABIO-RSNA COVID-19 2021, as on Kaggle: train_*_level.csv, train/.")
_boxed(
    "vindr", "VinDr-CXR, as at PhysioNet (annotations/, train/, test/) or on Kaggle (train.csv)."
)
_boxed(
    "rsna-pneumonia",
    "RSNA Pneumonia 2018, as on Kaggle, with RSNA's file of patients: stage_2_*, "
    "pneumonia-challenge-dataset-mappings_2018.json.",
)


def _outlined(name: str, help_text: str) -> None:
    @data.command(name, help=help_text)
    @_options
    def command(folder: Path, out: Path, seed: int, balance_views: bool, split: str | None) -> None:
        from comit.data.readers import OUTLINED

        _finish(OUTLINED[name](folder, out.parent), out, seed, balance_views, split)


_outlined(
    "nlm-tuberculosis",
    "NLM's Shenzhen and Montgomery sets: CXR_png/, ClinicalReadings/, outlines of lungs.\n\n"
    "Masks are drawn into the folder masks beside the manifest.",
)
_outlined(
    "jsrt",
    "JSRT's nodules (*.IMG, CLNDAT_EN.txt) with SCR's outlines (fold*/masks/).\n\n"
    "Pictures become PNG files in the folder jsrt beside the manifest, masks in the folder masks.",
)


@data.command()
@_options
@click.option(
    "--uncertain",
    type=click.Choice(["ignore", "positive", "negative"]),
    default="ignore",
    show_default=True,
    help="Meaning of a finding of -1; ignore: as if not mentioned.",
)
def chexpert(
    folder: Path, out: Path, seed: int, balance_views: bool, split: str | None, uncertain: Any
) -> None:
    """CheXpert: frontal pictures of train.csv and valid.csv."""
    from comit.data.readers import chexpert as read

    _finish(read(folder, uncertain), out, seed, balance_views, split)


@data.command("covid-chestxray")
@_options
@click.option("--outlines", type=FILE, help="General Blockchain's COCO file of segmentations.")
def covid_chestxray(
    folder: Path,
    out: Path,
    seed: int,
    balance_views: bool,
    split: str | None,
    outlines: Path | None,
) -> None:
    """covid-chestxray-dataset (Cohen), with its lung boxes, and outlines where given.

    Outlines are drawn into PNG files in the folder masks beside the manifest.
    """
    from comit.data.readers import covid_chestxray as read

    _finish(read(folder, outlines, out.parent / "masks"), out, seed, balance_views, split)


@data.command()
@_options
@click.option("--table", type=FILE, required=True, help="CSV: filename, patient, view, finding.")
@click.option("--source", required=True, help="Name of the collection: SIRM, Eurorad, BSTI, ...")
def collection(
    folder: Path,
    out: Path,
    seed: int,
    balance_views: bool,
    split: str | None,
    table: Path,
    source: str,
) -> None:
    """Any folder with a table of its images, such as SIRM, Eurorad, BSTI or Radiopaedia."""
    from comit.data.readers import collection as read

    _finish(read(folder, table, source), out, seed, balance_views, split)


@data.command()
@click.argument("manifests", nargs=-1, required=True, type=FILE)
@click.option("--out", type=Output(dir_okay=False, path_type=Path), required=True)
def merge(manifests: tuple[Path, ...], out: Path) -> None:
    """Join several manifests into one; each keeps its split."""
    from comit.data.manifest import merge as join

    _report(join(manifests, out), out)
