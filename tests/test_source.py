from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import comit.source.manifest
from comit.errors import UsageError
from comit.identifiers import Identifiers
from comit.reasons import Fail, Skip
from comit.source import SHARD, Selection, microseconds, read_items, write_worklist


def items(source: Path, tmp_path: Path, pattern: str = "*", exclude=(), **selection):
    """The items of a source; its work list stays in work/list.parquet."""
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    chosen = Selection(pattern, tuple(exclude), **selection)
    with (work / "list.parquet").open("w+b") as to, (work / "paths.parquet").open("w+b") as paths:
        write_worklist(source, to, paths, chosen)
    found = read_items(pq.read_table(work / "list.parquet"), pq.read_table(work / "paths.parquet"))
    assert len(found) == len({i.row_id for i in found})
    return found


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "xrays"
    for name in ("b/2.dcm", "b/1.png", "a.jpg", "c/d/e.dcm"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def test_a_folder_is_walked_whole_in_the_order_of_names(tree, tmp_path):
    assert [i.path for i in items(tree, tmp_path)] == ["a.jpg", "b/1.png", "b/2.dcm", "c/d/e.dcm"]


def test_row_ids_depend_on_the_relative_path_alone(tree, tmp_path):
    before = [i.row_id for i in items(tree, tmp_path)]
    moved = tree.rename(tmp_path / "elsewhere")
    assert [i.row_id for i in items(moved, tmp_path)] == before


def test_a_pattern_takes_matching_names(tree, tmp_path):
    assert [i.path for i in items(tree, tmp_path, "*.dcm")] == ["b/2.dcm", "c/d/e.dcm"]
    with pytest.raises(UsageError, match=r"holds no files that match '\*\.tif'"):
        items(tree, tmp_path, "*.tif")


def test_our_own_output_inside_the_folder_is_left_out(tree, tmp_path):
    assert [i.path for i in items(tree, tmp_path, exclude=[tree / "a.jpg", tree / "b"])] == [
        "c/d/e.dcm"
    ]


def test_links_inside_are_visited_once_and_links_outside_are_skipped(tree, tmp_path):
    (tmp_path / "outside.png").write_bytes(b"x")
    (tree / "loop").symlink_to(tree)
    (tree / "twin.dcm").symlink_to(tree / "b/2.dcm")
    (tree / "z.png").symlink_to(tmp_path / "outside.png")
    (tree / "y.png").symlink_to(tree / "gone.png")
    (tree / "x.png").symlink_to(tree / "x.png")
    found = {i.path: i.problem for i in items(tree, tmp_path)}
    assert found == {
        "a.jpg": None,
        "b/1.png": None,
        "b/2.dcm": None,
        "c/d/e.dcm": None,
        "x.png": Fail.VANISHED,
        "y.png": Fail.VANISHED,
        "z.png": Skip.OUTSIDE_ROOT,
    }


def test_a_fifo_is_an_item_that_is_never_opened(tree, tmp_path):
    os.mkfifo(tree / "pipe")
    assert {i.path: i.problem for i in items(tree, tmp_path)}["pipe"] == Skip.NOT_A_FILE


def test_names_that_are_not_utf8_keep_their_bytes_and_show_escaped(tmp_path):
    root = tmp_path / "odd"
    root.mkdir()
    raw = os.fsencode(root) + b"/\xff\n'\".png"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    (item,) = items(root, tmp_path)
    assert item.file == raw
    assert item.path == "\\xff\n'\".png"


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no files"):
        items(tmp_path / "empty", tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        items(tmp_path / "nowhere", tmp_path)


def test_a_single_file_is_one_item(tree, tmp_path):
    (item,) = items(tree / "a.jpg", tmp_path)
    assert item.file == os.fsencode(tree / "a.jpg")


def write(to: Path, /, **columns) -> Path:
    pq.write_table(pa.table(columns), to)
    return to


def test_a_manifest_keeps_its_ids_types_and_other_columns(tmp_path):
    manifest = write(
        tmp_path / "m.parquet",
        path=["a.png", "/abs/b.png"],
        id=["x", "y"],
        age=[3, None],
        view=["PA", "AP"],
    )
    found = items(manifest, tmp_path)
    assert [i.row_id for i in found] == ["x", "y"]
    assert [i.file for i in found] == [os.fsencode(tmp_path / "a.png"), b"/abs/b.png"]
    table = pq.read_table(tmp_path / "work" / "list.parquet")
    assert table["age"].to_pylist() == [3, None]
    assert table["manifest_view"].to_pylist() == ["PA", "AP"]  # results have a view of their own


def test_a_csv_manifest_is_text_throughout(tmp_path):
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,id,accession,ward\na.png,007,00123,NA\nb.png,NULL,nan,\n")
    assert [i.row_id for i in items(manifest, tmp_path)] == ["007", "NULL"]
    table = pq.read_table(tmp_path / "work" / "list.parquet")
    assert table["accession"].to_pylist() == ["00123", "nan"]
    assert table["ward"].to_pylist() == ["NA", None]


def test_without_ids_a_repeated_path_is_a_row_each_time(tmp_path):
    found = items(write(tmp_path / "m.parquet", path=["a", "a", "b"]), tmp_path)
    assert [i.path for i in found] == ["a", "a", "b"]


def test_a_null_path_is_a_failed_item(tmp_path):
    found = items(write(tmp_path / "m.parquet", path=["a", None], id=["1", "2"]), tmp_path)
    assert [i.problem for i in found] == [None, Fail.NULL_PATH]


def test_a_long_manifest_is_cut_into_shards(tmp_path):
    n = 2 * SHARD + 5
    manifest = write(tmp_path / "m.parquet", path=["a"] * n, id=[str(i) for i in range(n)])
    assert len(items(manifest, tmp_path)) == n
    file = pq.ParquetFile(tmp_path / "work" / "list.parquet")
    rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert rows == [SHARD, SHARD, 5]


def test_every_row_of_a_repeated_path_has_an_id_of_its_own(tmp_path):
    names = Identifiers()
    found = items(
        write(tmp_path / "m.parquet", path=["a", "b", "a", None, "", None, "a"]), tmp_path
    )
    expected = [(b"a", 0), (b"b", 0), (b"a", 1), (b"", 0), (b"", 1), (b"", 2), (b"a", 2)]
    assert [i.row_id for i in found] == [names.row_id(*e) for e in expected]


def test_a_path_that_spells_a_later_occurrence_is_refused(tmp_path):
    with pytest.raises(UsageError, match="rows 1 and 2 have the same id"):
        items(write(tmp_path / "m.parquet", path=["a", "a", "a\x001"]), tmp_path)
    with pytest.raises(UsageError, match="rows 0 and 2 have the same id"):
        items(write(tmp_path / "m.parquet", path=["a\x001", "a", "a"]), tmp_path)


def test_a_manifest_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    manifest = write(tmp_path / "m.parquet", path=["a", "b"])
    column = comit.source.manifest._column

    def rewritten(*arguments):
        yield from column(*arguments)
        write(manifest, path=["a", "b", "a"])

    monkeypatch.setattr(comit.source.manifest, "_column", rewritten)
    with pytest.raises(UsageError, match="changed while it was read"):
        items(manifest, tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"file": ["a"]}, "no column 'path' among its 1"),
        ({"path": [1]}, "column 'path' is int64"),
        ({"path": pa.array([], pa.string())}, "has no rows"),
        ({"path": ["a", "b"], "id": ["1", "1"]}, "rows 0 and 1 have the same id"),
        ({"path": ["a", "b"], "id": ["1", None]}, "row 1 has no id"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(tmp_path, columns, message):
    with pytest.raises(UsageError, match=message):
        items(write(tmp_path / "m.parquet", **columns), tmp_path)


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "m.csv").write_text("path,path\na,b\n")
    with pytest.raises(UsageError, match="two columns 'path'"):
        items(tmp_path / "m.csv", tmp_path)


def test_what_is_not_parquet_is_refused_by_name(tmp_path):
    (tmp_path / "m.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(UsageError, match=r"m\.parquet is not a Parquet or CSV table"):
        items(tmp_path / "m.parquet", tmp_path)


def test_a_path_that_leaves_the_manifests_folder_by_dots_is_not_opened(tmp_path):
    paths = ["a/../b.png", "../up.png", "a/../../up.png", "/abs/../x.png", "..hidden.png"]
    found = items(write(tmp_path / "m.parquet", path=paths), tmp_path)
    outside = Skip.OUTSIDE_ROOT
    assert [i.problem for i in found] == [None, outside, outside, None, None]


def test_nothing_that_a_manifest_says_leads_out_of_its_root(tmp_path):
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "in" / "link").symlink_to("/etc")
    paths = ["in/a.png", "in/link/passwd", "/etc/passwd", "in/../../x", str(root / "b.png")]
    found = items(write(tmp_path / "m.parquet", path=paths), tmp_path, root=root)
    outside = Skip.OUTSIDE_ROOT
    assert [i.problem for i in found] == [None, outside, outside, outside, None]
    assert found[0].file == os.fsencode(root / "in/a.png")
    with pytest.raises(UsageError, match="a root is for the paths of a manifest"):
        items(root, tmp_path, root=root)


def test_columns_of_extension_types_are_passed_through_as_what_they_store(tmp_path):
    table = pa.table({"path": ["a"]})
    uuids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16)))
    pq.write_table(table.append_column("u", uuids), tmp_path / "m.parquet")
    assert len(items(tmp_path / "m.parquet", tmp_path)) == 1
    listed = pq.read_table(tmp_path / "work" / "list.parquet")
    assert listed.schema.field("u").type == pa.binary(16)
    assert listed["u"].to_pylist() == [b"0" * 16]


def test_hidden_identifiers_are_nowhere_in_the_list(tmp_path):
    secret = Identifiers("hashed", b"k" * 16)
    manifest = write(
        tmp_path / "m.parquet", path=["Doe/1.png"], id=["Doe 1"], who=["Doe"], ward=[7]
    )
    (item,) = items(manifest, tmp_path, identifiers=secret, keep=("ward",))
    assert item.file == os.fsencode(tmp_path / "Doe/1.png")
    listed = pq.read_table(tmp_path / "work" / "list.parquet")
    assert "Doe" not in str(listed.to_pydict())
    assert listed["ward"].to_pylist() == [7]
    with pytest.raises(UsageError, match="no column 'bed' to keep"):
        items(manifest, tmp_path, identifiers=secret, keep=("bed",))


def test_a_manifest_that_breaks_off_later_is_refused_without_quoting_it(tmp_path):
    lines = ["path,id"] + [f"{i}.png,{i}" for i in range(150_000)]
    (tmp_path / "m.csv").write_text("\n".join([*lines, "x.png,Doe^Jane,1", ""]))
    with pytest.raises(UsageError, match="cannot be read after row") as caught:
        items(tmp_path / "m.csv", tmp_path)
    assert "Doe" not in str(caught.value) and caught.value.__suppress_context__
    (tmp_path / "n.csv").write_text("Doe^Jane,7\na.png,8\n")
    with pytest.raises(UsageError, match="no column 'path' among its 2") as caught:
        items(tmp_path / "n.csv", tmp_path)
    assert "Doe" not in str(caught.value)


def test_a_missing_root_is_refused(tmp_path):
    manifest = write(tmp_path / "m.parquet", path=["a"])
    with pytest.raises(UsageError, match="is not a folder"):
        items(manifest, tmp_path, root=tmp_path / "away")


def test_kept_columns_carry_no_more_than_their_values(tmp_path):
    ward = pa.DictionaryArray.from_arrays([0], ["7", "Doe"])
    field = pa.field("ward", ward.type, metadata={"note": "Doe"})
    nested = pa.StructArray.from_arrays([ward], fields=[field])
    listed = pa.ListArray.from_arrays([0, 1], nested)
    fields = [("path", pa.string()), field, ("nested", nested.type), ("listed", listed.type)]
    table = pa.table([["a"], ward, nested, listed], schema=pa.schema(fields))
    pq.write_table(table, tmp_path / "m.parquet")
    assert b"Doe" in (tmp_path / "m.parquet").read_bytes()
    secret = Identifiers("hashed", b"k" * 16)
    kept = ("ward", "nested", "listed")
    items(tmp_path / "m.parquet", tmp_path, identifiers=secret, keep=kept)
    assert b"Doe" not in (tmp_path / "work" / "list.parquet").read_bytes()
    found = pq.read_table(tmp_path / "work" / "list.parquet")
    assert found["ward"].to_pylist() == ["7"] and found.schema.field("ward").metadata is None
    assert found["nested"].to_pylist() == [{"ward": "7"}]
    assert found["listed"].to_pylist() == [[{"ward": "7"}]]


VIEW, TEXT = pa.string_view(), pa.string()


@pytest.mark.parametrize(
    ("kind", "becomes", "value"),
    [
        (VIEW, TEXT, "a"),
        (pa.binary_view(), pa.binary(), b"a"),
        (pa.list_(VIEW), pa.list_(TEXT), ["a", None]),
        (pa.large_list(VIEW), pa.large_list(TEXT), ["a"]),
        (pa.list_(VIEW, 2), pa.list_(TEXT, 2), ["a", "b"]),
        (pa.large_list_view(pa.int8()), pa.large_list_view(pa.int8()), [1, 2]),
        (pa.map_(TEXT, VIEW), pa.map_(TEXT, TEXT), [("a", "b")]),
        (pa.struct([("a", pa.list_(VIEW))]), pa.struct([("a", pa.list_(TEXT))]), {"a": ["b"]}),
        (pa.struct([("a", pa.uuid())]), pa.struct([("a", pa.binary(16))]), {"a": b"0" * 16}),
    ],
)
def test_a_column_gets_a_type_that_later_nights_can_filter(tmp_path, kind, becomes, value):
    if kind == pa.struct([("a", pa.uuid())]):
        stored = pa.array([value["a"], None], pa.binary(16))
        column = pa.StructArray.from_arrays([pa.uuid().wrap_array(stored)], ["a"])
        expected = [value, {"a": None}]
    else:
        column, expected = pa.array([value, None], kind), [value, None]
    pq.write_table(pa.table({"path": ["a", "b"], "x": column}), tmp_path / "m.parquet")
    assert len(items(tmp_path / "m.parquet", tmp_path)) == 2
    listed = pq.read_table(tmp_path / "work" / "list.parquet")
    assert listed.schema.field("x").type == becomes
    assert listed["x"].to_pylist() == expected
    assert listed.filter(pa.array([True, False])).take([0])["x"].to_pylist() == [value]


def test_a_column_that_later_nights_could_not_carry_is_refused_on_the_first(tmp_path):
    table = pa.table({"path": ["a"], "seen": pa.array([["x"]], pa.list_view(VIEW))})
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(UsageError, match=r"column 'seen' is list_view<.*which cannot be kept"):
        items(tmp_path / "m.parquet", tmp_path)


def test_paths_may_be_views(tmp_path):
    pq.write_table(pa.table({"path": pa.array(["a.png"], VIEW)}), tmp_path / "m.parquet")
    assert [i.path for i in items(tmp_path / "m.parquet", tmp_path)] == ["a.png"]


def test_times_that_no_calendar_has_are_clamped(tmp_path):
    assert microseconds(10**22) == 253_402_300_799_000_000
    assert microseconds(-(10**22)) == -62_135_596_800_000_000
    assert microseconds(1_700_000_000_123_456_789) == 1_700_000_000_123_456
