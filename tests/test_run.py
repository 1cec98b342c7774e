from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from comit.errors import Stopped, UsageError
from comit.results import Row
from comit.run.run import Run, _same_rows
from comit.source.base import SHARD, Item, Listing
from comit.source.worklist import Writer

SETTINGS = {"model": "abc", "masks": "all"}
METADATA = {"comit_model": "m", "comit_identifiers": "plain"}


def lister(n):
    items = [Item(f"id{i}", f"{i}.png", b"%d" % i, f"{i}.png") for i in range(n)]

    def enumerate_to(to, paths):
        with Writer(to, paths) as writer:
            for start in range(0, n, SHARD):
                writer.write(items[start : start + SHARD])
        return Listing()

    return enumerate_to


def row(i: int) -> Row:
    rle = {"size": [224, 224], "counts": f"c{i}"}
    return Row(status="ok", score_covid=i / 1024, warnings=("colour",), lung_rle=rle)


@contextmanager
def opened(out, n, settings=SETTINGS, **options):
    with Run(out, **options) as sink:
        sink.list(lister(n))
        sink.freeze(settings, METADATA)
        yield sink


def fill(sink, stop_after=None):
    added = 0
    for index, _ in sink.todo():
        if added == stop_after:
            raise Stopped("asked to")
        sink.add(index, row(index))
        added += 1
    return added


def check(out, n):
    table = pq.read_table(out)
    assert table["row_id"].to_pylist() == [f"id{i}" for i in range(n)]
    assert table["score_covid"].to_pylist() == [i / 1024 for i in range(n)]
    assert [m["counts"] for m in table["lung_rle"].to_pylist()] == [f"c{i}" for i in range(n)]
    assert not out.with_name(f".{out.name}.comit").exists()


N = SHARD + 40


def test_rows_arrive_in_any_order_and_leave_in_that_of_the_list(tmp_path):
    out = tmp_path / "r.parquet"
    with opened(out, N) as sink:
        for index, _ in sorted(sink.todo(), reverse=True):
            sink.add(index, row(index))
        tally = sink.finish()
    check(out, N)
    assert tally.rows == N and tally.status["ok"] == N
    assert pq.read_schema(out).metadata[b"comit_model"] == b"m"


@pytest.mark.parametrize("stop_after", [0, 1, SHARD - 1, SHARD, SHARD + 7, N - 1])
def test_a_stopped_run_is_resumed_and_does_no_row_twice(tmp_path, stop_after):
    out = tmp_path / "r.parquet"
    with pytest.raises(Stopped), opened(out, N) as sink:
        fill(sink, stop_after)
    assert not out.exists()
    with opened(out, N) as sink:
        assert fill(sink) == N - stop_after
        sink.finish()
    check(out, N)


def test_a_damaged_part_is_done_again(tmp_path):
    out = tmp_path / "r.parquet"
    with pytest.raises(Stopped), opened(out, N) as sink:
        fill(sink, N - 1)
    part = tmp_path / ".r.parquet.comit" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-10])
    with opened(out, N) as sink:
        assert fill(sink) == SHARD + 1
        sink.finish()
    check(out, N)


def test_a_bit_that_changes_before_the_merge_stops_it_and_costs_the_shard(tmp_path):
    out = tmp_path / "r.parquet"
    part = tmp_path / ".r.parquet.comit" / "part-00000.parquet"
    with pytest.raises(Stopped), opened(out, N) as sink:
        fill(sink)
        raise Stopped("before the merge")
    footer = pq.read_metadata(part).row_group(0)
    offsets = {footer.column(i).path_in_schema: footer.column(i) for i in range(footer.num_columns)}
    for name in ("row_id", "file_size", "score_covid"):  # read for duplicates, or for rows alone
        whole = bytearray(part.read_bytes())
        whole[offsets[name].data_page_offset + offsets[name].total_compressed_size - 2] ^= 4
        with opened(out, N) as sink:
            assert list(sink.todo()) == []
            part.write_bytes(whole)
            with pytest.raises(Stopped, match="part 0 is damaged"):
                sink.finish()
        assert not out.exists()
        with pytest.raises(Stopped), opened(out, N) as sink:
            assert fill(sink) == SHARD
            raise Stopped("before the merge")
    with opened(out, N) as sink:
        sink.finish()
    check(out, N)


def test_rows_are_the_same_only_in_their_order(tmp_path):
    path, other = tmp_path / "worklist.parquet", tmp_path / "merged.parquet"
    ids = [f"row-{i}" for i in range(2 * SHARD + 3)]
    pq.write_table(pa.table({"row_id": ids}), path, row_group_size=SHARD)
    with pq.ParquetFile(path) as worklist:
        for changed, same in (
            (ids, True),
            (ids[:-1], False),
            ([*ids[1:], ids[0]], False),
            ([*ids[:-1], "row-0"], False),
        ):
            pq.write_table(pa.table({"row_id": changed}), other)
            assert _same_rows(other, worklist) is same


def test_the_old_result_stays_until_the_new_one_is_whole(tmp_path):
    out = tmp_path / "r.parquet"
    with opened(out, N) as sink:
        fill(sink)
        sink.finish()
    before = out.read_bytes()
    with pytest.raises(Stopped), opened(out, N) as sink:
        fill(sink, 10)
    assert out.read_bytes() == before


def test_resuming_with_other_settings_is_refused_by_name(tmp_path):
    out = tmp_path / "r.parquet"
    with pytest.raises(Stopped), opened(out, N) as sink:
        fill(sink, 10)
    with (
        pytest.raises(UsageError, match="another model"),
        opened(out, N, {**SETTINGS, "model": "other"}),
    ):
        pass
    with opened(out, N, {**SETTINGS, "model": "other"}, restart=True) as sink:
        assert fill(sink) == N
        sink.finish()
    check(out, N)


def test_a_second_run_on_the_same_output_is_refused(tmp_path):
    with opened(tmp_path / "r.parquet", 3), pytest.raises(UsageError, match="another run"):
        Run(tmp_path / "r.parquet")


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UsageError, match="folder with other files"):
        Run(tmp_path)
    with pytest.raises(UsageError, match="cannot be written"):
        Run(tmp_path / "nowhere" / "r.parquet")


def test_a_lock_that_cannot_be_made_is_refused(tmp_path):
    staging = tmp_path / ".r.parquet.comit"
    staging.mkdir()
    (staging / "lock").symlink_to(tmp_path / "nowhere" / "lock")
    with pytest.raises(UsageError, match="takes no files"):
        Run(tmp_path / "r.parquet")


@pytest.mark.parametrize(
    "change",
    [
        lambda run: {**run, "began": "yesterday"},
        lambda run: {**run, "began": 7},
        lambda run: {**run, "settings": ["model"]},
        lambda run: {k: v for k, v in run.items() if k != "run_id"},
        lambda run: [run],
        None,
    ],
)
def test_a_damaged_state_is_named_and_forgotten_when_asked(tmp_path, change):
    out = tmp_path / "r.parquet"
    with pytest.raises(Stopped), opened(out, N) as sink:
        fill(sink, 10)
    state = tmp_path / ".r.parquet.comit" / "run.json"
    state.write_text(json.dumps(change(json.loads(state.read_text()))) if change else "{")
    with pytest.raises(UsageError, match=r"run\.json is damaged"), opened(out, N):
        pass
    with opened(out, N, restart=True) as sink:
        assert fill(sink) == N
        sink.finish()
    check(out, N)


def test_a_folder_among_what_a_run_left_is_removed(tmp_path):
    out = tmp_path / "results"
    with pytest.raises(Stopped), opened(out, N) as sink:
        fill(sink, 10)
    (out / ".comit" / "kept" / "deep").mkdir(parents=True)
    with opened(out, N, restart=True) as sink:
        fill(sink)
        sink.finish()
    assert not (out / ".comit" / "kept").exists()


def test_a_failing_disk_stops_the_run_with_the_words_to_resume(tmp_path, monkeypatch):
    out = tmp_path / "r.parquet"
    real = os.fsync

    def full(fd):
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(Stopped, match=r"No space left on device.*same command"),
        opened(out, N) as sink,
    ):
        monkeypatch.setattr(os, "fsync", full)
        fill(sink)
    monkeypatch.setattr(os, "fsync", real)
    with opened(out, N) as sink:
        fill(sink)
        sink.finish()
    check(out, N)


def test_staging_is_private_and_results_follow_the_umask_that_nobody_touches(tmp_path, monkeypatch):
    out = tmp_path / "r.parquet"
    umask = os.umask
    before = umask(0o027)
    monkeypatch.delattr(os, "umask")  # it is the whole process's
    try:
        with opened(out, N) as sink:
            fill(sink)
            staging = tmp_path / ".r.parquet.comit"
            assert staging.stat().st_mode & 0o777 == 0o700
            assert all(p.stat().st_mode & 0o077 == 0 for p in staging.glob("part-*"))
            sink.finish()
    finally:
        umask(before)
    assert out.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "odd",
    [
        {"lung_rle": {"size": [2**40, 1], "counts": "c"}},
        {"lung_rle": "no struct"},
        {"score_covid": "no number"},
        {"warnings": (b"\xff",)},
        {"warnings": ("\ud800",)},
    ],
)
@pytest.mark.parametrize("stop_after", [None, SHARD - 1])
def test_a_row_that_cannot_be_written_costs_itself_alone(tmp_path, odd, stop_after):
    out, bad = tmp_path / "r.parquet", 5

    def fill_with(sink):
        for added, (index, _) in enumerate(sink.todo()):
            if added == stop_after:
                raise Stopped("asked to")
            sink.add(index, replace(row(index), **odd) if index == bad else row(index))

    if stop_after is not None:
        with pytest.raises(Stopped), opened(out, N) as sink:
            fill_with(sink)
    with opened(out, N) as sink:
        fill_with(sink) if stop_after is None else fill(sink)
        tally = sink.finish()
    assert tally.reasons == {"unwritable": 1}
    found = pq.read_table(out).to_pylist()
    assert [r["row_id"] for r in found] == [f"id{i}" for i in range(N)]
    lost = found.pop(bad)
    assert (lost["status"], lost["score_covid"], lost["warnings"]) == ("failed", None, [])
    assert [r["lung_rle"]["counts"] for r in found] == [f"c{i}" for i in range(N) if i != bad]


def test_a_shard_in_which_no_single_row_is_at_fault_keeps_its_error(tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError("whatever the rows are")

    with pytest.raises(ValueError, match="whatever"), opened(tmp_path / "r.parquet", N) as sink:
        monkeypatch.setattr(sink.shards, "_write", fails)
        fill(sink)
    with opened(tmp_path / "r.parquet", N) as sink:
        assert fill(sink) == N
        sink.finish()
    check(tmp_path / "r.parquet", N)


def foreign(out, columns, metadata=None):
    table = pa.table({name: ["x"] for name in columns})
    pq.write_table(table.replace_schema_metadata(metadata), out)


@pytest.mark.parametrize(
    ("columns", "metadata"),
    [
        (["patient"], None),
        (["row_id", "status", "file_mtime", "label"], None),  # results with somebody's labels
        (["path"], {"comit_version": "0.1.0"}),
    ],
)
@pytest.mark.parametrize("options", [{}, {"restart": True}, {"retry_failed": True}])
def test_a_table_that_comit_did_not_write_is_never_replaced(tmp_path, columns, metadata, options):
    out = tmp_path / "cohort.parquet"
    foreign(out, columns, metadata)
    before = out.read_bytes()
    with (
        pytest.raises(UsageError, match="did not write and will not replace"),
        opened(out, N, **options),
    ):
        pass
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("cut", ["head", "middle", "footer", "end"])
@pytest.mark.parametrize("options", [{}, {"retry_failed": True}])
def test_damaged_results_are_named(tmp_path, cut, options):
    out = tmp_path / "r.parquet"
    with opened(out, N) as sink:
        fill(sink)
        sink.finish()
    data = out.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    damaged = {
        "head": b"\0" * 4 + data[4:],
        "middle": data[:4] + bytes(footer - 4) + data[footer:],
        "footer": data[: footer + 9] + b"\xff" * 40 + data[footer + 49 :],
        "end": data[:-9],
    }[cut]
    out.write_bytes(damaged)
    with ExitStack() as expected:
        if cut != "middle" or options:  # a file that is replaced whole need not be read whole
            expected.enter_context(pytest.raises(UsageError, match=r"r\.parquet is .*amaged"))
        with opened(out, N, **options) as sink:
            fill(sink)
            sink.finish()
    assert out.read_bytes() == damaged or (cut == "middle" and not options)


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("how", ["removed", "renamed"])
@pytest.mark.parametrize("when", [1, SHARD - 1, N])
def test_an_output_that_goes_away_while_a_run_writes_it_stops_the_run(tmp_path, folder, how, when):
    place = tmp_path / "place"
    place.mkdir()
    out = place / ("results" if folder else "r.parquet")
    with pytest.raises(Stopped, match=r"is gone.*the same command resumes"), opened(out, N) as sink:
        for added, (index, _) in enumerate([*sink.todo()]):
            sink.add(index, row(index))
            if added + 1 == when:
                place.rename(tmp_path / "away") if how == "renamed" else shutil.rmtree(place)
        sink.finish()
    assert not place.exists()
    if how == "renamed":
        (tmp_path / "away").rename(place)
    else:
        place.mkdir()
    with opened(out, N) as sink:
        fill(sink)
        tally = sink.finish()
    assert tally.rows == N


def test_results_that_are_damaged_while_a_run_adds_to_them_stop_it_and_it_resumes(tmp_path):
    out = tmp_path / "results"
    with opened(out, N) as sink:
        fill(sink)
        sink.finish()
    (night,) = out.glob("*.parquet")
    whole = night.read_bytes()
    with (
        pytest.raises(Stopped, match=r"is damaged.*The rows so far are kept"),
        opened(out, N + 1) as sink,
    ):
        fill(sink)
        night.write_bytes(whole[:-9])
        sink.finish()
    night.write_bytes(whole)
    with opened(out, N + 1) as sink:
        assert fill(sink) == 0
        sink.finish()
