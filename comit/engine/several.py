"""Several GPUs as one engine: a batch goes to the one that is free.

*Unverified on GPUs*: tests run it over devices that compute on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from comit.engine.base import Engine, Inference, Screened
from comit.image.samples import Pictures


class Several(Engine):
    """The same model on several devices, with the lanes of all of them."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        first = engines[0]
        self._engines, self.name, self.precision = engines, first.name, first.precision
        self.device = ",".join(e.device for e in engines)
        self.batch_size = min(e.batch_size for e in engines)
        self.lanes = sum(e.lanes for e in engines)
        self.takes_samples = all(e.takes_samples for e in engines)
        self.notes = tuple(f"{e.device}: {note}" for e in self._engines for note in e.notes)
        self._free: SimpleQueue[Engine] = SimpleQueue()
        for lane in range(max(e.lanes for e in engines)):  # in turn: the first batches go apart
            for engine in engines:
                if lane < engine.lanes:
                    self._free.put(engine)

    @contextmanager
    def _one(self) -> Iterator[Engine]:
        """An engine with a lane that is free."""
        engine = self._free.get()
        try:
            yield engine
        finally:
            self._free.put(engine)

    def infer(self, images: NDArray[np.float32]) -> Inference:
        """See :meth:`Engine.infer`."""
        with self._one() as engine:
            return engine.infer(images)

    def pictures(self) -> Pictures:
        """See :meth:`Engine.pictures`; page-locked for one, such memory is so for all."""
        return self._engines[0].pictures()

    def screen(self, pictures: Pictures) -> Screened:
        """See :meth:`Engine.screen`."""
        with self._one() as engine:
            return engine.screen(pictures)

    def close(self) -> None:
        """Frees what each of them holds."""
        for engine in self._engines:
            engine.close()
