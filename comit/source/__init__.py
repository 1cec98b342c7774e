"""What is to be screened: a folder, one file, or a manifest becomes a frozen work list.

The work list is a Parquet file of one row an item, in row groups of :data:`SHARD` rows, so that a
run reads it shard by shard however many items there are:

    row_id   hash of the relative path's bytes, or the manifest's id
    path     as results show it: bytes that are not UTF-8 as \\xNN, a hash, or null
    name     the same, but never null: what a resumed run knows the item by, with its row_id
    size     bytes, when it was listed; null where that is not known
    mtime    microseconds since 1970, likewise
    problem  a reason known before the file is opened, or null
    ...      the manifest's other columns

Beside it goes a second one, row for row, with the one column ``file``: the bytes of the path to
open. It is apart because only with ``--identifiers plain`` may it touch a disk.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from comit import durable
from comit.errors import UsageError
from comit.identifiers import Identifiers
from comit.reasons import REASONS, Fail, Skip
from comit.results import EARLIEST, LATEST

if TYPE_CHECKING:
    import pyarrow as pa

SHARD = 512  # rows of one part: what a kill -9 can cost
OWN_COLUMNS = ("row_id", "path", "name", "size", "mtime", "problem")
PARQUET_MAGIC = b"PAR1"


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
    exclude: tuple[Path, ...] = ()  # paths of ours inside the folder
    identifiers: Identifiers = Identifiers()
    keep: tuple[str, ...] = ()  # manifest columns that may be passed through unless plain
    root: Path | None = None  # where a manifest's paths begin, and what they may not leave


def write_worklist(
    source: Path, to: BinaryIO, files: BinaryIO, selection: Selection = Selection()
) -> None:
    """Enumerates ``source`` into the work list ``to`` and the paths to open, ``files``.

    Raises UsageError where there is nothing to screen or the manifest cannot be used.
    """
    from comit.source import folder, manifest

    if not source.exists():
        raise UsageError(f"{source} does not exist; give a folder, an image or a manifest")
    if source.is_file() and manifest.is_manifest(source):
        manifest.write(source, to, files, selection)
        return
    if selection.root is not None:
        raise UsageError(f"a root is for the paths of a manifest, and {source} is none")
    if source.is_dir():
        items = folder.items(source, selection)
    else:
        file, name = os.fsencode(source), os.fsencode(source.name)  # as if its folder were screened
        items = iter([item(file, name, selection.identifiers)])
    with Writer(to, files) as writer:
        while chunk := list(islice(items, SHARD)):
            writer.write(chunk)


class Writer:
    """Writes both halves of a work list, a row group a call."""

    def __init__(self, to: BinaryIO, files: BinaryIO, passed: Sequence[pa.Field] = ()) -> None:
        import pyarrow as pa

        self._own = worklist_schema()
        self._schema = pa.schema([*self._own, *passed])
        self._files_schema = files_schema()
        self._closing = ExitStack()
        self._list = self._closing.enter_context(durable.parquet(to, self._schema))
        self._files = self._closing.enter_context(durable.parquet(files, self._files_schema))

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.__exit__(kind, value, traceback)

    def write(self, items: list[Item], passed: Sequence[pa.ChunkedArray] = ()) -> None:
        """Appends at most :data:`SHARD` items, with their values of the passed columns."""
        import pyarrow as pa

        own = [pa.array([getattr(i, f.name) for i in items], f.type) for f in self._own]
        self._list.write_table(pa.table([*own, *passed], schema=self._schema), row_group_size=SHARD)
        self._files.write_table(
            pa.table([[i.file for i in items]], schema=self._files_schema), row_group_size=SHARD
        )


def worklist_schema() -> pa.Schema:
    """Our columns of the work list."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("row_id", pa.string(), nullable=False),
            pa.field("path", pa.string()),
            pa.field("name", pa.string(), nullable=False),
            pa.field("size", pa.int64()),
            pa.field("mtime", pa.int64()),
            pa.field("problem", pa.string()),
        ]
    )


def files_schema() -> pa.Schema:
    """The other half: null where an item of the frozen list is not found any more."""
    import pyarrow as pa

    return pa.schema([pa.field("file", pa.binary())])


def read_items(work: pa.Table, files: pa.Table) -> list[Item]:
    """The items of one shard; one without a file to open has vanished."""
    rows: list[dict[str, Any]] = work.select(OWN_COLUMNS).to_pylist()
    return [
        Item(
            r["row_id"],
            r["path"],
            file or b"",
            r["name"],
            r["size"],
            r["mtime"],
            REASONS.get(r["problem"]) if file is not None else Fail.VANISHED,
        )
        for r, file in zip(rows, files["file"].to_pylist(), strict=True)
    ]


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


def repeated(values: Iterable[Hashable]) -> set[int]:
    """The hashes that more than one value has, 8 bytes a value: who has one is to be looked at."""
    import numpy as np

    hashes, counts = np.unique(np.fromiter(map(hash, values), np.int64), return_counts=True)
    return set(hashes[counts > 1].tolist())


def rechunk(batches: Iterator[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Tables of exactly ``size`` rows, the last one shorter."""
    import pyarrow as pa

    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        while rows >= size:
            table = pa.Table.from_batches(held)
            yield table.slice(0, size)
            held, rows = table.slice(size).to_batches(), rows - size
    if rows:
        yield pa.Table.from_batches(held)
