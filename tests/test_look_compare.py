"""``comit compare``: what another model, engine or precision changes."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import resultfiles as rf
from click.testing import CliRunner

from comit.cli import main
from comit.errors import ItemError, UsageError
from comit.look import compare as module
from comit.look import overlap
from comit.look.compare import compare
from comit.look.overlap import ious
from comit.masks import decode_mask, encode, iou
from comit.results import schema


def test_scores_flags_and_masks_are_compared_row_by_row(tmp_path):
    empty = encode(np.zeros((1, 224, 224), bool))[0]
    a = [rf.ok("a", unhealthy=0.79), rf.ok("b", unhealthy=0.9), rf.ok("c", unhealthy=0.2)]
    b = [
        rf.ok("c", unhealthy=0.25),
        rf.ok("a", unhealthy=0.81),
        rf.ok("b", unhealthy=0.9) | {"disease_rle": empty},
    ]
    found = compare(
        rf.write(tmp_path / "a.parquet", a),
        rf.write(tmp_path / "b.parquet", b, comit_model="other"),
    )
    assert (found.both, found.only_a, found.only_b, found.scored) == (3, 0, 0, 3)
    assert found.scores["score_unhealthy"]["max"] == pytest.approx(0.05, abs=1e-6)
    assert found.scores["score_unhealthy"]["mean"] == pytest.approx(0.07 / 3, abs=1e-6)
    assert found.scores["score_other"] == {"mean": 0, "p99": 0, "max": 0}
    assert found.flips["flag_unhealthy"] == {"raised": 1, "dropped": 0}
    assert found.masks["lung_rle"] == {"rows": 3, "mean": 1, "min": 1, "identical": 3}
    assert found.masks["disease_rle"]["min"] == 0 and found.masks["disease_rle"]["identical"] == 2
    assert found.differs == {"model": ("tiny", "other")}


def test_rows_that_only_one_has_and_another_status_are_counted(tmp_path):
    a = [rf.ok("a"), rf.ok("b"), rf.ok("x")]
    b = [rf.ok("a"), rf.unscored("b", "failed", "timeout"), rf.ok("y"), rf.ok("z")]
    found = compare(rf.write(tmp_path / "a.parquet", a), rf.write(tmp_path / "b.parquet", b))
    assert (found.both, found.only_a, found.only_b) == (2, 1, 2)
    assert (found.status_changed, found.scored) == (1, 1)


def test_results_without_masks_have_none_to_compare(tmp_path):
    bare = rf.ok("a") | {"lung_rle": None, "disease_rle": None}
    file = rf.write(tmp_path / "a.parquet", [bare])
    assert compare(file, file).masks["lung_rle"] == {"rows": 0}


def column(masks) -> pa.StructArray:
    return pa.array(masks, schema().field("lung_rle").type)


def test_overlap_is_the_share_of_the_union():
    left, right = np.zeros((2, 224, 224), bool)
    left[:100], right[50:150] = True, True
    a, b, nothing, everything = encode(
        np.stack([left, right, np.zeros_like(left), np.ones_like(left)])
    )
    found = ious(column([a, a, nothing, a, a]), column([b, nothing, nothing, everything, a]))
    assert found == pytest.approx([50 / 150, 0, 1, 100 / 224, 1])


def drawn(rng) -> np.ndarray:
    """A mask: of nothing, everything, single pixels or boxes."""
    mask = np.full((224, 224), bool(rng.integers(2)))
    kind = rng.integers(4)
    if kind == 1:
        mask = rng.random((224, 224)) < rng.choice([0.001, 0.1, 0.5, 0.99])
    for y, x in rng.integers(224, size=(kind, 2)):
        mask[y : y + rng.integers(1, 200), x : x + rng.integers(1, 200)] ^= True
    return mask


def mutated(rng, rle):
    """The run lengths as they are, or with something wrong in them, or that only looks wrong."""
    counts = rle["counts"]
    at = int(rng.integers(len(counts)))
    changed = [
        counts[:at] + chr(rng.integers(33, 127)) + counts[at + 1 :],
        counts[:at] + counts[at + 1 :],
        counts[:at] + chr(rng.integers(48, 112)) + counts[at:],
        "0" * int(rng.integers(50_000)) + counts,
        counts + "0" * int(rng.integers(5)),
        "o" * int(rng.integers(3000)),
        counts + "\u00e9",
        counts[:-1],
        "",
        None,
    ]
    sizes = [[224, 225], [224], [224, 224, 224], [224, None], [], None]
    kind = rng.integers(4)
    if kind == 0:
        return {"size": [224, 224], "counts": changed[rng.integers(len(changed))]}
    return {"size": sizes[rng.integers(len(sizes))], "counts": counts} if kind == 1 else rle


def slowly(a, b) -> float:
    """IoU of the masks themselves; NaN where one is none."""
    try:
        return iou(decode_mask(a), decode_mask(b))
    except ItemError:
        return float("nan")


@pytest.mark.parametrize("seed", range(12))
def test_the_overlap_of_runs_is_that_of_the_masks(seed):
    rng = np.random.default_rng(seed)
    masks = encode(np.stack([drawn(rng) for _ in range(12)]))
    a = [mutated(rng, masks[rng.integers(12)]) for _ in range(40)]
    b = [x if rng.random() < 0.2 else mutated(rng, masks[rng.integers(12)]) for x in a]
    expected = [slowly(x, y) for x, y in zip(a, b, strict=True)]
    assert np.array_equal(ious(column(a), column(b)), expected, equal_nan=True)
    assert np.array_equal(ious(column(a)[7:], column(b)[7:]), expected[7:], equal_nan=True)
    assert {0 < v < 1 for v in expected} == {True, False} and any(v != v for v in expected)


@pytest.mark.parametrize("order", ["same", "reversed", "mixed"])
def test_rows_are_joined_by_id_in_whatever_order_and_files_they_are(tmp_path, order, monkeypatch):
    rng = np.random.default_rng(3)
    monkeypatch.setattr(module, "HELD", 16)
    monkeypatch.setattr(overlap, "TOGETHER", 5)
    masks = encode(np.stack([drawn(rng) for _ in range(120)]))
    a = [rf.ok(f"{i:03}") | {"lung_rle": masks[i]} for i in range(100)]
    b = [rf.ok(f"{i:03}") | {"lung_rle": masks[i + 20]} for i in range(50, 150) if i < 100]
    a[60]["lung_rle"] = None
    a[70] = rf.unscored("070", "failed", "timeout")
    at = {"same": np.arange(50), "reversed": np.arange(50)[::-1], "mixed": rng.permutation(50)}
    shuffled = [b[i] for i in at[order]]
    (tmp_path / "b").mkdir()
    rf.write(tmp_path / "b" / "1.parquet", shuffled[:20])
    rf.write(tmp_path / "b" / "2.parquet", shuffled[20:])
    found = compare(rf.write(tmp_path / "a.parquet", a, row_group_size=7), tmp_path / "b")
    pairs = {y["row_id"]: slowly(a[int(y["row_id"])].get("lung_rle"), y["lung_rle"]) for y in b}
    expected = [v for v in pairs.values() if v == v]
    assert (found.both, found.only_a, found.only_b, found.scored) == (50, 50, 0, 49)
    assert found.masks["lung_rle"]["rows"] == len(expected) == 48
    assert found.masks["lung_rle"]["mean"] == pytest.approx(np.mean(expected))
    assert found.masks["lung_rle"]["min"] == min(expected)
    assert found.masks["disease_rle"] == {"rows": 49, "mean": 1, "min": 1, "identical": 49}


def test_results_that_change_meanwhile_are_not_compared(tmp_path):
    file = rf.write(tmp_path / "a.parquet", [rf.ok("a"), rf.ok("b")])
    with pytest.raises(UsageError, match="changed while it was read"):
        list(module._paired(file, file, np.array([1, 0])))


def test_the_gates_score_is_compared_of_skipped_rows_too(tmp_path):
    a = [rf.ok("a", score_chest=0.9), rf.unscored("b", "skipped", "not_a_chest", score_chest=0.1)]
    b = [rf.ok("a", score_chest=0.8), rf.ok("b", score_chest=0.6)]
    found = compare(rf.write(tmp_path / "a.parquet", a), rf.write(tmp_path / "b.parquet", b))
    assert (found.status_changed, found.scored) == (1, 1)
    assert found.scores["score_chest"]["mean"] == pytest.approx(0.3)
    assert found.scores["score_chest"]["max"] == pytest.approx(0.5)
    assert any("score_chest" in line for line in module.lines(found))


def test_of_a_model_without_a_gate_there_is_no_such_score(tmp_path):
    file = rf.write(tmp_path / "a.parquet", [rf.ok("a")])
    assert list(compare(file, file).scores) == ["score_unhealthy", "score_covid", "score_other"]


def test_files_that_share_nothing_are_refused(tmp_path):
    a, b = (rf.write(tmp_path / f"{n}.parquet", [rf.ok(n)]) for n in "ab")
    with pytest.raises(UsageError, match="no row_id in common"):
        compare(a, b)


def test_the_command_prints_lines_or_json(tmp_path):
    a, b = (
        rf.write(tmp_path / f"{n}.parquet", [rf.ok("x", unhealthy=s)])
        for n, s in (("a", 0.5), ("b", 0.9))
    )
    words = ["compare", str(a), str(b)]
    lines = CliRunner().invoke(main, words).stdout
    assert "1 rows in both" in lines and "flag_unhealthy" in lines and "1 of 1 identical" in lines
    found = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert found["flips"]["flag_unhealthy"] == {"raised": 1, "dropped": 0}
