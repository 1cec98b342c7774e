"""Parts of a run become one Parquet file; what only all rows together tell is added here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from comit import durable, heap
from comit.reasons import Caution
from comit.results import COLUMNS, UIDS, schema
from comit.source import repeated
from comit.target import ROW_GROUP, gathered

if TYPE_CHECKING:
    import pyarrow as pa

CONTENT = ("sop_instance_uid", "file_size", "file_crc32")
Tables = Callable[[], Iterable["pa.Table"]]
Parts = Callable[[Sequence[str] | None], Iterable["pa.Table"]]  # of these columns; None: all


@dataclass
class Tally:
    """What the rows of a result say, counted."""

    rows: int = 0
    status: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    flagged: Counter[str] = field(default_factory=Counter)

    def add(self, table: pa.Table) -> None:
        """Counts the rows of a table."""
        self.rows += table.num_rows
        self.status.update(table["status"].to_pylist())
        self.reasons.update(r for r in table["reason"].to_pylist() if r)
        self.warnings.update(w for ws in table["warnings"].to_pylist() for w in ws or ())
        for name in ("unhealthy", "covid"):
            self.flagged[name] += sum(1 for v in table[f"flag_{name}"].to_pylist() if v)


def merge(
    parts: Parts, earlier: Tables, to: Path, run: tuple[str, datetime], metadata: dict[str, str]
) -> Tally:
    """Writes the durable file ``to`` of all ``parts``, in their order.

    ``run`` is its id and when it began; ``earlier`` are rows of other nights with the columns of
    :data:`CONTENT`. UIDs are dropped where the metadata says that results have no identifiers.
    """
    import pyarrow as pa

    doubtful = duplicated(lambda: chain(parts(CONTENT), earlier()))
    secret = metadata["comit_identifiers"].startswith("none")
    run_id, began = run
    tally, writer = Tally(), None
    with durable.create(to) as file:
        with ExitStack() as closing:
            for table in gathered(iter(parts(None))):
                if doubtful:
                    table = _warned(table, doubtful)
                tally.add(table)
                n = table.num_rows
                columns = {name: table[name] for name in table.column_names}
                columns |= {name: pa.nulls(n, pa.string()) for name in UIDS if secret}
                columns["run_id"] = pa.repeat(run_id, n)
                columns["screened_at"] = pa.repeat(pa.scalar(began, pa.timestamp("us", "UTC")), n)
                if writer is None:
                    final = final_schema(table.schema).with_metadata(metadata)
                    writer = closing.enter_context(durable.parquet(file, final, "zstd"))
                named = pa.table([columns[f.name] for f in final], schema=final)
                writer.write_table(named, row_group_size=ROW_GROUP)
                heap.trim()  # else what each table took adds up
        durable.finish(file)
    return tally


def final_schema(part: pa.Schema) -> pa.Schema:
    """The columns of results in their order, then those that a manifest passed through."""
    import pyarrow as pa

    return pa.schema([*schema(), *(f for f in part if f.name not in COLUMNS)])


def duplicated(tables: Tables) -> set[str]:
    """The SOP Instance UIDs that stand for more than one content.

    Hashes first: only what may be there twice is looked at by name.
    """
    twice = repeated(uid for table in tables() for uid in _uids(table))
    if not twice:
        return set()
    contents: defaultdict[str, set[tuple[int, int]]] = defaultdict(set)
    for table in tables():
        for row in table.select(CONTENT).to_pylist():
            uid, size, crc32 = (row[name] for name in CONTENT)
            if uid is not None and hash(uid) in twice:
                contents[uid].add((size, crc32))
    return {uid for uid, found in contents.items() if len(found) > 1}


def _uids(table: pa.Table) -> Iterator[str]:
    return (uid for uid in table["sop_instance_uid"].to_pylist() if uid is not None)


def _warned(table: pa.Table, doubtful: set[str]) -> pa.Table:
    """Adds the warning to rows whose UID is doubtful."""
    import pyarrow as pa

    uids = table["sop_instance_uid"].to_pylist()
    if doubtful.isdisjoint(uids):
        return table
    warnings = [
        [*(old or ()), str(Caution.DUPLICATE_UID)] if uid in doubtful else old
        for uid, old in zip(uids, table["warnings"].to_pylist(), strict=True)
    ]
    at = table.schema.get_field_index("warnings")
    return table.set_column(at, table.schema.field(at), pa.array(warnings, table.schema.types[at]))
