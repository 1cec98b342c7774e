"""``comit dicom --send``: from the objects that were made to a destination and back."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from comit import durable
from comit.console import Console
from comit.errors import UsageError
from comit.run.lock import lock
from comit.send.address import Address, Credentials, parse
from comit.send.deliver import Delivery
from comit.send.dimse import Dimse
from comit.send.outbox import Outbox, write_table
from comit.send.peer import Peer
from comit.send.stow import Web


@dataclass
class Sent:
    """What became of the objects: how many are in each state, and what was done."""

    address: Address
    states: Counter[str]
    waiting: int  # objects that this run had to send or read back
    waiting_bytes: int
    studies: int
    dry: bool  # nothing was sent: the user has not agreed to this destination
    table: Path | None = None


class Sending:
    """The way to one destination; made before the objects are, so that a wrong one ends at once."""

    def __init__(self, send: str, read_back: str | None, out: Path) -> None:
        """Raises UsageError."""
        self._address = parse(send)
        self._reader = parse(read_back) if read_back else None
        if self._reader is not None and not self._reader.web:
            raise UsageError("--read-back takes the address of a DICOMweb server")
        self._credentials = Credentials.of_environment()
        if not self._address.web:
            Dimse(self._address, self._credentials, ())  # or MissingExtra says what to install
        self._out = out
        with durable.stopping(out):
            self.outbox = Outbox(out, self._address)
        self._lock = lock(out, self.outbox.folder)

    def close(self) -> None:
        """Lets another run send."""
        os.close(self._lock)

    def add(self, to: Path, content: bytes, row_id: str) -> None:
        """Puts an object that was made into the outbox."""
        with durable.stopping(self._out):
            self.outbox.add(to, content, row_id)

    def run(
        self,
        now: bool,
        retry_refused: bool,
        console: Console,
        pause: Callable[[float], None] | None = None,
    ) -> Sent:
        """Sends what is open; ``now`` agrees to a destination. Raises Stopped, UsageError."""
        with durable.stopping(self._out):
            if retry_refused:
                self.outbox.retry_refused()
            if now and not self.outbox.known:
                self.outbox.agree()
            waiting = self.outbox.open()
            sent = Sent(
                self._address,
                self.outbox.states(),
                len(waiting),
                sum(e.size for e in waiting),
                len({e.study_instance_uid for e in waiting}),
                dry=not self.outbox.known,
            )
            if sent.dry:
                return sent
            try:
                self._deliver(console, {} if pause is None else {"pause": pause})
            finally:
                sent.table = write_table(self._out)
            sent.states = self.outbox.states()
        return sent

    def _deliver(self, console: Console, how: dict[str, Callable[[float], None]]) -> None:
        peer: Peer
        if self._address.web:
            peer = Web(self._address, self._credentials)
        else:
            peer = Dimse(self._address, self._credentials, self.outbox.open())
        reader = Web(self._reader, self._credentials) if self._reader else None
        try:
            Delivery(self.outbox, peer, reader, **how).run(console)
        finally:
            peer.close()
            if reader is not None:
                reader.close()
