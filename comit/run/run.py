"""The rows of one run on their way to disk: nothing is lost, and nothing is there twice.

The staging folder of a run, beside or inside its results (:mod:`comit.run.target`)::

    lock              held (flock) by the one run that may write; freed by the kernel
    worklist.parquet  every item, frozen when the run began, a row group a shard
    paths.parquet     the file of every item; with --identifiers hashed or none only in memory
    run.json          the settings the run began with; its presence freezes the list
    part-00000.parquet     all rows of a shard: publishing it is the commit
    partial-00001.parquet  the rows of a shard that a stopped run had

A run that finds them resumes where they end; the last step merges the parts, puts the result in
place and empties the folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from comit import durable, heap, parquet
from comit.durable import nameless
from comit.errors import ComitError, Stopped, UsageError
from comit.identifiers import Identifiers
from comit.results import STAGING, Row
from comit.run.lock import lock
from comit.run.merge import CONTENT, Tally, final_schema, merge
from comit.run.provenance import differences
from comit.run.shards import Shards
from comit.run.target import KEY, MERGED, RUN, Folder, clear, damaged, find, read_state
from comit.source.base import SHARD, Item, Listing
from comit.source.worklist import rechunk

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Upgrade = Literal["refuse", "keep", "rescreen"]
Enumerate = Callable[[BinaryIO, BinaryIO], Listing]


class Run:
    """Writes the results of one run to ``out``; a context manager that holds the lock.

    ``restart`` forgets an unfinished run; ``retry_failed`` screens again what failed before.
    Raises UsageError where ``out`` cannot be written or another run writes it, Stopped where the
    disk fails: what was published stays and the same command resumes.
    """

    def __init__(self, out: Path | str, restart: bool = False, retry_failed: bool = False) -> None:
        self._target = find(out)
        self.out, self.staging = self._target.out, self._target.staging
        self._grows = isinstance(self._target, Folder)
        self._retry = retry_failed
        self._closing = ExitStack()  # files that are open while the run lasts
        self._closing.callback(os.close, lock(self.out, self.staging))
        self._mutex = Lock()
        self._under_way = False  # frozen and not finished: whatever ends the run, it resumes
        self._pending: dict[int, dict[int, Row]] = {}  # shard -> index -> row
        self._rescreen = False  # every file, whatever rows there are
        self.unchanged = 0  # items left out because earlier rows of theirs stand
        self.done = 0  # rows that earlier, interrupted runs published
        self.listing = Listing()  # what was met beside the items
        try:
            with self._stopping():
                self._target.recover()
            self._target.check()
            if retry_failed and not self._target.files():
                raise UsageError(f"{self.out} has no rows that could be screened again")
            if restart:
                self._clear()
        except BaseException:
            with self._closing:
                if not self.resumable:
                    self._target.tidy()
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._closing:
            gone = self._under_way and not self.resumable
            if self.resumable:
                if self._pending:
                    self._stop()
            elif not gone:  # finished, or never began: leave nothing behind
                self._target.tidy()
        if gone and isinstance(raised, ComitError | OSError):
            raise Stopped(
                f"{self.staging} is gone, and with it the rows of this run: {self.out} was removed "
                "or renamed. Put it back, and the same command resumes; else it begins anew"
            ) from raised
        if self._under_way and isinstance(raised, OSError):
            raise durable.failed(self.out, raised) from raised
        if self._under_way and isinstance(raised, UsageError):
            raise Stopped(
                f"{raised}. The rows so far are kept: the same command resumes"
            ) from raised

    @property
    def resumable(self) -> bool:
        """Whether an earlier run froze a work list here and did not finish it."""
        return (self.staging / RUN).exists()

    def key(self) -> bytes:
        """The key of these results, drawn when it is first asked for.

        Raises UsageError where there are results that another key was used for.
        """
        path = self.staging / KEY
        if not path.exists():
            if self._grows and self._target.files():
                raise UsageError(
                    f"the key of {self.out} is gone ({path}), so its rows cannot be told from new "
                    "ones; give these results another --out"
                )
            if self._retry:
                raise UsageError(
                    f"{self.out} keeps no key, so with --identifiers none its rows cannot be "
                    "retried; that takes a folder for --out"
                )
            with self._stopping():
                durable.write_json(path, {"key": os.urandom(32).hex()})
        try:
            return bytes.fromhex(read_state(path, ("key",))["key"])
        except (TypeError, ValueError):
            raise damaged(path) from None

    def accept(self, metadata: dict[str, str], upgrade: Upgrade = "refuse") -> None:
        """Raises UsageError where results of this ``metadata`` cannot join those that are here.

        ``upgrade`` says what becomes of rows of another model or version: their folder is
        refused, they are kept, or every file that is there is screened again.
        """
        if (self._grows or self._retry) and not self.resumable:
            joins = self._target.joins(metadata, self._grows and upgrade != "refuse")
            self._rescreen = not joins and upgrade == "rescreen"

    def list(self, enumerate_to: Enumerate, private: bool = False) -> int:
        """Makes the work list and returns its length; a list that a run froze stands.

        Without ``private`` the items' paths are kept beside it. With it they are only in memory,
        and a resumed run finds them again by their ``row_id``.
        """

        fresh = not self.resumable
        if fresh:
            self._clear()
        with self._stopping():
            if fresh or private:
                paths = self._enumerate(enumerate_to, fresh, private)
            if not private:
                paths = self._kept_paths()
        self._closing.enter_context(paths)
        heap.trim()  # what listing took, before the long part
        self.shards = self._closing.enter_context(Shards(self.out, self.staging, paths))
        self.items = self.shards.items
        return self.items

    def freeze(
        self,
        settings: dict[str, Any],
        metadata: dict[str, str],
        names: Identifiers | None = None,
    ) -> None:
        """Freezes the work list together with what the run's rows will depend on.

        ``metadata`` goes into the results; ``names`` says what these may hold of identifiers.
        Raises UsageError naming every setting that differs from the run to be resumed, or the
        columns that earlier results have not.
        """
        settings = {**settings, "--retry-failed": self._retry}
        if self.resumable:
            run = read_state(self.staging / RUN, ("run_id", "began", "settings"))
            try:
                datetime.fromisoformat(run["began"])
                bytes.fromhex(run["run_id"])
                dict(run["settings"])
                left_out = {str(k): int(v) for k, v in dict(run.get("left out", {})).items()}
                self.listing = Listing(left_out, tuple(map(str, run.get("notes", ()))))
            except (TypeError, ValueError):
                raise damaged(self.staging / RUN) from None
            before = run["settings"]
            if changed := differences(before, settings):
                raise UsageError(
                    f"{self.out} has an unfinished run with another {', '.join(changed)}; "
                    "run as before to resume it, or add --restart to begin again"
                )
        else:
            if self._grows or self._retry:
                self._target.refuse_columns(final_schema(self.shards.schema))
            run = {
                "run_id": os.urandom(8).hex(),
                "began": datetime.now(UTC).isoformat(),
                "settings": settings,
                "left out": self.listing.left_out,
                "notes": self.listing.notes,
            }
            with self._stopping():
                for name in ("worklist.parquet", "paths.parquet"):
                    if (self.staging / name).exists():
                        durable.sync(self.staging / name)
                durable.write_json(self.staging / RUN, run)
        self._under_way, self._names = True, names or Identifiers()
        self.run_id, self._began = run["run_id"], datetime.fromisoformat(run["began"])
        self._metadata = {
            "comit_run_id": self.run_id,
            **metadata,
            "comit_left_out": json.dumps(self.listing.left_out),
        }

    def todo(self) -> Iterator[tuple[int, Item]]:
        """Every item that has no row yet, with its index, read shard by shard."""
        for shard in range(len(self.shards)):
            if self.shards.committed(shard) is not None:
                self.done += self.shards.size(shard)
                continue
            rows = self.shards.restored(shard)
            with self._mutex:
                self._pending[shard] = rows
            self.done += len(rows)
            yield from ((i, item) for i, item in self.shards.of(shard) if i not in rows)

    def add(self, index: int, row: Row) -> None:
        """Takes the row of item ``index``; commits its shard once that is complete.

        Its identifiers are hidden here, as the run was told (:meth:`freeze`).
        """
        shard = index // SHARD
        with self._mutex:
            rows = self._pending[shard]
            if index in rows:
                raise AssertionError(f"item {index} has two rows")
            rows[index] = self._names.row(row)
            if len(rows) < self.shards.size(shard):
                return
            del self._pending[shard]
        self.shards.commit(shard, rows)

    def _stop(self) -> None:
        """Keeps the rows of unfinished shards, for the next run to go on from."""
        for shard, rows in sorted(self._pending.items()):
            if rows:
                self.shards.keep(shard, rows)

    def finish(self) -> Tally:
        """Merges the parts, puts the result in place and ends the run."""
        merged = self.staging / MERGED
        run = (self.run_id, self._began)
        heap.trim()  # what screening took
        with self._stopping():
            tally = merge(self._parts, self._earlier, merged, run, self._metadata)
            if not _same_rows(merged, self.shards.worklist):
                raise Stopped("the merged file is incomplete; run the same command to redo it")
            name = f"night-{self._began:%Y%m%dT%H%M%SZ}-{self.run_id}.parquet"
            self._target.put(merged, name, carry=self._retry)
        self._under_way = False
        return tally

    def rows_in_out(self) -> int:
        """The rows that the results have, with those of earlier runs."""
        return sum(parquet.rows(file) for file in self._target.files())

    def _parts(self, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        for shard in range(len(self.shards)):
            part = self.shards.committed(shard, columns)
            if part is None:
                raise Stopped(f"part {shard} is damaged; run the same command to redo it")
            yield part

    def _earlier(self) -> Iterator[pa.Table]:
        """What tells duplicates, of rows that stay beside those of this run."""
        import pyarrow.compute as pc

        table = self._target.earlier(("row_id", *CONTENT)) if self._grows or self._retry else None
        if table is not None:
            new = self.shards.worklist.read(columns=["row_id"])["row_id"].combine_chunks()
            yield table.filter(pc.invert(pc.is_in(table["row_id"], new)))

    # -- the list -----------------------------------------------------------------------------

    def _enumerate(self, enumerate_to: Enumerate, fresh: bool, private: bool) -> BinaryIO:
        """Enumerates, and takes what is to be done (fresh) or what was frozen.

        Returns the items' files: open if they are private, else closed.
        """
        import pyarrow.parquet as pq

        listed, worklist = self.staging / "listed.parquet", self.staging / "worklist.parquet"
        with self._place("listed-paths.parquet", private) as paths, ExitStack() as closing:
            with durable.create(listed) as items:
                self.listing = enumerate_to(items, paths)
            chosen = closing.enter_context(self._place("paths.parquet", private))
            if fresh:
                wanted = self._wanted(listed)
                if wanted is None:
                    listed.replace(worklist)
                else:
                    with durable.create(worklist) as file:
                        _take(parquet.opened(listed), wanted, file)
                _take(pq.ParquetFile(paths), wanted, chosen)
            else:
                rows = self._realigned(parquet.table(listed, ["row_id", "name"]))
                files = pq.read_table(paths).take(rows)
                pq.write_table(files, chosen, row_group_size=SHARD)
            if private:
                closing.pop_all()
        for name in ("listed.parquet", "listed-paths.parquet"):
            (self.staging / name).unlink(missing_ok=True)
        return chosen

    def _kept_paths(self) -> BinaryIO:
        try:
            return (self.staging / "paths.parquet").open("rb")
        except FileNotFoundError:
            raise UsageError(
                f"{self.out} has an unfinished run that kept no paths: it was begun with other "
                "identifiers; run as before to resume it, or add --restart to begin again"
            ) from None

    def _place(self, name: str, private: bool) -> BinaryIO:
        return nameless() if private else durable.create(self.staging / name)

    def _wanted(self, listed: Path) -> pa.BooleanArray | None:
        """Which of the listed items are to be screened; None for all."""
        import pyarrow as pa
        import pyarrow.compute as pc

        before = None
        if self._grows or self._retry:
            before = self._target.earlier(("row_id", "path", "file_size", "file_mtime", "status"))
        if before is None:
            return None
        now = parquet.table(listed, ["row_id", "path", "size", "mtime"])
        at = pc.index_in(now["row_id"], before["row_id"].combine_chunks())
        was = before.take(at)
        stamps = (
            (now["size"], was["file_size"]),
            (now["mtime"], was["file_mtime"].cast(pa.int64())),
        )
        # What cannot be looked at has not changed: a share that is away takes no row back.
        here = pc.is_valid(now["size"])
        path = pc.not_equal(pc.fill_null(now["path"], ""), pc.fill_null(was["path"], ""))
        size, mtime = (pc.not_equal(pc.fill_null(a, -1), pc.fill_null(b, -1)) for a, b in stamps)
        new, failed = pc.is_null(at), pc.fill_null(pc.equal(was["status"], "failed"), False)
        wanted = pc.and_(failed, self._retry)
        if self._grows:
            changed = pc.and_(here, pc.or_(path, pc.or_(size, mtime)))
            if self._rescreen:
                changed = here
            wanted = pc.or_(wanted, pc.or_(new, changed))
        left = pc.and_(pc.invert(new), pc.invert(wanted))
        self.unchanged = pc.sum(left).as_py() or 0
        return wanted.combine_chunks()

    def _realigned(self, listed: pa.Table) -> pa.ChunkedArray:
        """Where each item of the frozen list is listed; null for one that is not any more."""
        import pyarrow.compute as pc

        frozen = parquet.table(self.staging / "worklist.parquet", ["row_id", "name"])
        # The id of a manifest's row may have got another file since: both must be the same.
        now, then = (
            pc.binary_join_element_wise(t["row_id"], t["name"], "\0") for t in (listed, frozen)
        )
        return pc.index_in(then, now.combine_chunks())

    def _clear(self) -> None:
        """Removes all of an earlier run, the frozen settings first."""
        (self.staging / RUN).unlink(missing_ok=True)
        clear(self.staging, self._target.outlive)

    def _stopping(self) -> AbstractContextManager[None]:
        return durable.stopping(self.out)


def compact(out: Path, rows: int) -> tuple[int, int]:
    """Merges the files of a results folder that have fewer than ``rows`` rows into one.

    Returns how many there were and how many rows they have. Raises UsageError where ``out`` is
    no such folder or a run is writing to it, Stopped where the disk fails.
    """
    staging = out / STAGING
    if not staging.is_dir():
        raise UsageError(f"{out} is not a folder of results; comit screen INPUT --out {out}/ is")
    held = lock(out, staging)
    try:
        with durable.stopping(out):
            folder = Folder(out)
            folder.recover()
            folder.check()
            return folder.compact(rows)
    finally:
        os.close(held)


def _same_rows(merged: Path, worklist: pq.ParquetFile) -> bool:
    """Whether a file has the rows of the work list, and in their order."""
    with parquet.opened(merged) as file:
        if file.metadata.num_rows != worklist.metadata.num_rows:
            return False
        ids = (
            rechunk(f.iter_batches(columns=["row_id"], use_threads=False), SHARD)
            for f in (file, worklist)
        )
        return all(a == b for a, b in zip(*ids, strict=True))


def _take(listed: pq.ParquetFile, wanted: pa.BooleanArray | None, to: BinaryIO) -> None:
    """Copies the wanted rows in row groups of a shard."""

    def chosen() -> Iterator[pa.RecordBatch]:
        start = 0
        for i in range(listed.num_row_groups):
            table = listed.read_row_group(i)
            if wanted is not None:
                mask = wanted.slice(start, table.num_rows)
                start += table.num_rows
                table = table.filter(mask)
            yield from table.to_batches()

    with durable.parquet(to, listed.schema_arrow) as writer:
        for table in rechunk(chosen(), SHARD):
            writer.write_table(table, row_group_size=SHARD)
    to.flush()
