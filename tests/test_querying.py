"""The examples of docs/querying.md, run as they stand."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import numpy as np
import pytest
import resultfiles as rf

from comit.look.picture import to_picture
from comit.results import decode_mask

TEXT = (Path(__file__).parent.parent / "docs" / "querying.md").read_text()
FIRST, SECOND = datetime.date(2026, 11, 21), datetime.date(2026, 11, 22)
PER_DAY = [(FIRST, 2, 1), (SECOND, 1, 1)]
BY_WARD = [("east", "c.png", pytest.approx(0.95)), ("west", "a.png", pytest.approx(0.9))]


def example(heading: str) -> str:
    """The Python under a heading."""
    return re.search(rf"## {heading}\n.*?```python\n(.*?)```", TEXT, re.DOTALL)[1]


def run(heading: str):
    found = {}
    exec(compile(example(heading), f"querying.md, {heading}", "exec"), found)  # noqa: S102
    return found


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    rows = [
        rf.ok("a", unhealthy=0.9, study_date=FIRST),
        rf.ok("b", unhealthy=0.1, study_date=FIRST),
        rf.ok("c", unhealthy=0.95, study_date=SECOND),
        rf.unscored("d", "failed", "empty", study_date=SECOND),
    ]
    rf.write(tmp_path / "results.parquet", rows)
    (tmp_path / "wards.csv").write_text("id,ward\na,west\nb,west\nc,east\nd,east\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("heading", ["DuckDB", "Polars"])
def test_duckdb_and_polars(heading):
    pytest.importorskip(heading.lower())
    found = run(heading)
    assert found["per_day"] == PER_DAY and found["by_ward"] == BY_WARD
    assert np.array_equal(decode_mask(found["rle"]), rf.LUNGS)


def test_pandas():
    pytest.importorskip("pandas")
    found = run("pandas")
    assert list(found["per_day"].itertuples(name=None)) == PER_DAY
    assert list(found["by_ward"].itertuples(index=False, name=None)) == BY_WARD
    assert np.array_equal(decode_mask(found["rle"]), rf.LUNGS)


def test_a_mask_to_an_array():
    found = run("A mask to an array")
    assert np.array_equal(found["lungs"], rf.LUNGS)
    assert np.array_equal(found["large"], to_picture(rf.LUNGS, 300, 260))
