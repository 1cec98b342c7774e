"""What is seen while something runs: a bar on a terminal, plain lines or JSON without one.

Everything goes to standard error; standard output is for results.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from threading import Timer
from typing import Any, TextIO

LINE_EVERY = 10.0  # seconds between lines where there is no terminal
SOON = 1.0  # seconds that work may take before it says what it is


def printable(text: str) -> str:
    r"""Text that a terminal shows and does not obey; bytes that are not UTF-8 become ``\xNN``."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return ascii(character)[1:-1]


class Console:
    """Progress and messages; ``quiet`` silences all but errors.

    With ``log_format`` json every message is an object on a line of its own: ``time`` (UTC),
    ``event``, ``message`` and what else there is to know as numbers.
    """

    def __init__(
        self, stream: TextIO | None = None, quiet: bool = False, log_format: str = "text"
    ) -> None:
        self.json = log_format == "json"
        self.stream: TextIO | None = stream or sys.stderr  # None where the caller closed it
        self.quiet = quiet or self.stream is None
        self._rich = None
        if self.stream is not None and self.stream.isatty() and not quiet and not self.json:
            from rich.console import Console as Rich

            self._rich = Rich(file=self.stream, highlight=False)

    def line(self, text: str, event: str = "message", **known: object) -> None:
        """One message; control characters of names are shown, not obeyed."""
        if not self.quiet:
            self._write(text, event, known)

    def summary(self, lines: list[str], report: Any) -> None:
        """What a run did: lines for a person, or the whole report as one object."""
        if self.json:
            self.line(lines[0], "finished", report=asdict(report))
            return
        for line in lines:
            self.line(line)

    def error(self, text: str, exit_code: int) -> None:
        """What ends the command; shown though all else is silenced."""
        if self.stream is not None:
            self._write(f"comit: {text}", "error", {"exit_code": exit_code})

    def _write(self, text: str, event: str, known: dict[str, object]) -> None:
        with suppress(OSError, ValueError):  # a full disk under the log ends no night
            self._print(text, event, known)

    def _print(self, text: str, event: str, known: dict[str, object]) -> None:
        if self.json:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            said = {"time": now, "event": event, "message": text, **known}
            print(json.dumps(said), file=self.stream, flush=True)
        elif self._rich is not None:
            self._rich.print(printable(text), markup=False)
        else:
            print(printable(text), file=self.stream, flush=True)

    @contextmanager
    def stage(self, label: str) -> Iterator[None]:
        """Says what goes on where it takes longer than :data:`SOON`: work of unknown length."""
        if self._rich is not None:
            with self._rich.status(printable(label)):
                yield
            return
        timer = Timer(SOON, self.line, [f"{label} ...", "stage"])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        """Yields ``step(n=1, earlier=False)``; shows share done, rate and time left.

        What was done ``earlier``, by a run that this one resumes, counts for no rate.
        """
        before = 0  # done earlier
        started = time.monotonic()
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

            def draw(n: int = 1, earlier: bool = False) -> None:
                nonlocal before
                if earlier:
                    before += n
                    bar.reset(task, completed=int(bar.tasks[0].completed) + n)
                else:
                    bar.advance(task, n)
                done = bar.tasks[0].completed - before
                rate = done / max(time.monotonic() - started, 1e-9)
                bar.update(task, rate=f"{rate:.1f}/s")

            with bar:
                yield draw
            return
        done, last = 0, started

        def say(n: int = 1, earlier: bool = False) -> None:
            nonlocal before, done, last
            done += n
            before += n if earlier else 0
            now = time.monotonic()
            if now - last >= LINE_EVERY:
                last = now
                rate = (done - before) / (now - started)
                left = (total - done) / rate if rate else 0.0
                self.line(
                    f"{label}: {done:,} of {total:,} ({rate:.1f}/s, {left:.0f} s left)",
                    "progress",
                    done=done,
                    total=total,
                    per_second=round(rate, 2),
                )

        yield say


class Silent(Console):
    """Says nothing; ``progress`` is called with how many are done, and of how many."""

    def __init__(self, progress: Callable[[int, int], object] | None = None) -> None:
        super().__init__(quiet=True)
        self._progress = progress

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        """As :meth:`Console.progress`."""
        done = 0

        def tell(n: int = 1, earlier: bool = False) -> None:
            nonlocal done
            done += n
            if self._progress is not None:
                self._progress(done, total)

        yield tell
