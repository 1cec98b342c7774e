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
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from comit.errors import UsageError
from comit.reasons import Fail, Skip
from comit.source import (
    OWN_COLUMNS,
    PARQUET_MAGIC,
    SHARD,
    Item,
    Selection,
    Writer,
    rechunk,
    repeated,
    stamp,
    unlike,
)

if TYPE_CHECKING:
    import pyarrow as pa


def is_manifest(path: Path) -> bool:
    """Whether a file is a Parquet table (by content) or a CSV table (by its name)."""
    if path.suffix.lower() in (".csv", ".parquet"):
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == PARQUET_MAGIC
    except OSError:
        return False


def write(manifest: Path, to: BinaryIO, files: BinaryIO, selection: Selection) -> None:
    """Writes the work list of ``manifest``; raises UsageError naming file, row and column.

    The manifest is read twice, so that what is remembered of a row is 8 bytes.
    """

    from comit.results import COLUMNS

    schema, batches = _open(manifest)
    identifiers, names = selection.identifiers, [n for n in schema.names if n not in ("path", "id")]
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
    twice = repeated(text or "" for text in _column(manifest, key))
    seen: dict[str, int] = {}  # of those alone that may be there twice
    occurrences: Counter[bytes] = Counter()  # likewise
    if selection.root is not None and not selection.root.is_dir():
        raise UsageError(f"the root {selection.root} is not a folder")
    base, count = os.fsencode(selection.root or manifest.parent), 0
    jail = os.path.realpath(base) if selection.root else None
    with Writer(to, files, passed) as writer:
        for table in rechunk(_readable(manifest, batches), SHARD):
            paths = _texts(manifest, table, "path", count)
            ids = _texts(manifest, table, "id", count) if key == "id" else None
            items = []
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
                file = os.path.join(base, name)  # noqa: PTH118 (bytes)
                problem: Skip | Fail | None = None if path else Fail.NULL_PATH
                if path and _leaves(base, name, jail):
                    problem = Skip.OUTSIDE_ROOT
                known = stamp(file) if problem is None else (None, None)
                shown = identifiers.path(name) if path else path
                items.append(Item(identity, shown, file, identifiers.text(name), *known, problem))
            kept = [_cast(table[n], f.type) for n, f in zip(names, passed, strict=True)]
            writer.write(items, kept)
            count += len(paths)
    if not count:
        raise UsageError(f"{manifest} has no rows")
    if stamp(os.fsencode(manifest)) != began:
        raise UsageError(f"{manifest} changed while it was read; run again once it is complete")


def _column(manifest: Path, name: str) -> Iterator[str | None]:
    """The texts of one column, read apart."""
    rows = 0
    for batch in _readable(manifest, _open(manifest)[1]):
        yield from _texts(manifest, batch, name, rows)
        rows += batch.num_rows


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
    without metadata and dictionary, which can hold a name that no row has.
    """
    field = field.with_type(_plain_type(field.type, hidden))
    return field.remove_metadata() if hidden else field


def _plain_type(kind: pa.DataType, hidden: bool) -> pa.DataType:
    import pyarrow as pa

    def plain(nested: pa.Field) -> pa.Field:
        return _plain(nested, hidden)

    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type, hidden)
    if pa.types.is_dictionary(kind) and hidden:
        return _plain_type(kind.value_type, hidden)
    if pa.types.is_struct(kind):
        return pa.struct([plain(kind.field(i)) for i in range(kind.num_fields)])
    if pa.types.is_map(kind):
        return pa.map_(plain(kind.key_field), plain(kind.item_field), kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(plain(kind.value_field), kind.list_size)
    for name in ("list", "large_list", "list_view", "large_list_view"):
        if _is(kind, name):
            make = getattr(pa, "list_" if name == "list" else name)
            return make(plain(kind.value_field))
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


def _readable(manifest: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches; an error of Arrow, which quotes the table, becomes one that does not."""
    import pyarrow as pa

    rows = 0
    while True:
        try:
            batch = next(batches, None)
            if batch is not None:
                batch.validate(full=True)
        except (OSError, pa.ArrowException):
            raise UsageError(
                f"{manifest} cannot be read after row {rows}: a row of another length, or text "
                "that is not UTF-8"
            ) from None
        if batch is None:
            return
        rows += batch.num_rows
        yield batch


def _texts(
    manifest: Path, table: pa.Table | pa.RecordBatch, name: str, row: int
) -> list[str | None]:
    import pyarrow as pa

    try:
        texts: list[str | None] = table[name].cast(pa.string()).to_pylist()
        return texts
    except (pa.ArrowException, UnicodeDecodeError):
        raise UsageError(
            f"{manifest}: column {name!r} holds no text, or none in UTF-8, after row {row}"
        ) from None


def _open(manifest: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The table's schema and its batches; raises UsageError naming file and column."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    try:
        if manifest.suffix.lower() == ".csv":
            # Identifiers keep their leading zeros: what could be a number stays as written.
            header = pa.csv.open_csv(manifest).schema.names
            texts = pa.csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()),
                strings_can_be_null=True,
                null_values=[""],  # a ward may be called NA
            )
            reader = pa.csv.open_csv(manifest, convert_options=texts)
            schema, batches = reader.schema, iter(reader)
        else:
            file = pq.ParquetFile(manifest)
            schema, batches = file.schema_arrow, file.iter_batches(batch_size=SHARD)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{manifest} is not a Parquet or CSV table that can be read") from error
    if "path" not in schema.names:  # without a header, names of columns could be patients'
        raise UsageError(
            f"{manifest} has no column 'path' among its {len(schema.names)}; the first line names "
            "the columns, and the files' is called path"
        )
    if twice := [n for n, k in Counter(schema.names).items() if k > 1]:
        raise UsageError(f"{manifest} has two columns {twice[0]!r}")
    kind = schema.field("path").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is(kind, "string_view")):
        raise UsageError(f"{manifest}: column 'path' is {kind}; it must hold text")
    return schema, batches
