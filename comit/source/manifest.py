"""A Parquet or CSV table with a column ``path``: every row an item, other columns passed through.

``path`` is relative to the manifest's folder, or absolute. ``id``, where there is one, becomes
``row_id`` and must be unique. A column with a name that results use themselves is passed through
as ``manifest_NAME``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from comit.errors import UsageError
from comit.reasons import Fail
from comit.source import OWN_COLUMNS, PARQUET_MAGIC, SHARD, display, row_id, worklist_schema

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


def write(manifest: Path, to: Path) -> int:
    """Writes the work list of ``manifest`` to ``to``; returns the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from comit.results import COLUMNS

    schema, batches = _open(manifest)
    names = [n for n in schema.names if n not in ("path", "id")]
    renamed = [f"manifest_{n}" if n in (*COLUMNS, *OWN_COLUMNS) else n for n in names]
    passed = [schema.field(n).with_name(r) for n, r in zip(names, renamed, strict=True)]
    if duplicates := [n for n, k in Counter(renamed).items() if k > 1]:
        raise UsageError(f"{manifest} has two columns that both become {duplicates[0]!r}")
    combined = pa.schema([*worklist_schema(), *passed])
    seen: dict[str, int] = {}
    occurrences: Counter[bytes] = Counter()
    base, count = os.fsencode(manifest.parent), 0
    with pq.ParquetWriter(to, combined) as writer:
        for table in _rechunk(batches, SHARD):
            paths = table["path"].cast(pa.string()).to_pylist()
            ids = table["id"].cast(pa.string()).to_pylist() if "id" in schema.names else None
            columns: list[list[object]] = [[], [], [], []]
            for i, path in enumerate(paths):
                name = os.fsencode(path) if path is not None else b""
                identity = ids[i] if ids else row_id(name, occurrences[name])
                occurrences[name] += ids is None
                if identity is None:
                    raise UsageError(f"{manifest}: row {count + i} has no id")
                if (first := seen.setdefault(identity, count + i)) != count + i:
                    raise UsageError(f"{manifest}: rows {first} and {count + i} have the same id")
                problem = str(Fail.NULL_PATH) if not path else None
                for column, value in zip(
                    columns,
                    (identity, path and display(name), os.path.join(base, name), problem),  # noqa: PTH118
                    strict=True,
                ):
                    column.append(value)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, worklist_schema(), strict=True)]
            arrays += [table[n] for n in names]
            writer.write_table(pa.table(arrays, schema=combined), row_group_size=SHARD)
            count += len(paths)
    if not count:
        raise UsageError(f"{manifest} has no rows")
    return count


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


def _rechunk(batches: Iterator[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
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
