"""Rows in the order in which to read them, as CSV that a spreadsheet shows and does not obey."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comit.console import printable
from comit.errors import UsageError
from comit.look.output import refuse_input
from comit.reasons import Skip
from comit.results import read

SCORES = ("score_unhealthy", "score_covid", "score_other", "disease_fraction")
COLUMNS = (
    "row_id",
    "path",
    "study_instance_uid",
    "series_instance_uid",
    "sop_instance_uid",
    "view",
    "score_unhealthy",
    "score_covid",
    "score_other",
    "score_chest",
    "flag_unhealthy",
    "flag_covid",
    "disease_fraction",
    "warnings",
    "status",
    "reason",
)


def triage(rows: list[dict[str, Any]], by: str = "score_unhealthy") -> list[dict[str, Any]]:
    """Rows with a value of ``by``, highest first; then the others. Ties stay in file order."""

    def key(row: dict[str, Any]) -> tuple[bool, float]:
        value = row[by]
        missing = value is None or math.isnan(value)
        return missing, 0.0 if missing else -value

    return sorted(rows, key=key)


def worklist(
    results: Path, out: Path, by: str = "score_unhealthy", extra: Sequence[str] = ()
) -> int:
    """Writes the work list of ``results`` to ``out`` and returns its number of rows.

    Rows that are ok come by descending ``by``, then those that failed and those that the network
    took for no chest, which somebody has to look at too; what else was skipped is left out.
    ``extra`` are columns of the manifest. The CSV is UTF-8 with a byte order mark.
    """
    columns = list(dict.fromkeys((*COLUMNS, *extra)))
    rows = read(results, columns).to_pylist()
    refuse_input(out, results)
    ok = triage([r for r in rows if r["status"] == "ok"], by)
    listed = ok + [r for r in rows if r["status"] == "failed"]
    listed += [r for r in rows if r["reason"] == str(Skip.NOT_A_CHEST)]
    try:
        # With the mark Excel knows UTF-8, and without it shows names garbled.
        with out.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file)
            writer.writerow(["rank", *(inert(c) for c in columns)])
            for rank, row in enumerate(listed, start=1):
                writer.writerow([rank, *(cell(row[c]) for c in columns)])
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}") from error
    return len(listed)


def cell(value: Any) -> str:
    """A value as text: lists joined by spaces, booleans as 1 and 0, scores to 6 digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return str(value)
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return printable(inert(text))


def inert(text: str) -> str:
    """Text that no spreadsheet takes for a formula: an apostrophe goes before what could be one.

    These are =, +, -, @ (and their full-width forms), tab and carriage return, also after spaces.
    """
    first = text.lstrip(" \n\v\f\u00a0\ufeff")[:1]
    return "'" + text if first and first in "=+-@\t\r＝＋－＠" else text  # noqa: RUF001
