"""Reading results: one file or a folder of them, whatever settings wrote them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import resultfiles as rf

from comit.errors import UsageError
from comit.masks import decode_mask, encode, rectangles
from comit.results import COLUMNS, FINDINGS, Row, provenance, read, schema


def test_a_file_has_our_columns_first_and_then_those_of_its_manifest(tmp_path):
    file = rf.write(tmp_path / "r.parquet", [rf.ok("a", ward="3"), rf.ok("b", ward="4")])
    table = read(file)
    assert table.column_names == [*COLUMNS, "ward"]
    assert table["row_id"].to_pylist() == ["a", "b"]
    assert table["study_instance_uid"].to_pylist() == [None, None]  # the file lacks it


def test_columns_come_as_asked_for(tmp_path):
    file = rf.write(tmp_path / "r.parquet", [rf.ok("a", ward="3")])
    assert read(file, ("ward", "path")).to_pylist() == [{"ward": "3", "path": "a.png"}]


def test_a_folder_is_the_sum_of_its_nights_and_of_nothing_hidden(tmp_path):
    rf.write(tmp_path / "1.parquet", [rf.ok("a")])
    rf.write(tmp_path / "2.parquet", [rf.ok("b"), rf.unscored("c", "failed", "empty")])
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "report.html").write_text("made of it")
    (tmp_path / ".part.parquet").touch()
    (tmp_path / ".comit").mkdir()
    rf.write(tmp_path / ".comit" / "part.parquet", [rf.ok("staged")])
    table = read(tmp_path)
    assert table["row_id"].to_pylist() == ["a", "b", "c"]
    assert provenance(table)["model"] == "tiny"


def test_provenance_has_no_prefix_and_thresholds_as_numbers(tmp_path):
    said = provenance(read(rf.write(tmp_path / "r.parquet", [rf.ok("a")])))
    assert said["model_sha256"] == "ab" * 32 and said["thresholds"] == rf.THRESHOLDS


def test_what_is_not_results_is_refused_and_named(tmp_path):
    other, text = tmp_path / "other.parquet", tmp_path / "text.parquet"
    pq.write_table(pa.table({"x": [1]}), other)
    text.write_text("row_id,status\n")
    twice = rf.write(tmp_path / "twice.parquet", [rf.ok("a"), rf.ok("a")])
    empty = tmp_path / "empty"
    empty.mkdir()
    for file, why in [
        (other, "no row_id and status"),
        (text, "cannot be read as Parquet"),
        (tmp_path / "nowhere", "does not exist; comit screen"),
        (twice, "two rows of one row_id"),
        (empty, "is a folder without results of comit"),
    ]:
        with pytest.raises(UsageError, match=f"{file.name}.*{why}"):
            read(file)
    good = rf.write(tmp_path / "good.parquet", [rf.ok("a")])
    with pytest.raises(UsageError, match="no column 'wrad'"):
        read(good, ("row_id", "wrad"))


def test_a_mask_decodes_to_what_was_encoded():
    mask = np.random.default_rng(0).random((2, 224, 224)) < 0.3
    for encoded, original in zip(encode(mask), mask, strict=True):
        decoded = decode_mask(encoded)
        assert decoded.dtype == bool and np.array_equal(decoded, original)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *((c, v) for c in ("rows", "cols") for v in (2**31, 2**32 - 1, -1, 512.5, "512", 1e300)),
        *(("file_size", v) for v in (2**63, -1)),
        *(("file_mtime", v) for v in (10**18, -(10**18))),
        ("file_crc32", 2**32),
        *(("sop_instance_uid", v) for v in ("1." * 33, "1\n2", "\ud800", b"1.2", 1.2)),
        *(("view", v) for v in ("\x1b[31mPA", "P" * 65)),
    ],
)
def test_a_value_that_its_column_cannot_hold_is_left_out_with_a_warning(column, value):
    row = Row(status="skipped", reason="modality", warnings=("colour",), rows=512)
    odd = replace(row, **{column: value})
    assert getattr(odd, column) is None
    assert odd.warnings == ("colour", "value_left_out")
    assert replace(odd, status="failed").warnings == odd.warnings  # said once


def test_the_largest_values_of_a_row_can_be_written():
    row = Row(
        status="ok",
        view="A" * 64,
        rows=2**31 - 1,
        cols=0,
        sop_instance_uid="1." * 32,
        file_size=2**63 - 1,
        file_mtime=253_402_300_799_000_000,
        file_crc32=2**32 - 1,
    )
    assert row.warnings == ()
    kinds = pa.schema([schema().field(name) for name in FINDINGS])
    assert pa.Table.from_pylist([row.values()], kinds).num_rows == 1


def lungs(*boxes):
    """A mask with boxes (x, y, w, h) filled."""
    mask = np.zeros((224, 224), bool)
    for x, y, w, h in boxes:
        mask[y : y + h, x : x + w] = True
    return mask


@pytest.mark.parametrize(
    ("drawn", "found"),
    [
        ([(30, 50, 60, 100), (130, 60, 70, 110)], [(30, 50, 60, 100), (130, 60, 70, 110)]),
        ([(30, 50, 60, 100), (130, 60, 70, 110), (5, 5, 3, 3)], None),  # a speck
        (
            [(30, 50, 30, 100), (60, 90, 10, 10), (70, 50, 30, 100)],
            [(30, 50, 36, 100), (66, 50, 34, 100)],
        ),
        (
            [(30, 50, 60, 40), (30, 100, 60, 50), (130, 60, 70, 110)],
            [(30, 50, 60, 100), (130, 60, 70, 110)],
        ),
        ([(30, 50, 60, 100)], [(30, 50, 60, 100)]),  # one lung
        ([], []),
        ([(7, 9, 1, 1)], [(7, 9, 1, 1)]),
    ],
)
def test_a_rectangle_stands_around_each_lung(drawn, found):
    expected = [(30, 50, 60, 100), (130, 60, 70, 110)] if found is None else found
    assert rectangles(lungs(*drawn)) == expected
