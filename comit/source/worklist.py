"""The work list on disk: every item that is to be screened, in its order.

It is a Parquet file of one row an item, in row groups of :data:`.base.SHARD` rows, so that a
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

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from comit import durable
from comit.reasons import REASONS, Fail
from comit.source.base import SHARD, Item

if TYPE_CHECKING:
    import pyarrow as pa


OWN_COLUMNS = ("row_id", "path", "name", "size", "mtime", "problem")


PARQUET_MAGIC = b"PAR1"


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
