"""The engine, lanes and decoding processes behind a screener, and the thread that feeds them.

    any thread --inbox--> decoding processes --> lanes --> future
              arrays --------------------------^

Whoever asks gets a future, so that threads share batches and wait for no other thread's turn. A
batch that is not full goes to the engine when nothing else is in hand, or after PATIENCE.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comit.api.result import Result
from comit.card import read_card
from comit.config import decoders, ring_bytes
from comit.durable import nameless
from comit.engine import load_engine
from comit.errors import ItemError, UsageError
from comit.image.base import Limits, check_size
from comit.image.preprocess import Presentation, preprocess
from comit.options import Options
from comit.pipeline.lanes import Lanes
from comit.pipeline.pool import Pool
from comit.pipeline.rows import unscored_row
from comit.pipeline.worker import AHEAD, Done, Task
from comit.reasons import Caution, Fail, Skip
from comit.results import Facts, Row
from comit.screening import operating_point

PATIENCE = 0.25  # seconds that an image waits for others to fill its batch while files are decoded
Item = str | os.PathLike[str] | bytes | bytearray | memoryview | NDArray[Any]
Work = Task | tuple[Done, NDArray[np.float32]]  # to decode, or pixels


class _Asked(NamedTuple):
    """An image that somebody waits for."""

    path: str | None
    future: Future[Result]
    file: int | None  # descriptor of the nameless file that holds its bytes until it is decoded


class Service:
    """Takes images from any thread and answers with futures; all is loaded when it is made.

    Raises what :func:`comit.engine.load_engine` does, UsageError for an operating point that the
    model has not, Stopped where no process can be started.
    """

    def __init__(self, options: Options) -> None:
        self.pid = os.getpid()
        self._policy, self._limits = options.view_policy, Limits()
        card = read_card(options.model)
        point = operating_point(card.operating_points, options)
        workers = options.workers or decoders()
        with ExitStack() as stack:
            files = [stack.enter_context(nameless()).fileno() for _ in range(2 * AHEAD * workers)]
            # The decoding processes start while the engine compiles.
            self._pool = stack.enter_context(
                Pool(
                    workers,
                    ring_bytes(options.ring_bytes),
                    self._limits,
                    options.timeout,
                    options.view_policy,
                    inherited=tuple(files),
                )
            )
            self.engine = load_engine(
                options.model,
                name=options.engine,
                device=options.device,
                precision=options.precision,
                batch_size=options.batch_size,
            )
            stack.callback(self.engine.close)
            self._lanes = stack.enter_context(
                Lanes(self.engine, self._answer, point, card.gate, options.masks)
            )
            self._resources = stack.pop_all()
        self._free: SimpleQueue[int | None] = SimpleQueue()  # files that may be written to
        for file in files:
            self._free.put(file)
        self._want = "samples" if self.engine.takes_samples else "grid"
        # What keeps processes and lanes busy, twice: as much waits as is in hand.
        in_lanes = (2 * self.engine.lanes + 2) * self.engine.batch_size
        self.ahead = 2 * (workers * AHEAD + in_lanes)
        self._lock = Lock()
        self.open = True
        self._error: BaseException | None = None  # why it is not
        self._numbers = count()
        self._asked: dict[int, _Asked] = {}
        self._inbox: SimpleQueue[Work | None] = SimpleQueue()  # None is the last
        self._thread = Thread(target=self._serve, name="comit", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def submit(self, item: Item) -> Future[Result]:
        """Asks for one image: the path of a file, its bytes, or an array (H, W).

        Bytes are copied into memory that decoding processes can read, and wait for some to be
        free. Arrays are preprocessed here. Raises ValueError for an array that is no image,
        UsageError where the service was closed, or what ended it.
        """
        if isinstance(item, str | os.PathLike):
            path = os.fspath(item)
            name = os.path.join(os.getcwdb(), os.fsencode(path))  # noqa: PTH109, PTH118 (bytes)
            return self._ask(path, None, lambda n: Task(n, name, self._want))
        if isinstance(item, bytes | bytearray | memoryview):
            data = memoryview(item).cast("B")
            if len(data) > self._limits.file_bytes:
                return _unscored(Done(0, str(Fail.TOO_LARGE)))
            file = self._written(data)
            return self._ask(None, file, lambda n: Task(n, b"/dev/fd/%d" % file, self._want))
        done, pixels = self._preprocessed(as_samples(item))
        if pixels is None:
            return _unscored(done)
        return self._ask(None, None, lambda n: (done._replace(item=n), pixels))

    def close(self) -> None:
        """Answers what was asked for, then ends the thread and the processes; waits for them."""
        atexit.unregister(self.close)
        self.end()
        if os.getpid() == self.pid:
            self._thread.join()

    def end(self) -> None:
        """As :meth:`close`, and does not wait: the thread itself may call it.

        Does nothing in a process that was forked since: what there is to end is the parent's.
        """
        if os.getpid() != self.pid:
            return
        with self._lock:
            if self.open:
                self.open = False
                self._inbox.put(None)

    def _ask(
        self, path: str | None, file: int | None, work: Callable[[int], Work]
    ) -> Future[Result]:
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()  # from now on it cannot be cancelled
        with self._lock:
            if not self.open:
                raise self._error or _closed()
            number = next(self._numbers)
            self._asked[number] = _Asked(path, future, file)
            self._inbox.put(work(number))
            self._pool.wake()
        return future

    def _written(self, data: memoryview) -> int:
        """The descriptor of a file that holds the bytes; waits for a free one."""
        file = self._free.get()
        if file is None:
            self._free.put(None)  # for the next who waits
            raise self._error or _closed()
        written = 0
        while written < len(data):
            written += os.pwrite(file, data[written:], written)
        return file

    def _preprocessed(self, samples: NDArray[Any]) -> tuple[Done, NDArray[np.float32] | None]:
        """What decoding says of a picture without tags, and its pixels."""
        height, width = samples.shape
        facts = Facts(rows=height, cols=width)
        try:
            check_size(height, width, self._limits)
            if self._policy == "strict":
                raise ItemError(Skip.UNVERIFIED_VIEW)
            pixels, voi, found = preprocess(samples, Presentation())
        except ItemError as error:
            return Done(0, str(error.reason), facts), None
        facts = replace(facts, voi=voi).warned(Caution.UNVERIFIED_VIEW, *found)
        return Done(0, None, facts, gated=self._policy != "all"), pixels

    # -- the thread ---------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            with self._resources:
                try:
                    self._loop()
                except BaseException as error:
                    self._error = error
                with self._lock:
                    self.open = False
        finally:
            for asked in self._asked.values():  # nobody else touches it now
                asked.future.set_exception(self._error or _closed())
            self._free.put(None)

    def _loop(self) -> None:
        """Runs images until the last."""
        while (work := self._inbox.get()) is not None:
            for done, image in self._pool.run(self._tasks(work), self._hurry):
                self._lanes.add(self._decoded(done), image)
            if self._inbox.empty():
                self._lanes.flush()
        self._lanes.flush()

    def _tasks(self, work: Work | None) -> Iterator[Task | None]:
        """The first and those that come; what needs no decoding goes straight to the lanes."""
        while True:
            if work is None or isinstance(work, Task):
                yield work
            else:
                self._lanes.add(*work)
                if not self._inbox.empty():
                    self._pool.wake()  # to go on at once, once it has looked at its processes
                yield None
            work = self._next()

    def _next(self) -> Work | None:
        """What comes next; None if there is nothing for now. The last stays in the inbox."""
        if self._inbox.empty():
            return None
        work = self._inbox.get()
        if work is None:
            self._inbox.put(None)
        return work

    def _hurry(self) -> None:
        self._lanes.hurry(PATIENCE)

    def _decoded(self, done: Done) -> Done:
        """What decoding found; the file that held the bytes is free again."""
        file = self._asked[done.item].file
        if file is None:
            return done
        os.ftruncate(file, 0)
        self._free.put(file)
        return done._replace(facts=replace(done.facts, file_mtime=None))

    def _answer(self, number: int, row: Row) -> None:
        """Called by a lane, or by the thread for what has no pixels."""
        with self._lock:
            asked = self._asked.pop(number)
        asked.future.set_result(Result(asked.path, row))


def as_samples(array: Any) -> NDArray[Any]:
    """An array that can be screened, (H, W) of whole numbers or floats; raises ValueError."""
    samples = np.asarray(array)
    if samples.ndim != 2:
        raise ValueError(f"an image is an array (H, W) of grey values, not {samples.shape}")
    if samples.dtype.kind not in "uif":
        raise ValueError(f"an image is an array of whole numbers or floats, not {samples.dtype}")
    return samples


def _unscored(done: Done) -> Future[Result]:
    future: Future[Result] = Future()
    future.set_result(Result(None, unscored_row(done)))
    return future


def _closed() -> UsageError:
    return UsageError("this screener is closed")
