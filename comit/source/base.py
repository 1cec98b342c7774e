"""One input and what the work list says of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from comit.identifiers import Identifiers
from comit.reasons import Fail, Skip
from comit.results import EARLIEST, LATEST

SHARD = 512  # rows of one part: what a kill -9 can cost


@dataclass(frozen=True, slots=True)
class Item:
    """One input, exactly one row of the results."""

    row_id: str
    path: str | None
    file: bytes
    name: str = ""
    size: int | None = None
    mtime: int | None = None
    problem: Skip | Fail | None = None


@dataclass(frozen=True)
class Selection:
    """Which items, and what the work list may say of them."""

    pattern: str = "*"  # names to take of a folder
    ours: tuple[Path, ...] = ()  # paths inside the folder that are results
    exclude: tuple[str, ...] = ()  # patterns of what to leave out, as in a .gitignore file
    include_hidden: bool = False  # takes what machines make, too: comit.source.leave_out
    identifiers: Identifiers = Identifiers()
    keep: tuple[str, ...] = ()  # manifest columns that may be passed through unless plain
    root: Path | None = None  # where a manifest's paths begin, and what they may not leave
    endpoint: str | None = None  # of a server that speaks S3, if not Amazon's
    timeout: float = 60.0  # seconds that a store may take to answer


@dataclass(frozen=True)
class Listing:
    """What was met on the way of listing an input, beside its items."""

    left_out: dict[str, int] = field(default_factory=dict)  # rule -> files and folders
    notes: tuple[str, ...] = ()


def item(
    file: bytes,
    name: bytes,
    identifiers: Identifiers,
    problem: Skip | Fail | None = None,
    known: os.stat_result | None = None,
) -> Item:
    """The item of a file that is called ``name`` in the results."""
    size, mtime = stamp(file, known)
    row_id, path, text = identifiers.row_id(name), identifiers.path(name), identifiers.text(name)
    return Item(row_id, path, file, text, size, mtime, problem)


def stamp(file: bytes, known: os.stat_result | None = None) -> tuple[int | None, int | None]:
    """Bytes and microseconds since 1970 of a file's last change: what tells it has changed."""
    try:
        found = known or os.stat(file)  # noqa: PTH116 (bytes)
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return None, None
    return found.st_size, microseconds(found.st_mtime_ns)


def microseconds(ns: int) -> int:
    """A time that a timestamp can hold: between the years 1 and 9999."""
    return min(max(ns // 1000, EARLIEST), LATEST)


def unlike(names: Iterable[str], taken: Iterable[str]) -> list[str]:
    """Names with ``manifest_`` before those that are taken."""
    reserved = set(taken)
    return [f"manifest_{n}" if n in reserved else n for n in names]
