"""``comit compare``: what another model, engine or precision changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import resultfiles as rf
from click.testing import CliRunner

from comit.cli import main
from comit.errors import UsageError
from comit.look.compare import compare, iou
from comit.masks import encode


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


def test_overlap_is_the_share_of_the_union():
    left, right = np.zeros((2, 224, 224), bool)
    left[:100], right[50:150] = True, True
    a, b, nothing = encode(np.stack([left, right, np.zeros_like(left)]))
    assert iou(a, b) == pytest.approx(50 / 150)
    assert iou(a, nothing) == 0 and iou(nothing, nothing) == 1


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
