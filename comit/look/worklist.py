"""Rows in the order in which to read them, as CSV that a spreadsheet shows and does not obey."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from comit.console import printable
from comit.errors import UsageError
from comit.look.output import refuse_input
from comit.reasons import Skip
from comit.results import read

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

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


class Order(NamedTuple):
    """Rows in the order in which to read them, by their places in a table."""

    ok: NDArray[np.int64]  # by descending score; those without it come last
    failed: NDArray[np.int64]
    rejected: NDArray[np.int64]  # by the gate, for no chest; somebody has to look at these too
    skipped: NDArray[np.int64]  # all others


def triage(table: pa.Table, by: str = "score_unhealthy") -> Order:
    """Sorts rows with ``status``, ``reason`` and ``by``; ties stay in the order of the table."""
    import numpy as np
    import pyarrow.compute as pc

    def places(said: pa.ChunkedArray) -> NDArray[np.int64]:
        return np.flatnonzero(pc.fill_null(said, False))

    status = table["status"]
    is_rejected = pc.and_(
        pc.equal(status, "skipped"), pc.equal(table["reason"], str(Skip.NOT_A_CHEST))
    )
    ok, failed = (places(pc.equal(status, s)) for s in ("ok", "failed"))
    rejected = places(is_rejected)
    others = np.setdiff1d(np.arange(len(table)), np.concatenate([ok, failed, rejected]))
    values = np.asarray(table[by].cast("float64"))[ok]  # null is NaN, which sorts last
    return Order(ok[np.argsort(-values, kind="stable")], failed, rejected, others)


def worklist(
    results: Path, out: Path, by: str = "score_unhealthy", extra: Sequence[str] = ()
) -> int:
    """Writes the work list of ``results`` to ``out`` and returns its number of rows.

    Rows that are ok come by descending ``by``, then those that failed and those that the network
    took for no chest, which somebody has to look at too; what else was skipped is left out.
    ``extra`` are columns of the manifest. The CSV is UTF-8 with a byte order mark.
    """
    import numpy as np

    columns = list(dict.fromkeys((*COLUMNS, *extra)))
    table = read(results, columns)
    refuse_input(out, results)
    order = triage(table, by)
    listed = table.take(np.concatenate([order.ok, order.failed, order.rejected]))
    try:
        # With the mark Excel knows UTF-8, and without it shows names garbled.
        with out.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file)
            writer.writerow(["rank", *(inert(c) for c in columns)])
            rows = (row for b in listed.to_batches(1024) for row in b.to_pylist())
            for rank, row in enumerate(rows, start=1):
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
