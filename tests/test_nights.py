"""A folder of results: what a night adds, what it leaves alone, and what a killed one leaves."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from comit import durable
from comit.card import card_path, read_card
from comit.console import Console
from comit.errors import Stopped, UsageError
from comit.options import Options
from comit.run.run import Run, compact
from comit.run.target import File, Folder, find
from comit.screening import screen

QUIET = Console(quiet=True)
pytestmark = pytest.mark.usefixtures("null_engine")


@pytest.fixture
def night(tmp_path, tiny_model):
    """Screens the pictures into ``results``; gives the report."""

    def run(source=tmp_path / "pictures", out=tmp_path / "results", **options):
        chosen = Options(model=tiny_model, **options)
        return screen(source, out, chosen, console=QUIET)

    return run


def rows(folder: Path) -> dict[str, dict[str, object]]:
    found = pq.read_table(folder).to_pylist()
    by_path = {row["path"]: row for row in found}
    assert len(by_path) == len(found), "a row is there twice"
    return by_path


def nights(folder: Path) -> list[str]:
    assert (folder / "_SUCCESS").exists()
    return sorted(p.name for p in folder.glob("*.parquet"))


def add(pictures: Path, name: str, seed: int = 1) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (300, 280), np.uint8)
    cv2.imwrite(str(pictures / name), cv2.GaussianBlur(noise, (0, 0), 5))
    return pictures / name


def test_a_name_says_whether_it_is_a_file_or_a_folder(tmp_path):
    assert isinstance(find(tmp_path / "r.parquet"), File)
    assert isinstance(find(f"{tmp_path}/r.d/"), Folder)
    assert isinstance(find(tmp_path / "results"), Folder)
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(UsageError, match=r"end its name in \.parquet"):
        find(tmp_path / "plain")


def test_a_night_screens_what_is_new_and_leaves_the_rest_as_it_is(tmp_path, night, pictures):
    assert night().rows == 9
    first = rows(tmp_path / "results")
    assert night().unchanged == 9
    assert len(nights(tmp_path / "results")) == 1
    add(pictures, "new.png")
    report = night()
    assert (report.rows, report.unchanged, report.screened) == (1, 9, 1)
    after = rows(tmp_path / "results")
    assert after.pop("new.png")["status"] == "ok"
    assert after == first
    assert len(nights(tmp_path / "results")) == 2


def test_a_file_that_changed_is_screened_again_and_has_one_row(tmp_path, night, pictures):
    night()
    before = rows(tmp_path / "results")
    add(pictures, "0.png", seed=7)
    report = night()
    assert (report.rows, report.unchanged) == (1, 8)
    after = rows(tmp_path / "results")
    assert after.keys() == before.keys()
    assert after["0.png"]["file_crc32"] != before["0.png"]["file_crc32"]
    assert after["0.png"]["score_covid"] != before["0.png"]["score_covid"]
    assert {k: v for k, v in after.items() if k != "0.png"} == {
        k: v for k, v in before.items() if k != "0.png"
    }


def test_a_night_that_replaces_all_of_an_older_one_takes_its_file(tmp_path, night, pictures):
    night()
    (old,) = nights(tmp_path / "results")
    for path in pictures.iterdir():
        os.utime(path, (1, 1))
    assert night().rows == 9
    (new,) = nights(tmp_path / "results")
    assert new != old
    assert len(rows(tmp_path / "results")) == 9


def test_rows_of_files_that_are_gone_stay(tmp_path, night, pictures):
    night()
    (pictures / "0.png").unlink()
    assert night().unchanged == 8
    assert len(rows(tmp_path / "results")) == 9


def test_failed_rows_are_screened_again_when_asked(tmp_path, night, pictures):
    broken = pictures / "broken.png"
    whole = add(pictures, "whole.png").read_bytes()
    broken.write_bytes(whole[:-20])
    stamp = broken.stat().st_mtime_ns
    night()
    assert rows(tmp_path / "results")["broken.png"]["reason"] == "truncated"
    broken.write_bytes(whole)
    # As after chmod or a share that came back: nothing that a listing shows has changed.
    with broken.open("r+b") as file:
        file.truncate(len(whole) - 20)
    os.utime(broken, ns=(stamp, stamp))
    assert night().unchanged == 11
    report = night(retry_failed=True)
    assert (report.rows, report.unchanged) == (1, 10)
    assert len(rows(tmp_path / "results")) == 11


@pytest.mark.parametrize("form", ["r.parquet", "results/"])
def test_a_retry_takes_the_place_of_the_failed_row(tmp_path, night, pictures, form):
    out = f"{tmp_path}/{form}"
    locked = pictures / "4.png"
    good = locked.read_bytes()
    locked.write_bytes(good[: len(good) // 2])
    add(pictures, "new.png")
    report = night(out=out)
    assert report.status["failed"] == 1
    before = rows(Path(out))
    locked.write_bytes(good)
    add(pictures, "later.png", seed=3)
    report = night(out=out, retry_failed=True)
    assert report.unchanged == len(before) - 1  # the new file is none of them
    after = rows(Path(out))
    assert after["4.png"]["status"] == "ok"
    # A file has what its night had; a folder takes what came since.
    later = after.pop("later.png", None)
    assert (later is not None) == (form == "results/")
    assert list(after) == list(before) or form == "results/"
    assert {k: v for k, v in after.items() if k != "4.png"} == {
        k: v for k, v in before.items() if k != "4.png"
    }


def test_there_must_be_something_to_retry(tmp_path, night, pictures):
    with pytest.raises(UsageError, match="no rows that could be screened again"):
        night(out=tmp_path / "r.parquet", retry_failed=True)
    assert night(out=tmp_path / "r.parquet").rows == 9
    assert night(out=tmp_path / "r.parquet", retry_failed=True).rows == 0
    assert len(rows(tmp_path / "r.parquet")) == 9


def test_other_identifiers_are_not_said_to_be_another_folder(tmp_path, night, pictures):
    night()
    (tmp_path / "results" / ".comit" / "key").write_text('{"key": "00"}')
    with pytest.raises(UsageError) as refused:
        night(identifiers="none")
    said = str(refused.value)
    assert "another kind of identifiers" in said and "input folder" not in said


def test_a_night_of_other_settings_is_refused_by_name(tmp_path, night, pictures):
    night()
    before = rows(tmp_path / "results")
    add(pictures, "new.png")
    for message, change in (
        ("another operating point", {"operating_point": "99"}),
        ("another view policy", {"view_policy": "all"}),
        ("another kind of identifiers or key; run", {"identifiers": "none"}),
    ):
        if "identifiers" in change:
            (tmp_path / "results" / ".comit" / "key").write_text('{"key": "00"}')
        with pytest.raises(UsageError, match=message):
            night(**change)
    moved = shutil.copytree(pictures, tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=f"another input folder \\({pictures}\\)"):
        night(source=moved)
    assert rows(tmp_path / "results") == before


@pytest.fixture
def other_model(tmp_path, tiny_model):
    """The same network under another name and with other thresholds: another generation."""
    model = tmp_path / "other.onnx"
    content = tiny_model.read_bytes() + b"\x72\x00"  # an empty field that readers skip
    model.write_bytes(content)
    card = read_card(tiny_model)
    sha256 = hashlib.sha256(content).hexdigest()
    replace(card, name="other", sha256=sha256).write(card_path(model))
    return model


def models(folder: Path) -> Counter[str]:
    return Counter(row["comit_model"].partition("@")[0] for row in rows(folder).values())


def upgraded(night, tmp_path, model, upgrade="refuse"):
    options = Options(model=model, precision="fp32", workers=1, upgrade=upgrade)
    return screen(tmp_path / "pictures", tmp_path / "results", options, console=QUIET)


def test_a_folder_takes_another_generation_only_as_asked(tmp_path, night, pictures, other_model):
    night()
    before, was = rows(tmp_path / "results"), models(tmp_path / "results")
    with pytest.raises(UsageError, match=r"another model; .*--upgrade keep .*--upgrade rescreen"):
        upgraded(night, tmp_path, other_model)
    assert rows(tmp_path / "results") == before
    add(pictures, "new.png")
    assert upgraded(night, tmp_path, other_model, "keep").rows == 1
    after = rows(tmp_path / "results")
    assert after.pop("new.png")["comit_model"].startswith("other@")
    assert after == before
    add(pictures, "newer.png", seed=2)
    assert upgraded(night, tmp_path, other_model).rows == 1  # the newest generation goes on
    assert models(tmp_path / "results") == was + Counter(other=2)
    assert compact(tmp_path / "results", 1000) == (2, 2)  # generations stay apart
    assert models(tmp_path / "results") == was + Counter(other=2)
    assert upgraded(night, tmp_path, other_model).unchanged == 11
    with pytest.raises(UsageError, match="another model"):
        night()


def test_a_folder_is_screened_again_by_another_model(tmp_path, night, pictures, other_model):
    night()
    gone = add(pictures, "gone.png")
    night()
    gone.unlink()
    report = upgraded(night, tmp_path, other_model, "rescreen")
    assert (report.rows, report.unchanged) == (9, 0)
    found = models(tmp_path / "results")
    assert found.pop("other") == 9 and found.total() == 1  # of the file that is not there
    assert upgraded(night, tmp_path, other_model, "rescreen").unchanged == 9  # once


def earlier_version(file: Path, schema: str, *lacks: str) -> None:
    """A night as a version of comit wrote it that lacked these columns."""
    table = pq.read_table(file)
    metadata = {**table.schema.metadata, b"comit_schema": schema.encode()}
    pq.write_table(table.drop_columns([*lacks]).replace_schema_metadata(metadata), file)


def test_a_folder_of_an_earlier_version_goes_on(tmp_path, night, pictures):
    night()
    results = tmp_path / "results"
    before = rows(results)
    earlier_version(results / nights(results)[0], "3", "comit_model")
    add(pictures, "new.png")
    night()
    after = rows(results)
    assert after.pop("new.png")["status"] == "ok"
    assert after == before  # the column is filled from what the night's file says


def test_a_folder_of_an_earlier_schema_is_upgraded(tmp_path, night, pictures):
    night()
    results = tmp_path / "results"
    before = rows(results)
    earlier_version(results / nights(results)[0], "2", "comit_model", "score_chest")
    add(pictures, "new.png")
    with pytest.raises(UsageError, match=r"another schema; .*--upgrade keep"):
        night()
    night(upgrade="keep")
    after = rows(results)
    assert after.pop("new.png")["status"] == "ok"
    assert after == {path: row | {"score_chest": None} for path, row in before.items()}


def test_a_manifest_with_other_columns_is_refused(tmp_path, night, pictures):
    def manifest(name, **columns):
        table = pa.table({"path": ["0.png"], "id": [name], **columns})
        pq.write_table(table, pictures / f"{name}.parquet")
        return pictures / f"{name}.parquet"

    night(manifest("a", ward=[1]))
    night(manifest("b", ward=[2]))
    with pytest.raises(UsageError, match=r"other columns \(bed\)"):
        night(manifest("c", ward=[2], bed=[1]))
    with pytest.raises(UsageError, match=r"other columns \(of another type\)"):
        night(manifest("d", ward=["x"]))
    assert sorted(r["ward"] for r in pq.read_table(tmp_path / "results").to_pylist()) == [1, 2]


def test_a_folder_of_something_else_is_left_alone(tmp_path, night, pictures):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "holiday.jpg").touch()
    with pytest.raises(UsageError, match="other files in it"):
        night()
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["holiday.jpg"]


def test_a_refused_first_night_leaves_nothing(tmp_path, night, pictures):
    with pytest.raises(UsageError, match="does not exist"):
        night(source=tmp_path / "nowhere")
    assert not (tmp_path / "results").exists()


def test_small_files_are_merged_and_rows_stay_the_same(tmp_path, night, pictures):
    folder = tmp_path / "results"
    night()
    add(pictures, "new.png")
    night()
    before = rows(folder)
    assert compact(folder, 5) == (0, 0)
    assert compact(folder, 100) == (2, 10)
    assert rows(folder) == before
    (name,) = nights(folder)
    found = pq.read_schema(folder / name).metadata
    assert found[b"comit_precision"] == b"fp32"
    assert night().unchanged == 10
    assert compact(folder, 100) == (0, 0)


def test_what_is_no_folder_of_results_is_not_compacted(tmp_path, night, pictures):
    with pytest.raises(UsageError, match="not a folder of results"):
        compact(pictures, 100)
    with Run(tmp_path / "results"), pytest.raises(UsageError, match="another run is writing"):
        compact(tmp_path / "results", 100)


def test_without_hard_links_parts_are_published_by_rename(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    temporary, to = tmp_path / "t", tmp_path / "to"
    temporary.write_bytes(b"new")
    durable.publish(temporary, to)
    assert to.read_bytes() == b"new" and not temporary.exists()
    temporary.write_bytes(b"newer")
    with pytest.raises(FileExistsError):
        durable.publish(temporary, to)
    assert to.read_bytes() == b"new"


def test_a_run_without_hard_links_gives_the_same_rows(tmp_path, night, pictures, monkeypatch):
    night()

    def no_links(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    night(out=tmp_path / "r.parquet")
    linked, renamed = rows(tmp_path / "results"), rows(tmp_path / "r.parquet")
    for found in (*linked.values(), *renamed.values()):
        del found["run_id"], found["screened_at"]
    assert linked == renamed


def test_a_disk_that_fails_while_a_night_is_put_in_place_is_repaired(
    tmp_path, night, pictures, monkeypatch
):
    folder = tmp_path / "results"
    night()
    add(pictures, "new.png")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", full)
        with pytest.raises(Stopped, match="No space left on device"):
            night()
    assert not (folder / "_SUCCESS").exists()
    assert json.loads((folder / ".comit" / "commit.json").read_text())["add"]
    assert night().unchanged == 10
    assert len(rows(folder)) == 10
    assert len(nights(folder)) == 2


def manifest_of(pictures, name, **columns):
    pq.write_table(pa.table(columns), pictures / name)
    return pictures / name


def test_an_id_that_gets_another_file_is_screened_again(tmp_path, night, pictures):
    stamp = (pictures / "0.png").stat().st_mtime_ns
    (pictures / "b.png").write_bytes((pictures / "0.png").read_bytes())
    os.utime(pictures / "b.png", ns=(stamp, stamp))
    night(manifest_of(pictures, "m.parquet", id=["1"], path=["0.png"]))
    assert night(manifest_of(pictures, "m.parquet", id=["1"], path=["b.png"])).rows == 1
    (row,) = rows(tmp_path / "results").values()
    assert (row["row_id"], row["path"]) == ("1", "b.png")


def test_a_share_that_is_away_takes_no_row_back(tmp_path, night, pictures):
    manifest = manifest_of(pictures, "m.parquet", path=["0.png", "1.png"])
    night(manifest)
    before = rows(tmp_path / "results")
    (pictures / "0.png").rename(tmp_path / "away.png")
    assert night(manifest).unchanged == 2
    assert rows(tmp_path / "results") == before


def test_one_file_is_what_its_folder_knows_it_as(tmp_path, night, pictures):
    night(pictures / "0.png")
    assert night(pictures).unchanged == 1
    assert len(rows(tmp_path / "results")) == 9


def test_compacting_leaves_an_interrupted_run_as_it_is(tmp_path, night, tiny_model, pictures):
    stop = threading.Event()
    for name in ("a.png", "b.png"):
        night()
        add(pictures, name)
    stop.set()
    chosen = Options(model=tiny_model)
    with pytest.raises(Stopped):
        screen(pictures, tmp_path / "results", chosen, console=QUIET, stop=stop)
    frozen = (tmp_path / "results" / ".comit" / "run.json").read_bytes()
    assert compact(tmp_path / "results", 100) == (2, 10)
    assert (tmp_path / "results" / ".comit" / "run.json").read_bytes() == frozen
    night()
    assert len(rows(tmp_path / "results")) == 11


def test_a_retry_of_other_settings_is_refused(tmp_path, night, pictures):
    (pictures / "broken.png").write_bytes(b"")
    out = tmp_path / "r.parquet"
    night(out=out)
    with pytest.raises(UsageError, match="keeps no key, so with --identifiers none"):
        night(out=out, retry_failed=True, identifiers="none")
    moved = shutil.copytree(pictures, tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="another input folder"):
        night(source=moved, out=out, retry_failed=True)


def test_what_is_no_result_in_the_folder_is_named(tmp_path, night, pictures):
    night()
    other = tmp_path / "results" / "x.parquet"
    for action in (night, lambda: compact(tmp_path / "results", 9)):
        pq.write_table(pa.table({"row_id": ["somebody's"]}), other)
        with pytest.raises(UsageError, match=r"x\.parquet holds no results of comit"):
            action()
        other.write_bytes(b"garbage")
        with pytest.raises(UsageError, match=r"x\.parquet is damaged or cannot be read"):
            action()


@pytest.mark.parametrize("content", ["{", "[]", '{"add": "a"}'])
def test_a_damaged_journal_is_named(tmp_path, night, pictures, content):
    night()
    (tmp_path / "results" / ".comit" / "commit.json").write_text(content)
    with pytest.raises(UsageError, match=r"commit\.json is damaged"):
        night()


def test_a_journal_reaches_no_file_outside(tmp_path, night, pictures):
    night()
    (tmp_path / "victim").touch()
    change = {"add": "n", "replace": [], "remove": ["../victim"], "ends": True}
    (tmp_path / "results" / ".comit" / "commit.json").write_text(json.dumps(change))
    with pytest.raises(UsageError, match="names files that are not in"):
        night()
    assert (tmp_path / "victim").exists()


def test_a_changed_bit_inside_a_part_is_found_out(tmp_path):
    from test_run import N, check, fill, opened

    out = tmp_path / "r.parquet"
    with pytest.raises(Stopped), opened(out, N) as sink:
        fill(sink, N - 1)
    part = tmp_path / ".r.parquet.comit" / "part-00000.parquet"
    whole = part.read_bytes()
    rows = pq.read_table(part)
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    found = 0
    for at in range(100, footer, footer // 50):
        part.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(Stopped), opened(out, N) as sink:
            table = sink.shards.committed(0)
            assert table is None or table.equals(rows)  # a bit of a page's header that says nothing
            found += table is None
            raise Stopped("looked")
    assert found > 40
    with opened(out, N) as sink:
        assert fill(sink) >= 1
        sink.finish()
    check(out, N)


def test_a_damaged_night_is_named_and_no_reason_to_make_room(tmp_path, night, pictures):
    out = tmp_path / "results"
    night()
    (damaged,) = out.glob("*.parquet")
    content = damaged.read_bytes()
    add(pictures, "new.png")
    night()
    chunk = pq.read_metadata(damaged).row_group(0).column(0)
    start, end = chunk.dictionary_page_offset or chunk.data_page_offset, chunk.total_compressed_size
    damaged.write_bytes(content[:start] + bytes(end) + content[start + end :])
    for again in (night, lambda: compact(out, 100)):
        with pytest.raises(UsageError, match=f"{damaged.name} is damaged"):
            again()
    damaged.write_bytes(content)
    assert compact(out, 100) == (2, 10)


@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary_view(), pa.list_(pa.string_view())])
def test_a_column_of_views_lasts_many_nights(tmp_path, night, pictures, kind):
    paths = [*sorted(p.name for p in pictures.iterdir())[:2], "gone.png"]
    value = {pa.string_view(): "x", pa.binary_view(): b"x"}.get(kind, ["x", None])
    manifest = pictures / "m.parquet"

    def run(*more, **options):
        names = [*paths, *more]
        columns = {"path": names, "extra": pa.array([value] * len(names), kind)}
        pq.write_table(pa.table(columns), manifest)
        return night(source=manifest, **options)

    assert run().rows == 3
    add(pictures, "later.png")
    assert (run("later.png").rows, run("later.png").unchanged) == (1, 4)
    add(pictures, "gone.png")
    assert run("later.png", retry_failed=True).status["ok"] == 1
    found = rows(tmp_path / "results")
    assert {r["status"] for r in found.values()} == {"ok"} and len(found) == 4
    assert [r["extra"] for r in found.values()] == [value] * 4
    run(out=tmp_path / "one.parquet")
    run(out=tmp_path / "one.parquet", retry_failed=True)


@pytest.mark.real
def test_a_manifest_of_views_that_failed_on_its_second_night(tmp_path, night, faults):
    manifest = faults / "manifest-string-view-second-night" / "m-strview.parquet"
    for options in ({}, {}, {"retry_failed": True}):
        night(source=manifest, **options)
    assert [r["extra"] for r in rows(tmp_path / "results").values()] == ["x"] * 5
