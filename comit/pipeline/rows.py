"""Scores and probability maps of one image to its row: flags, areas and run lengths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from comit.card import Gate, OperatingPoint
from comit.engine.base import Inference, Screened
from comit.masks import encoded
from comit.pipeline.worker import Done
from comit.reasons import Caution, Fail, Skip
from comit.results import Row

SKIPS = frozenset(str(s) for s in Skip)


def is_flagged(row: Row) -> bool:
    """Whether a row is at or above a threshold of the operating point."""
    return bool(row.flag_unhealthy or row.flag_covid)


def scored_rows(
    decoded: list[Done],
    answer: Inference | Screened,
    point: OperatingPoint | None,
    gate: Gate | None,
    masks: str,
) -> list[Row]:
    """Rows of a batch: ``decoded[i]`` is image i of the engine's ``answer``.

    ``masks`` is all, flagged or none: which rows get masks and fractions; the others' are not
    looked at. Without an operating point flags are null, without a gate ``score_chest``. A picture
    below the gate's threshold is skipped where it is ``gated``, else warned of. An image with a
    score that is not finite gets a failed row, as does one with a reason, whose scores mean
    nothing.
    """
    rows = []
    for done, scores, mask in zip(decoded, answer.scores.tolist(), answer.masks, strict=True):
        if done.reason is not None or not np.isfinite(scores).all():
            reason = done.reason or str(Fail.MODEL_NONFINITE)
            rows.append(unscored_row(done._replace(reason=reason)))
            continue
        unhealthy, covid, other, chest = scores
        if gate is not None and chest < gate.threshold:
            if done.gated:
                row = unscored_row(done._replace(reason=str(Skip.NOT_A_CHEST)))
                rows.append(replace(row, score_chest=chest))
                continue
            done = done._replace(facts=done.facts.warned(Caution.CHEST_DOUBTED))
        row = Row(
            status="ok",
            **done.facts.values(),
            score_unhealthy=unhealthy,
            score_covid=covid,
            score_other=other,
            score_chest=chest if gate is not None else None,
        )
        if point is not None:
            row = replace(
                row, flag_unhealthy=unhealthy >= point.unhealthy, flag_covid=covid >= point.covid
            )
        if masks == "all" or (masks == "flagged" and is_flagged(row)):
            row = replace(row, **encoded(mask)._asdict())
        rows.append(row)
    return rows


def unscored_row(done: Done) -> Row:
    """The row of an item that was skipped or failed, with what its header said."""
    status = "skipped" if done.reason in SKIPS else "failed"
    return Row(status=status, reason=done.reason, **done.facts.values())
