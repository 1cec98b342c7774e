"""CSV as programs write it: encoding and delimiter are found out, and no line is lost in silence.

Cells are quoted as in RFC 4180, strictly: a quote that opens is closed where its cell ends, and one
inside a quoted cell is written twice. A reader that does not insist takes every line up to the next
quote, or to the end of the file, for one cell.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from comit.errors import UsageError

LONGEST = 2**24  # characters of a line or a cell: what a quote that never closes costs in memory
DELIMITERS = ",;\t|"  # a semicolon is Excel's where the comma is the decimal point
HINT = "sep="  # Excel's first line that names the delimiter
BLOCK = 2**20  # bytes that are looked at at once
BOMS = {  # in this order: that of UTF-32 begins like one of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WINDOWS = "cp1252"  # ISO 8859-1, with letters for some of its control characters


class Csv:
    """A CSV table; raises UsageError, here or while it is read, with the line and never its text.

    ``is_there`` says whether a text of the column ``path`` names a file: a line inside quotes that
    is a row of such a file was not meant to be inside.
    """

    def __init__(self, path: Path, is_there: Callable[[str], bool]) -> None:
        self.path, self._is_there = path, is_there
        self.encoding = encoding(path)
        self.delimiter, self.names = self._dialect()
        self.broken = 0  # rows with line breaks inside quotes, when last read

    def rows(self) -> Iterator[list[str]]:
        """The cells of each row, as many as there are names; empty lines are left out."""
        self.broken = 0
        with self._opened() as file, long_cells():
            records = self._records(file, self.delimiter)
            next(records, None)  # the names
            for first, lines, cells in records:
                if len(cells) != len(self.names):
                    raise UsageError(
                        f"{self.path}: line {first} has {len(cells)} cells, and the first line "
                        f"names {len(self.names)} columns"
                    )
                if len(lines) > 1:
                    self.broken += 1
                    for number, line in enumerate(lines[1:], start=first + 1):
                        if self._is_row(line):
                            raise UsageError(
                                f"{self.path}: line {number} is a row inside the quotes that open "
                                f"in line {first}; close them where their cell ends"
                            )
                yield cells

    def notes(self) -> list[str]:
        """What to know of how the table was read."""
        found = []
        if self.encoding == WINDOWS:
            found.append(
                f"{self.path} is not UTF-8 and was read as Windows-1252, which Excel writes; where "
                "letters are wrong, save it as CSV UTF-8"
            )
        if self.broken:
            found.append(
                f"{self.path}: rows with line breaks inside quotes: {self.broken:,}; where there "
                "should be none, a quote is not closed"
            )
        return found

    def _dialect(self) -> tuple[str, list[str]]:
        """The delimiter with which there is a column ``path``, else the comma; and the names."""
        with self._opened() as file:
            first = self._line(file, 0, len(HINT) + 3)
        hinted = first.startswith(HINT) and len(first.rstrip("\r\n")) == len(HINT) + 1
        refused: UsageError | None = None
        found = []
        for delimiter in first[len(HINT)] if hinted else DELIMITERS:
            try:
                with self._opened() as file, long_cells():
                    names = next(self._records(file, delimiter), (0, [], []))[2]
            except UsageError as error:
                refused = refused or error
                continue
            found.append((delimiter, names))
            if "path" in names:
                return delimiter, names
        if not found and refused:
            raise refused
        return found[0]

    def _records(self, file: TextIO, delimiter: str) -> Iterator[tuple[int, list[str], list[str]]]:
        """Number of its first line, lines and cells of each record, the names first."""
        lines: list[str] = []
        last = 0  # line that was read

        def each() -> Iterator[str]:
            nonlocal last
            while line := self._line(file, last, LONGEST):
                if len(line) == LONGEST:
                    raise UsageError(f"{self.path}: line {last + 1} is too long for a table")
                last += 1
                if last > 1 or line.rstrip("\r\n") != HINT + delimiter:
                    lines.append(line)
                    yield line

        reader = csv.reader(each(), delimiter=delimiter, strict=True)
        while True:
            lines.clear()
            first = last + 1
            try:
                cells = next(reader, None)
            except csv.Error:
                raise UsageError(
                    f"{self.path}: a quote that opens in line {last - len(lines) + 1} is not "
                    f"closed where its cell ends (seen in line {last}); inside quotes, a quote is "
                    "written twice"
                ) from None
            if cells is None:
                return
            if cells:
                yield first, lines, cells

    def _line(self, file: TextIO, last: int, size: int) -> str:
        try:
            return file.readline(size)
        except UnicodeDecodeError:
            raise UsageError(
                f"{self.path}: after line {last} is text that is not {self.encoding}; save it as "
                "CSV UTF-8"
            ) from None

    def _is_row(self, line: str) -> bool:
        cells = next(csv.reader([line], delimiter=self.delimiter), [])
        if len(cells) != len(self.names):
            return False
        return self._is_there(cells[self.names.index("path")].strip('"'))

    def _opened(self) -> TextIO:
        return self.path.open(encoding=self.encoding, newline="")


def encoding(path: Path) -> str:
    """By its byte order mark, else UTF-8, else Windows-1252; raises UsageError for a mixture."""
    with path.open("rb") as file:
        begins = file.read(4)
        for mark, name in BOMS.items():
            if begins.startswith(mark):
                return name
        if len(begins) == 4 and begins[1] == begins[3] == 0:
            return "utf-16-le"
        if len(begins) == 4 and begins[0] == begins[2] == 0:
            return "utf-16-be"
        file.seek(0)
        decoder, plain = codecs.getincrementaldecoder("utf-8")(), True
        try:
            while block := file.read(BLOCK):
                plain = decoder.decode(block).isascii() and plain
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            if plain and error.object[: error.start].isascii():
                return WINDOWS
            raise UsageError(
                f"{path} is text that is UTF-8 in one place and not in another; save it as CSV "
                "UTF-8"
            ) from None
    return "utf-8"


@contextmanager
def long_cells() -> Iterator[None]:
    """Lets cells be as long as :data:`LONGEST`, which the module ``csv`` keeps for all readers."""
    before = csv.field_size_limit(LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)
