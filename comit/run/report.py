"""What a run did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from comit import __version__


@dataclass
class Report:
    """What a run did; ``comit screen --report`` writes it as JSON."""

    out: str
    run_id: str
    rows: int  # of this run
    status: dict[str, int]  # ok, skipped, failed
    reasons: dict[str, int]
    warnings: dict[str, int]
    flagged: dict[str, int]
    failed: list[dict[str, str | None]]  # row_id, path and reason of the first of them
    rows_in_out: int  # with those of earlier runs
    unchanged: int  # items left out because the results have rows of them that stand
    resumed_rows: int  # that an earlier, interrupted run had done
    screened: int  # rows that went through the engine in this run
    seconds: float  # wall time from the first item to the last row
    images_per_second: float
    stage_seconds: dict[str, float]  # decode: of all processes; engine, postprocess: of all lanes
    engine: dict[str, Any]
    settings: dict[str, Any]
    left_out: dict[str, int] = field(default_factory=dict)  # rule -> files and folders
    notes: list[str] = field(default_factory=list)
    comit: str = __version__
