"""What is sent, tried again, read back and given up.

Servers report success and store nothing, so what was accepted is asked for. A run that was killed
does not know whether its last instance arrived: that is asked for before it is sent again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NoReturn

from comit.console import Console
from comit.errors import Stopped
from comit.send.outbox import Entry, Outbox
from comit.send.peer import Busy, Peer

TRIES = 6  # of an instance, in one run
LOST = 2  # times that an instance is accepted and not found
LOOKS = 4  # of one reading back: some servers list later what they have
FIRST, LONGEST = 0.5, 60.0  # seconds between tries; twice as long each time
UNREACHED = 3  # instances in a row
REFUSED = 10  # instances in a row, before any was taken


class Delivery:
    """One run over what is open in an outbox."""

    def __init__(
        self,
        outbox: Outbox,
        peer: Peer,
        reader: Peer | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """``reader`` is asked whether an instance is there; None asks the destination itself."""
        self._outbox, self._peer, self._reader = outbox, peer, reader or peer
        self._pause = pause
        self._taken = False
        self._refused: list[Entry] = []  # in a row, while none was taken
        self._unreached = 0  # in a row

    def run(self, console: Console) -> None:
        """Sends what is open. Raises Stopped where the destination takes nothing."""
        waiting = self._outbox.open()
        with console.progress("sending", len(waiting)) as step:
            for entry in waiting:
                try:
                    self._one(entry)
                    self._unreached = 0
                except Busy as busy:
                    self._outbox.change(entry, status=busy.status)
                    self._unreached += 1
                    if self._unreached == UNREACHED:
                        self._stop(f"cannot be reached or is busy ({busy.status})")
                step()

    def _one(self, entry: Entry) -> None:
        if entry.tries and self._confirmed(entry, looks=1):
            return
        if entry.state == "sent" and self._there(entry, 1) is None:
            return  # accepted, and nobody can say more
        content = self._outbox.content(entry)
        if content is None:
            self._outbox.change(entry, state="refused", status="replaced")
            return
        lost = 0
        for number in range(TRIES):
            self._outbox.change(entry, tries=entry.tries + 1)
            try:
                answer = self._peer.send(entry, content)
            except Busy as busy:
                if number == TRIES - 1:
                    raise
                self._wait(number, busy.after)
                continue
            if not answer.accepted:
                if not self._confirmed(entry, looks=1, status=answer.status):
                    self._refuse(entry, answer.status)
                return
            self._outbox.change(entry, state="sent", status=answer.status)
            found = self._there(entry, LOOKS)
            if found is not False:
                if found:
                    self._outbox.change(entry, state="confirmed")
                self._take()
                return
            lost += 1
            if lost == LOST:
                break
        self._refuse(entry, "not_stored")

    def _confirmed(self, entry: Entry, looks: int, status: str | None = None) -> bool:
        """Whether an instance is there already, which its entry then says."""
        if not self._there(entry, looks):
            return False
        self._outbox.change(entry, state="confirmed", status=status or entry.status)
        self._take()
        return True

    def _there(self, entry: Entry, looks: int) -> bool | None:
        found: bool | None = False
        for number in range(TRIES):
            try:
                found = self._reader.there(entry)
            except Busy as busy:
                if number == TRIES - 1:
                    raise
                self._wait(number, busy.after)
                continue
            looks -= 1
            if found is not False or looks <= 0:
                break
            self._wait(number, None)
        return found

    def _take(self) -> None:
        self._taken = True
        self._refused.clear()

    def _refuse(self, entry: Entry, status: str) -> None:
        self._outbox.change(entry, state="refused", status=status)
        if self._taken:
            return
        self._refused.append(entry)
        if len(self._refused) == REFUSED:
            for each in self._refused:  # the fault is the destination's, not theirs
                self._outbox.change(each, state="made")
            self._stop(f"refused the first {REFUSED} objects (the last with {status})")

    def _wait(self, number: int, asked: float | None) -> None:
        own = FIRST * 2**number * random.uniform(0.75, 1.25)  # noqa: S311
        self._pause(min(LONGEST, own if asked is None else max(asked, 0.0)))

    def _stop(self, why: str) -> NoReturn:
        raise Stopped(
            f"{self._outbox.address} {why}; sending stopped. The outbox holds what is left: mend "
            "the destination and run the same command to resume"
        )
