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
    """Writes the work list of ``manifest``; raises UsageError naming file, row and column."""
    import pyarrow as pa

    from comit.results import COLUMNS

    schema, batches = _open(manifest)
    identifiers, names = selection.identifiers, [n for n in schema.names if n not in ("path", "id")]
    if identifiers.mode != "plain":
        if unknown := [n for n in selection.keep if n not in names]:
            raise UsageError(f"{manifest} has no column {unknown[0]!r} to keep")
        names = [n for n in names if n in selection.keep]
    renamed = unlike(names, (*COLUMNS, *OWN_COLUMNS))
    if duplicates := [n for n, k in Counter(renamed).items() if k > 1]:
        raise UsageError(f"{manifest} has two columns that both become {duplicates[0]!r}")
    passed = [_plain(schema.field(n)).with_name(r) for n, r in zip(names, renamed, strict=True)]
    seen: dict[str, int] = {}
    occurrences: Counter[bytes] = Counter()
    base, count = os.fsencode(selection.root or manifest.parent), 0
    jail = os.path.realpath(base) if selection.root else None
    with Writer(to, files, passed) as writer:
        for table in rechunk(batches, SHARD):
            paths = table["path"].cast(pa.string()).to_pylist()
            ids = table["id"].cast(pa.string()).to_pylist() if "id" in schema.names else None
            items = []
            for i, path in enumerate(paths):
                name = os.fsencode(path) if path else b""
                if ids is None:
                    identity = identifiers.row_id(name, occurrences[name])
                    occurrences[name] += 1
                elif ids[i] is None:
                    raise UsageError(f"{manifest}: row {count + i} has no id")
                else:
                    identity = identifiers.given(ids[i])
                if (first := seen.setdefault(identity, count + i)) != count + i:
                    raise UsageError(f"{manifest}: rows {first} and {count + i} have the same id")
                file = os.path.join(base, name)  # noqa: PTH118 (bytes)
                problem: Skip | Fail | None = None if path else Fail.NULL_PATH
                if path and _leaves(base, name, jail):
                    problem = Skip.OUTSIDE_ROOT
                known = stamp(file) if problem is None else (None, None)
                shown = identifiers.path(name) if path else path
                items.append(Item(identity, shown, file, *known, problem))
            writer.write(items, [_storage(table[n]) for n in names])
            count += len(paths)
    if not count:
        raise UsageError(f"{manifest} has no rows")


def _leaves(base: bytes, name: bytes, jail: bytes | None) -> bool:
    """Whether a path leads out of where it may: by ``..``, or with a root in any way at all."""
    if jail is not None:
        real = os.path.realpath(os.path.join(base, name))  # noqa: PTH118 (bytes)
        return os.path.commonpath([jail, real]) != jail
    return not os.path.isabs(name) and os.path.normpath(name).split(b"/")[0] == b".."  # noqa: PTH117


def _plain(field: pa.Field) -> pa.Field:
    """A field without an extension type: code behind such a type's name is never called."""
    import pyarrow as pa

    kind = field.type
    return field.with_type(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else field


def _storage(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    if not isinstance(column.type, pa.BaseExtensionType):
        return column
    return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)


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
                column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=True
            )
            reader = pa.csv.open_csv(manifest, convert_options=texts)
            schema, batches = reader.schema, iter(reader)
        else:
            file = pq.ParquetFile(manifest)
            schema, batches = file.schema_arrow, file.iter_batches(batch_size=SHARD)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{manifest} is not a Parquet or CSV table that can be read") from error
    if twice := [n for n, k in Counter(schema.names).items() if k > 1]:
        raise UsageError(f"{manifest} has two columns {twice[0]!r}")
    if "path" not in schema.names:
        raise UsageError(f"{manifest} has no column 'path'; it has {', '.join(schema.names)}")
    kind = schema.field("path").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UsageError(f"{manifest}: column 'path' is {kind}; it must hold text")
    return schema, batches
