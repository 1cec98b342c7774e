"""Which files and folders of a tree are no inputs: what machines make, and what a user names.

File servers and desktops keep earlier versions, waste and thumbnails beside the files. Screened,
one X-ray would be flagged once for each snapshot that it is in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate
from typing import TYPE_CHECKING

from comit.errors import UsageError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

# Names, whatever their case, of files and folders; docs/reference/inputs.md explains the list.
MADE_BY_MACHINES = (
    ".*",  # hidden: .snapshot, .zfs, .Trash-1000, .AppleDouble, ._name, .DS_Store, .@__thumb
    "~snapshot",  # NetApp, seen from Windows
    "#snapshot",  # Synology
    "#recycle",
    "@eaDir",
    "@tmp",
    "SYNOPHOTO_THUMB_*",
    "SYNOFILE_THUMB_*",
    "@Recycle",  # QNAP
    "@Recently-Snapshot",
    "$RECYCLE.BIN",  # Windows
    "RECYCLER",
    "System Volume Information",
    "Thumbs.db",
    "ehthumbs*.db",
    "desktop.ini",
    "~$*",
    "Network Trash Folder",  # macOS
    "Temporary Items",
    "__MACOSX",
    "lost+found",  # ext4
)


class LeaveOut:
    """Tells by which rule a file or folder is left out.

    ``patterns`` are those of a .gitignore file (https://git-scm.com/docs/gitignore), relative to
    the folder that is screened: the last that fits decides, and one that begins with ``!`` takes
    in what an earlier one or the list would leave out. ``machines`` applies that list. Raises
    UsageError for a pattern that is none.
    """

    def __init__(self, patterns: Sequence[str] = (), machines: bool = True) -> None:
        self._patterns = patterns
        self._spec = _compiled(patterns)
        rules = {name: re.compile(translate(name), re.IGNORECASE) for name in MADE_BY_MACHINES}
        self._rules = rules if machines else {}
        self._any = re.compile("|".join(map(translate, MADE_BY_MACHINES)), re.IGNORECASE)

    def rule(self, path: str, folder: bool) -> str | None:
        """The pattern, or entry of the list, that leaves ``path`` out; None where none does."""
        if self._spec is not None:
            found = self._spec.check_file(path + "/" if folder else path)
            if found.include is not None and found.index is not None:
                return self._patterns[found.index] if found.include else None
        name = path.rsplit("/", 1)[-1]
        if not self._any.match(name):
            return None
        return next((rule for rule, fits in self._rules.items() if fits.match(name)), None)


def _compiled(patterns: Sequence[str]) -> GitIgnoreSpec | None:
    if not patterns:
        return None
    from pathspec import GitIgnoreSpec

    # In a file # begins a comment; a pattern of its own has none, and #recycle is a folder.
    lines = ["\\" + p if p.startswith("#") else p for p in patterns]
    for pattern, line in zip(patterns, lines, strict=True):
        try:
            nothing = not any(
                p.include is not None for p in GitIgnoreSpec.from_lines([line]).patterns
            )
        except ValueError:
            nothing = True
        if nothing:
            raise UsageError(
                f"--exclude {pattern!r} is no pattern; write it as in a .gitignore file"
            )
    return GitIgnoreSpec.from_lines(lines)
