"""What is to be screened: folders, files, or a manifest become a frozen work list.

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

import hashlib
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from comit import durable
from comit.errors import UsageError
from comit.identifiers import Identifiers
from comit.reasons import REASONS, Fail, Skip
from comit.results import EARLIEST, LATEST, STAGING

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
    ours: tuple[Path, ...] = ()  # paths inside the folder that are results
    exclude: tuple[str, ...] = ()  # patterns of what to leave out, as in a .gitignore file
    include_hidden: bool = False  # takes what machines make, too: comit.source.leave_out
    identifiers: Identifiers = Identifiers()
    keep: tuple[str, ...] = ()  # manifest columns that may be passed through unless plain
    root: Path | None = None  # where a manifest's paths begin, and what they may not leave


@dataclass(frozen=True)
class Listing:
    """What was met on the way of listing an input, beside its items."""

    left_out: dict[str, int] = field(default_factory=dict)  # rule -> files and folders
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Input:
    """What is screened: a folder, an image or a manifest, or several folders and files.

    ``root`` is the folder that names are relative to: a single folder itself, else the deepest
    folder that all inputs lie in. Raises UsageError where one is not there or cannot be an input.
    """

    paths: tuple[Path, ...]
    root: Path = field(init=False)
    is_manifest: bool = field(init=False)

    @staticmethod
    def of(source: Path | str | Sequence[Path | str]) -> Input:
        """One input, or several."""
        return Input(tuple(map(Path, [source] if isinstance(source, Path | str) else source)))

    def __post_init__(self) -> None:
        from comit.source.manifest import is_manifest

        if not self.paths:
            raise UsageError("nothing to screen: name a folder, images or a manifest")
        for path in self.paths:
            if not path.exists():
                raise UsageError(f"{path} does not exist; give a folder, an image or a manifest")
            if (path / STAGING).is_dir():
                raise UsageError(
                    f"{path} holds results of comit; give the folder or the manifest that was "
                    "screened"
                )
        manifests = [p for p in self.paths if p.is_file() and is_manifest(p)]
        if manifests and len(self.paths) > 1:
            raise UsageError(f"{manifests[0]} is a table; give a manifest without other inputs")
        object.__setattr__(self, "is_manifest", bool(manifests))
        if len(self.paths) == 1:
            (path,) = self.paths
            object.__setattr__(self, "root", path if path.is_dir() else path.parent)
            return
        paths = [Path(os.path.abspath(p)) for p in self.paths]  # noqa: PTH100 (links stay)
        folders = {p for p in paths if p.is_dir()}
        apart = sorted({p for p in paths if folders.isdisjoint(p.parents)}, key=os.fsencode)
        object.__setattr__(self, "paths", tuple(apart))
        above = Path(os.path.commonpath([p.parent for p in paths]))
        object.__setattr__(self, "root", above)

    def __str__(self) -> str:
        return str(self.paths[0]) if len(self.paths) == 1 else f"{len(self.paths)} inputs"

    def described(self) -> bytes:
        """What tells one input from another."""
        if len(self.paths) == 1:
            return os.fsencode(self.paths[0].resolve())
        names = b"\0".join(map(os.fsencode, self.paths))
        digest = hashlib.blake2b(names, digest_size=8).hexdigest()
        return b"%s (%d inputs, %s)" % (
            os.fsencode(self.root.resolve()),
            len(self.paths),
            digest.encode(),
        )


def write_worklist(
    source: Input, to: BinaryIO, files: BinaryIO, selection: Selection = Selection()
) -> Listing:
    """Enumerates ``source`` into the work list ``to`` and the paths to open, ``files``.

    Raises UsageError where there is nothing to screen or the manifest cannot be used.
    """
    from comit.source import folder, manifest

    given = {
        "--pattern": selection.pattern != "*",
        "--exclude": selection.exclude,
        "--include-hidden": selection.include_hidden,
    }
    single = len(source.paths) == 1 and not source.paths[0].is_dir()
    if single and (idle := [name for name, value in given.items() if value]):
        raise UsageError(f"{idle[0]} is for folders, and {source} is none")
    if source.is_manifest:
        return manifest.write(source.paths[0], to, files, selection)
    if selection.root is not None:
        raise UsageError(f"a root is for the paths of a manifest, and {source} is none")
    if selection.keep:
        raise UsageError(f"--keep is for columns of a manifest, and {source} is none")
    left_out: Counter[str] = Counter()
    items = folder.items(source, selection, left_out)
    with Writer(to, files) as writer:
        while chunk := list(islice(items, SHARD)):
            writer.write(chunk)
    return Listing(dict(left_out.most_common()))


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
