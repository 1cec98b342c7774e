"""What a person sees while something runs: a bar on a terminal, plain lines without one.

Everything goes to standard error; standard output is for results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

LINE_EVERY = 10.0  # seconds between lines where there is no terminal


class Console:
    """Progress and messages; ``quiet`` silences all but errors."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self.stream: TextIO | None = stream or sys.stderr  # None where the caller closed it
        self.quiet = quiet or self.stream is None
        self._rich = None
        if self.stream is not None and self.stream.isatty() and not quiet:
            from rich.console import Console as Rich

            self._rich = Rich(file=self.stream, highlight=False)

    def line(self, text: str) -> None:
        """One message; control characters of names are shown, not obeyed."""
        if self.quiet:
            return
        safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        if self._rich is not None:
            self._rich.print(safe, markup=False)
        else:
            print(safe, file=self.stream, flush=True)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        """Yields ``step(n=1)``; shows share done, rate and time left."""
        if self._rich is not None:
            from rich import progress as bars

            bar = bars.Progress(
                bars.TextColumn("{task.description}"),
                bars.BarColumn(),
                bars.MofNCompleteColumn(),
                bars.TextColumn("{task.fields[rate]}"),
                bars.TimeRemainingColumn(),
                console=self._rich,
                transient=True,
            )
            task = bar.add_task(label, total=total, rate="")
            started = time.monotonic()

            def draw(n: int = 1) -> None:
                bar.advance(task, n)
                done = bar.tasks[0].completed
                rate = done / max(time.monotonic() - started, 1e-9)
                bar.update(task, rate=f"{rate:.1f}/s")

            with bar:
                yield draw
            return
        state = {"done": 0, "last": time.monotonic()}
        started = time.monotonic()

        def say(n: int = 1) -> None:
            state["done"] += n
            now = time.monotonic()
            if now - state["last"] >= LINE_EVERY:
                state["last"] = now
                rate = state["done"] / (now - started)
                left = (total - state["done"]) / rate if rate else 0.0
                self.line(
                    f"{label}: {state['done']:,.0f} of {total:,} ({rate:.1f}/s, {left:.0f} s left)"
                )

        yield say
