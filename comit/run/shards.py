"""The shards of a run: 512 items of the frozen work list, and the part that their rows become.

A shard is what is listed, screened, committed and verified on its own::

    worklist.parquet, paths.parquet   row group i: the items of shard i, in their order
    part-0000i.parquet                all its rows: publishing it is the commit
    partial-0000i.parquet             the rows that a stopped run had of it
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from comit import durable, parquet
from comit.errors import Stopped, UsageError
from comit.reasons import Fail
from comit.results import FINDINGS, IDENTITY, Row, schema
from comit.source.base import SHARD, Item
from comit.source.worklist import OWN_COLUMNS, read_items

if TYPE_CHECKING:
    import pyarrow as pa

UNWRITABLE = Row(status="failed", reason=str(Fail.UNWRITABLE))


class Shards:
    """The shards of a frozen work list; a context manager that holds its files open.

    ``paths`` is the list's other half: the bytes of every item's file. ``out`` is what messages
    name. Raises UsageError where the list is damaged, Stopped where the disk fails.
    """

    def __init__(self, out: Path, staging: Path, paths: BinaryIO) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._out, self._staging, self._closing = out, staging, ExitStack()
        try:
            self.worklist = self._closing.enter_context(
                parquet.opened(staging / "worklist.parquet")
            )
            self._paths = self._closing.enter_context(pq.ParquetFile(paths))
        except (OSError, pa.ArrowException):
            raise UsageError(
                f"the work list of {out} is damaged; --restart forgets that run"
            ) from None
        ours = (schema().field(n) for n in (*IDENTITY, *FINDINGS))
        passed = (f for f in self.worklist.schema_arrow if f.name not in OWN_COLUMNS)
        self.schema: pa.Schema = pa.schema([*ours, *passed])  # of a part

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *raised: object) -> None:
        self._closing.close()

    def __len__(self) -> int:
        return int(self.worklist.num_row_groups)

    @property
    def items(self) -> int:
        """Of all shards."""
        return int(self.worklist.metadata.num_rows)

    def size(self, shard: int) -> int:
        """Items of one shard: :data:`SHARD`, of the last one fewer."""
        return int(self.worklist.metadata.row_group(shard).num_rows)

    def of(self, shard: int) -> list[tuple[int, Item]]:
        """Its items, each with its index in the work list."""
        work, paths = (
            f.read_row_group(shard, use_threads=False) for f in (self.worklist, self._paths)
        )
        return list(enumerate(read_items(work, paths), shard * SHARD))

    def commit(self, shard: int, rows: dict[int, Row]) -> None:
        """Publishes all rows of a shard, by the index of their items.

        They are written beside the part, made durable, checked, and then given its name. A row
        that cannot be written, for a reason that :class:`Row` does not know, becomes a failed one:
        a shard is never lost to one of its rows.
        """
        self._publish(shard, rows, self._part(shard))
        self._partial(shard).unlink(missing_ok=True)

    def keep(self, shard: int, rows: dict[int, Row]) -> None:
        """Publishes the rows of an unfinished shard, for the next run to go on from."""
        self._partial(shard).unlink(missing_ok=True)
        self._publish(shard, rows, self._partial(shard))

    def committed(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        """The part of a shard, if it holds exactly its rows; another is removed, and None.

        ``columns`` are those that are read and checked; None for all.
        """
        import pyarrow as pa

        path = self._part(shard)
        if not path.exists():
            return None
        columns = None if columns is None else ["row_id", *columns]
        try:
            with parquet.opened(path) as file:
                table = file.read(columns, use_threads=False)
                whole = file.schema_arrow == self.schema
            expected = self.worklist.read_row_group(shard, ["row_id"], use_threads=False)
            if whole and table["row_id"] == expected["row_id"]:
                return table
        except (OSError, pa.ArrowException):
            pass
        path.unlink()
        return None

    def restored(self, shard: int) -> dict[int, Row]:
        """The rows of a stopped run's partial shard, by index."""
        import pyarrow as pa

        try:
            with parquet.opened(self._partial(shard)) as file:
                table = file.read(["row_id", *FINDINGS], use_threads=False)
            at = table.schema.get_field_index("file_mtime")  # a number again, as rows have it
            table = table.set_column(at, "file_mtime", table["file_mtime"].cast(pa.int64()))
        except (OSError, pa.ArrowException):
            return {}
        work = self.worklist.read_row_group(shard, ["row_id"], use_threads=False)
        ids = work["row_id"].to_pylist()
        position = {row_id: shard * SHARD + i for i, row_id in enumerate(ids)}
        rows = {position.get(row.pop("row_id")): Row(**row) for row in table.to_pylist()}
        return {index: row for index, row in rows.items() if index is not None}

    def _part(self, shard: int) -> Path:
        return self._staging / f"part-{shard:05d}.parquet"

    def _partial(self, shard: int) -> Path:
        return self._staging / f"partial-{shard:05d}.parquet"

    def _publish(self, shard: int, rows: dict[int, Row], to: Path) -> None:
        try:
            self._write(self._table(shard, rows), to)
        except (Stopped, MemoryError):
            raise
        except Exception:  # whatever Arrow raises; its text quotes the value
            written = self._writable(shard, rows)
            if written == rows:
                raise
            self._write(self._table(shard, written), to)

    def _table(self, shard: int, rows: dict[int, Row]) -> pa.Table:
        """Rows of a shard by their index, as its part has them."""
        import pyarrow as pa
        import pyarrow.compute as pc

        work = self.worklist.read_row_group(shard, use_threads=False)
        indices = sorted(rows)
        if len(indices) < work.num_rows:
            work = work.take([i - shard * SHARD for i in indices])
        found = pa.Table.from_pylist(
            [rows[i].values() for i in indices], pa.schema([schema().field(n) for n in FINDINGS])
        )
        columns = {n: (found if n in FINDINGS else work)[n] for n in self.schema.names}
        # What could not be read is known by what the list says of it.
        for name in ("size", "mtime"):
            column = columns[f"file_{name}"]
            columns[f"file_{name}"] = pc.coalesce(column, work[name].cast(column.type))
        return pa.table(list(columns.values()), schema=self.schema)

    def _writable(self, shard: int, rows: dict[int, Row]) -> dict[int, Row]:
        """The rows, and a failed one in the place of each of which no part can be made."""
        try:
            table = self._table(shard, rows)
            with durable.parquet(BytesIO(), table.schema, "zstd") as writer:
                writer.write_table(table)
            return rows
        except MemoryError:
            raise
        except Exception:  # as in _publish
            indices = [*rows]
            if len(indices) == 1:
                return {indices[0]: UNWRITABLE}
            middle = len(indices) // 2
            halves = ({i: rows[i] for i in half} for half in (indices[:middle], indices[middle:]))
            return {i: r for half in halves for i, r in self._writable(shard, half).items()}

    def _write(self, table: pa.Table, to: Path) -> None:
        """Publishes a table as ``to``, once it reads back as written."""
        temporary = to.with_suffix(".new")
        with durable.stopping(self._out):
            try:
                with durable.create(temporary) as file:
                    with durable.parquet(file, table.schema, "zstd") as writer:
                        writer.write_table(table)
                    durable.finish(file)
                with parquet.opened(temporary) as file:
                    if file.read(["row_id"], use_threads=False)["row_id"] != table["row_id"]:
                        raise Stopped(f"{temporary.name} does not read back as written")
                durable.publish(temporary, to)
            finally:
                temporary.unlink(missing_ok=True)
