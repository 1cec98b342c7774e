"""Results on their way to disk: nothing is lost, and readers see the old file or the new one.

Beside ``results.parquet``, until it is complete, lies the folder ``.results.parquet.comit``::

    lock              held (flock) by the one run that may write; freed by the kernel
    worklist.parquet  every item, frozen when the run began, a row group a shard
    run.json          the settings the run began with; its presence freezes the list
    part-00000.parquet     all rows of a shard: publishing it is the commit
    partial-00001.parquet  the rows of a shard that a stopped run had

A run that finds them resumes where they end; the last step merges the parts, renames the result
over the target and removes the folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any

from comit.errors import Stopped, UsageError
from comit.results import COLUMNS, FINDINGS, Row, schema
from comit.source import OWN_COLUMNS, SHARD, Item, read_items

if TYPE_CHECKING:
    import pyarrow as pa

MERGED_ROWS = 8192  # rows of a row group of the merged file


@dataclass
class Tally:
    """What the rows of a result say, counted."""

    rows: int = 0
    status: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    flagged: Counter[str] = field(default_factory=Counter)

    def add(self, table: pa.Table) -> None:
        """Counts the rows of a part."""
        self.rows += table.num_rows
        self.status.update(table["status"].to_pylist())
        self.reasons.update(r for r in table["reason"].to_pylist() if r)
        self.warnings.update(w for ws in table["warnings"].to_pylist() for w in ws or ())
        for name in ("unhealthy", "covid"):
            self.flagged[name] += sum(1 for v in table[f"flag_{name}"].to_pylist() if v)


class Sink:
    """Writes the results of one run to ``out``; a context manager that holds the lock.

    Raises UsageError where ``out`` cannot be written or another run writes it, Stopped where the
    disk fails: what was published stays and the same command resumes.
    """

    def __init__(self, out: Path, restart: bool = False) -> None:
        self.out = out
        self.staging = out.with_name(f".{out.name}.comit")
        if out.is_dir():
            raise UsageError(f"{out} is a folder; give the name of a file, such as results.parquet")
        self._lock = self._acquire()
        self._mutex = Lock()
        self._pending: dict[int, dict[int, Row]] = {}  # shard -> index -> row
        if restart:
            self._clear()

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if not self.resumable:  # finished, or never began: leave nothing behind
                shutil.rmtree(self.staging, ignore_errors=True)
            elif self._pending:
                self._stop()
        finally:
            os.close(self._lock)

    @property
    def resumable(self) -> bool:
        """Whether an earlier run froze a work list here and did not finish it."""
        return (self.staging / "run.json").exists()

    def list(self, enumerate_to: Callable[[Path], int]) -> None:
        """Writes the work list, unless an unfinished run has frozen one: that stands."""
        if not self.resumable:
            self._clear()
            enumerate_to(self.staging / "worklist.parquet")

    def freeze(self, settings: dict[str, Any]) -> None:
        """Freezes the work list together with what the run's rows will depend on.

        Raises UsageError naming every setting that differs from the run to be resumed.
        """
        import pyarrow.parquet as pq

        worklist = self.staging / "worklist.parquet"
        if self.resumable:
            before = json.loads((self.staging / "run.json").read_text())
            if changed := [k for k, v in settings.items() if before["settings"].get(k) != v]:
                raise UsageError(
                    f"{self.out} has an unfinished run with another {', '.join(changed)}; "
                    "run as before to resume it, or add --restart to begin again"
                )
            self.run_id = before["run_id"]
        else:
            self.run_id = os.urandom(8).hex()
            with self._stopping():
                _sync(worklist)
                self._write_json("run.json", {"run_id": self.run_id, "settings": settings})
        self._worklist = pq.ParquetFile(worklist)
        self.items = self._worklist.metadata.num_rows
        self._shards = self._worklist.num_row_groups
        self.done = 0  # rows that earlier runs published

    def todo(self) -> Iterator[tuple[int, Item]]:
        """Every item that has no row yet, with its index, read shard by shard."""
        for shard in range(self._shards):
            expected = self._worklist.metadata.row_group(shard).num_rows
            if self._verified(self._part(shard), shard) is not None:
                self.done += expected
                continue
            rows = self._restore(shard)
            with self._mutex:
                self._pending[shard] = rows
            self.done += len(rows)
            for i, item in enumerate(read_items(self._worklist.read_row_group(shard))):
                if (index := shard * SHARD + i) not in rows:
                    yield index, item

    def add(self, index: int, row: Row) -> None:
        """Takes the row of item ``index``; publishes its shard once that is complete."""
        shard = index // SHARD
        with self._mutex:
            rows = self._pending[shard]
            if index in rows:
                raise AssertionError(f"item {index} has two rows")
            rows[index] = row
            if len(rows) < self._worklist.metadata.row_group(shard).num_rows:
                return
            del self._pending[shard]
        self._publish(shard, rows, self._part(shard))
        self._partial(shard).unlink(missing_ok=True)

    def _stop(self) -> None:
        """Publishes the rows of unfinished shards, for the next run to go on from."""
        for shard, rows in sorted(self._pending.items()):
            if rows:
                self._partial(shard).unlink(missing_ok=True)
                self._publish(shard, rows, self._partial(shard))

    def finish(self, metadata: dict[str, str]) -> Tally:
        """Merges the parts, puts the result in place and removes the staging folder."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        merged = self.staging / "merged.parquet"
        tally = Tally()
        with self._stopping():
            with _private(merged) as file:
                writer, held = None, []
                for shard in range(self._shards):
                    part = self._verified(self._part(shard), shard)
                    if part is None:
                        raise Stopped(f"part {shard} is damaged; run the same command to redo it")
                    tally.add(part)
                    held.append(part)
                    if sum(t.num_rows for t in held) < MERGED_ROWS and shard + 1 < self._shards:
                        continue
                    table = pa.concat_tables(held)
                    if writer is None:
                        named = {"comit_run_id": self.run_id, **metadata}
                        table_schema = table.schema.with_metadata(named)
                        writer = pq.ParquetWriter(file, table_schema, compression="zstd")
                    writer.write_table(table.cast(table_schema), row_group_size=MERGED_ROWS)
                    held = []
                if writer is not None:
                    writer.close()
                os.fsync(file.fileno())
            if pq.read_metadata(merged).num_rows != self.items:
                raise Stopped("the merged file is incomplete; run the same command to redo it")
            mask = os.umask(0)
            os.umask(mask)
            merged.chmod(0o666 & ~mask)
            merged.replace(self.out)
            _sync(self.out.parent)
            self._worklist.close()
            (self.staging / "run.json").unlink()
        return tally

    # -- the folder ---------------------------------------------------------------------------

    def _acquire(self) -> int:
        try:
            self.staging.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(self.staging / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(f"{self.out} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise UsageError(f"another run is writing {self.out}; wait for it to end") from error
        return lock

    def _clear(self) -> None:
        """Removes all of an earlier run but the lock, the frozen settings first."""
        (self.staging / "run.json").unlink(missing_ok=True)
        for path in self.staging.iterdir():
            if path.name != "lock":
                path.unlink()

    def _part(self, shard: int) -> Path:
        return self.staging / f"part-{shard:05d}.parquet"

    def _partial(self, shard: int) -> Path:
        return self.staging / f"partial-{shard:05d}.parquet"

    # -- parts --------------------------------------------------------------------------------

    def _publish(self, shard: int, rows: dict[int, Row], to: Path) -> None:
        """Writes rows beside ``to``, makes them durable, checks them and gives them the name."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        work = self._worklist.read_row_group(shard)
        indices = sorted(rows)
        if len(indices) < work.num_rows:
            work = work.take([i - shard * SHARD for i in indices])
        found = pa.Table.from_pylist([rows[i]._asdict() for i in indices], _findings_schema())
        names = [*COLUMNS, *(n for n in work.column_names if n not in OWN_COLUMNS)]
        columns = [found[n] if n in FINDINGS else work[n] for n in names]
        fields = [schema().field(n) if n in COLUMNS else work.schema.field(n) for n in names]
        temporary = to.with_suffix(".new")
        with self._stopping():
            try:
                with _private(temporary) as file:
                    pq.write_table(
                        pa.table(columns, schema=pa.schema(fields)), file, compression="zstd"
                    )
                    file.flush()
                    os.fsync(file.fileno())
                if pq.read_table(temporary, columns=["row_id"])["row_id"] != work["row_id"]:
                    raise Stopped(f"{temporary.name} does not read back as written")
                os.link(temporary, to)  # fails where the part exists: nobody overwrites a commit
            finally:
                temporary.unlink(missing_ok=True)
            _sync(self.staging)

    def _verified(self, path: Path, shard: int) -> pa.Table | None:
        """The table of a part that holds exactly the rows of its shard; else removes it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not path.exists():
            return None
        try:
            table = pq.read_table(path)
            expected = self._worklist.read_row_group(shard, columns=["row_id"])["row_id"]
            if table["row_id"] == expected:
                return table
        except (OSError, KeyError, pa.ArrowException):
            pass
        path.unlink()
        return None

    def _restore(self, shard: int) -> dict[int, Row]:
        """The rows of a stopped run's partial shard, by index."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(self._partial(shard), columns=["row_id", *FINDINGS])
        except (OSError, pa.ArrowException):
            return {}
        ids = self._worklist.read_row_group(shard, columns=["row_id"])["row_id"].to_pylist()
        position = {row_id: shard * SHARD + i for i, row_id in enumerate(ids)}
        found: dict[int, Row] = {}
        for row in table.to_pylist():
            index = position[row.pop("row_id")]
            found[index] = Row(**row)
        return found

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        temporary = self.staging / f"{name}.new"
        with _private(temporary) as file:
            file.write(json.dumps(content, indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.staging / name)
        _sync(self.staging)

    def _stopping(self) -> _Stopping:
        return _Stopping(self.out)


class _Stopping:
    """Turns a failing disk into Stopped, with the words to resume."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(value, OSError):
            raise Stopped(
                f"writing beside {self.out} failed: {value.strerror or value}; what was published "
                "is kept. Make room and run the same command to resume"
            ) from value


def _findings_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([schema().field(n) for n in FINDINGS])


def _private(path: Path) -> Any:
    """A new file that only its owner may read: staging holds what results hold."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    return os.fdopen(fd, "wb")


def _sync(path: Path) -> None:
    """Makes a file, or the names in a folder, durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
