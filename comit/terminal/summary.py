"""What a person reads when a run has ended, and what ``comit info`` shows."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comit import __version__
from comit.card import BUNDLED, Gate, read_card
from comit.console import printable
from comit.reasons import Caution, Fail, Skip

if TYPE_CHECKING:
    from comit.run.report import Report

SHOWN = 5  # failed files that are named


def summary(report: Report) -> list[str]:
    """Lines that close a run: rows, flags, rate, and where the time went."""
    status = report.status
    stand = f"{report.unchanged:,} items unchanged since an earlier run"
    if not report.rows:
        return [f"nothing to screen: {stand} of {report.out}", *beside(report)]
    lines = [
        f"{report.rows:,} rows of this run in {report.out}: {status['ok']:,} ok, "
        f"{status['skipped']:,} skipped, {status['failed']:,} failed"
    ]
    if report.rows_in_out != report.rows:
        lines.append(f"  with those of earlier runs it holds {report.rows_in_out:,} rows")
    if report.unchanged:
        lines.append(f"  beside them {stand}")
    if report.resumed_rows:
        lines.append(f"  {report.resumed_rows:,} of them from an earlier, interrupted run")
    for kind, codes in (("skipped", Skip), ("failed", Fail)):
        lines += [
            f"  {kind:8} {report.reasons[str(c)]:7,}  {c}: {c.meaning}"
            for c in codes
            if str(c) in report.reasons
        ]
    lines += [
        f"  {'warning':8} {report.warnings[str(c)]:7,}  {c}: {c.meaning}"
        for c in Caution
        if str(c) in report.warnings
    ]
    point = report.settings["operating point"]
    if point:
        lines.append(
            f"flagged: {report.flagged['unhealthy']:,} unhealthy "
            f"(score >= {point['unhealthy']:.3f}), {report.flagged['covid']:,} COVID "
            f"(score >= {point['covid']:.3f}). Research use only"
        )
    if (gate := report.settings["gate"]) is not None:
        lines.append(f"taken for a frontal chest radiograph: score_chest >= {gate:.3f}")
    engine = report.engine
    lines.append(
        f"{report.screened:,} images in {report.seconds:.1f} s, {report.images_per_second:.1f} a "
        f"second, on {engine['name']} {engine['precision']} ({engine['device']})"
    )
    spent = ", ".join(f"{name} {s:.1f}" for name, s in report.stage_seconds.items())
    lines.append(f"seconds spent, summed over processes and threads: {spent}")
    return lines + beside(report) + steps(report)


def steps(report: Report) -> list[str]:
    """The first of the failed files, and what to do next."""
    out = shlex.quote(report.out)
    lines = []
    if failed := report.status["failed"]:
        first = report.failed[:SHOWN]
        lines += [f"failed: {row['path'] or row['row_id']} ({row['reason']})" for row in first]
        if failed > len(first):
            lines.append(
                f"  and {failed - len(first):,} more: comit worklist {out} --out list.csv lists "
                "them last"
            )
        lines.append("  to screen failed files again, add --retry-failed to the same command")
    hidden = not report.settings["identifiers"].startswith("plain")
    without = " --top 0" if hidden else ""  # no picture is found without its path
    return [*lines, f"next: comit report {out} --out report.html{without}"]


def beside(report: Report) -> list[str]:
    """What was left out of the input, and notes."""
    lines = []
    if report.left_out:
        rules = ", ".join(f"{count:,} by {rule}" for rule, count in report.left_out.items())
        lines.append(
            f"left out {sum(report.left_out.values()):,} files and folders: {rules} "
            "(--include-hidden and --exclude choose)"
        )
    return lines + [f"note: {note}" for note in report.notes]


def information(model: Path | None, as_json: bool) -> str:
    """Version, engines and model card, as text or JSON; raises ModelError."""
    from comit.engine import available

    card = read_card(model or BUNDLED)
    engines = dict(available())
    if as_json:
        found = {"comit": __version__, "engines": engines, "card": asdict(card)}
        return json.dumps(found, indent=1)
    lines = [f"comit {__version__}", "", "engines"]
    lines += [f"  {name:12} {missing or 'ready'}" for name, missing in engines.items()]
    lines += ["", f"model {card.name} ({model or 'bundled'})", f"  {card.intended_use}"]
    lines += [f"  {note}" for note in card.notes]
    lines += [
        f"  width {card.width} of the paper's network, {card.precision}, sha256 {card.sha256[:16]}…"
    ]
    lines += [f"  {p.described(name)}" for name, p in sorted(card.operating_points.items())]
    lines += _gate(card.gate)
    for name, curve in card.calibration.items():
        if isinstance(curve, dict):
            lines.append(
                f"  {name}: calibrated ({curve['method']}) on {curve['images']} images, "
                f"{curve['positives']} of them positive"
            )
    for split, figures in card.metrics.items():
        rest = card.intervals.get(split, {}), card.baselines.get(split, {})
        lines += ["", *_figures(split, figures, *rest)]
    for key, value in card.training.items():
        lines.append(f"  {key}: {value if isinstance(value, str) else json.dumps(value)}")
    return "\n".join(map(printable, lines))


def _gate(gate: Gate | None) -> list[str]:
    """What the gate does, and how well, a source or kind a line."""
    if gate is None:
        return ["  gate: not trained; no picture is skipped as not_a_chest"]
    lines = [
        f"  gate: score_chest below {gate.threshold:.3f} is not_a_chest"
        + (f" ({gate.origin})" if gate.origin else "")
    ]
    for what, shares in (("kept", gate.kept), ("rejected", gate.rejected)):
        lines += [
            f"    {name}: {share:.1%} {what}"
            + (f" of {gate.images[name]}" if name in gate.images else "")
            for name, share in shares.items()
        ]
    return lines


def _figures(
    split: str, figures: dict[str, Any], intervals: dict[str, Any], without: dict[str, Any]
) -> list[str]:
    """COVID within its source first, whatever it is: the mixed figure can be won by the source."""
    order = sorted(figures, key=lambda k: (not k.startswith("covid_auc_within"), "mixed" in k, k))
    wide = max(map(len, figures), default=0)
    lines = [f"{split + ' split':{wide + 2}} model  95 % interval   without a model"]
    for name in order:
        if name.endswith("_images"):  # a count, not a figure
            lines.append(f"  {name:{wide}} {figures[name]:.0f}")
            continue
        baseline = f"{without[name]:.3f}" if name in without else ""
        interval = "[{:.3f}, {:.3f}]".format(*intervals[name]) if name in intervals else ""
        lines.append(f"  {name:{wide}} {figures[name]:.3f}  {interval:14}  {baseline}".rstrip())
    return lines
