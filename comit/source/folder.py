"""The files of folders, every one an item, in the order of their names' bytes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase

from comit.errors import UsageError
from comit.reasons import Fail, Skip
from comit.source.base import Item, Selection, item
from comit.source.inputs import Input
from comit.source.leave_out import LeaveOut


def items(source: Input, selection: Selection, left_out: Counter[str]) -> Iterator[Item]:
    """Yields an item for each file under ``source`` whose name matches the selection's pattern.

    A link to what is visited by itself is not followed: a loop ends, and nothing is screened
    twice. One that leads outside or nowhere, a device and a folder that may not be read are items
    with a problem. What the selection excludes is counted in ``left_out``, by rule; a folder
    counts as one. A single image is taken whatever its name. Raises UsageError where nothing
    matches.
    """
    tree = _Tree(source, selection, left_out)
    alone = len(source.paths) == 1
    folders, found = [], False
    for path in source.paths:
        raw = os.fsencode(path)
        if alone or tree.takes(raw, path.is_dir()):
            if path.is_dir():
                folders.append(raw)
            else:
                found = True
                yield tree.item(raw, None if path.is_file() else Skip.NOT_A_FILE)
    for each in tree.walk(folders):
        found = True
        yield each
    if not found:
        matching = "" if selection.pattern == "*" else f" that match {selection.pattern!r}"
        rules = f" ({left_out.total():,} left out: {', '.join(left_out)})" if left_out else ""
        raise UsageError(f"{source.root} holds no files{matching}{rules}")


class _Tree:
    """What is taken below a root."""

    def __init__(self, source: Input, selection: Selection, left_out: Counter[str]) -> None:
        self._root, self._selection, self._left_out = source.root, selection, left_out
        self._top = os.fsencode(source.root)
        self._real = os.path.realpath(self._top)
        self._visited = [os.path.realpath(os.fsencode(p)) for p in source.paths]
        self._ours = {os.fsencode(p.resolve()) for p in selection.ours}
        self._rules = LeaveOut(selection.exclude, not selection.include_hidden)

    def item(
        self, path: bytes, problem: Skip | Fail | None, known: os.stat_result | None = None
    ) -> Item:
        name = os.path.relpath(path, self._top)
        return item(path, name, self._selection.identifiers, problem, known)

    def takes(self, path: bytes, folder: bool) -> bool:
        """Whether no rule leaves a path out, nor the pattern a file; counts what a rule does."""
        name = os.path.relpath(path, self._top)
        if rule := self._rule(name, folder):
            self._left_out[shown_rule(rule, self._selection)] += 1
        return rule is None and (folder or self._fits(name))

    def walk(self, folders: list[bytes]) -> Iterator[Item]:
        """The items below each of the folders, files before folders."""
        pending = folders[::-1]
        while pending:
            directory = pending.pop()
            try:
                with os.scandir(directory) as listing:
                    entries = sorted(listing, key=lambda e: e.name)
            except OSError as error:
                if directory == self._top:
                    raise UsageError(f"{self._root} cannot be read: {error.strerror}") from error
                yield self.item(directory, _os_problem(error))
                continue
            below = []
            here = os.path.realpath(directory)
            for entry in entries:
                if os.path.join(here, entry.name) in self._ours:  # noqa: PTH118
                    continue
                problem: Skip | Fail | None = None
                folder = entry.is_dir(follow_symlinks=False)
                if entry.is_symlink():
                    target = os.path.realpath(entry.path)
                    if not any(_inside(target, visited) for visited in self._visited):
                        problem = Skip.OUTSIDE_ROOT
                    elif not os.path.exists(entry.path):  # noqa: PTH110 (nowhere, or to itself)
                        problem = Fail.VANISHED
                    elif not os.path.isfile(target) or self._visits(target):  # noqa: PTH113
                        continue
                elif not folder and not entry.is_file(follow_symlinks=False):
                    problem = Skip.NOT_A_FILE
                if not self.takes(entry.path, folder):
                    continue
                if folder:
                    below.append(entry.path)
                else:
                    yield self.item(entry.path, problem, _stat(entry, follow=problem is None))
            pending.extend(reversed(below))

    def _visits(self, file: bytes) -> bool:
        """Whether a file inside is an item by itself: git-annex links to files in .git."""
        parts = os.path.relpath(file, self._real).split(b"/")
        above = (b"/".join(parts[:n]) for n in range(1, len(parts)))
        name = b"/".join(parts)
        left_out = any(self._rule(a, True) for a in above) or self._rule(name, False)
        return not left_out and self._fits(name)

    def _rule(self, name: bytes, folder: bool) -> str | None:
        return self._rules.rule(name.decode("utf-8", "backslashreplace"), folder)

    def _fits(self, name: bytes) -> bool:
        shown = os.path.basename(name).decode("utf-8", "backslashreplace")  # noqa: PTH119
        return fits(shown, self._selection.pattern)


def shown_rule(rule: str, selection: Selection) -> str:
    """A rule that leaves something out as results show it: a user's pattern can name a patient."""
    typed = selection.exclude
    if rule in typed and selection.identifiers.mode != "plain":
        return f"--exclude {typed.index(rule) + 1}"
    return rule


def fits(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern of the shell, the case of the suffix aside."""
    return fnmatchcase(name, pattern) or fnmatchcase(_suffix_folded(name), _suffix_folded(pattern))


def _suffix_folded(name: str) -> str:
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    return stem + suffix.lower()


def _stat(entry: os.DirEntry[bytes], follow: bool) -> os.stat_result | None:
    """Of the entry itself, or of what a link leads to: not where that is outside."""
    try:
        return entry.stat(follow_symlinks=follow)
    except OSError:
        return None


def _inside(path: bytes, root: bytes) -> bool:
    return path == root or path.startswith(root.rstrip(b"/") + b"/")


def _os_problem(error: OSError) -> Fail:
    return Fail.PERMISSION if isinstance(error, PermissionError) else Fail.READ_ERROR
