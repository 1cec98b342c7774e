"""What can go wrong.

ComitError                 base of all, carries the exit code
  UsageError               2  wrong arguments, input, output or model; nothing was written
    Unavailable            2  a part of the work that cannot be done on this machine
      MissingExtra         2  a backend's package is not installed
    ModelError             2  the model file is not one of ours, or was altered
    ParityError            2  an exported model disagrees with the network it came from
  Stopped                  4  the run stopped and can be resumed
ItemError                  one input has no scores; becomes a row, never ends a run
"""

from __future__ import annotations

from comit.reasons import Fail, Skip, Unmade


class ComitError(Exception):
    """Base of comit's errors. The message says what is wrong and what to do."""

    exit_code = 1


class UsageError(ComitError):
    """The request cannot be carried out as asked; nothing was overwritten."""

    exit_code = 2


class Unavailable(UsageError):
    """What was asked for cannot be done on this machine; the rest can."""


class MissingExtra(Unavailable):
    """A package that an optional part needs is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs a package that is not here: pip install 'comit[{extra}]'")
        self.what, self.extra = what, extra

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        return MissingExtra, (self.what, self.extra)


class ModelError(UsageError):
    """A model file that cannot be used: not ours, altered, or of another version."""


class ParityError(UsageError):
    """An exported model whose outputs differ from PyTorch's beyond the tolerance."""


class Stopped(ComitError):
    """The run stopped before its end. What was published stays; run again to resume."""

    exit_code = 4


class ItemError(Exception):
    """Why one input has no scores: ``reason`` is its whole content, on purpose.

    Exceptions of decoders quote headers, which name patients, so they are translated to a code
    at the point where the library is called.
    """

    def __init__(self, reason: Skip | Fail | Unmade) -> None:
        super().__init__(reason)
        self.reason = reason
