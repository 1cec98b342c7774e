"""Other spellings of a path: file servers, Windows and macOS change what a table holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from unicodedata import normalize

LATIN = "cp1252"  # of file systems that were written before UTF-8


def spellings(path: str, is_there: Callable[[bytes], bool]) -> Iterator[bytes]:
    """Names that the file of ``path`` may have, where none has the name as written.

    With slashes for backslashes; with each part in the Unicode form, NFC or NFD
    (https://unicode.org/reports/tr15/), in which ``is_there`` says that it is there; and in
    Windows-1252.
    """
    for slashed in dict.fromkeys((path, path.replace("\\", "/"))):
        if slashed != path:
            yield os.fsencode(slashed)
        if slashed.isascii():
            continue
        yield _composed(slashed, is_there)
        with suppress(UnicodeEncodeError):
            yield normalize("NFC", slashed).encode(LATIN)


def _composed(path: str, is_there: Callable[[bytes], bool]) -> bytes:
    name = b"/" if path.startswith("/") else b""
    for part in path.split("/"):
        forms = [os.fsencode(f) for f in (part, *(normalize(n, part) for n in ("NFC", "NFD")))]
        each = [os.path.join(name, form) for form in forms]  # noqa: PTH118 (bytes)
        name = next(filter(is_there, each), each[0])
    return name
