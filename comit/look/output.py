"""What ``comit overlay``, ``dicom`` and ``report`` write, and what they could not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comit.errors import ItemError, UsageError


@dataclass
class Made:
    """What was written, and why for some rows nothing was."""

    files: list[Path] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)  # path, code of comit.reasons
    without: int = 0  # rows that have nothing to show: no masks, or a file of another kind

    def failed(self, row: Mapping[str, Any], error: ItemError) -> None:
        """Notes a row that could not be shown, by its path, or its row_id where it has none."""
        self.problems.append((row["path"] or row["row_id"], str(error.reason)))


def make_folder(out: Path) -> None:
    """Makes the folder ``out``; raises UsageError where it cannot be one."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out} cannot be made a folder: {error.strerror}") from error


def refuse_input(out: Path, results: Path) -> None:
    """Raises UsageError where ``out`` would replace the results it is made from."""
    if out.exists() and out.samefile(results):
        raise UsageError(f"{out} is the input; give the output another name")


def write(to: Path, data: bytes) -> None:
    """Writes a file; raises UsageError."""
    try:
        to.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{to} cannot be written: {error.strerror}") from error
