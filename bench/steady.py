"""How fast a run goes once it runs: start-up and draining left out.

A run of seconds is not a night. The decoding processes start, the model compiles and the first
batch fills before the first row; at the end the last batches run with nothing left to decode. So
the steady rate is taken between the rows at 10 % and 90 % of a run, in which as much is begun as
is finished.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import numpy as np

from comit.console import Console

EDGE = 0.1  # share of the rows at either end that does not count
Marks = Sequence[tuple[float, int]]  # seconds, rows that were finished then


def steady_rate(marks: Marks, start: float = EDGE, stop: float = 1 - EDGE) -> float:
    """Rows a second between two shares of all rows; 0 where there are fewer than three marks.

    ``marks`` are in order of time. A mark's rows are done at its time and not before.
    """
    if len(marks) < 3:
        return 0.0
    times = [at for at, _ in marks]
    done = list(accumulate(n for _, n in marks))
    first = min(int(np.searchsorted(done, start * done[-1])), len(done) - 2)
    last = max(int(np.searchsorted(done, stop * done[-1])), first + 1)
    return float((done[last] - done[first]) / max(times[last] - times[first], 1e-9))


class Watch(Console):
    """A console that shows nothing and notes when rows were finished."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.marks: list[tuple[float, int]] = []  # seconds of perf_counter, rows
        self.dispatch_seconds = 0.0  # of CPU: of the one thread that hands everything on
        self._mutex = threading.Lock()

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        """Yields ``step(n=1)``."""

        def step(n: int = 1) -> None:
            with self._mutex:
                self.marks.append((time.perf_counter(), n))

        started = time.thread_time()
        yield step
        self.dispatch_seconds = time.thread_time() - started


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Median, least and greatest of repeats."""
    return {
        "median": round(float(np.median(values)), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }
