"""Time limits that a suspended machine does not use up."""

from __future__ import annotations

import time
from threading import Event, Thread

TICK = 0.25  # seconds between two looks at the time
LONGEST = 1.0  # seconds between two looks that count: a busy machine may be late


class Clock:
    """Counts the seconds in which this process runs; a thread looks at the time while it is open.

    While a process is stopped (SIGSTOP, Ctrl-Z), its container is frozen or the machine sleeps,
    nobody looks, and of such a pause one second counts.
    """

    def __init__(self) -> None:
        self._state = (0.0, time.monotonic())  # seconds counted, when it was last looked
        self._closed = Event()
        self._thread = Thread(target=self._tick, name="clock", daemon=True)
        self._thread.start()

    def seconds(self) -> float:
        """Since the clock was made."""
        counted, looked = self._state
        return counted + min(time.monotonic() - looked, LONGEST)

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join()

    def _tick(self) -> None:
        while not self._closed.wait(TICK):
            now = time.monotonic()
            counted, looked = self._state
            self._state = (counted + min(now - looked, LONGEST), now)
