"""Threads that run the engine and turn its answers into rows.

An engine gets batches of pixels, or where it preprocesses itself (:attr:`Engine.takes_samples`)
of samples as they are stored, of as many sizes as there are images.
Where not every image gets masks, an engine that can (:attr:`Engine.two_stage`) looks at the scores
first, which takes a quarter of the whole network, and computes masks for flagged images alone.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from comit.card import Gate, OperatingPoint
from comit.engine.base import Engine, Inference, Screened
from comit.image.preprocess import SIZE, Presentation
from comit.image.samples import Outcome, Pictures, Source
from comit.pipeline.rows import is_flagged, scored_rows, unscored_row
from comit.pipeline.worker import Done
from comit.results import Row

Masks = Literal["all", "flagged", "none"]
# Scores first and then everything for a share f of the images costs 1/4 + f of computing
# everything at once (openvino bf16, width 0.25: 2.5 and 10.7 ms), so it pays up to f = 3/4.
WORTH = 0.7
MOST_BYTES = 256 * 2**20  # of samples in a batch, or one image more
MEMORY = 16  # batches over which the share of flagged images is averaged


class Pixels:
    """Room for a batch of pixels, used again as :class:`comit.image.samples.Pictures` are."""

    def __init__(self, batch_size: int) -> None:
        self._array = np.empty((batch_size, 1, SIZE, SIZE), np.float32)
        self._count = 0

    @property
    def data(self) -> NDArray[np.float32]:
        """The images that are there, (N, 1, 224, 224)."""
        return self._array[: self._count]

    def add(self, image: Any, presentation: Presentation | None = None) -> None:
        """Copies one (224, 224) or (1, 224, 224) image."""
        self._array[self._count, 0] = image
        self._count += 1

    def clear(self) -> None:
        """Forgets the images and keeps the memory."""
        self._count = 0


@dataclass
class Batch:
    """Decoded images on their way to the engine."""

    images: Pixels | Pictures
    decoded: list[Done]
    since: float = 0.0  # when its first image came, by time.monotonic()

    def add(self, image: Source, done: Done) -> None:
        """Copies one image."""
        if not self.decoded:
            self.since = time.monotonic()
        self.images.add(image, done.stored and done.stored.presentation)
        self.decoded.append(done)

    def is_full(self, batch_size: int) -> bool:
        """Whether the engine is to have it: all images of a batch, or many bytes of samples."""
        if len(self.decoded) == batch_size:
            return True
        return isinstance(self.images, Pictures) and self.images.nbytes >= MOST_BYTES


class Lanes:
    """A thread more than the engine has lanes: while one makes rows, all lanes compute.

    At most two batches a lane are in flight, in buffers that are used again, so a fast decoder
    waits instead of filling memory. An error of a thread is raised by the next call.
    """

    def __init__(
        self,
        engine: Engine,
        write: Callable[[int, Row], None],
        point: OperatingPoint | None,
        gate: Gate | None,
        masks: Masks,
        on_rows: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._engine, self._write, self._masks = engine, write, masks
        self._point, self._gate = point, gate
        self._threads = ThreadPoolExecutor(engine.lanes + 1, "lane")
        self._lanes = threading.Semaphore(engine.lanes)
        self._two_stage = engine.two_stage and masks != "all"
        self._buffers = buffers(engine, 2 * engine.lanes + 2)
        self._batch = Batch(self._buffers.get(), [])
        # Flagged images wait here for their masks; every thread may fill one batch up.
        # There is a buffer for each thread, one that is filled and one that hurries: so that
        # nobody ever waits for one with the mutex in hand.
        self._flagged_buffers = buffers(engine, engine.lanes + 3 if self._two_stage else 1)
        self._flagged = Batch(self._flagged_buffers.get(), [])
        self._hurried: Future[None] | None = None
        self._flagged_share = 0.0
        self._running: list[Future[None]] = []
        self._mutex = threading.Lock()
        self._on_rows = on_rows
        self.status: Counter[str] = Counter()  # of the rows so far
        self.reasons: Counter[str] = Counter()
        self.screened = 0
        self.seconds = {"engine": 0.0, "postprocess": 0.0, "write": 0.0}

    def __enter__(self) -> Lanes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def add(self, done: Done, image: Source | None) -> None:
        """Takes one decoded item: its pixels or samples (copied), or its reason."""
        if image is None:
            self._commit([(done.item, unscored_row(done))])
            return
        self._batch.add(image, done)
        if self._batch.is_full(self._engine.batch_size):
            self._submit()

    def flush(self) -> None:
        """Runs what is left and waits for all; raises what went wrong."""
        if self._batch.decoded:
            self._submit()
        for future in self._running:
            future.result()
        self._running.clear()
        if self._flagged.decoded:
            self._mask(self._swapped())

    def hurry(self, seconds: float) -> None:
        """Runs what has waited longer than that for others to fill its batch; does not wait."""
        before = time.monotonic() - seconds
        if self._batch.decoded and self._batch.since < before:
            self._submit()
        with self._mutex:
            is_due = self._flagged.decoded and self._flagged.since < before
            if not is_due or (self._hurried is not None and not self._hurried.done()):
                return
            flagged = self._swapped()
        self._hurried = self._threads.submit(self._mask, flagged)
        self._running.append(self._hurried)

    def _submit(self) -> None:
        for future in [f for f in self._running if f.done()]:
            future.result()
            self._running.remove(future)
        self._running.append(self._threads.submit(self._run, self._batch))
        self._batch = Batch(self._buffers.get(), [])

    def _run(self, batch: Batch) -> None:
        try:
            scores_first = self._two_stage and self._flagged_share < WORTH
            if scores_first and isinstance(batch.images, Pixels):
                self._score(batch.images.data, batch.decoded)
            else:
                self._infer(batch)
        finally:
            batch.images.clear()
            self._buffers.put(batch.images)

    def _infer(self, batch: Batch) -> None:
        """Scores and masks of a batch."""
        with self._lanes:
            started = time.perf_counter()
            decoded, answer = self._ask(batch)
            inferred = time.perf_counter()
        rows = scored_rows(decoded, answer, self._point, self._gate, self._masks)
        self._spent("engine", inferred - started)
        self._spent("postprocess", time.perf_counter() - inferred)
        self._finish(decoded, rows)

    def _ask(self, batch: Batch) -> tuple[list[Done], Inference | Screened]:
        """The engine's answer, and what is known of each image with it."""
        if isinstance(batch.images, Pixels):
            return batch.decoded, self._engine.infer(batch.images.data)
        answer = self._engine.screen(batch.images)
        pairs = zip(batch.decoded, answer.outcomes, strict=True)
        return [preprocessed(done, outcome) for done, outcome in pairs], answer

    def _score(self, images: NDArray[np.float32], decoded: list[Done]) -> None:
        """Scores of a batch; an image that is to get masks goes into a batch of such."""
        with self._lanes:
            started = time.perf_counter()
            scores = self._engine.scores(images)
            self._spent("engine", time.perf_counter() - started)
        bare = Inference(scores, np.empty((len(scores), 2, 0, 0), np.uint8))
        rows = scored_rows(decoded, bare, self._point, self._gate, "none")
        marked = [self._masks == "flagged" and is_flagged(row) for row in rows]
        settled = [i for i, mark in enumerate(marked) if not mark]
        self._finish([decoded[i] for i in settled], [rows[i] for i in settled])
        for i, mark in enumerate(marked):
            if mark and (full := self._keep(images[i], decoded[i])):
                self._mask(full)
        self._flagged_share += (sum(marked) / len(marked) - self._flagged_share) / MEMORY

    def _keep(self, image: NDArray[np.float32], done: Done) -> Batch | None:
        """Adds a flagged image; returns the batch that it fills up."""
        with self._mutex:
            self._flagged.add(image, done)
            is_full = len(self._flagged.decoded) == self._engine.batch_size
            return self._swapped() if is_full else None

    def _swapped(self) -> Batch:
        """The flagged images that wait; those that come are gathered anew."""
        waiting, self._flagged = self._flagged, Batch(self._flagged_buffers.get(), [])
        return waiting

    def _mask(self, flagged: Batch) -> None:
        """Scores and masks of flagged images."""
        try:
            self._infer(flagged)
        finally:
            flagged.images.clear()
            self._flagged_buffers.put(flagged.images)

    def _finish(self, decoded: list[Done], rows: list[Row]) -> None:
        started = time.perf_counter()
        self._commit([(d.item, row) for d, row in zip(decoded, rows, strict=True)])
        self._spent("write", time.perf_counter() - started)
        with self._mutex:
            self.screened += sum(done.reason is None for done in decoded)

    def _commit(self, rows: list[tuple[int, Row]]) -> None:
        for index, row in rows:
            self._write(index, row)
        with self._mutex:
            self.status.update(row.status for _, row in rows)
            self.reasons.update(row.reason for _, row in rows if row.reason is not None)
            self._on_rows(len(rows))

    def _spent(self, stage: str, seconds: float) -> None:
        with self._mutex:
            self.seconds[stage] += seconds


def preprocessed(done: Done, outcome: Outcome) -> Done:
    """What decoding found of an image, with what the engine's own preprocessing did."""
    if done.stored is None:  # pixels: preprocessed before
        return done
    if outcome.reason is not None:
        return done._replace(reason=str(outcome.reason))
    facts = replace(done.facts, voi=outcome.voi)
    return done._replace(facts=facts.warned(*outcome.warnings))


def buffers(engine: Engine, count: int) -> SimpleQueue[Pixels | Pictures]:
    """Room for ``count`` batches of an engine."""
    free: SimpleQueue[Pixels | Pictures] = SimpleQueue()
    for _ in range(count):
        free.put(engine.pictures() if engine.takes_samples else Pixels(engine.batch_size))
    return free
