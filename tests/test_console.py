"""What is seen while something runs."""

from __future__ import annotations

import io
import json
import re
from threading import Event

import pytest

from comit.console import Console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Said(io.StringIO):
    """A log that tells when something was written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = Event()

    def flush(self) -> None:
        self.written.set()


def test_work_that_is_soon_done_is_not_named():
    log = Said()
    with Console(log).stage("reading results"):
        pass
    assert log.getvalue() == ""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_work_that_takes_long_is_named(monkeypatch, log_format):
    monkeypatch.setattr("comit.console.SOON", 0.01)
    log = Said()
    with Console(log, log_format=log_format).stage("reading results"):
        assert log.written.wait(30)
    said = log.getvalue()
    if log_format == "json":
        said = json.loads(said)["message"] + "\n"
    assert said == "reading results ...\n"


def test_work_on_a_terminal_leaves_nothing_there():
    terminal = Terminal()
    console = Console(terminal)
    with console.stage("reading \x1b[31mresults"):
        pass
    console.line("done")
    assert terminal.getvalue().rstrip().endswith("done")
    assert "\x1b[31m" not in terminal.getvalue()


def test_rows_of_an_earlier_run_count_for_no_rate(monkeypatch):
    monkeypatch.setattr("comit.console.LINE_EVERY", 0.0)
    log = io.StringIO()
    with Console(log, log_format="json").progress("screening", 1_000_000) as step:
        step(999_000, earlier=True)
        step(1)
    first, second = map(json.loads, log.getvalue().splitlines())
    assert first["per_second"] == 0 and first["done"] == 999_000
    assert second["done"] == 999_001
    elapsed = 1 / second["per_second"]
    left = float(re.search(r"([\d,]+) s left", second["message"])[1].replace(",", ""))
    assert left == pytest.approx(999 * elapsed, rel=0.1, abs=1)


def test_a_bar_shows_what_was_done_earlier():
    terminal = Terminal()
    with Console(terminal).progress("screening", 10) as step:
        step(8, earlier=True)
        step(1)
    assert "9/10" in terminal.getvalue()
