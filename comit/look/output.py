"""What ``comit overlay``, ``dicom`` and ``report`` write, and what they could not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from comit.errors import UsageError


@dataclass
class Made:
    """What was written, and why for some rows nothing was."""

    files: list[Path] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)  # row_id, code of comit.reasons
    without: int = 0  # rows that have nothing to show: no masks, or a file of another kind


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
