"""A Parquet or CSV table with a column ``path``: every row an item, other columns passed through.

``path`` is relative to the manifest's folder and may not leave it by ``..``, or absolute. With a
root it is relative to that, and what leads out of it in any way is not opened. ``id``, where there
is one, becomes ``row_id`` and must be unique. A column with a name that results use themselves is
passed through as ``manifest_NAME``. Unless identifiers are plain, only columns that the user names
to be kept are passed through: any other may hold a name.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from comit import parquet
from comit.errors import ItemError, UsageError
from comit.reasons import Fail, Skip
from comit.source.address import REFUSALS, REQUESTS, Address, Stores, is_address
from comit.source.base import SHARD, Item, Listing, Selection, stamp, unlike
from comit.source.csvfile import LONGEST, Csv
from comit.source.spelling import spellings
from comit.source.worklist import OWN_COLUMNS, PARQUET_MAGIC, Writer, rechunk, repeated

if TYPE_CHECKING:
    import pyarrow as pa

CSV = (".csv", ".tsv")
Stamp = tuple[int | None, int | None]
Found = tuple[bytes, Skip | Fail | None, Stamp]
NOT_THERE: Stamp = (None, None)
NO_PATH: Found = (b"", Fail.NULL_PATH, NOT_THERE)


def is_manifest(path: Path) -> bool:
    """Whether a file is a Parquet table (by content or name) or a CSV table (by its name)."""
    return path.suffix.lower() in (*CSV, ".parquet") or _is_parquet(path)


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == PARQUET_MAGIC
    except OSError:
        return False


def write(
    manifest: Path, to: BinaryIO, files: BinaryIO, selection: Selection, stores: Stores
) -> Listing:
    """Writes the work list of ``manifest``; raises UsageError naming file, row and column.

    The manifest is read twice, so that what is remembered of a row is 8 bytes.
    """

    from comit.results import COLUMNS

    if selection.root is not None and not selection.root.is_dir():
        raise UsageError(f"the root {selection.root} is not a folder")
    jailed = selection.root is not None
    place = Place(selection.root or manifest.parent, jailed, stores)
    table = Table(manifest, place)
    identifiers, schema = selection.identifiers, table.schema
    names = [n for n in schema.names if n not in ("path", "id")]
    hidden = identifiers.mode != "plain"
    if hidden:
        if unknown := [n for n in selection.keep if n not in names]:
            raise UsageError(f"{manifest} has no column {unknown[0]!r} to keep")
        names = [n for n in names if n in selection.keep]
    renamed = unlike(names, (*COLUMNS, *OWN_COLUMNS))
    if duplicates := [n for n, k in Counter(renamed).items() if k > 1]:
        raise UsageError(f"{manifest} has two columns that both become {duplicates[0]!r}")
    passed = [
        _plain(schema.field(n), hidden).with_name(r) for n, r in zip(names, renamed, strict=True)
    ]
    for n, field in zip(names, passed, strict=True):
        _check(manifest, schema.field(n), field)
    key = "id" if "id" in schema.names else "path"
    began = stamp(os.fsencode(manifest))
    twice = repeated(text or "" for text in table.column(key))
    seen: dict[str, int] = {}  # of those alone that may be there twice
    occurrences: Counter[bytes] = Counter()  # likewise
    count = 0
    with Writer(to, files, passed) as writer:
        for rows in rechunk(table.batches(), SHARD):
            paths = table.texts(rows, "path", count)
            ids = table.texts(rows, "id", count) if key == "id" else None
            items = []
            place.look_ahead(paths)
            for i, path in enumerate(paths):
                name = os.fsencode(path) if path else b""
                known_by = path if ids is None else ids[i]
                doubtful = hash(known_by or "") in twice or b"\0" in name
                if ids is None:
                    identity = identifiers.row_id(name, occurrences[name])
                    if doubtful:
                        occurrences[name] += 1
                elif known_by is None:
                    raise UsageError(f"{manifest}: row {count + i} has no id")
                else:
                    identity = identifiers.given(known_by)
                if doubtful and (first := seen.setdefault(identity, count + i)) != count + i:
                    raise UsageError(f"{manifest}: rows {first} and {count + i} have the same id")
                file, problem, known = place.find(path) if path else NO_PATH
                shown = identifiers.path(name) if path else path
                items.append(Item(identity, shown, file, identifiers.text(name), *known, problem))
            kept = [_cast(rows[n], f.type) for n, f in zip(names, passed, strict=True)]
            writer.write(items, kept)
            count += len(paths)
    if not count:
        raise UsageError(f"{manifest} has no rows")
    if stamp(os.fsencode(manifest)) != began:
        raise UsageError(f"{manifest} changed while it was read; run again once it is complete")
    return Listing(notes=(*table.notes(), *place.notes(manifest)))


class Place:
    """Where a manifest's paths begin, and the files that they mean."""

    def __init__(self, base: Path, jailed: bool, stores: Stores | None = None) -> None:
        self.base, self._stores = base, stores
        self._objects: dict[str, Found] = {}  # by address, of the rows in hand
        self._refused = 0  # addresses one after the other that no store told of
        self._base = os.fsencode(base)
        self._jail = os.path.realpath(self._base) if jailed else None
        self.found = self.missing = self.respelled = 0

    def find(self, path: str) -> Found:
        """The file, what is wrong with it and its stamp.

        Where no file has the name as written, one is looked for under other spellings.
        """
        name = os.fsencode(path)
        if is_address(name):
            return self._objects.get(path, (name, Skip.OUTSIDE_ROOT, NOT_THERE))
        file, problem, known = self._looked_at(name)
        if problem is None and known == NOT_THERE:
            for other in spellings(path, self._is_there):
                found = self._looked_at(other)
                if found[1] is not None or found[2] != NOT_THERE:
                    self.respelled += found[1] is None
                    file, problem, known = found
                    break
        self.found += known != NOT_THERE
        self.missing += problem is None and known == NOT_THERE
        return file, problem, known

    def is_there(self, path: str) -> bool:
        """Whether a path names a file, as it is written."""
        return bool(path) and (is_address(path) or self._is_there(os.fsencode(path)))

    def look_ahead(self, paths: Sequence[str | None]) -> None:
        """Asks the stores for all addresses among some paths, many at a time.

        What cannot be asked for now is fetched all the same, and has its reason then. With a root
        an address is outside. Raises UsageError for an address that comit cannot read, and where
        the stores refuse everything.
        """
        addresses = [path for path in dict.fromkeys(paths) if path and is_address(path)]
        self._objects = {}
        if (stores := self._stores) is None or self._jail is not None or not addresses:
            return

        def asked(address: Address) -> Stamp:
            try:
                found = stores.look(address)
            except ItemError:
                return NOT_THERE
            return found.size, found.mtime

        parsed = [Address.of(path) for path in addresses]
        with ThreadPoolExecutor(REQUESTS) as threads:
            for path, address, known in zip(
                addresses, parsed, threads.map(asked, parsed), strict=True
            ):
                self._objects[path] = (os.fsencode(path), None, known)
                self._refused = 0 if known != NOT_THERE else self._refused + 1
                if self._refused == REFUSALS and not self.found:
                    raise UsageError(
                        f"{address.place} tells of none of {REFUSALS} objects of the manifest; "
                        "check the addresses, the network, the credentials and --endpoint"
                    )
                self.found += known != NOT_THERE

    def notes(self, manifest: Path) -> list[str]:
        """What to know of where the files were found."""
        if self.missing and not self.found:
            return [
                f"no file of {manifest} is there ({self.missing:,} looked for): its paths begin at "
                f"{self.base.absolute()}; name another folder with --root"
            ]
        if self.respelled:
            return [
                f"{manifest}: files found under another spelling than the table's (backslashes, or "
                f"accents composed otherwise): {self.respelled:,}"
            ]
        return []

    def _is_there(self, name: bytes) -> bool:
        return self._looked_at(name)[2] != NOT_THERE

    def _looked_at(self, name: bytes) -> Found:
        file = os.path.join(self._base, name)  # noqa: PTH118 (bytes)
        if _leaves(self._base, name, self._jail):
            return file, Skip.OUTSIDE_ROOT, NOT_THERE
        return file, None, stamp(file)


class Table:
    """A manifest's rows, read as often as asked for; raises UsageError naming file and column."""

    def __init__(self, manifest: Path, place: Place) -> None:
        import pyarrow as pa

        self._manifest = manifest
        self._csv: Csv | None = None
        try:
            if manifest.suffix.lower() in CSV and not _is_parquet(manifest):
                self._csv = Csv(manifest, place.is_there)
                # Identifiers keep their leading zeros: what could be a number stays as written.
                self.schema = pa.schema([(n, pa.string()) for n in self._csv.names])
            else:
                with parquet.opened(self._manifest) as file:
                    self.schema = file.schema_arrow
        except (OSError, pa.ArrowException) as error:
            raise UsageError(
                f"{manifest} is not a Parquet or CSV table that can be read"
            ) from error
        names = self.schema.names
        if b"comit_run_id" in (self.schema.metadata or {}):
            raise UsageError(
                f"{manifest} holds results of comit; give the folder or the manifest that was "
                "screened"
            )
        if "path" not in names:  # without a header, names of columns could be patients'
            raise UsageError(
                f"{manifest} has no column 'path' among its {len(names)}; the first line names "
                "the columns, and the files' is called path"
            )
        if twice := [n for n, k in Counter(names).items() if k > 1]:
            raise UsageError(f"{manifest} has two columns {twice[0]!r}")
        kind = self.schema.field("path").type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(_is(kind, name) for name in ("string", "large_string", "string_view")):
            raise UsageError(f"{manifest}: column 'path' is {kind}; it must hold text")

    def notes(self) -> list[str]:
        """What to know of how the table was read."""
        return self._csv.notes() if self._csv else []

    def column(self, name: str) -> Iterator[str | None]:
        """The texts of one column, read apart."""
        rows = 0
        for batch in self.batches([name]):
            yield from self.texts(batch, name, rows)
            rows += batch.num_rows

    def texts(self, rows: pa.Table | pa.RecordBatch, name: str, row: int) -> list[str | None]:
        """A column of some rows, the first of which is number ``row``."""
        import pyarrow as pa

        try:
            texts: list[str | None] = rows[name].cast(pa.string()).to_pylist()
            return texts
        except (pa.ArrowException, UnicodeDecodeError):
            raise UsageError(
                f"{self._manifest}: column {name!r} holds no text, or none in UTF-8, after row "
                f"{row}"
            ) from None

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows; an error of Arrow, which quotes the table, becomes one that does not."""
        import pyarrow as pa

        if self._csv is not None:
            yield from self._csv_batches(self._csv)
            return
        rows = 0
        try:
            with parquet.opened(self._manifest) as file:
                for batch in file.iter_batches(batch_size=SHARD, columns=columns):
                    batch.validate(full=True)
                    yield batch
                    rows += batch.num_rows
                whole = rows == file.metadata.num_rows
        except (OSError, pa.ArrowException):
            whole = False
        if not whole:
            raise UsageError(
                f"{self._manifest} cannot be read after row {rows}: the Parquet file is damaged, "
                "or holds text that is not UTF-8; write it anew"
            ) from None

    def _csv_batches(self, table: Csv) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        def batch() -> pa.RecordBatch:
            # A ward may be called NA: only what is empty is null.
            columns = ([cell or None for cell in cells] for cells in zip(*held, strict=True))
            arrays = [pa.array(column, pa.string()) for column in columns]
            return pa.record_batch(arrays, schema=self.schema)

        held: list[list[str]] = []
        size = 0
        for cells in table.rows():
            held.append(cells)
            size += sum(map(len, cells))
            if len(held) == SHARD or size > LONGEST:
                yield batch()
                held, size = [], 0
        if held:
            yield batch()


def _leaves(base: bytes, name: bytes, jail: bytes | None) -> bool:
    """Whether a path leads out of where it may: by ``..``, or with a root in any way at all."""
    if jail is not None:
        if b"\0" in name:
            return False  # nothing can be opened by such a name
        real = os.path.realpath(os.path.join(base, name))  # noqa: PTH118 (bytes)
        return os.path.commonpath([jail, real]) != jail
    return not os.path.isabs(name) and os.path.normpath(name).split(b"/")[0] == b".."  # noqa: PTH117


def _plain(field: pa.Field, hidden: bool) -> pa.Field:
    """A field, and those nested in it, of types that every later night can filter and join.

    Without extension types: code behind such a type's name is never called. Views, which Arrow
    reads and cannot filter, become what they are views of. Where identifiers are hidden also
    without what can hold a name that no row has: metadata, dictionaries, names of time zones and of
    the parts of lists and maps. A struct's names stay, like the column's, which the user named.
    """
    field = field.with_type(_plain_type(field.type, hidden))
    return field.remove_metadata() if hidden else field


def _plain_type(kind: pa.DataType, hidden: bool) -> pa.DataType:
    import pyarrow as pa

    def plain(nested: pa.Field, name: str | None = None) -> pa.Field:
        field = _plain(nested, hidden)
        return field.with_name(name) if name and hidden else field

    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type, hidden)
    if pa.types.is_dictionary(kind) and hidden:
        return _plain_type(kind.value_type, hidden)
    if pa.types.is_struct(kind):
        return pa.struct([plain(kind.field(i)) for i in range(kind.num_fields)])
    if pa.types.is_map(kind):
        key, value = plain(kind.key_field, "key"), plain(kind.item_field, "value")
        return pa.map_(key, value, kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(plain(kind.value_field, "element"), kind.list_size)
    for name in ("list", "large_list", "list_view", "large_list_view"):
        if _is(kind, name):
            make = getattr(pa, "list_" if name == "list" else name)
            return make(plain(kind.value_field, "element"))
    if pa.types.is_timestamp(kind) and kind.tz and hidden:
        return pa.timestamp(kind.unit, "UTC")
    if _is(kind, "string_view"):
        return pa.string()
    return pa.binary() if _is(kind, "binary_view") else kind


def _is(kind: pa.DataType, name: str) -> bool:
    """Whether a type is a ``name``: some of these Arrow has only since version 16."""
    import pyarrow as pa

    return bool(getattr(pa.types, f"is_{name}", lambda _: False)(kind))


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return column if column.type.equals(kind, check_metadata=True) else column.cast(kind)


def _check(manifest: Path, before: pa.Field, field: pa.Field) -> None:
    """Raises UsageError now where a later night could not carry a column along."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        empty = _cast(pa.chunked_array([pa.nulls(0, before.type)]), field.type)
        file = pa.BufferOutputStream()
        pq.write_table(pa.table([empty], schema=pa.schema([field])), file)
        table = pq.read_table(pa.BufferReader(file.getvalue()))
        table.filter(pa.array([], pa.bool_())).take(pa.array([], pa.int64()))
    except pa.ArrowException:
        raise UsageError(
            f"{manifest}: column {field.name!r} is {before.type}, which cannot be kept with "
            "results; leave it out, or store it as text"
        ) from None
