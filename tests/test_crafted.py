"""Results, cards and models are input from outside: what is wrong in them is said, not obeyed."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import resultfiles as rf
from click.testing import CliRunner
from pycocotools import mask as coco

from comit import modelfile
from comit.card import card_path, read_card
from comit.cli import main
from comit.errors import ItemError, ModelError, UsageError
from comit.masks import decode_mask
from comit.results import provenance, read

RLE = rf.RUNS[0]


def call(*words: object) -> tuple[int, str]:
    """Exit code and output; an uncaught exception is raised here."""
    ran = CliRunner().invoke(main, [str(w) for w in words])
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return ran.exit_code, ran.output


@pytest.mark.parametrize("seed", range(20))
def test_masks_are_read_as_coco_reads_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    density = rng.choice([0, 0.001, 0.1, 0.5, 1])
    drawn = np.asfortranarray(rng.random((224, 224)) < density, dtype=np.uint8)
    if seed % 2:
        drawn[:, rng.integers(224) :] = 1
    packed = coco.encode(drawn)
    said = {"size": list(packed["size"]), "counts": packed["counts"].decode()}
    assert np.array_equal(decode_mask(said), drawn.astype(bool))


@pytest.mark.parametrize(
    "rle",
    [
        None,
        {"size": [2**31 - 1, 2**31 - 1], "counts": RLE["counts"]},
        {"size": [224, 225], "counts": RLE["counts"]},
        {"size": [224], "counts": RLE["counts"]},
        {"size": None, "counts": RLE["counts"]},
        {"size": [224, 224], "counts": None},
        {"size": [224, 224], "counts": ""},
        {"size": [224, 224], "counts": RLE["counts"] + "1"},
        {"size": [224, 224], "counts": RLE["counts"][:-1]},
        {"size": [224, 224], "counts": "o" * 4000},
        {"size": [224, 224], "counts": "\u00e9\n "},
        {"size": [224, 224], "counts": "O" + RLE["counts"]},  # a run of less than nothing
    ],
)
def test_what_is_no_mask_of_this_size_is_corrupt(rle) -> None:
    with pytest.raises(ItemError, match="corrupt"):
        decode_mask(rle)


def crafted(folder: Path, **columns: object) -> Path:
    """Three rows, the second of which has other values."""
    rows = [rf.ok("a"), rf.ok("b", **columns), rf.ok("c")]
    for row in rows:
        rf.draw(folder / f"{row['row_id']}.png")
    return rf.write(folder / "r.parquet", rows)


HUGE = {"size": [10**9, 10**9], "counts": RLE["counts"]}


@pytest.mark.parametrize("rle", [HUGE, {"size": [224, 224], "counts": "zz"}])
def test_one_crafted_mask_costs_its_own_row(tmp_path: Path, rle) -> None:
    results = crafted(tmp_path, lung_rle=rle)
    code, said = call("overlay", results, "--images", tmp_path, "--out", tmp_path / "o")
    assert code == 3 and "corrupt" in said
    assert len(list((tmp_path / "o").glob("*.png"))) == 2
    code, said = call("report", results, "--images", tmp_path, "--out", tmp_path / "r.html")
    assert code == 3 and (tmp_path / "r.html").exists()
    code, said = call("compare", results, crafted(tmp_path / "..", path="x"))
    assert code == 0 and "1 rows have something else than a mask there" in said


def test_scores_that_are_no_numbers_do_not_head_the_list(tmp_path: Path) -> None:
    results = crafted(tmp_path, score_unhealthy=float("nan"), score_covid=float("inf"))
    row = read(results).to_pylist()[1]
    assert row["score_unhealthy"] is None and row["score_covid"] is None
    assert call("worklist", results, "--out", tmp_path / "w.csv")[0] == 0
    lines = (tmp_path / "w.csv").read_text("utf-8-sig").splitlines()
    assert [line.split(",")[1] for line in lines[1:]] == ["a", "c", "b"]


def test_nothing_that_a_terminal_obeys_is_written_for_people(tmp_path: Path) -> None:
    results = crafted(tmp_path, path="\x1b[2Jevil\u202e.png")
    assert call("worklist", results, "--out", tmp_path / "w.csv")[0] == 0
    text = (tmp_path / "w.csv").read_text("utf-8-sig")
    assert "\x1b" not in text and "\u202e" not in text and "\\x1b[2Jevil" in text


CHANGED = {
    "path": pa.array([1, 2, 3]),
    "rows": pa.array(["x", "y", "z"]),
    "score_covid": pa.array([[0.1], [0.2], [0.3]]),
    "lung_rle": pa.array(["a", "b", "c"]),
    "disease_rle": pa.array([{"size": "224"}] * 3),
    "warnings": pa.array([1.5, 2.5, 3.5]),
    "row_id": pa.array(["a", None, "c"]),
    "flag_covid": pa.array(["yes", "no", "maybe"]),
}


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("command", ["report", "overlay", "worklist", "compare"])
def test_columns_of_another_kind_end_with_words(tmp_path: Path, name: str, command: str) -> None:
    results = crafted(tmp_path)
    table = pq.read_table(results)
    at = table.schema.get_field_index(name)
    pq.write_table(table.set_column(at, name, CHANGED[name]), results)
    words = {
        "compare": [results, results],
        "worklist": [results, "--out", tmp_path / "w.csv"],
    }.get(command, [results, "--images", tmp_path, "--out", tmp_path / "out.html"])
    code, said = call(command, *words)
    assert code in (0, 2, 3)  # whole numbers are read as text: no such path is found
    assert code != 2 or name in said or "metadata" in said


def test_two_columns_of_one_name_end_with_words(tmp_path: Path) -> None:
    results = crafted(tmp_path)
    table = pq.read_table(results)
    pq.write_table(table.append_column("lung_rle", table["lung_rle"]), results)
    code, said = call("compare", results, results)
    assert code == 2 and "has two columns 'lung_rle'" in said


@pytest.mark.parametrize(
    "thresholds", ['{"unhealthy": NaN, "covid": 0.5}', "[1]", "{", '{"covid": "x"}', "[" * 9000]
)
def test_thresholds_that_are_none_are_refused(tmp_path: Path, thresholds: str) -> None:
    results = rf.write(tmp_path / "r.parquet", [rf.ok("a")], comit_thresholds=thresholds)
    with pytest.raises(UsageError, match="comit_thresholds is damaged"):
        provenance(read(results))


def test_metadata_that_is_no_text_is_shown_as_it_can_be(tmp_path: Path) -> None:
    table = pq.read_table(rf.write(tmp_path / "r.parquet", [rf.ok("a")]))
    odd = {**table.schema.metadata, b"comit_model": b"\xff\xfe", b"\xff": b"x"}
    pq.write_table(table.replace_schema_metadata(odd), tmp_path / "odd.parquet")
    assert provenance(read(tmp_path / "odd.parquet"))["model"] == "\ufffd\ufffd"


POINT = {"unhealthy": 0.5, "covid": 0.5}


@pytest.mark.parametrize(
    "change",
    [
        {"operating_points": {"90": {**POINT, "covid": float("nan")}}},
        {"operating_points": {"90": {**POINT, "covid": None}}},
        {"operating_points": {"90": {**POINT, "covid": "0.5"}}},
        {"operating_points": {"90": {**POINT, "covid": -0.1}}},
        {"operating_points": {"90": {**POINT, "covid": 7}}},
        {"operating_points": {"90": 3}},
        {"name": 7},
        {"mean": float("inf")},
        {"width": "wide"},
        {"outputs": 3},
    ],
)
def test_a_card_that_is_none_is_refused(tmp_path: Path, tiny_model: Path, change) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(tiny_model.read_bytes())
    card = json.loads(card_path(tiny_model).read_text())
    card_path(model).write_text(json.dumps(card | change))
    with pytest.raises(ModelError, match="not a comit model card"):
        read_card(model)


def test_a_card_nested_without_end_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(tiny_model.read_bytes())
    card_path(model).write_text("[" * 200_000)
    with pytest.raises(ModelError, match="not a comit model card"):
        read_card(model)


def test_weights_that_are_no_numbers_are_refused_wherever_they_stand(tiny_model: Path) -> None:
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(tiny_model)
    modelfile.check(proto.SerializeToString())
    large = [t for t in proto.graph.initializer if t.data_type == 1 and len(t.raw_data) > 400]
    for tensor in (large[0], large[len(large) // 2], large[-1]):
        before = tensor.raw_data
        tensor.raw_data = before[:200] + np.float32(np.nan).tobytes() + before[204:]
        with pytest.raises(ModelError, match="no finite numbers"):
            modelfile.check(proto.SerializeToString())
        tensor.raw_data = before
    del proto.graph.output[1]
    with pytest.raises(ModelError, match="outputs"):
        modelfile.check(proto.SerializeToString())


@pytest.mark.parametrize(
    "journal",
    [
        {"add": 3, "replace": [], "remove": [], "ends": True},
        {"add": "x.parquet", "replace": "abc", "remove": [], "ends": True},
        {"add": "x.parquet", "replace": [None], "remove": [], "ends": True},
        {"add": "x.parquet", "replace": [], "remove": ["../../etc/passwd"], "ends": True},
        {"add": ".comit", "replace": [], "remove": [], "ends": True},
        {"add": "x.parquet", "replace": [], "remove": ["notes.txt"], "ends": True},
        {"add": "x.parquet"},
        [],
    ],
)
def test_a_journal_that_comit_did_not_write_changes_nothing(
    tmp_path: Path, tiny_model: Path, pictures: Path, null_engine: None, journal
) -> None:
    out = tmp_path / "results"
    assert call("screen", pictures, "--out", f"{out}/", "--model", tiny_model)[0] == 0
    (out / "notes.txt").write_text("mine")
    before = sorted(p.name for p in out.iterdir())
    (out / ".comit" / "commit.json").write_text(json.dumps(journal))
    code, said = call("screen", pictures, "--out", f"{out}/", "--model", tiny_model)
    assert code == 2 and "commit.json is damaged" in said
    assert sorted(p.name for p in out.iterdir()) == before


@pytest.mark.real
@pytest.mark.parametrize("command", ["compare", "report", "overlay", "worklist"])
def test_the_crafted_results_of_the_field(faults: Path, tmp_path: Path, command: str) -> None:
    folder = faults / "crafted-rle-crashes-look"
    for results in sorted(folder.glob("*.parquet")):
        words = {
            "compare": [folder / "base.parquet", results],
            "worklist": [results, "--out", tmp_path / "w.csv"],
        }.get(command, [results, "--images", tmp_path, "--out", tmp_path / results.stem])
        assert call(command, *words)[0] in (0, 2, 3), results.name


@pytest.mark.real
def test_the_card_of_the_field(faults: Path, tmp_path: Path, tiny_model: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(tiny_model.read_bytes())
    card_path(model).write_bytes((faults / "card-nan-thresholds" / "m.card.json").read_bytes())
    assert call("info", "--model", model)[0] == 2
