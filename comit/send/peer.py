"""What every destination can do, whatever it speaks."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from comit.send.outbox import Entry


class Answer(NamedTuple):
    """What a destination says of an instance."""

    accepted: bool
    status: str  # an HTTP or DIMSE status; no text of the destination, which may name patients


class Busy(Exception):
    """Not now: worth another try, after so many seconds if the destination says so."""

    def __init__(self, status: str, after: float | None = None) -> None:
        super().__init__(status)
        self.status, self.after = status, after


class Peer(Protocol):
    """A destination. Its methods raise Busy, and Stopped where it lets nobody in."""

    def send(self, entry: Entry, content: bytes) -> Answer:
        """Stores one instance."""

    def there(self, entry: Entry) -> bool | None:
        """Whether the instance is there; None where that cannot be asked."""

    def close(self) -> None:
        """Ends the connection."""
