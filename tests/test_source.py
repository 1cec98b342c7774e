from __future__ import annotations

import base64
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import comit.source.csvfile
import comit.source.manifest
from comit.errors import UsageError
from comit.identifiers import Identifiers
from comit.reasons import Fail, Skip
from comit.source import write_worklist
from comit.source.base import SHARD, Selection, microseconds
from comit.source.inputs import Input
from comit.source.worklist import read_items


def listed(source, tmp_path: Path, **selection):
    """The items of a source, and what was met beside them; its list is in work/list.parquet."""
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    with (work / "list.parquet").open("w+b") as to, (work / "paths.parquet").open("w+b") as paths:
        listing = write_worklist(Input.of(source), to, paths, Selection(**selection))
    found = read_items(pq.read_table(work / "list.parquet"), pq.read_table(work / "paths.parquet"))
    assert len(found) == len({i.row_id for i in found})
    return found, listing


def items(source, tmp_path: Path, **selection):
    """The items alone."""
    return listed(source, tmp_path, **selection)[0]


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
    assert [i.path for i in items(tree, tmp_path, pattern="*.dcm")] == ["b/2.dcm", "c/d/e.dcm"]
    with pytest.raises(UsageError, match=r"holds no files that match '\*\.tif'"):
        items(tree, tmp_path, pattern="*.tif")


def test_our_own_output_inside_the_folder_is_left_out(tree, tmp_path):
    assert [i.path for i in items(tree, tmp_path, ours=(tree / "a.jpg", tree / "b"))] == [
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
    column = comit.source.manifest.Table.column

    def rewritten(*arguments):
        yield from column(*arguments)
        write(manifest, path=["a", "b", "a"])

    monkeypatch.setattr(comit.source.manifest.Table, "column", rewritten)
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
    with pytest.raises(UsageError, match="line 150002 has 3 cells") as caught:
        items(tmp_path / "m.csv", tmp_path)
    assert "Doe" not in str(caught.value) and caught.value.__context__ is None
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


def csv(tmp_path: Path, content: str | bytes, name: str = "m.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def touch(tmp_path: Path, *names: str) -> None:
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ('a.png,"open\nb.png,x\n', 2),  # to the end of the file
        ('a.png,x\nb.png,"open\nc.png,x\n', 3),
        ('a.png,"open\nb.png,"closed"\nc.png,x\n', 2),  # to the next quote
        ('a.png,"a "word" in quotes"\n', 2),
        ('"a.png,x\nb.png,x\n', 2),
        ('a.png,x\n\nb.png,"' + "long\n" * 500_000, 4),
    ],
)
def test_a_quote_that_is_not_closed_is_refused(tmp_path, rows, line):
    with pytest.raises(UsageError, match=f"quote that opens in line {line} is not closed"):
        items(csv(tmp_path, "path,note\n" + rows), tmp_path)


@pytest.mark.parametrize(
    ("rows", "first", "inside"),
    [
        ('a.png,"open\nb.png,closed"\n', 2, 3),
        ('a.png,"open\nmore\nb.png,x\nc.png,"\n', 2, 4),
        ('a.png,x\n"c.png,\nb.png",x\n', 3, 4),
    ],
)
def test_a_row_of_a_file_inside_quotes_is_refused(tmp_path, rows, first, inside):
    touch(tmp_path, "a.png", "b.png")
    message = f"line {inside} is a row inside the quotes that open in line {first}"
    with pytest.raises(UsageError, match=message):
        items(csv(tmp_path, "path,note\n" + rows), tmp_path)


def test_line_breaks_inside_quotes_are_read_whatever_the_size(tmp_path):
    notes = ["one\ntwo", ("text, " * 50 + "\r\n") * 8000, 'say "A",\nand B']
    rows = "".join(f'{i}.png,"{n.replace(chr(34), chr(34) * 2)}"\r\n' for i, n in enumerate(notes))
    plain = "".join(f"p{i}.png,x\r\n" for i in range(20_000))
    found, listing = listed(csv(tmp_path, "path,note\r\n" + rows + plain), tmp_path)
    assert len(found) == 20_003
    kept = pq.ParquetFile(tmp_path / "work" / "list.parquet").read_row_group(0)["note"]
    assert kept.to_pylist()[:4] == [*notes, "x"]
    assert any("line breaks inside quotes: 3;" in note for note in listing.notes)


def test_a_cell_without_an_end_costs_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(comit.source.csvfile, "LONGEST", 1000)
    with pytest.raises(UsageError, match="line 3 is too long"):
        items(csv(tmp_path, "path\na.png\n" + 2000 * "b"), tmp_path)
    with pytest.raises(UsageError, match="quote that opens in line 2 is not closed"):
        items(csv(tmp_path, 'path\n"' + 300 * "four\n"), tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_csv_is_read_in_its_encoding_and_with_its_delimiter(tmp_path, encoding, delimiter):
    lines = ["path,ward", 'ä.png,"Süd, 1"', "b.png,"]
    text = "\r\n".join(line.replace(",", delimiter) for line in lines)
    found = items(csv(tmp_path, text.encode(encoding)), tmp_path)
    assert [i.path for i in found] == ["ä.png", "b.png"]
    kept = pq.read_table(tmp_path / "work" / "list.parquet")["ward"].to_pylist()
    assert kept == [f"Süd{delimiter} 1", None]


def test_excels_hint_at_the_delimiter_is_no_header(tmp_path):
    found = items(csv(tmp_path, "sep=;\r\npath;ward\r\na.png;1,5\r\n"), tmp_path)
    assert [i.path for i in found] == ["a.png"]
    assert pq.read_table(tmp_path / "work" / "list.parquet")["ward"].to_pylist() == ["1,5"]


def test_text_of_windows_is_read_and_noted(tmp_path):
    touch(tmp_path, "Müller.png")
    table = csv(tmp_path, "path,ward\nMüller.png,Süd\n".encode("cp1252"))
    (item,), listing = listed(table, tmp_path)
    assert item.file == os.fsencode(tmp_path / "Müller.png") and item.size == 1
    assert pq.read_table(tmp_path / "work" / "list.parquet")["ward"].to_pylist() == ["Süd"]
    assert ["read as Windows-1252" in n for n in listing.notes] == [True]


def test_files_whose_names_are_latin_1_are_found(tmp_path):
    raw = os.fsencode(tmp_path) + b"/M\xfcller.png"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    (item,) = items(csv(tmp_path, b"path\nM\xfcller.png\n"), tmp_path)
    assert item.file == raw


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path\nä.png\n".encode() + b"\xfc.png\n", "UTF-8 in one place and not in another"),
        (b"path\n\x81\x8d.png\n", "after line . is text that is not cp1252"),
        ("path\na".encode("utf-16") + b"\0", "after line . is text that is not utf-16"),
    ],
)
def test_text_in_no_encoding_is_refused(tmp_path, content, message):
    with pytest.raises(UsageError, match=message):
        items(csv(tmp_path, content), tmp_path)


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("img\\a.png", "img/a.png"),
        ("img\\Ward A\\b.png", "img/Ward A/b.png"),
        ("img/M\u00fcller.png", "img/Mu\u0308ller.png"),
        ("img/Mu\u0308ller.png", "img/M\u00fcller.png"),
        ("S\u00fcd/Mu\u0308ller.png", "Su\u0308d/M\u00fcller.png"),
        ("S\u00fcd\\M\u00fcller.png", "S\u00fcd/Mu\u0308ller.png"),
        ("img\\a.png", "img\\a.png"),  # a backslash may stand in a name
    ],
)
def test_paths_that_another_system_wrote_are_found(tmp_path, written, there):
    touch(tmp_path, there)
    (item,), listing = listed(write(tmp_path / "m.parquet", path=[written]), tmp_path)
    assert item.file == os.fsencode(tmp_path / there) and item.size == 1
    assert item.path == written and item.row_id == Identifiers().row_id(os.fsencode(written))
    assert bool(listing.notes) == (written != there)


def test_another_spelling_leads_out_of_nothing(tmp_path):
    root = tmp_path / "root"
    touch(tmp_path, "root/a.png", "up.png")
    found = items(write(root / "m.parquet", path=["..\\up.png", "a.png"]), tmp_path)
    assert [i.problem for i in found] == [Skip.OUTSIDE_ROOT, None]
    found = items(root / "m.parquet", tmp_path, root=root)
    assert [i.problem for i in found] == [Skip.OUTSIDE_ROOT, None]


def test_a_manifest_beside_its_root_says_so(tmp_path):
    table = write(tmp_path / "m.parquet", path=["a.png", "b.png", None])
    _, listing = listed(table, tmp_path)
    assert [f"no file of {table} is there (2 looked for)" in n for n in listing.notes] == [True]
    touch(tmp_path, "a.png")
    assert listed(table, tmp_path)[1].notes == ()


def test_a_damaged_parquet_manifest_is_called_that(tmp_path):
    path = tmp_path / "m.parquet"
    table = pa.table({"path": [f"{i:06}.png" for i in range(5000)]})
    pq.write_table(table, path, row_group_size=1000, use_dictionary=False, compression="none")
    content = bytearray(path.read_bytes())
    at = content.index(b"003500.png")
    content[at - 4 : at] = b"\xff\xff\xff\x7f"  # the length of its text
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"after row \d+: the Parquet file is damaged"):
        items(path, tmp_path)


def test_results_are_no_input(tmp_path):
    results = pa.table({"row_id": ["a"], "path": ["a.png"]}).replace_schema_metadata(
        {"comit_run_id": "1"}
    )
    pq.write_table(results, tmp_path / "r.parquet")
    with pytest.raises(UsageError, match=r"r\.parquet holds results of comit; give the folder"):
        items(tmp_path / "r.parquet", tmp_path)
    touch(tmp_path, "results/.comit/lock", "results/night.parquet")
    with pytest.raises(UsageError, match="results holds results of comit; give the folder"):
        items(tmp_path / "results", tmp_path)


MADE = [
    ".snapshot/hourly.0/a.jpg",
    ".zfs/snapshot/a.jpg",
    "~snapshot/a.jpg",
    "2024/@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg",
    "SYNOPHOTO_THUMB_M.jpg",
    "#recycle/a.jpg",
    "@Recycle/a.jpg",
    "$Recycle.Bin/S-1/a.jpg",
    "System Volume Information/x",
    ".Trash-1000/a.jpg",
    "._a.jpg",
    "2024/.DS_Store",
    "thumbs.db",
    "Desktop.ini",
    "lost+found/x",
    ".@__thumb/a.jpg",
]
XRAYS = ["2024/a.jpg", "a.jpg", "b @eaDir.jpg", "recycle/a.jpg", "snapshot/a.jpg"]


def test_what_file_servers_and_desktops_make_is_left_out(tmp_path):
    root = tmp_path / "nas"
    touch(root, *MADE, *XRAYS)
    found, listing = listed(root, tmp_path)
    assert sorted(i.path for i in found) == XRAYS
    assert [i.row_id for i in found] == [Identifiers().row_id(os.fsencode(i.path)) for i in found]
    assert sum(listing.left_out.values()) == len(MADE) and listing.left_out[".*"] == 6
    found, listing = listed(root, tmp_path, include_hidden=True)
    assert sorted(i.path for i in found) == sorted([*MADE, *XRAYS])
    assert listing.left_out == {}


def test_patterns_leave_out_and_take_in(tmp_path):
    root = tmp_path / "nas"
    touch(root, "#old/a.jpg", "x/#old/b.jpg", "x/test-1.jpg", "x/keep/test-2.jpg", "top.jpg")
    touch(root, "x/top.jpg", ".hidden/c.jpg", ".other/d.jpg")
    exclude = ("#old/", "test-*", "!keep/test-2.jpg", "!x/keep/test-2.jpg", "/top.jpg", "!.hidden")
    found, listing = listed(root, tmp_path, exclude=exclude)
    assert [i.path for i in found] == [".hidden/c.jpg", "x/top.jpg", "x/keep/test-2.jpg"]
    assert listing.left_out == {"#old/": 2, "test-*": 1, "/top.jpg": 1, ".*": 1}
    secret = Identifiers("hashed", b"k" * 16)
    _, listing = listed(root, tmp_path, exclude=exclude, identifiers=secret)
    assert listing.left_out == {"--exclude 1": 2, "--exclude 2": 1, "--exclude 5": 1, ".*": 1}


def test_patterns_that_are_none_or_without_effect_are_refused(tree, tmp_path):
    for pattern in ("", "!", "/", "["):
        with pytest.raises(UsageError, match="is no pattern"):
            items(tree, tmp_path, exclude=(pattern,))
    with pytest.raises(UsageError, match=r"xrays holds no files .*left out: a\.jpg, b, c"):
        items(tree, tmp_path, exclude=("a.jpg", "b", "c"))
    manifest = write(tmp_path / "m.parquet", path=["a"])
    with pytest.raises(UsageError, match=r"--(exclude|include-hidden) is for folders"):
        items(manifest, tmp_path, exclude=("a",))


def test_a_link_to_what_is_left_out_is_the_file(tmp_path):
    root = tmp_path / "annex"
    touch(root, ".git/annex/objects/x.jpg", "seen.jpg")
    (root / "a.jpg").symlink_to(".git/annex/objects/x.jpg")
    (root / "b.jpg").symlink_to("seen.jpg")
    (root / "latest").symlink_to(".git/annex")
    found = items(root, tmp_path)
    assert [(i.path, i.problem, i.size) for i in found] == [
        ("a.jpg", None, 1),
        ("seen.jpg", None, 1),
    ]


@pytest.mark.parametrize("pattern", ["*.dcm", "*.DCM", "IMG*.Dcm"])
def test_a_pattern_ignores_the_case_of_the_suffix(tmp_path, pattern):
    touch(tmp_path / "d", "IMG1.DCM", "IMG2.dcm", "img.txt", "dcm")
    found = items(tmp_path / "d", tmp_path, pattern=pattern)
    assert [i.path for i in found] == ["IMG1.DCM", "IMG2.dcm"]


def test_several_inputs_are_parts_of_the_folder_that_holds_them_all(tree, tmp_path):
    touch(tree, "b/@eaDir/t.jpg", "z.jpg")
    whole = {i.path: i.row_id for i in items(tree, tmp_path)}
    given = [tree / "c", tree / "a.jpg", tree / "b" / "1.png", tree / "b", tree / "a.jpg"]
    found = items(given, tmp_path)
    assert [i.path for i in found] == ["a.jpg", "b/1.png", "b/2.dcm", "c/d/e.dcm"]
    assert all(whole[i.path] == i.row_id for i in found)
    jpgs = [i.path for i in items([*tree.glob("*.jpg")], tmp_path)]
    assert jpgs == ["a.jpg", "z.jpg"]


def test_several_inputs_are_there_and_no_tables(tree, tmp_path):
    with pytest.raises(UsageError, match=r"gone\.jpg does not exist"):
        items([tree / "a.jpg", tree / "gone.jpg"], tmp_path)
    manifest = write(tmp_path / "m.parquet", path=["a"])
    with pytest.raises(UsageError, match=r"m\.parquet is a table; give a manifest without other"):
        items([tree, manifest], tmp_path)
    with pytest.raises(UsageError, match="nothing to screen"):
        items([], tmp_path)


def test_a_link_between_inputs_is_visited_once_and_one_beside_them_is_outside(tree, tmp_path):
    touch(tree, "beside.jpg")
    (tree / "b" / "twin").symlink_to(tree / "c" / "d" / "e.dcm")
    (tree / "b" / "out").symlink_to(tree / "beside.jpg")
    found = {i.path: i.problem for i in items([tree / "b", tree / "c"], tmp_path)}
    outside = Skip.OUTSIDE_ROOT
    assert found == {"b/1.png": None, "b/2.dcm": None, "b/out": outside, "c/d/e.dcm": None}


NAME = "Doe^Jane"
META = {"patient": NAME}
WORDS = pa.DictionaryArray.from_arrays(pa.array([0, None, 0]), ["a", NAME])
INNER = pa.field(NAME, WORDS.type, metadata=META)
STRUCTS = pa.StructArray.from_arrays([WORDS], fields=[INNER.with_name("a")])
UUIDS = pa.uuid().wrap_array(pa.array([b"0" * 16, None, b"1" * 16], pa.binary(16)))
SPANS = pa.array([0, 2, 2, 3], pa.int32())


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (WORDS, ["a", None, "a"]),
        (STRUCTS, [{"a": "a"}, {"a": None}, {"a": "a"}]),
        (pa.ListArray.from_arrays(SPANS, WORDS, type=pa.list_(INNER)), [["a", None], [], ["a"]]),
        (
            pa.LargeListArray.from_arrays(SPANS, STRUCTS),
            [[{"a": "a"}, {"a": None}], [], [{"a": "a"}]],
        ),
        (
            pa.FixedSizeListArray.from_arrays(WORDS, type=pa.list_(INNER, 1)),
            [["a"], [None], ["a"]],
        ),
        (pa.MapArray.from_arrays(SPANS, pa.array(["k", "l", "m"]), STRUCTS), None),
        (
            pa.MapArray.from_arrays(SPANS, WORDS.fill_null("a"), WORDS),
            [[("a", "a"), ("a", None)], [], [("a", "a")]],
        ),
        (
            pa.StructArray.from_arrays([UUIDS], fields=[pa.field("a", UUIDS.type, metadata=META)]),
            [{"a": b"0" * 16}, {"a": None}, {"a": b"1" * 16}],
        ),
        (pa.array([0, None, 1], pa.timestamp("us", NAME)), None),
        (pa.array([[0], None, [1]], pa.list_(pa.timestamp("us", NAME))), None),
    ],
)
def test_hidden_columns_hold_no_name_that_no_row_has(tmp_path, column, values):
    field = pa.field("x", column.type, metadata=META)
    schema = pa.schema([pa.field("path", pa.string()), field], metadata=META)
    table = pa.table([["a", "b", "c"], column], schema=schema)
    compliant = {"use_compliant_nested_type": False}  # keeps the names of parts
    pq.write_table(table, tmp_path / "m.parquet", **compliant)
    assert NAME in str(pq.read_schema(tmp_path / "m.parquet")) or pa.types.is_map(column.type)
    assert NAME.encode() in (tmp_path / "m.parquet").read_bytes()
    secret = Identifiers("none", b"k" * 16)
    items(tmp_path / "m.parquet", tmp_path, identifiers=secret, keep=("x",))
    written = tmp_path / "work" / "list.parquet"
    stored = pq.ParquetFile(written).metadata.metadata[b"ARROW:schema"]
    assert NAME.encode() not in written.read_bytes() + base64.b64decode(stored)
    found = pq.read_table(written)["x"]
    assert values is None or found.to_pylist() == values
    assert found.null_count == column.null_count


@pytest.mark.real
@pytest.mark.parametrize("name", ["p-listdict.parquet", "p-structmeta.parquet"])
def test_names_in_nested_columns_stay(tmp_path, faults, name):
    manifest = faults / "private-nested-column" / name
    assert len(pq.read_table(manifest)) == len(
        items(manifest, tmp_path, identifiers=Identifiers("hashed", b"k" * 16), keep=("extra",))
    )
    written = tmp_path / "work" / "list.parquet"
    stored = pq.ParquetFile(written).metadata.metadata[b"ARROW:schema"]
    assert b"CANARY" not in written.read_bytes() + base64.b64decode(stored)


@pytest.mark.real
def test_manifests_that_other_programs_wrote_are_read(tmp_path, faults):
    folder = tmp_path / "manifests"
    shutil.copytree(faults / "manifests", folder)
    touch(folder, "img/a.jpg", "img/Ward A/b.jpg", "img/Mu\u0308ller.jpg")
    wards = {
        "backslash.csv": ["1", "2"],
        "latin1.csv": ["Pneumologie S\u00fcd"],
        "nfc.csv": ["1"],
        "semicolon.csv": ["1", "2"],
        "utf16.csv": ["1"],
        "view.parquet": None,
    }
    for name, expected in wards.items():
        found = items(folder / name, tmp_path)
        assert [i.problem for i in found] == [None] * len(found)
        assert all(i.size == 1 for i in found), name
        kept = pq.read_table(tmp_path / "work" / "list.parquet")["ward"].to_pylist()
        assert expected is None or kept == expected


@pytest.mark.real
def test_a_row_that_a_quote_swallowed_is_refused(tmp_path, faults):
    with pytest.raises(UsageError, match="quote that opens in line 2 is not closed"):
        items(faults / "csv-quote-swallows-rows" / "quote.csv", tmp_path)
