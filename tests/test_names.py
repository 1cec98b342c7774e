"""Every command takes every name that POSIX allows for a file, also bytes that are not UTF-8."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from comit.card import card_path
from comit.cli import main
from comit.console import printable

pytestmark = pytest.mark.usefixtures("null_engine")

ODD = os.fsdecode(b"\xff\xc3(")  # no UTF-8 in any place


def comit(*arguments: object, exit_code: int = 0) -> str:
    done = CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == exit_code, done.output
    return done.output


@pytest.fixture
def place(tmp_path, monkeypatch, pictures, tiny_model):
    """A folder of an odd name with a model, and pictures of which one has such a name."""
    place = tmp_path / f"place{ODD}"
    place.mkdir()
    pictures.rename(place / f"in{ODD}")
    (place / f"in{ODD}" / "0.png").rename(place / f"in{ODD}" / f"{ODD}.png")
    shutil.copy(tiny_model, place / f"odd{ODD}.onnx")
    shutil.copy(card_path(tiny_model), card_path(place / f"odd{ODD}.onnx"))
    monkeypatch.chdir(place)
    return Path()


@pytest.mark.parametrize("out", [f"r{ODD}.parquet", f"results{ODD}/"])
def test_results_of_an_odd_name_are_made_and_looked_at(place, out):
    images, model = f"in{ODD}", f"odd{ODD}.onnx"
    screen = ("screen", images, "--out", out, "--model", model)
    comit(*screen, "--report", f"run{ODD}.json", "--metrics-file", f"m{ODD}.prom")
    comit(*screen)
    comit(*screen, "--retry-failed")
    given = ("--run", f"run{ODD}.json", "--model", model)
    comit("report", out, "--out", f"page{ODD}.html", *given)
    comit("overlay", out, "--out", f"over{ODD}")  # the root is found by what the results say
    assert len(list(Path(f"over{ODD}").iterdir())) == 9
    comit("worklist", out, "--out", f"list{ODD}.csv")
    with Path(f"list{ODD}.csv").open(newline="") as file:
        assert r"\xff\xc3(.png" in {row["path"] for row in csv.DictReader(file)}
    assert "9 rows in both" in comit("compare", out, out)
    if out.endswith("/"):
        assert printable(out.rstrip("/")) in comit("compact", out)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_manifest_of_an_odd_name_is_read(place, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = Path(f"in{ODD}", f"m{ODD}.{kind}")
    if kind == "csv":
        manifest.write_text("path\n1.png\n")
    else:
        with manifest.open("wb") as file:
            pq.write_table(pa.table({"path": ["1.png"]}), file)
    said = comit("screen", manifest, "--out", "r.parquet", "--model", f"odd{ODD}.onnx")
    assert "/r.parquet: 1 ok" in said


def test_an_odd_name_is_said_in_bytes(place):
    said = comit("screen", f"away{ODD}", "--out", "r.parquet", exit_code=2)
    assert r"away\xff\xc3( does not exist" in said
    said = comit("report", f"away{ODD}.parquet", "--out", "page.html", exit_code=2)
    assert r"away\xff\xc3(.parquet" in said


def test_phantoms_are_drawn_into_a_folder_of_an_odd_name(tmp_path):
    comit("demo", tmp_path / ODD, "--count", 1)
    assert len(list((tmp_path / ODD).iterdir())) == 2
