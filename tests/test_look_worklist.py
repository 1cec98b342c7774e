"""``comit worklist``: the order in which to read, in cells that no spreadsheet obeys."""

from __future__ import annotations

import codecs
import csv

import pyarrow as pa
import pytest
import resultfiles as rf
from click.testing import CliRunner

from comit.cli import main
from comit.console import printable
from comit.errors import UsageError
from comit.look.worklist import COLUMNS, inert, triage, worklist


def listed(tmp_path, rows, *arguments, **options):
    out = tmp_path / "worklist.csv"
    worklist(rf.write(tmp_path / "r.parquet", rows), out, *arguments, **options)
    assert out.read_bytes().startswith(codecs.BOM_UTF8)  # Excel reads it as UTF-8
    with out.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_the_highest_score_comes_first_and_ties_stay_in_file_order(tmp_path):
    scores = {"a": 0.5, "b": 0.9, "c": 0.5, "d": 0.9, "e": 0.1}
    rows = listed(tmp_path, [rf.ok(i, unhealthy=s) for i, s in scores.items()])
    assert [r["row_id"] for r in rows] == ["b", "d", "a", "c", "e"]
    assert [r["rank"] for r in rows] == ["1", "2", "3", "4", "5"]


def test_failed_rows_come_last_and_skipped_ones_not_at_all(tmp_path):
    rows = [
        rf.unscored("broken", "failed", "truncated"),
        rf.unscored("hand", "skipped", "anatomy"),
        rf.ok("low", unhealthy=0.01),
    ]
    assert [(r["row_id"], r["status"], r["reason"]) for r in listed(tmp_path, rows)] == [
        ("low", "ok", ""),
        ("broken", "failed", "truncated"),
    ]


def test_another_score_and_columns_of_the_manifest_can_be_asked_for(tmp_path):
    rows = [rf.ok("a", score_other=0.1, ward=3), rf.ok("b", score_other=0.2, ward=4)]
    found = listed(tmp_path, rows, "score_other", ["ward"])
    assert [(r["row_id"], r["ward"]) for r in found] == [("b", "4"), ("a", "3")]
    assert list(found[0]) == ["rank", *COLUMNS, "ward"]
    with pytest.raises(UsageError, match="no column 'nurse'"):
        listed(tmp_path, rows, extra=["nurse"])


def test_values_are_plain_text(tmp_path):
    row = rf.ok("a", unhealthy=0.9, warnings=["colour", "padding"])
    (found,) = listed(tmp_path, [row])
    assert found["score_unhealthy"] == "0.9" and found["flag_unhealthy"] == "1"
    assert found["flag_covid"] == "1" and found["warnings"] == "colour padding"
    assert found["study_instance_uid"] == ""


def test_the_order_is_by_score_then_by_what_went_wrong():
    table = pa.table(
        {
            "s": [None, 0.2, 0.0, 1.0, 0.2, None, float("nan"), None, 0.9, None],
            "status": [
                "ok",
                "ok",
                "ok",
                "ok",
                "ok",
                "skipped",
                "ok",
                "failed",
                "failed",
                "skipped",
            ],
            "reason": [*[None] * 5, "view", "not_a_chest", "empty", "blank", "not_a_chest"],
        }
    )
    order = triage(table, "s")
    assert order.ok.tolist() == [3, 1, 4, 2, 0, 6]
    assert [part.tolist() for part in order[1:]] == [[7, 8], [9], [5]]


def test_what_the_gate_rejected_is_listed_last_with_its_score(tmp_path):
    rows = [
        rf.unscored("hand", "skipped", "not_a_chest", score_chest=0.03),
        rf.unscored("broken", "failed", "truncated"),
        rf.unscored("side", "skipped", "view"),
        rf.ok("a", score_chest=0.97),
    ]
    found = [(r["row_id"], r["reason"], r["score_chest"]) for r in listed(tmp_path, rows)]
    assert found == [
        ("a", "", "0.97"),
        ("broken", "truncated", ""),
        ("hand", "not_a_chest", "0.03"),
    ]


FORMULAS = ["=cmd()", "+1", "-1+2", "@SUM(A1)", "\tx", "\rx", " =1", "\n=1", "\ufeff=1", "＝1"]  # noqa: RUF001


@pytest.mark.parametrize("text", FORMULAS)
def test_what_a_spreadsheet_would_run_is_text_in_every_column(tmp_path, text):
    row = rf.ok(text, f"{text}.png", ward=text)
    (found,) = listed(tmp_path, [row], extra=["ward"])
    assert found["row_id"] == found["ward"] == "'" + printable(text)
    assert found["path"] == f"'{printable(text)}.png"


@pytest.mark.parametrize("text", ["a=b", "ward 3", "", "1.2.840", "'quoted", "a\nb"])
def test_other_text_is_left_alone(text):
    assert inert(text) == text


def test_the_command_says_how_many_rows_and_for_what(tmp_path):
    results = rf.write(tmp_path / "r.parquet", [rf.ok("a")])
    words = ["worklist", results, "--out", tmp_path / "w.csv"]
    done = CliRunner().invoke(main, [str(w) for w in words])
    assert done.exit_code == 0 and "1 rows in" in done.stderr and "Research use" in done.stderr
    words = ["worklist", results, "--out", tmp_path / "no" / "w.csv"]
    done = CliRunner().invoke(main, [str(w) for w in words])
    assert done.exit_code == 2 and "cannot be written" in done.stderr


@pytest.mark.parametrize("command", [["worklist"], ["report", "--top", "0"]])
def test_the_results_are_never_replaced_by_what_is_made_of_them(tmp_path, command):
    results = rf.write(tmp_path / "r.parquet", [rf.ok("a")])
    before = results.read_bytes()
    done = CliRunner().invoke(main, [*command, str(results), "--out", str(results)])
    assert done.exit_code == 2 and "is the input" in done.stderr
    assert results.read_bytes() == before


def test_results_without_paths_have_a_work_list_all_the_same(tmp_path):
    row = rf.ok("0f" * 16) | {"path": None}
    (found,) = listed(tmp_path, [row])
    assert found["row_id"] == "0f" * 16 and found["path"] == ""
