from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask
from pydicom import DataElement, config

from comit.bench.faults import dicoms
from comit.card import OperatingPoint, card_path, read_card
from comit.cli import screen as command
from comit.console import Console
from comit.engine import load_engine
from comit.errors import Stopped, UsageError
from comit.image import open_image
from comit.image.preprocess import preprocess
from comit.options import CHOICES, Options
from comit.reasons import Caution, Fail, Skip
from comit.results import COLUMNS, RUN
from comit.screening import screen
from comit.terminal.summary import summary

QUIET = Console(quiet=True)


def run(source, out, tiny_model, **options):
    options = {"model": tiny_model, "precision": "fp32", **options}
    report = screen(source, out, Options(**options), console=QUIET)
    return report, {r["path"]: r for r in findings(out)}


def findings(out):
    """The rows of a file without what names the run."""
    return pq.read_table(out).drop_columns(list(RUN)).to_pylist()


def test_scores_masks_and_areas_are_the_engines(tmp_path, tiny_model, pictures):
    report, rows = run(pictures, tmp_path / "r.parquet", tiny_model)
    assert report.status == {"ok": len(rows), "skipped": 0, "failed": 0}
    engine = load_engine(tiny_model, precision="fp32")
    for name, row in rows.items():
        image = open_image((pictures / name).read_bytes())
        pixels = preprocess(image.samples(), image.presentation).pixels
        scores, masks = engine.predict(pixels[None, None])
        given = [row["score_unhealthy"], row["score_covid"], row["score_other"]]
        assert given == scores[0, :3].tolist()
        assert row["score_chest"] is None  # no gate was trained
        lung, disease = (mask.decode(row[k]).astype(bool) for k in ("lung_rle", "disease_rle"))
        assert np.array_equal(lung, masks[0, 0] >= 128)
        assert np.array_equal(disease, masks[0, 1] >= 128)
        assert row["lung_fraction"] == pytest.approx(lung.mean())
        assert row["disease_fraction"] == pytest.approx((lung & disease).sum() / lung.sum())
        assert (row["rows"], row["cols"]) == (image.height, image.width)


def test_flags_follow_the_operating_point(tmp_path, tiny_model, pictures):
    report, rows = run(pictures, tmp_path / "r.parquet", tiny_model, operating_point="99")
    point = report.settings["operating point"]
    for row in rows.values():
        assert row["flag_unhealthy"] == (row["score_unhealthy"] >= point["unhealthy"])
        assert row["flag_covid"] == (row["score_covid"] >= point["covid"])


def test_masks_of_flagged_rows_or_none(tmp_path, tiny_model, pictures):
    _, first = run(pictures, tmp_path / "a.parquet", tiny_model)
    middle = sorted(r["score_unhealthy"] for r in first.values())[len(first) // 2]
    model = tmp_path / "parting.onnx"
    model.write_bytes(tiny_model.read_bytes())
    point = OperatingPoint(unhealthy=middle, covid=1.0)
    replace(read_card(tiny_model), operating_points={"90": point}).write(card_path(model))
    _, everything = run(pictures, tmp_path / "a.parquet", model)
    _, flagged = run(pictures, tmp_path / "f.parquet", model, masks="flagged")
    _, none = run(pictures, tmp_path / "n.parquet", model, masks="none")
    kinds = [bool(r["flag_unhealthy"] or r["flag_covid"]) for r in everything.values()]
    assert 0 < sum(kinds) < len(kinds)
    for name, row in everything.items():
        marked = row["flag_unhealthy"] or row["flag_covid"]
        without = {"lung_rle", "disease_rle", "lung_fraction", "disease_fraction"}
        bare = {k: None if k in without else v for k, v in row.items()}
        assert flagged[name] == (row if marked else bare)
        assert none[name] == bare


def test_bad_files_get_a_reason_and_leave_their_neighbours_alone(tmp_path, tiny_model, pictures):
    _, alone = run(pictures, tmp_path / "a.parquet", tiny_model)
    (pictures / "0_empty.png").touch()
    (pictures / "1_cut.png").write_bytes(next(pictures.glob("*.png")).read_bytes()[:999])
    (pictures / "note.txt").write_text("hello")
    report, rows = run(pictures, tmp_path / "b.parquet", tiny_model)
    assert {n: rows.pop(n)["reason"] for n in ("0_empty.png", "1_cut.png", "note.txt")} == {
        "0_empty.png": "empty",
        "1_cut.png": "truncated",
        "note.txt": "unsupported_format",
    }
    assert rows == alone  # to the bit
    assert report.status == {"ok": len(rows), "skipped": 1, "failed": 2}


def test_a_manifest_passes_its_columns_through(tmp_path, tiny_model, pictures, null_engine):
    names = sorted(p.name for p in pictures.iterdir())
    table = pa.table(
        {
            "path": [*names, None],
            "id": [f"case {i}" for i in range(len(names) + 1)],
            "ward": [None, *range(len(names))],
            "boxes": [[[1.5, 2.0]]] * (len(names) + 1),
        }
    )
    pq.write_table(table, pictures / "m.parquet")
    out = tmp_path / "r.parquet"
    run(pictures / "m.parquet", out, tiny_model)
    results = pq.read_table(out)
    assert results.column_names == [*COLUMNS, "ward", "boxes"]
    assert results["row_id"].to_pylist() == table["id"].to_pylist()
    assert results["ward"].to_pylist() == table["ward"].to_pylist()
    assert results["reason"].to_pylist() == [None] * len(names) + ["null_path"]


def test_a_stopped_run_goes_on_and_gives_the_same_rows(tmp_path, tiny_model, pictures, null_engine):
    _, whole = run(pictures, tmp_path / "whole.parquet", tiny_model, workers=1)
    out, stop = tmp_path / "r.parquet", threading.Event()
    stop.set()
    with pytest.raises(Stopped, match="same command resumes"):
        screen(pictures, out, Options(model=tiny_model, precision="fp32"), console=QUIET, stop=stop)
    with pytest.raises(UsageError, match="another masks"):
        run(pictures, out, tiny_model, masks="none")
    _, rows = run(pictures, out, tiny_model)
    assert rows == whole


def test_metadata_says_where_the_numbers_come_from(tmp_path, tiny_model, pictures, null_engine):
    out = tmp_path / "r.parquet"
    report, _ = run(pictures, out, tiny_model)
    found = {k.decode(): v.decode() for k, v in pq.read_schema(out).metadata.items()}
    assert found["comit_run_id"] == report.run_id
    assert found["comit_precision"] == "fp32"
    assert found["comit_model_sha256"] == report.settings["model"]
    assert "research use only" in found["comit_intended_use"]


def test_every_code_is_explained_in_the_docs():
    text = (Path(__file__).parent.parent / "docs" / "reference" / "results.md").read_text()
    for code in (*Skip, *Fail, *Caution):
        assert f"| `{code}` | {code.meaning} |" in text, code
    for column in COLUMNS:
        assert f"`{column}`" in text, column


@pytest.mark.parametrize("modality", ["CT", "DX"])
def test_whatever_size_a_header_claims_its_neighbours_get_their_rows(
    tmp_path, tiny_model, pictures, modality, null_engine
):
    sizes = [("UL", 2**32 - 1), ("UV", 2**63), ("SV", -(2**40)), ("IS", "-2147483649")]
    sizes += [("DS", "4294967295"), ("FD", 1e29), ("US", 0)]
    for i, (vr, value) in enumerate(sizes):
        data = dicoms.dataset(Modality=modality, SOPInstanceUID=f"1.2.{i}")
        for tag in ("Rows", "Columns"):
            data[tag] = DataElement(data[tag].tag, vr, value, validation_mode=config.IGNORE)
        (pictures / f"{vr}.dcm").write_bytes(dicoms.write(data))
    report, rows = run(pictures, tmp_path / "r.parquet", tiny_model)
    assert report.status["ok"] == 9
    for vr, _ in sizes:
        row = rows[f"{vr}.dcm"]
        if modality == "CT":
            assert (row["status"], row["reason"]) == ("skipped", "modality")
            beyond = vr in ("UL", "UV", "DS", "FD")  # what is below 0 is no size: 0
            assert row["rows"] == row["cols"] == (None if beyond else 0)
            assert row["warnings"] == (["value_left_out"] if beyond else [])
        else:
            assert (row["status"], row["reason"]) == ("failed", "bad_geometry")


@pytest.mark.real
def test_rows_beyond_their_column_stop_no_night(tmp_path, tiny_model, faults, null_engine):
    _, rows = run(faults / "rows-too-large-stops-night", tmp_path / "r.parquet", tiny_model)
    assert rows["ct-ul.dcm"]["reason"] == "modality"
    assert rows["good.dcm"]["status"] == "ok"
    assert {r["path"] for r in rows.values()} == {
        "ct-ul.dcm",
        "good.dcm",
        "fuzzed-real.dcm",
        "README",
    }


def test_identical_copies_are_told_whatever_their_names(
    tmp_path, tiny_model, pictures, null_engine
):
    copy = (pictures / "0.png").read_bytes()
    (pictures / "again").mkdir()
    (pictures / "again" / "copy.png").write_bytes(copy)
    for name in ("a.txt", "b.txt"):  # no pictures: nothing is counted twice
        (pictures / name).write_bytes(b"the same")
    report, rows = run(pictures, tmp_path / "r.parquet", tiny_model, masks="none")
    told = {n for n, r in rows.items() if "identical_copy" in (r["warnings"] or ())}
    assert told == {"0.png", "again/copy.png"} and report.warnings["identical_copy"] == 2
    folder = tmp_path / "results"
    run(pictures, folder, tiny_model, masks="none")
    (pictures / "1.copy").write_bytes((pictures / "1.png").read_bytes())
    report, _ = run(pictures, folder, tiny_model, masks="none")
    assert (report.rows, report.warnings["identical_copy"]) == (1, 1)


def test_what_is_left_out_is_said_and_recorded(tmp_path, tiny_model, pictures, null_engine):
    thumbnails = pictures / "@eaDir"
    thumbnails.mkdir()
    (thumbnails / "0.png").write_bytes((pictures / "0.png").read_bytes())
    options = {"exclude": ("[1-7].*",), "masks": "none"}
    report, rows = run(pictures, tmp_path / "r.parquet", tiny_model, **options)
    assert [*rows] == ["0.png", "8.jpg"]
    assert report.left_out == {"[1-7].*": 7, "@eaDir": 1}
    line = "left out 8 files and folders: 7 by [1-7].*, 1 by @eaDir"
    assert any(text.startswith(line) for text in summary(report))
    said = pq.read_schema(tmp_path / "r.parquet").metadata
    assert said[b"comit_exclude"] == b'["[1-7].*"]' and said[b"comit_include_hidden"] == b"false"
    assert said[b"comit_left_out"] == b'{"[1-7].*": 7, "@eaDir": 1}'


def test_a_resumed_run_has_the_patterns_it_began_with(tmp_path, tiny_model, pictures, null_engine):
    stop = threading.Event()
    stop.set()
    chosen = Options(model=tiny_model, precision="fp32", exclude=("0.png",), masks="none")
    with pytest.raises(Stopped):
        screen(pictures, tmp_path / "r.parquet", chosen, console=QUIET, stop=stop)
    with pytest.raises(UsageError, match="unfinished run with another exclude"):
        run(pictures, tmp_path / "r.parquet", tiny_model, masks="none")
    report, rows = run(
        pictures, tmp_path / "r.parquet", tiny_model, exclude=("0.png",), masks="none"
    )
    assert "0.png" not in rows and report.left_out == {"0.png": 1}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"masks": "flaged"}, "'--masks': 'flaged' is not one of 'all', 'flagged', 'none'"),
        ({"masks": None}, "'--masks': None is not one of"),
        ({"engine": "openvno"}, "'--engine': 'openvno' is not one of 'auto', 'openvino'"),
        ({"precision": "int8"}, "'--precision'"),
        ({"operating_point": 90}, "'--operating-point': 90 is not one of '90', '99'"),
        ({"view_policy": "Strict"}, "'--view-policy'"),
        ({"identifiers": "plane"}, "'--identifiers'"),
        *(({"timeout": v}, "'--timeout'") for v in (0, -1.0, float("nan"), "60", None)),
        *(({"workers": v}, "is not a whole number from 1 to 512") for v in (0, 513, 2.0, True)),
        *(({"batch_size": v}, "'--batch-size'") for v in (0, "8")),
        ({"ring_bytes": None}, "'--ring-bytes'"),
        ({"model": None}, "'--model': None is not a path"),
        ({"exclude": "tmp"}, "'--exclude': 'tmp' is not a tuple of texts"),
        ({"keep": (1,), "identifiers": "none"}, "'--keep'"),
        ({"keep": ("ward",)}, "--keep is for hidden identifiers"),
        ({"pattern": ""}, "'--pattern'"),
        ({"restart": "no"}, "'--restart': 'no' is neither True nor False"),
    ],
)
def test_options_are_checked_where_they_are_made(given, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        Options(**given)


def test_options_take_texts_for_paths_and_lists_for_tuples():
    options = Options(model="m.onnx", keep=["ward"], identifiers="none", exclude=["tmp/"])
    assert options.model == Path("m.onnx")
    assert (options.keep, options.exclude) == (("ward",), ("tmp/",))


def test_the_command_line_offers_what_options_take():
    offered = {p.name: tuple(p.type.choices) for p in command.params if hasattr(p.type, "choices")}
    offered.pop("log_format")
    assert offered == CHOICES


@pytest.mark.parametrize("option", [{"pattern": "*.png"}, {"exclude": ("a",)}])
def test_options_that_would_do_nothing_are_refused(
    tmp_path, tiny_model, pictures, option, null_engine
):
    (pictures / "m.csv").write_text("path\n0.png\n")
    for source in (pictures / "m.csv", pictures / "0.png"):
        with pytest.raises(UsageError, match=r"is for folders, and .* is none"):
            run(source, tmp_path / "r.parquet", tiny_model, **option)
    with pytest.raises(UsageError, match=r"--keep is for columns of a manifest, and .* is none"):
        run(pictures, tmp_path / "r/", tiny_model, keep=("ward",), identifiers="none")
    assert not (tmp_path / "r.parquet").exists() and not (tmp_path / "r").exists()


def test_the_summary_names_failed_files_and_what_to_do_next(
    tmp_path, tiny_model, pictures, null_engine
):
    for i in range(7):
        (pictures / f"broken {i}.png").touch()
    out = tmp_path / "my results"
    report, _ = run(pictures, f"{out}/", tiny_model, masks="none")
    said = "\n".join(summary(report))
    assert f"16 rows of this run in {out}: 9 ok, 0 skipped, 7 failed" in said
    assert "it holds" not in said
    assert [f"failed: broken {i}.png (empty)" in said for i in range(7)] == [True] * 5 + [False] * 2
    assert "add --retry-failed to the same command" in said
    assert f"and 2 more: comit worklist '{out}' --out list.csv" in said
    assert f"next: comit report '{out}' --out report.html" in said
    (pictures / "new.png").write_bytes((pictures / "0.png").read_bytes() + b"\0")
    report, _ = run(pictures, f"{out}/", tiny_model, masks="none")
    said = "\n".join(summary(report))
    assert f"1 rows of this run in {out}: " in said
    assert "with those of earlier runs it holds 17 rows" in said and "failed:" not in said


def test_the_summary_of_hidden_identifiers_names_no_path(
    tmp_path, tiny_model, pictures, null_engine
):
    (pictures / "Doe.png").touch()
    report, _ = run(pictures, tmp_path / "r.parquet", tiny_model, masks="none", identifiers="none")
    said = "\n".join(summary(report))
    assert "Doe" not in said and "(empty)" in said and "report.html --top 0" in said
