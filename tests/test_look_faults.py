"""A file that its decoder does not survive costs its own picture when results are looked at."""

from __future__ import annotations

import shutil

import cv2
import pytest
import resultfiles as rf
from click.testing import CliRunner

from comit.bench.faults import dicoms
from comit.cli import main
from comit.errors import ItemError
from comit.image import open_image
from comit.image.preprocess import picture
from comit.look.dicom import export
from comit.look.overlay import overlay
from comit.look.picture import Masks, Pictures, draw
from comit.look.report import write_report

# A decoding process whose codec does something else with pictures of 261 columns.
PROGRAM = """
import os, time
from comit.pipeline.worker import main
from comit.look.worker import STORES

def fragile(store):
    def decode(image, data, parent):
        if image.width == 261:
            {act}
        return store(image, data, parent)
    return decode

main({{want: fragile(store) for want, store in STORES.items()}})
"""
ACTS = {
    "crash": "os.abort()",
    "timeout": "time.sleep(600)",
    "too_large": "held = bytearray(2**30)",
}


def invoke(*words):
    return CliRunner().invoke(main, [str(w) for w in words])


def breaks(monkeypatch, reason):
    """Lets 261 columns end with ``reason``."""
    monkeypatch.setattr("comit.look.picture.WORKER", PROGRAM.format(act=ACTS[reason]))
    if reason == "timeout":
        monkeypatch.setattr("comit.look.picture.TIMEOUT", 3.0)


@pytest.fixture
def folder(tmp_path):
    """Three pictures, of which b has 261 columns."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, columns in [("a", 260), ("b", 261), ("c", 260)]:
        rf.draw(folder / f"{name}.png", 300, columns)
    return folder


@pytest.fixture
def results(tmp_path):
    rows = [rf.ok("a"), rf.ok("b", cols=261), rf.ok("c")]
    return rf.write(tmp_path / "r.parquet", rows)


@pytest.mark.parametrize("reason", ACTS)
def test_a_file_that_harms_its_decoder_costs_its_own_overlay(
    tmp_path, folder, results, monkeypatch, reason
):
    breaks(monkeypatch, reason)
    made = overlay(results, folder, tmp_path / "out")
    assert made.problems == [("b.png", reason)]
    assert [p.name[:2] for p in made.files] == ["a-", "c-"]
    image = open_image((folder / "c.png").read_bytes())
    grey = picture(image.samples(), image.presentation)
    drawn = cv2.cvtColor(cv2.imread(str(made.files[1])), cv2.COLOR_BGR2RGB)
    assert (drawn == draw(grey, Masks(rf.LUNGS, rf.DISEASE))).all()


def test_and_its_own_picture_in_the_report(tmp_path, folder, results, monkeypatch):
    breaks(monkeypatch, "crash")
    made = write_report(results, folder, tmp_path / "r.html")
    assert made.problems == [("b.png", "crash")]
    page = (tmp_path / "r.html").read_text()
    assert page.count('"jpeg"') == 2 and '"b.png"' in page


def test_and_what_the_network_gets(folder, monkeypatch):
    breaks(monkeypatch, "crash")
    with Pictures(folder, {}) as pictures:
        before = pictures.pixels(rf.ok("a"))
        with pytest.raises(ItemError, match="crash"):
            pictures.pixels(rf.ok("b", cols=261))
        assert (pictures.pixels(rf.ok("a")) == before).all()


@pytest.mark.parametrize("kind", ["seg", "sr", "sc"])
def test_and_its_own_dicom_object(tmp_path, monkeypatch, kind):
    pytest.importorskip("highdicom")
    breaks(monkeypatch, "crash")
    rows = []
    for name, columns in [("a", 260), ("b", 261), ("c", 260)]:
        (tmp_path / f"{name}.dcm").write_bytes(dicoms.make(dicoms.picture(300, columns)))
        rows.append(rf.ok(name, f"{name}.dcm", cols=columns))
    results = rf.write(tmp_path / "r.parquet", rows)
    made = export(results, tmp_path, tmp_path / "out", kind)
    assert made.problems == [("b.dcm", "crash")]
    assert [p.name[:2] for p in made.files] == ["a-", "c-"]


def test_a_picture_that_there_is_no_memory_for_costs_itself(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("comit.look.picture.RING", 2**20)
    rf.draw(folder / "b.png", 1500, 1200)
    results = rf.write(tmp_path / "r.parquet", [rf.ok("b", rows=1500, cols=1200), rf.ok("c")])
    made = overlay(results, folder, tmp_path / "out")
    assert made.problems == [("b.png", "too_large")] and len(made.files) == 1


@pytest.mark.parametrize("reason", ["crash", "vanished", "changed"])
def test_another_folder_is_advised_only_where_files_are_not_those_that_were_screened(
    tmp_path, folder, results, monkeypatch, reason
):
    if reason == "crash":
        breaks(monkeypatch, reason)
    elif reason == "vanished":
        (folder / "b.png").unlink()
    else:
        shutil.copy(folder / "a.png", folder / "b.png")
    done = invoke("overlay", results, "--images", folder, "--out", tmp_path / "out")
    assert done.exit_code == 3 and f"b.png: {reason}" in done.stderr
    assert ("--images" in done.stderr) == (reason != "crash")


def test_rows_are_named_by_path_or_by_id_where_there_is_none(tmp_path, folder):
    rows = [rf.ok("7", "ward\x1b[31m.png"), rf.ok("no-path") | {"path": None}]
    results = rf.write(tmp_path / "r.parquet", rows)
    done = invoke("report", results, "--images", folder, "--out", tmp_path / "r.html")
    assert done.exit_code == 3 and "\x1b" not in done.stderr
    assert "ward\\x1b[31m.png: vanished" in done.stderr and "no-path: vanished" in done.stderr


@pytest.mark.real
@pytest.mark.parametrize("command", ["report", "overlay"])
def test_a_stream_that_crashed_its_codec_costs_its_own_picture(tmp_path, faults, command):
    shutil.copy(faults / "rle-segfault" / "second-ff00.dcm", tmp_path / "z.dcm")
    results = faults / "rle-segfault" / "segvres.parquet"
    done = invoke(command, results, "--images", tmp_path, "--out", tmp_path / "out")
    assert done.exit_code == 3 and "z.dcm: truncated" in done.stderr
