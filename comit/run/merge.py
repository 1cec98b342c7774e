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
from comit.results import COLUMNS, UIDS, model_of, schema
from comit.run.target import ROW_GROUP, gathered
from comit.source.worklist import repeated

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

CONTENT = ("status", "sop_instance_uid", "file_size", "file_crc32")
NAMED = 10  # failed rows that a report names
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
    failed: list[dict[str, str | None]] = field(default_factory=list)  # the first :data:`NAMED`

    def add(self, table: pa.Table) -> None:
        """Counts the rows of a table."""
        self.rows += table.num_rows
        self.status.update(table["status"].to_pylist())
        self.reasons.update(r for r in table["reason"].to_pylist() if r)
        self.warnings.update(w for ws in table["warnings"].to_pylist() for w in ws or ())
        for name in ("unhealthy", "covid"):
            self.flagged[name] += sum(1 for v in table[f"flag_{name}"].to_pylist() if v)
        if len(self.failed) < NAMED and self.status["failed"]:
            import pyarrow.compute as pc

            failed = table.filter(pc.equal(table["status"], "failed"))
            named = failed.select(["row_id", "path", "reason"]).slice(0, NAMED - len(self.failed))
            self.failed += named.to_pylist()


def merge(
    parts: Parts, earlier: Tables, to: Path, run: tuple[str, datetime], metadata: dict[str, str]
) -> Tally:
    """Writes the durable file ``to`` of all ``parts``, in their order.

    ``run`` is its id and when it began; ``earlier`` are rows of other nights with the columns of
    :data:`CONTENT`. UIDs are dropped where the metadata says that results have no identifiers.
    """
    import numpy as np
    import pyarrow as pa

    def tables() -> Iterable[pa.Table]:
        return chain(parts(CONTENT), earlier())

    doubtful, copied = duplicated(tables), copies(tables)
    secret = metadata["comit_identifiers"].startswith("none")
    run_id, began = run
    tally, writer = Tally(), None
    with durable.create(to) as file:
        with ExitStack() as closing:
            for table in gathered(iter(parts(None))):
                twice = [uid in doubtful for uid in table["sop_instance_uid"].to_pylist()]
                table = _warned(table, Caution.DUPLICATE_UID, twice)
                same = np.isin(_content(table), copied).tolist()
                table = _warned(table, Caution.IDENTICAL_COPY, same)
                tally.add(table)
                n = table.num_rows
                columns = {name: table[name] for name in table.column_names}
                columns |= {name: pa.nulls(n, pa.string()) for name in UIDS if secret}
                columns["run_id"] = pa.repeat(run_id, n)
                columns["comit_model"] = pa.repeat(model_of(metadata), n)
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
            _, uid, size, crc32 = (row[name] for name in CONTENT)
            if uid is not None and hash(uid) in twice:
                contents[uid].add((size, crc32))
    return {uid for uid, found in contents.items() if len(found) > 1}


def copies(tables: Tables) -> NDArray[np.int64]:
    """(M,) the contents, as :func:`_content` has them, that several rows have."""
    import numpy as np

    each = [_content(table) for table in tables()]
    found, counts = np.unique(np.concatenate([np.empty(0, np.int64), *each]), return_counts=True)
    return found[(counts > 1) & (found >= 0)]


def _content(table: pa.Table) -> NDArray[np.int64]:
    """(N,) size and CRC-32 of the bytes behind each row that is ok, as one number; else -1.

    A file that is read has at most 2**29 bytes (:class:`comit.image.base.Limits`), so both fit.
    """
    import numpy as np
    import pyarrow.compute as pc

    size, crc32 = (pc.fill_null(table[name], 0).to_numpy() for name in CONTENT[-2:])
    ok = pc.equal(table["status"], "ok").to_numpy()
    return np.where(ok, size.astype(np.int64) << 32 | crc32.astype(np.int64), -1)


def _uids(table: pa.Table) -> Iterator[str]:
    return (uid for uid in table["sop_instance_uid"].to_pylist() if uid is not None)


def _warned(table: pa.Table, caution: Caution, rows: Sequence[bool]) -> pa.Table:
    """Adds a warning to some of a table's rows."""
    import pyarrow as pa

    if not any(rows):
        return table
    warnings = [
        [*(old or ()), str(caution)] if warned else old
        for warned, old in zip(rows, table["warnings"].to_pylist(), strict=True)
    ]
    at = table.schema.get_field_index("warnings")
    return table.set_column(at, table.schema.field(at), pa.array(warnings, table.schema.types[at]))
