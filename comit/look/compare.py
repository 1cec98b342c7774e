"""Two results files of the same inputs: what another model, engine or precision changes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from comit.errors import ItemError, UsageError
from comit.masks import decode_mask
from comit.results import CHEST, SCORES, provenance, read

FLAGS = ("flag_unhealthy", "flag_covid")
MASKS = ("lung_rle", "disease_rle")


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
    """Compares two results files; raises UsageError where they share no row."""
    import numpy as np

    columns = ("row_id", "status", *SCORES, CHEST, *FLAGS, *MASKS)
    tables = [read(path, columns) for path in (a, b)]
    first, second = ({r["row_id"]: r for r in t.to_pylist()} for t in tables)
    shared = [i for i in first if i in second]
    if not shared:
        raise UsageError(f"{a} and {b} have no row_id in common")
    pairs = [(first[i], second[i]) for i in shared]
    ok = [(x, y) for x, y in pairs if x["status"] == y["status"] == "ok"]
    scores: dict[str, dict[str, float]] = {}
    for name in (*SCORES, CHEST):
        among = pairs if name == CHEST else ok  # of skipped rows too
        known = [(x[name], y[name]) for x, y in among if None not in (x[name], y[name])]
        if name == CHEST and not known:  # of a model without a gate
            continue
        off = np.abs([v - u for u, v in known] or [0.0])
        p99 = float(np.quantile(off, 0.99))
        scores[name] = {"mean": float(off.mean()), "p99": p99, "max": float(off.max())}
    flips = {
        name: {
            "raised": sum(x[name] is False and y[name] is True for x, y in ok),
            "dropped": sum(x[name] is True and y[name] is False for x, y in ok),
        }
        for name in FLAGS
    }
    said = [provenance(t) for t in tables]
    keys = [k for k in {**said[0], **said[1]} if k != "run_id"]
    return Comparison(
        both=len(shared),
        only_a=len(first) - len(shared),
        only_b=len(second) - len(shared),
        status_changed=sum(x["status"] != y["status"] for x, y in pairs),
        scored=len(ok),
        scores=scores,
        flips=flips,
        masks={name: _overlaps([(x[name], y[name]) for x, y in ok]) for name in MASKS},
        differs={
            k: (said[0].get(k), said[1].get(k)) for k in keys if said[0].get(k) != said[1].get(k)
        },
    )


def iou(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Intersection over union of two run-length masks; 1 where both are empty.

    Raises ItemError where one is no mask.
    """
    import numpy as np

    x, y = decode_mask(a), decode_mask(b)
    union = np.count_nonzero(x | y)
    return float(np.count_nonzero(x & y) / union) if union else 1.0


def _overlaps(pairs: list[tuple[Any, Any]]) -> dict[str, float]:
    found, unreadable = [], 0
    for x, y in pairs:
        if x is None or y is None:
            continue
        try:
            found.append(iou(x, y))
        except ItemError:
            unreadable += 1
    said: dict[str, float] = {"rows": len(found)}
    if unreadable:
        said["unreadable"] = unreadable
    if found:
        said |= {"mean": sum(found) / len(found), "min": min(found)}
        said["identical"] = sum(v == 1.0 for v in found)
    return said


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
