"""Two results files of the same inputs: what another model, engine or precision changes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comit import heap
from comit.errors import UsageError
from comit.results import CHEST, SCORES, batches, provenance, read

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

FLAGS = ("flag_unhealthy", "flag_covid")
MASKS = ("lung_rle", "disease_rle")
HELD = 8_192  # rows whose masks are in memory, some 1 kB each


@dataclass(frozen=True)
class Comparison:
    """How ``b`` differs from ``a``, over the rows whose ``row_id`` both have."""

    both: int
    only_a: int
    only_b: int
    status_changed: int
    scored: int  # rows that are ok in both
    scores: dict[str, dict[str, float]]  # score -> mean, p99 and max of |b - a|
    flips: dict[str, dict[str, int]]  # flag -> raised, dropped in b
    masks: dict[str, dict[str, float]]  # mask -> rows, unreadable, mean and min IoU, identical
    differs: dict[str, tuple[Any, Any]]  # metadata that is not the same


def compare(a: Path, b: Path) -> Comparison:
    """Compares two results files; raises UsageError where they share no row.

    Memory holds ids, scores and flags of all rows, and masks of a few thousand at a time.
    """
    found, partners = _without_masks(a, b)
    return replace(found, masks=_overlaps(a, b, partners))


def _without_masks(a: Path, b: Path) -> tuple[Comparison, NDArray[np.int64]]:
    """All but the masks; of each row of ``a`` that is ok in both the number of b's, else -1."""
    import numpy as np
    import pyarrow.compute as pc

    columns = ("row_id", "status", *SCORES, CHEST, *FLAGS)
    first, second = (read(path, columns) for path in (a, b))
    places = pc.index_in(first["row_id"], second["row_id"])  # null where b lacks the row
    shared = first.filter(pc.is_valid(places)), second.take(pc.drop_null(places))
    if not len(shared[0]):
        raise UsageError(f"{a} and {b} have no row_id in common")
    is_ok = pc.fill_null(pc.and_(*(pc.equal(t["status"], "ok") for t in shared)), False)
    ok = [t.filter(is_ok) for t in shared]
    partners = np.full(len(first), -1)
    partners[np.flatnonzero(pc.is_valid(places))[is_ok]] = pc.drop_null(places).filter(is_ok)
    scores = {name: _differences(*(t[name] for t in ok)) for name in SCORES}
    gates = [t[CHEST] for t in shared]  # of skipped rows too
    if _number(pc.and_(*(pc.is_valid(g) for g in gates))):  # else of a model without a gate
        scores[CHEST] = _differences(*gates)
    said = [provenance(t) for t in (first, second)]
    keys = [k for k in {**said[0], **said[1]} if k != "run_id"]
    found = Comparison(
        both=len(shared[0]),
        only_a=len(first) - len(shared[0]),
        only_b=len(second) - len(shared[0]),
        status_changed=_number(pc.not_equal(*(t["status"] for t in shared))),
        scored=len(ok[0]),
        scores=scores,
        flips={name: _flips(*(t[name] for t in ok)) for name in FLAGS},
        masks={},
        differs={
            k: (said[0].get(k), said[1].get(k)) for k in keys if said[0].get(k) != said[1].get(k)
        },
    )
    return found, partners


def _differences(a: pa.ChunkedArray, b: pa.ChunkedArray) -> dict[str, float]:
    """Mean, 99th percentile and maximum of |b - a| where both are known; 0 where none are."""
    import numpy as np
    import pyarrow.compute as pc

    off = pc.drop_null(pc.abs(pc.subtract(b.cast("float64"), a.cast("float64"))))
    values = np.asarray(off) if len(off) else np.zeros(1)
    p99 = float(np.quantile(values, 0.99))
    return {"mean": float(values.mean()), "p99": p99, "max": float(values.max())}


def _flips(a: pa.ChunkedArray, b: pa.ChunkedArray) -> dict[str, int]:
    """In how many rows a flag was raised and dropped, of those where both are known."""
    import pyarrow.compute as pc

    raised, dropped = pc.and_(pc.invert(a), b), pc.and_(a, pc.invert(b))
    return {"raised": _number(raised), "dropped": _number(dropped)}


def _number(said: Any) -> int:
    """How many of these are true."""
    import pyarrow.compute as pc

    return int(pc.sum(said).as_py() or 0)


def _overlaps(a: Path, b: Path, partners: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """Of each mask how many rows have it in both, and their IoU; ``partners`` as above."""
    import numpy as np
    import pyarrow.compute as pc

    from comit.look.overlap import ious

    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in MASKS}

    def overlap(name: str, x: pa.Table, y: pa.Table) -> None:
        both = pc.and_(x[name].is_valid(), y[name].is_valid())
        found[name].append(ious(*(t[name].filter(both).combine_chunks() for t in (x, y))))

    with ThreadPoolExecutor(len(MASKS)) as threads:
        for x, y in _paired(a, b, partners):
            list(threads.map(overlap, MASKS, repeat(x), repeat(y)))
    return {name: _said(np.concatenate([np.empty(0), *parts])) for name, parts in found.items()}


def _said(ious: NDArray[np.float64]) -> dict[str, float]:
    """What there is to say of the IoUs of a mask, NaN where one of two is none."""
    import numpy as np

    known = ious[~np.isnan(ious)]
    said: dict[str, float] = {"rows": len(known)}
    if len(known) < len(ious):
        said["unreadable"] = len(ious) - len(known)
    if len(known):
        said |= {"mean": float(known.mean()), "min": float(known.min())}
        said["identical"] = int(np.count_nonzero(known == 1.0))
    return said


def _paired(a: Path, b: Path, partners: NDArray[np.int64]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Masks of rows that belong together, at most :data:`HELD` at a time.

    ``a`` is read once. ``b`` is read once where its rows have the same order; else again for every
    :data:`HELD` rows of a, as far as these have partners in its row groups.
    """
    import numpy as np
    import pyarrow as pa

    columns, row = ("row_id", *MASKS), 0
    for table in batches(a, columns, HELD):
        of = partners[row : row + len(table)]
        row += len(table)
        wanted = np.sort(of[of >= 0])
        if not len(wanted):
            continue
        x = table  # in the order of b
        if not np.array_equal(of, wanted):
            x = table.take(np.argsort(of)[-len(wanted) :])
        y = pa.concat_tables([x.slice(0, 0), *batches(b, columns, rows=wanted)])
        heap.trim()  # what reading took
        if not x["row_id"].equals(y["row_id"]):
            raise UsageError(f"{a} or {b} changed while it was read; compare them again")
        yield x, y


def lines(c: Comparison) -> list[str]:
    """The comparison as a person reads it."""
    said = [
        f"{c.both:,} rows in both, {c.only_a:,} only in the first, {c.only_b:,} only in the second",
        f"{c.status_changed:,} have another status; {c.scored:,} are ok in both",
    ]
    said += [
        f"  {name:16} |difference| mean {s['mean']:.2e}, 99 % below {s['p99']:.2e}, "
        f"max {s['max']:.2e}"
        for name, s in c.scores.items()
    ]
    said += [
        f"  {name:16} {f['raised']:,} raised, {f['dropped']:,} dropped"
        for name, f in c.flips.items()
    ]
    said += [
        f"  {name:16} IoU mean {m['mean']:.4f}, min {m['min']:.4f}; "
        f"{m['identical']:,.0f} of {m['rows']:,.0f} identical"
        if m["rows"]
        else f"  {name:16} no masks to compare"
        for name, m in c.masks.items()
    ]
    said += [
        f"  {name:16} {m['unreadable']:,.0f} rows have something else than a mask there"
        for name, m in c.masks.items()
        if "unreadable" in m
    ]
    return said + [f"  {k}: {x} | {y}" for k, (x, y) in c.differs.items()]


def as_dict(c: Comparison) -> dict[str, Any]:
    """The comparison as JSON has it."""
    return asdict(c)
