"""A folder's files, every one an item, in the order of their names' bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from comit.errors import UsageError
from comit.reasons import Fail, Skip
from comit.source import Item, display, row_id


def items(root: Path, pattern: str, exclude: Iterable[Path]) -> Iterator[Item]:
    """Yields an item for each file under ``root`` whose name matches ``pattern``.

    A link to something inside the folder is not followed: its target is visited by itself, so a
    loop ends and nothing is screened twice. A link that leads outside, a device and a folder that
    may not be read are items with a problem. Raises UsageError where nothing matches.
    """
    top = os.fsencode(root)
    real = os.path.realpath(top)
    left_out = {os.fsencode(p.resolve()) for p in exclude}
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
            yield _item(top, directory, _os_problem(error))
            continue
        below = []
        for entry in entries:
            if left_out and os.path.realpath(entry.path) in left_out:
                continue
            if entry.is_symlink():
                if _inside(os.path.realpath(entry.path), real):
                    continue
                problem: Skip | Fail | None = Skip.OUTSIDE_ROOT
            elif entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
                continue
            else:
                problem = None if entry.is_file(follow_symlinks=False) else Skip.NOT_A_FILE
            if fnmatchcase(display(entry.name), pattern):
                found = True
                yield _item(top, entry.path, problem)
        pending.extend(reversed(below))
    if not found:
        matching = "" if pattern == "*" else f" that match {pattern!r}"
        raise UsageError(f"{root} holds no files{matching}")


def _item(top: bytes, path: bytes, problem: Skip | Fail | None) -> Item:
    relative = os.path.relpath(path, top)
    return Item(row_id(relative), display(relative), path, problem)


def _inside(path: bytes, root: bytes) -> bool:
    return path == root or path.startswith(root.rstrip(b"/") + b"/")


def _os_problem(error: OSError) -> Fail:
    return Fail.PERMISSION if isinstance(error, PermissionError) else Fail.READ_ERROR
