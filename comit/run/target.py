"""Where results end up: one file that is replaced as a whole, or a folder that grows every night.

A folder is a data set that DuckDB, Polars and pandas read as it is::

    results/
      night-20261122T020000Z-5e0c….parquet   what one run found
      _SUCCESS          absent only while a night is put in place, and until that is repaired
      .comit/           lock, key and staging of the run that is under way

Every row says by its column ``comit_model`` which model made it. Results of another model,
preprocessing, thresholds or schema are another generation: a folder takes one more where the user
asks for it.

A night that screens a file again (it changed, or failed rows are retried) takes its old row out of
the night that held it. What is to be done is written to ``commit.json`` first: a run that is killed
in the middle leaves what the next one needs to finish it.
"""

from __future__ import annotations

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comit import durable, parquet
from comit.errors import Stopped, UsageError
from comit.results import COLUMNS, STAGING, data_files, is_data_name, model_of
from comit.source.worklist import PARQUET_MAGIC

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".parq", ".pq")
JOURNAL, RUN, MERGED, KEY, LOCK = "commit.json", "run.json", "merged.parquet", "key", "lock"
ROW_GROUP = 8192  # rows of a row group, and
HELD_BYTES = 8 * 2**20  # what they may take while they are gathered: memory stays flat
COMPACT_ROWS = 1_000_000  # of a file that compacting leaves alone
ROOT = "comit_root"
# What a night may not differ in from those before, by its name in the metadata of their files.
SAME = {
    "comit_model_sha256": "model",
    "comit_preprocessing": "preprocessing",
    "comit_thresholds": "operating point or gate",
    "comit_schema": "schema",
    "comit_identifiers": "kind of identifiers or key",
    "comit_view_policy": "view policy",
    ROOT: "input folder",
}


# Of these, what makes another generation of results in the same folder.
GENERATION = ("comit_model_sha256", "comit_preprocessing", "comit_thresholds", "comit_schema")


class Target(ABC):
    """Final place and staging folder of a run's results."""

    out: Path
    staging: Path
    foreign: str  # what to say of a Parquet file that holds something else
    grows = False  # whether rows of earlier runs stay
    outlive: tuple[str, ...] = (LOCK, KEY)  # what stays while the staging folder does

    def recover(self) -> None:  # noqa: B027
        """Finishes what a killed run had begun to put in place."""

    def check(self) -> None:
        """Raises UsageError where something else than results lies in their place, or damaged."""
        for file in self.files():
            with legible(file):
                found = parquet.schema(file)
            said = any(key.startswith(b"comit_") for key in found.metadata or ())
            if not said or not {"row_id", "file_mtime"} <= {*found.names}:
                raise UsageError(self.foreign.format(file))

    @abstractmethod
    def files(self) -> list[Path]:
        """The Parquet files that are here, oldest first."""

    @abstractmethod
    def put(self, merged: Path, name: str, carry: bool) -> None:
        """Puts a run's results in place and ends the run. ``carry``: older rows stay beside."""

    @abstractmethod
    def tidy(self) -> None:
        """Removes the staging folder of a run that ended or never began."""

    def earlier(self, columns: Sequence[str]) -> pa.Table | None:
        """Columns of all rows that are here; None without any."""
        import pyarrow as pa

        tables = []
        for file in self.files():
            with legible(file):
                tables.append(parquet.table(file, columns))
        return pa.concat_tables(t.replace_schema_metadata() for t in tables) if tables else None

    def joins(self, metadata: dict[str, str], upgrade: bool) -> bool:
        """Whether results of this metadata are of the generation of the newest that are here.

        Raises UsageError where they cannot join those: of another generation without ``upgrade``,
        and where anything else differs.
        """
        file = max(self.files(), key=_screened, default=None)
        if file is None:
            return True
        found = _metadata(file)
        changed = [k for k in SAME if found.get(k) != metadata[k]]
        if not changed:
            return True
        if upgrade and {*changed} <= {*GENERATION}:
            return False
        if "comit_identifiers" in changed:  # roots of two kinds or keys do not compare
            changed = [k for k in changed if k != ROOT]
        names = [SAME[k] for k in changed]
        if ROOT in changed and found.get("comit_identifiers") == "plain":
            names[names.index(SAME[ROOT])] += f" ({found.get(ROOT)})"
        ways = "run as before, or give these results another --out"
        if {*changed} <= {*GENERATION} and self.grows:
            ways = (
                "run as before, give these results another --out, or choose: --upgrade keep leaves "
                "those rows as they are, --upgrade rescreen screens every file again"
            )
        differs = " and another ".join(names)
        raise UsageError(f"{self.out} holds results of another {differs}; {ways}")

    def refuse_columns(self, schema: pa.Schema) -> None:
        """Raises UsageError where a manifest passes other columns than the results here have.

        Columns of ours that they lack are added when the run's results are put in place.
        """
        import pyarrow as pa

        for file in self.files()[-1:]:
            before, now = (
                pa.schema([f for f in s if f.name not in COLUMNS])
                for s in (parquet.schema(file).remove_metadata(), schema.remove_metadata())
            )
            if before != now:
                both = {*before.names} ^ {*now.names}
                raise UsageError(
                    f"{self.out} holds results with other columns"
                    + (f" ({', '.join(sorted(both))})" if both else " (of another type)")
                    + "; give these results another --out"
                )


class File(Target):
    """``results.parquet``, with ``.results.parquet.comit`` beside it while a run is under way."""

    foreign = "{} is a table that comit did not write and will not replace; give another --out"

    def __init__(self, out: Path) -> None:
        self.out, self.staging = out, out.with_name(f".{out.name}.comit")

    def files(self) -> list[Path]:
        """The file, if there is one."""
        return [self.out] if self.out.exists() else []

    def put(self, merged: Path, name: str, carry: bool) -> None:
        """Replaces the file; with ``carry`` every row that ``merged`` does not have is kept."""
        if carry:
            both = self.staging / "both.parquet"
            _renew(self.out, merged, both)
            both.replace(merged)
        durable.as_others_may_read(merged)
        durable.replace(merged, self.out)
        (self.staging / RUN).unlink()

    def tidy(self) -> None:
        """Leaves nothing behind."""
        shutil.rmtree(self.staging, ignore_errors=True)


class Folder(Target):
    """``results/``, one file a night."""

    foreign = "{} holds no results of comit; move it out of the folder"
    grows = True
    outlive = (LOCK, KEY, JOURNAL)

    def __init__(self, out: Path) -> None:
        self.out, self.staging = out, out / STAGING
        if out.exists() and not self.staging.exists() and any(out.iterdir()):
            raise UsageError(
                f"{out} is a folder with other files in it; give an empty or a new one, or the "
                "name of a file, such as results.parquet"
            )
        try:
            out.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"{out} cannot be written: {error.strerror}") from error

    def files(self) -> list[Path]:
        """The nights, and what compacting made of them."""
        return data_files(self.out)

    def put(self, merged: Path, name: str, carry: bool) -> None:
        """Adds a night; rows that older files have of the same items leave those.

        Files whose columns are those of an earlier version get those of this one.
        """
        import pyarrow.compute as pc

        new = parquet.table(merged, ["row_id"])["row_id"].combine_chunks()
        columns = parquet.schema(merged).remove_metadata()
        replaced: list[str] = []
        removed: list[str] = []
        for file in self.files():
            again = pc.any(pc.is_in(parquet.table(file, ["row_id"])["row_id"], new)).as_py()
            if not again and parquet.schema(file).remove_metadata() == columns:
                continue
            left = self.staging / f"left-{file.name}"
            rows = _rewrite(
                file, left, lambda t: t.filter(pc.invert(pc.is_in(t["row_id"], new))), columns
            )
            (replaced if rows else removed).append(file.name)
        self._commit(name, replaced, removed, ends=True)

    def _commit(self, name: str, replaced: list[str], removed: list[str], ends: bool) -> None:
        """The point of no return: from here on the change is made, by this run or the next."""
        for file in (MERGED, *(f"left-{n}" for n in replaced)):
            durable.as_others_may_read(self.staging / file)
        durable.write_json(
            self.staging / JOURNAL,
            {"add": name, "replace": replaced, "remove": removed, "ends": ends},
        )
        self.recover()

    def recover(self) -> None:
        """Makes the change of the journal; what a killed run has made of it already, stays."""
        journal = self.staging / JOURNAL
        if not journal.exists():
            return
        change = read_state(journal, ("add", "replace", "remove", "ends"))
        lists = [change["replace"], change["remove"]]
        if not all(isinstance(names, list) for names in lists):
            raise damaged(journal)
        for name in (change["add"], *lists[0], *lists[1]):
            if not isinstance(name, str) or not is_data_name(name) or "/" in name or "\0" in name:
                raise UsageError(f"{journal} is damaged: it names files that are not in {self.out}")
        success = self.out / "_SUCCESS"
        success.unlink(missing_ok=True)
        durable.sync(self.out)
        renames = [(self.staging / MERGED, self.out / change["add"])]
        renames += [(self.staging / f"left-{n}", self.out / n) for n in change["replace"]]
        for staged, to in renames:
            if staged.exists():
                staged.replace(to)
        for name in change["remove"]:
            (self.out / name).unlink(missing_ok=True)
        durable.sync(self.out)
        success.touch()
        durable.sync(self.out)
        if change["ends"]:  # compacting leaves an interrupted run as it is
            (self.staging / RUN).unlink(missing_ok=True)
        durable.sync(self.staging)
        journal.unlink()
        durable.sync(self.staging)

    def tidy(self) -> None:
        """Empties the staging folder; of a data set that never came to be nothing stays."""
        if self.files():
            clear(self.staging, self.outlive)
            return
        shutil.rmtree(self.staging, ignore_errors=True)
        with suppress(OSError):  # others' files are in it, or it is gone
            self.out.rmdir()

    def compact(self, rows: int = COMPACT_ROWS) -> tuple[int, int]:
        """Merges the files of fewer than ``rows`` rows into one; the lock must be held.

        Generations stay apart. Returns how many were merged, and how many rows they have.
        """
        generations: defaultdict[tuple[str, ...], list[Path]] = defaultdict(list)
        for file in self.files():
            if parquet.rows(file) < rows:
                said = _metadata(file)
                generations[tuple(said.get(key, "") for key in SAME)].append(file)
        several = [files for files in generations.values() if len(files) > 1]
        found = [self._merge(files) for files in several]
        return sum(map(len, several)), sum(found)

    def _merge(self, files: list[Path]) -> int:
        """Puts one file in the place of several; returns its rows."""
        schemas = [parquet.schema(f) for f in files]
        schema = schemas[-1].with_metadata(_joined([s.metadata or {} for s in schemas]))
        merged = self.staging / MERGED
        expected = sum(parquet.rows(f) for f in files)
        with durable.create(merged) as file:
            with durable.parquet(file, schema, "zstd") as writer:
                for table in gathered(t for f in files for t in row_groups(f)):
                    writer.write_table(table.cast(schema), row_group_size=ROW_GROUP)
            durable.finish(file)
        if parquet.rows(merged) != expected:
            raise Stopped(f"{merged} is incomplete; nothing was changed")
        name = f"compact-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.urandom(4).hex()}.parquet"
        self._commit(name, [], [f.name for f in files], ends=False)
        return expected


def clear(staging: Path, outlive: Sequence[str]) -> None:
    """Removes what a run left in its staging folder."""
    for path in staging.iterdir():
        if path.name not in outlive:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def find(out: Path | str) -> Target:
    """A folder if there is one, or if the name ends in ``/`` or has no suffix; else a file."""
    path = Path(os.path.realpath(out))  # a link stays, what it leads to is replaced
    if not str(out) or (path.exists() and not (path.is_file() or path.is_dir())):
        raise UsageError(f"{str(out)!r} is neither a file nor a folder that could hold results")
    if path.is_dir() or (not path.exists() and (str(out).endswith("/") or not path.suffix)):
        return Folder(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{path} will be a Parquet file: end its name in .parquet, or in / for a folder"
        )
    if path.exists() and not is_parquet(path):
        raise UsageError(
            f"{path} is not a whole Parquet file: something else, or damaged results. Move it "
            "away, or give another --out"
        )
    return File(path)


def is_parquet(path: Path) -> bool:
    """Whether a file begins and ends as a Parquet file does."""
    with path.open("rb") as file:
        begins = file.read(4) == PARQUET_MAGIC
        file.seek(-min(4, path.stat().st_size), os.SEEK_END)
        return begins and file.read() == PARQUET_MAGIC


def read_state(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """A JSON file that comit wrote; raises UsageError where it is damaged."""
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict) and all(k in found for k in keys):
            return found
    except (OSError, ValueError, RecursionError):  # OSError: a folder of that name, a bad block
        pass
    raise damaged(path)


def damaged(path: Path) -> UsageError:
    """What to say of a file of ours that holds something else."""
    return UsageError(f"{path} is damaged; move it away and run again")


def row_groups(file: Path) -> Iterator[pa.Table]:
    """A Parquet file's row groups."""
    with parquet.opened(file) as groups:
        for i in range(groups.num_row_groups):
            with legible(file):
                table = groups.read_row_group(i)
            yield table


@contextmanager
def legible(file: Path) -> Iterator[None]:
    """Names the file of earlier results that cannot be read: no room on the disk mends that."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise UsageError(
            f"{file} is damaged or cannot be read; put a copy of it in its place, or move it away "
            "and its items are screened again"
        ) from error


def gathered(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Tables put together until they make up a row group, or are large."""
    import pyarrow as pa

    held: list[pa.Table] = []
    for table in tables:
        held.append(table.replace_schema_metadata())
        large = sum(t.nbytes for t in held) >= HELD_BYTES
        if large or sum(t.num_rows for t in held) >= ROW_GROUP:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _rewrite(
    old: Path, to: Path, change: Callable[[pa.Table], pa.Table], columns: pa.Schema
) -> int:
    """Writes a durable copy of ``old`` with each row group changed; returns its rows.

    It has these columns, and the metadata that come with them, else those of ``old``. What an
    earlier version did not write is null, but for ``comit_model``, which the file's metadata tell.
    """
    import pyarrow as pa

    metadata, rows = parquet.schema(old).metadata, 0
    model = model_of(_metadata(old))
    schema = columns if columns.metadata else columns.with_metadata(metadata)
    with durable.create(to) as file:
        with durable.parquet(file, schema, "zstd") as writer:
            for table in row_groups(old):
                for field in columns:
                    if field.name not in table.column_names:
                        value = model if field.name == "comit_model" else None
                        made = pa.repeat(pa.scalar(value, field.type), table.num_rows)
                        table = table.append_column(field, made)
                changed = change(table.select(columns.names))
                rows += changed.num_rows
                writer.write_table(changed.cast(schema), row_group_size=ROW_GROUP)
        durable.finish(file)
    return rows


def _renew(old: Path, new: Path, to: Path) -> None:
    """Copies ``old`` with the rows of ``new`` in the places of those with the same ``row_id``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    fresh = parquet.table(new)
    ids = fresh["row_id"].combine_chunks()

    def renewed(table: pa.Table) -> pa.Table:
        at = pc.index_in(table["row_id"], ids)
        here = pa.array(range(table.num_rows), pa.int32())
        chosen = pc.if_else(pc.is_null(at), here, pc.add(at, table.num_rows))
        return pa.concat_tables([table, fresh.cast(table.schema)]).take(chosen)

    if _rewrite(old, to, renewed, fresh.schema) != parquet.rows(old):
        raise Stopped(f"{to} is incomplete; run the same command again")


def _metadata(file: Path) -> dict[str, str]:
    """The key-value metadata of a Parquet file."""
    found = parquet.schema(file).metadata or {}
    return {k.decode(errors="replace"): v.decode(errors="replace") for k, v in found.items()}


def _screened(file: Path) -> datetime:
    """When the newest rows of a file were made, by the statistics of its last row groups."""
    with parquet.opened(file) as opened:
        groups = (opened.metadata.row_group(i) for i in range(opened.num_row_groups))
        chunks = (group.column(i) for group in groups for i in range(group.num_columns))
        found = (c.statistics for c in chunks if c.path_in_schema == "screened_at")
        times = [s.max for s in found if s is not None and s.has_min_max]
    return max(times, default=datetime.min.replace(tzinfo=UTC))


def _joined(all_metadata: list[dict[bytes, bytes]]) -> dict[bytes, bytes]:
    """One value where all files agree, else every value once."""
    keys = sorted({k for metadata in all_metadata for k in metadata})
    values = {k: list(dict.fromkeys(m[k] for m in all_metadata if k in m)) for k in keys}
    return {k: b", ".join(v) for k, v in values.items() if k != b"comit_run_id"}  # a column has it
