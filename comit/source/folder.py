"""A folder's files, every one an item, in the order of their names' bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from comit.errors import UsageError
from comit.reasons import Fail, Skip
from comit.source import Item, Selection, item


def items(root: Path, selection: Selection) -> Iterator[Item]:
    """Yields an item for each file under ``root`` whose name matches the selection's pattern.

    A link to something inside the folder is not followed: its target is visited by itself, so a
    loop ends and nothing is screened twice. A link that leads outside or nowhere, a device and a
    folder that may not be read are items with a problem. Raises UsageError where nothing matches.
    """
    top = os.fsencode(root)
    real = os.path.realpath(top)
    pattern = selection.pattern
    left_out = {os.fsencode(p.resolve()) for p in selection.exclude}

    def found_at(path: bytes, problem: Skip | Fail | None, known: os.stat_result | None) -> Item:
        return item(path, os.path.relpath(path, top), selection.identifiers, problem, known)

    found = False
    pending = [top]
    while pending:
        directory = pending.pop()
        try:
            with os.scandir(directory) as listing:
                entries = sorted(listing, key=lambda e: e.name)
        except OSError as error:
            if directory == top:
                raise UsageError(f"{root} cannot be read: {error.strerror}") from error
            found = True
            yield found_at(directory, _os_problem(error), None)
            continue
        below = []
        here = os.path.realpath(directory)
        for entry in entries:
            if os.path.join(here, entry.name) in left_out:  # noqa: PTH118
                continue
            problem: Skip | Fail | None = None
            if entry.is_symlink():
                if not _inside(os.path.realpath(entry.path), real):
                    problem = Skip.OUTSIDE_ROOT
                elif os.path.exists(entry.path):  # noqa: PTH110
                    continue
                else:  # it leads nowhere, or to itself
                    problem = Fail.VANISHED
            elif entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
                continue
            elif not entry.is_file(follow_symlinks=False):
                problem = Skip.NOT_A_FILE
            if fnmatchcase(entry.name.decode("utf-8", "backslashreplace"), pattern):
                found = True
                yield found_at(entry.path, problem, _stat(entry))
        pending.extend(reversed(below))
    if not found:
        matching = "" if pattern == "*" else f" that match {pattern!r}"
        raise UsageError(f"{root} holds no files{matching}")


def _stat(entry: os.DirEntry[bytes]) -> os.stat_result | None:
    """Of the entry itself: what lies behind a link that leads outside is not looked at."""
    try:
        return entry.stat(follow_symlinks=False)
    except OSError:
        return None


def _inside(path: bytes, root: bytes) -> bool:
    return path == root or path.startswith(root.rstrip(b"/") + b"/")


def _os_problem(error: OSError) -> Fail:
    return Fail.PERMISSION if isinstance(error, PermissionError) else Fail.READ_ERROR
