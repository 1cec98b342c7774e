"""Tables and files of a published data set; rows are described in :mod:`comit.data.readers`."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from comit.errors import UsageError

Row = dict[str, Any]
Found = tuple[list[Row], int]  # rows, and how many had no picture


def table_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a table with a header; empty cells are empty strings.

    The delimiter is the commonest of comma, semicolon (Excel's where the comma is the decimal
    point) and tab in the header.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=header.count)
            reader = csv.DictReader(file, delimiter=delimiter, restval="")
            if missing := [c for c in columns if c not in (reader.fieldnames or ())]:
                raise UsageError(f"{path} lacks the column {missing[0]!r}")
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as a table") from error


def one_file(folder: Path, pattern: str) -> Path:
    """The first file or folder of that pattern; raises UsageError where there is none."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise UsageError(f"{folder} has no {pattern}")
    return found[0]


def with_pictures(rows: Iterable[Row]) -> Found:
    """The rows whose ``path`` is known, and how many are left out."""
    listed = list(rows)
    kept = [r for r in listed if r["path"] is not None]
    return kept, len(listed) - len(kept)


def as_number(text: str | None) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
