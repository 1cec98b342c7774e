"""Every snippet of the README and of docs/, run on the demo's own results as it stands."""

from __future__ import annotations

import asyncio
import csv
import datetime
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from pycocotools import mask

from comit import Screener
from comit.cli import main
from comit.demo import demo
from comit.identifiers import Identifiers
from comit.look.picture import to_picture
from comit.masks import decode_mask

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BESIDE = Path(sys.executable).parent  # where `comit` is
# Shell snippets that are not run here, by their first words; their comit commands are parsed.
LEFT = {
    "pip install": "needs a package index",
    "pip wheel": "needs a package index",
    "comit export onnx bundled --precision fp16": "needs an NVIDIA GPU",
    "bash bench/gpu_suite.sh": "needs an NVIDIA GPU",
    "python3 -m venv": "needs a package index",
    '(umask 077; echo "the password"': "needs a PACS: test_send.py runs it",
    "comit dicom results.parquet --images xrays --to sr --out objects --send": "likewise",
    'python3 -c "import duckdb; print(duckdb.sql(\\"SELECT state': "likewise",
    "comit train": "needs X-rays with labels, and hours",
    "comit data chestxray14": "needs the public collections, and hours",
}
INSTALLS = re.compile(r"pip install \S+ && ")  # what goes before in the README's first command


class Snippet(NamedTuple):
    """A fenced block of a page."""

    page: str
    language: str
    text: str

    @property
    def script(self) -> str:
        """What of it is for a shell that has comit."""
        return INSTALLS.sub("", self.text)

    @property
    def left(self) -> bool:
        """Whether it is not run."""
        return self.script.startswith(tuple(LEFT))


def snippets(*languages: str) -> list[Snippet]:
    """Those of all pages, in order."""
    return [
        Snippet(str(page.relative_to(ROOT)), language, text)
        for page in PAGES
        for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.M | re.S)
        if language in languages
    ]


def named(snippet: Snippet) -> str:
    return f"{snippet.page}: {snippet.text.partition(chr(10))[0][:40]}"


SHELL: dict[str, list[str]] = {}  # page -> the scripts that are run, in order
ELSEWHERE = {  # pages whose snippets need a server
    "docs/how-to/object-stores.md": "tests/test_objects.py",
    "docs/how-to/pacs.md": "tests/test_dicomweb.py",
}
for part in snippets("sh"):
    if not part.left and part.page not in ELSEWHERE:
        SHELL.setdefault(part.page, []).append(part.script)
PYTHON = {s.text.split("\n")[0]: s.text for s in snippets("python")}
QUERIES = ROOT / "docs" / "how-to" / "query-results.md"


def commands(text: str) -> Iterator[list[str]]:
    """The words of every comit command in a text."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            words = shlex.split(part.partition(" #")[0])
            if words and Path(words[0].partition("=")[2] or words[0]).name == "comit":
                yield words[1:]


def parse(words: list[str]) -> None:
    """Raises click.UsageError where a command line is none of comit's."""
    command: click.Command | None = main
    while isinstance(command, click.Group):
        name, *words = words
        command = command.get_command(click.Context(command), name)
    assert command is not None, name
    try:
        command.make_context(name, words)
    except click.BadParameter as error:  # the pages' files are not here
        if not isinstance(error.param and error.param.type, click.Path):
            raise


def comit(*words: object) -> None:
    done = CliRunner().invoke(main, [str(w) for w in words])
    assert done.exit_code in (0, 3), done.output


@pytest.fixture(scope="module")
def screened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``xrays`` of the demo, its results, and those of a manifest with ids 1, 2, 3."""
    folder = tmp_path_factory.mktemp("demo")
    files = demo(folder / "xrays", 6)
    comit("screen", folder / "xrays", "--out", folder / "results.parquet", "--masks", "all")
    names = ["id", "path", "study_date"]
    there = [[i, f"xrays/{f.name}", "2026-11-22"] for i, f in enumerate(files, start=1)]
    gone = ["007", "xrays/gone.png", "2026-11-21"]  # a row without mask comes first
    for name, listed in (("manifest.csv", there), ("ids.csv", [gone, *there])):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([names, *listed])
    comit("screen", folder / "ids.csv", "--out", folder / "ids.parquet")
    (folder / "films").symlink_to("xrays")
    with (folder / "films.csv").open("w", newline="") as file:
        films = [f.name for f in files if "chest" in f.name or "opacity" in f.name]
        csv.writer(file).writerows([["filename", "finding"], *([f, "normal"] for f in films)])
    return folder


@pytest.fixture(params=["results.parquet", "ids.parquet"])
def rows(screened, request, tmp_path, monkeypatch):
    """The rows of ``results.parquet`` in this folder, with ``wards.csv`` beside it."""
    shutil.copy(screened / request.param, tmp_path / "results.parquet")
    found = pq.read_table(tmp_path / "results.parquet").to_pylist()
    with (tmp_path / "wards.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "ward"])
        table.writerows([row["row_id"], f"ward {i}"] for i, row in enumerate(found))
        table.writerow(["7", "nobody's"])  # 007 is somebody else
    monkeypatch.chdir(tmp_path)
    return found


def run(first_line: str) -> dict:
    """The names that a Python snippet leaves."""
    found: dict = {}
    exec(compile(PYTHON[first_line], first_line, "exec"), found)  # noqa: S102
    return found


# -- querying -------------------------------------------------------------------------------------


def per_night(rows: list[dict]) -> list[tuple]:
    ok = [r for r in rows if r["status"] == "ok"]
    (night,) = {r["screened_at"].astimezone(datetime.UTC).date() for r in ok}
    return [(night, len(ok), sum(r["flag_unhealthy"] for r in ok))]


def by_ward(rows: list[dict]) -> list[tuple]:
    flagged = [(i, r) for i, r in enumerate(rows) if r["flag_unhealthy"]]
    flagged.sort(key=lambda pair: -pair[1]["score_unhealthy"])
    return [(f"ward {i}", r["path"], r["score_unhealthy"]) for i, r in flagged]


def first_lungs(rows: list[dict]) -> np.ndarray:
    return mask.decode(next(r["lung_rle"] for r in rows if r["lung_rle"])).astype(bool)


@pytest.mark.parametrize("library", ["duckdb", "polars as pl"])
def test_duckdb_and_polars(rows, library):
    pytest.importorskip(library.split()[0])
    found = run(f"import {library}")
    assert found["per_night"] == per_night(rows)
    assert found["by_ward"] == by_ward(rows)
    assert np.array_equal(decode_mask(found["rle"]), first_lungs(rows))


def test_pandas(rows):
    pytest.importorskip("pandas")
    found = run("import pandas as pd")
    assert list(found["per_night"].itertuples(name=None)) == per_night(rows)
    assert list(found["by_ward"].itertuples(index=False, name=None)) == by_ward(rows)
    assert np.array_equal(decode_mask(found["rle"]), first_lungs(rows))


def test_the_query_for_a_shell(rows):
    duckdb = pytest.importorskip("duckdb")
    query = re.search(r'duckdb\.sql\(\\"(select status.*?)\\"\)', QUERIES.read_text())[1]
    counted = {(status, reason): n for status, reason, n in duckdb.sql(query).fetchall()}
    assert sum(counted.values()) == len(rows) and counted["ok", None] == per_night(rows)[0][1]


def test_a_mask_to_an_array(rows):
    found = run("from comit.look.picture import to_picture")
    lungs, row = first_lungs(rows), next(r for r in rows if r["lung_rle"])
    assert np.array_equal(found["lungs"], lungs)
    assert np.array_equal(found["large"], to_picture(lungs, row["rows"], row["cols"]))


# -- README and the other pages -------------------------------------------------------------------


def test_what_comes_out(rows):
    found = run("import pyarrow.parquet as pq")
    assert found["flagged"] == [r["path"] for r in rows if r["flag_unhealthy"]]
    assert np.array_equal(found["lungs"], first_lungs(rows))


def test_the_rows_of_the_quickstart(rows, capsys):
    run("from comit.results import read")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(rows)
    for line, row in zip(printed, rows, strict=True):
        assert line.startswith(f"{row['path']} {row['status']} {row['reason']}")


def test_the_formula_for_hashes(tmp_path, monkeypatch):
    (tmp_path / "comit.key").write_text("0123456789abcdef" * 4 + "\n")
    monkeypatch.chdir(tmp_path)
    hashed = run("import hashlib")["hashed"]
    hidden = Identifiers("hashed", b"0123456789abcdef" * 4)
    assert hashed("ward-3/IM0001.dcm") == hidden.path(b"ward-3/IM0001.dcm")
    assert hashed("1.2.840.1") == hidden.uid("1.2.840.1")


def test_the_file_of_a_hash(tmp_path, monkeypatch):
    (tmp_path / "comit.key").write_text("0123456789abcdef" * 4 + "\n")
    (tmp_path / "archive" / "ward-3").mkdir(parents=True)
    (tmp_path / "archive" / "ward-3" / "IM0001.dcm").touch()
    monkeypatch.chdir(tmp_path)
    first = "import hashlib"
    monkeypatch.setitem(PYTHON, first, PYTHON[first].replace("/archive", "archive"))
    hidden = Identifiers("hashed", b"0123456789abcdef" * 4)
    name = Path("archive/ward-3/IM0001.dcm")
    assert run(first)["files"] == {hidden.path(b"ward-3/IM0001.dcm"): name}


# -- python ---------------------------------------------------------------------------------------


@pytest.fixture
def xrays(screened, tmp_path, monkeypatch) -> dict[str, dict]:
    """Rows of ``xrays`` by path; this folder has them, and a chest radiograph ``xray.dcm``."""
    shutil.copytree(screened / "xrays", tmp_path / "xrays")
    shutil.copy(next((tmp_path / "xrays").glob("*-chest-raw.dcm")), tmp_path / "xray.dcm")
    for name, suffix in (("a", "dcm"), ("b", "png")):
        shutil.copy(next((tmp_path / "xrays").glob(f"*.{suffix}")), tmp_path / f"{name}.{suffix}")
    monkeypatch.chdir(tmp_path)
    rows = pq.read_table(screened / "results.parquet").to_pylist()
    return {f"xrays/{row['path']}": row for row in rows}


def of_the_dicom(rows: dict[str, dict]) -> dict:
    return next(row for path, row in rows.items() if path.endswith("-chest-raw.dcm"))


def test_the_shortest_program(xrays, capsys):
    for name in ("a.dcm", "b.png"):
        Path(name).rename(Path("xrays", name))
    run("import comit")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("xrays/a.dcm ok ") and second.startswith("xrays/b.png ok ")


def test_a_whole_run(xrays, capsys):
    found = run("from comit import Options, decode_mask, read_results, screen")
    total = len(xrays)
    assert found["report"].rows == len(found["rows"]) == total
    assert capsys.readouterr().out.splitlines()[-1] == f"{total} {total}"
    assert all(lungs.shape == (224, 224) for lungs in found["lungs"])


def test_images_as_they_come(xrays):
    table = {row["path"]: row for row in run("from pathlib import Path")["table"]}
    assert table.keys() == xrays.keys()
    for path, row in xrays.items():
        assert table[path]["status"] == row["status"]
        assert table[path]["score_covid"] == row["score_covid"]


def test_one_file(xrays):
    image = run("from comit import read_image")["image"]
    row = of_the_dicom(xrays)
    assert (image.facts.rows, image.facts.cols) == (row["rows"], row["cols"])


def test_a_notebook(xrays):
    pytest.importorskip("matplotlib")
    found = run("from comit import Screener")
    assert (
        found["figure"].axes and found["result"].scores.covid == of_the_dicom(xrays)["score_covid"]
    )
    found["screener"].close()


def test_a_service(xrays):
    found = run("import json")
    server, answers = found["server"], []
    threading.Thread(target=server.serve_forever).start()
    with found["screener"], server:
        for body in (Path("xray.dcm").read_bytes(), b"a text"):
            request = urllib.request.Request("http://127.0.0.1:8000", body)
            with urllib.request.urlopen(request) as reply:  # noqa: S310
                answers.append(json.load(reply))
        server.shutdown()
    assert answers[0]["covid"] == of_the_dicom(xrays)["score_covid"]
    assert (answers[1]["status"], answers[1]["reason"]) == ("skipped", "unsupported_format")


def test_asyncio(xrays):
    scores = run("import asyncio")["scores"]
    with Screener() as screener:
        found = asyncio.run(scores(screener, Path("xray.dcm").read_bytes()))
    assert found.covid == of_the_dicom(xrays)["score_covid"]


def test_an_actor(xrays):
    ray = pytest.importorskip("ray")
    try:
        chest, gone = run("import ray")["rows"]
    finally:
        ray.shutdown()
    assert chest["score_covid"] == of_the_dicom(xrays)["score_covid"]
    assert (gone["status"], gone["reason"]) == ("failed", "vanished")


def test_a_data_loader(xrays):
    pytest.importorskip("torch")
    found = run("import torch")
    assert found["is_read"].tolist() == [True, False] and found["masks"].shape == (1, 2, 224, 224)
    assert float(found["scores"][0, 1]) == of_the_dicom(xrays)["score_covid"]


def test_every_snippet_in_python_is_run_here():
    source = Path(__file__).read_text()
    assert len(PYTHON) == len(snippets("python"))  # no two begin alike
    lines = {line for line in PYTHON if f'run("{line}")' in source}
    assert {*PYTHON} - lines == {"import duckdb", "import polars as pl"}  # the two that share one


# -- shell ----------------------------------------------------------------------------------------


# The first pages that a user runs; the others' commands are parsed every time, run nightly.
FIRST = ("README.md", "docs/quickstart.md")


@pytest.mark.parametrize(
    "page",
    [page if page in FIRST else pytest.param(page, marks=pytest.mark.nightly) for page in SHELL],
)
def test_shell(page, screened, tmp_path):
    """A page's commands in order, by bash, where ``xrays`` is; /archive is ``xrays`` too."""
    script = "".join(SHELL[page])
    if "comit dicom" in script:
        pytest.importorskip("highdicom")
    if "comit calibrate" in script:
        pytest.importorskip("torch")
    shutil.copytree(screened, tmp_path / "here", symlinks=True)
    here = tmp_path / "here"
    (here / "run.json").write_text('{"images_per_second": 1, "screened": 4, "seconds": 4}')
    shutil.copy(here / "results.parquet", here / "other.parquet")
    if "comit demo xrays" in script:  # the page begins with nothing
        shutil.rmtree(here / "xrays")
    script = script.replace("/archive", "xrays")
    if "comit.key" in script and "openssl" not in script:
        script = "(umask 077; echo 0123456789abcdef > comit.key)\n" + script
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=here,
        env={**os.environ, "PATH": f"{BESIDE}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words in commands(script):
        if "--out" in words:
            assert (here / words[words.index("--out") + 1]).exists()


def test_what_is_not_run_is_named_and_is_there():
    for start in LEFT:
        assert any(s.script.startswith(start) for s in snippets("sh"))
    fences = sum(len(re.findall(r"^```\w+$", p.read_text(), re.M)) for p in PAGES)
    assert fences == len(snippets("sh", "python", "ini"))  # no other language


@pytest.mark.parametrize("snippet", snippets("sh"), ids=named)
def test_every_command_has_the_arguments_that_comit_takes(snippet):
    for words in commands(snippet.text):
        parse(words)


def test_a_command_that_comit_does_not_take_is_noticed():
    with pytest.raises(click.UsageError):
        parse(["screen", "xrays", "--outt", "results.parquet"])


@pytest.mark.parametrize("snippet", snippets("ini"), ids=named)
def test_a_unit_is_read_and_starts_a_command_that_there_is(snippet):
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read_string(snippet.text)
    assert unit["Unit"]["Description"]
    started = [*commands(unit["Service"]["ExecStart"])] if "Service" in unit else []
    assert len(started) == ("Service" in unit)
    for words in started:
        parse(words)
