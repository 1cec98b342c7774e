"""How a run goes, as a file for Prometheus' node exporter (its textfile collector).

The file is replaced as a whole every few seconds and stays after the run.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from comit.reasons import REASONS

if TYPE_CHECKING:
    from comit.pipeline.lanes import Lanes
    from comit.pipeline.pool import Pool
    from comit.run.run import Run

EVERY = 15.0  # seconds
SUCCESS = "comit_last_success_timestamp_seconds"


class Metrics:
    """Writes ``path`` while it is open, from a thread of its own; without a path does nothing.

    A file that cannot be written is no reason to end a night: what it says then grows old, which
    is what one watches for.
    """

    def __init__(
        self, path: Path | None, run: Run, lanes: Lanes | None = None, pool: Pool | None = None
    ) -> None:
        self._path, self._run, self._lanes, self._pool = path, run, lanes, pool
        self._started = time.monotonic()
        self._success = _last_success(path) if path else None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="metrics", daemon=True)

    def __enter__(self) -> Metrics:
        if self._path:
            self._write(running=True)
            self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        if self._path:
            self._thread.join()
            self._write(running=False)

    def succeeded(self) -> None:
        """The results are in place."""
        self._success = time.time()
        if self._path:
            self._write(running=False)

    def _watch(self) -> None:
        while not self._ended.wait(EVERY):
            self._write(running=True)

    def _write(self, running: bool) -> None:
        from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

        registry = CollectorRegistry()

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(name, meaning, labels, registry=registry)

        gauge("comit_running", "1 while a run is under way").set(running)
        gauge("comit_items", "items of the run").set(self._run.items)
        gauge("comit_resumed_rows", "rows that an interrupted run had done").set(self._run.done)
        gauge("comit_unchanged", "items left out as unchanged").set(self._run.unchanged)
        rows = gauge("comit_rows", "rows that this process wrote", "status")
        for status in ("ok", "skipped", "failed"):
            rows.labels(status).set(self._lanes.status[status] if self._lanes else 0)
        reasons = gauge("comit_unscored_rows", "rows without scores of this process", "reason")
        for reason in REASONS:
            reasons.labels(reason).set(self._lanes.reasons[reason] if self._lanes else 0)
        if self._lanes and self._pool:
            seconds = max(time.monotonic() - self._started, 1e-9)
            rate = gauge("comit_images_per_second", "images through the engine, mean of the run")
            rate.set(self._lanes.screened / seconds)
            stages = gauge("comit_stage_seconds", "time spent, all processes and threads", "stage")
            for stage, spent in {"decode": self._pool.seconds, **self._lanes.seconds}.items():
                stages.labels(stage).set(spent)
        if self._success is not None:
            gauge(SUCCESS, "when results were last put in place").set(self._success)
        with suppress(OSError):
            write_to_textfile(str(self._path), registry)


def _last_success(path: Path) -> float | None:
    """When the last run succeeded, from the file that it left."""
    from prometheus_client.parser import text_string_to_metric_families

    with suppress(OSError, ValueError, IndexError):
        for family in text_string_to_metric_families(path.read_text()):
            if family.name == SUCCESS:
                return float(family.samples[0].value)
    return None
