"""What is to be screened: a folder, one file, or a manifest becomes a frozen work list.

The work list is a Parquet file of one row an item, in row groups of :data:`SHARD` rows, so that a
run reads it shard by shard however many items there are:

    row_id   hash of the relative path's bytes, or the manifest's id
    path     as results show it; bytes that are not UTF-8 appear as \\xNN
    file     the bytes of the path to open
    problem  a reason known before the file is opened, or null
    ...      the manifest's other columns
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comit.errors import UsageError
from comit.reasons import REASONS, Fail, Skip

if TYPE_CHECKING:
    import pyarrow as pa

SHARD = 512  # rows of one part: what a kill -9 can cost
OWN_COLUMNS = ("row_id", "path", "file", "problem")
PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True, slots=True)
class Item:
    """One input, exactly one row of the results."""

    row_id: str
    path: str
    file: bytes
    problem: Skip | Fail | None = None


def write_worklist(source: Path, to: Path, pattern: str, exclude: Iterable[Path]) -> int:
    """Enumerates ``source`` into the work list ``to``; returns the number of items.

    ``pattern`` filters names under a folder; ``exclude`` are paths of ours to leave out. Raises
    UsageError where there is nothing to screen or the manifest cannot be used.
    """
    from comit.source import folder, manifest

    if source.is_dir():
        return _write(to, folder.items(source, pattern, exclude))
    if not source.exists():
        raise UsageError(f"{source} does not exist; give a folder, an image or a manifest")
    if manifest.is_manifest(source):
        return manifest.write(source, to)
    file = os.fsencode(source)
    return _write(to, iter([Item(row_id(file), display(file), file)]))


def _write(to: Path, items: Iterator[Item]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    with pq.ParquetWriter(to, worklist_schema()) as writer:
        while chunk := list(islice(items, SHARD)):
            columns = [[getattr(item, name) for item in chunk] for name in OWN_COLUMNS]
            writer.write_table(pa.table(columns, schema=worklist_schema()), row_group_size=SHARD)
            count += len(chunk)
    return count


def worklist_schema() -> pa.Schema:
    """Our columns of the work list."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("row_id", pa.string(), nullable=False),
            pa.field("path", pa.string()),
            pa.field("file", pa.binary(), nullable=False),
            pa.field("problem", pa.string()),
        ]
    )


def read_items(table: pa.Table) -> list[Item]:
    """The items of one shard of the work list."""
    rows: list[dict[str, Any]] = table.select(OWN_COLUMNS).to_pylist()
    return [Item(r["row_id"], r["path"], r["file"], REASONS.get(r["problem"])) for r in rows]


def row_id(name: bytes, occurrence: int = 0) -> str:
    """32 hex digits of a path's bytes; later occurrences of one path in a manifest differ."""
    seed = name if not occurrence else name + b"\0%d" % occurrence
    return hashlib.blake2b(seed, digest_size=16).hexdigest()


def display(name: bytes) -> str:
    """A path's bytes as text; what is not UTF-8 is escaped."""
    return name.decode("utf-8", "backslashreplace")
