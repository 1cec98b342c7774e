"""Objects of stores, fetched ahead into nameless files that decoding processes read.

    tasks --addresses--> threads: many requests in flight --> files --> decoding processes
          --files------------------------------------------------------^

Fetching is the parent's, not the decoders': a decoder that must wait for the network would need a
process for each request in flight, and would know credentials. Memory is bounded: by the number of
files, and by BYTES of what is fetched or waits to be decoded.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from queue import Empty, SimpleQueue
from typing import NamedTuple

from comit.durable import nameless
from comit.errors import ItemError, Stopped
from comit.image.base import Limits
from comit.pipeline.worker import AHEAD, Done, Task
from comit.reasons import Code, Fail
from comit.source.address import REFUSALS, REQUESTS, Address, Stores, is_address

BYTES = 256 * 2**20  # of objects that are fetched or wait, and one object more
PAUSE = 0.2  # seconds before the second try, doubled for each more, up to
LONGEST_PAUSE = 5.0
TICK = 0.25  # seconds between looks at whether to stop


class _Fetched(NamedTuple):
    task: Task
    size: int  # bytes that it counted for
    file: int | None  # None where there is a reason
    mtime: int | None = None
    reason: Code | None = None
    error: BaseException | None = None  # of this machine, not of a store


class Fetcher:
    """Gives tasks whose files are here, whatever their addresses; a context manager.

    :attr:`files` are the descriptors that decoding processes must inherit.
    """

    def __init__(
        self,
        stores: Stores,
        workers: int,
        limits: Limits,
        timeout: float,
    ) -> None:
        self._stores, self._limits, self._timeout = stores, limits, timeout
        self._wake: Callable[[], None] = lambda: None
        self._waking = threading.Lock()
        self._threads = ThreadPoolExecutor(REQUESTS, "fetch")
        with ExitStack() as stack:
            number = REQUESTS + AHEAD * workers
            self.files = tuple(stack.enter_context(nameless()).fileno() for _ in range(number))
            self._closing = stack.pop_all()
        self._free = [*self.files]
        self._came: SimpleQueue[_Fetched] = SimpleQueue()
        self._ready: deque[Task] = deque()
        # By store: refused one after the other, nothing between.
        self._suspect: defaultdict[str, deque[Task]] = defaultdict(deque)
        self._served: set[str] = set()  # stores that have given anything in this run
        self._given: dict[int, _Fetched] = {}  # by item: fetched, and not done yet
        self._in_flight = self._undone = self._bytes = 0
        self._ended = threading.Event()
        self._retries = 0

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        # A request that hangs still holds a file: that is closed behind it.
        threading.Thread(target=self._close, name="fetch", daemon=True).start()

    def _close(self) -> None:
        self._threads.shutdown(wait=True)
        self._closing.close()

    @contextmanager
    def waking(self, wake: Callable[[], None]) -> Iterator[None]:
        """Has ``wake`` called, by any thread, when there is a task after there was none."""
        self._wake = wake
        try:
            yield
        finally:
            with self._waking:
                self._wake = lambda: None

    def tasks(self, source: Iterator[tuple[Task, int | None]]) -> Iterator[Task | None]:
        """The tasks of ``source``, each with the bytes that its object has as far as is known.

        None says that there is none for now. Every task must come back to :meth:`done`. Raises
        Stopped where a store refuses everything.
        """
        more = True
        while True:
            while more and self._free and self._bytes < BYTES:
                found = next(source, None)
                if found is None:
                    more = False
                    break
                task, size = found
                if task.problem is None and is_address(task.file):
                    self._begin(task, size or 0)
                else:
                    self._undone += 1
                    yield task
            self._sort()
            if self._ready:
                self._undone += 1
                yield self._ready.popleft()
            elif self._in_flight:
                if self._undone:
                    yield None
                else:  # nothing is being decoded that would be waited for
                    self._wait()
            elif not more:
                if not any(self._suspect.values()):
                    return
                for place, tasks in self._suspect.items():
                    unreached = [t for t in tasks if t.problem == str(Fail.UNREACHABLE)]
                    if unreached and place not in self._served:
                        raise _refuses(place, unreached[0])
                    self._release(place)
            elif self._undone:  # room comes with what is done
                yield None

    def done(self, done: Done) -> Done:
        """What is known of an item that was decoded, with the time of its object's last change."""
        self._undone -= 1
        fetched = self._given.pop(done.item, None)
        if fetched is None:
            return done
        if fetched.file is not None:
            os.ftruncate(fetched.file, 0)  # its memory is free
            self._free.append(fetched.file)
        self._bytes -= fetched.size
        return done._replace(facts=replace(done.facts, file_mtime=fetched.mtime))

    def notes(self) -> list[str]:
        """What to know of how the stores answered."""
        return [f"requests to stores, repeated: {self._retries:,}"] if self._retries else []

    def _begin(self, task: Task, size: int) -> None:
        self._in_flight += 1
        self._bytes += size
        self._threads.submit(self._fetch, task, size, self._free.pop())

    def _sort(self) -> None:
        while self._in_flight:
            try:
                self._took(self._came.get_nowait())
            except Empty:
                return

    def _wait(self) -> None:
        try:
            self._took(self._came.get(timeout=TICK))
        except Empty:
            return

    def _took(self, fetched: _Fetched) -> None:
        """Sorts what a thread brought: a file, or a reason."""
        self._in_flight -= 1
        if fetched.error is not None:
            raise fetched.error
        task = fetched.task
        place = Address.of(os.fsdecode(task.file)).place
        if fetched.reason is None:
            self._given[task.item] = fetched
            self._ready.append(task._replace(file=b"/dev/fd/%d" % (fetched.file or 0)))
        else:
            self._bytes -= fetched.size
            refused = task._replace(problem=str(fetched.reason))
            if fetched.reason in (Fail.UNREACHABLE, Fail.DENIED):
                self._suspect[place].append(refused)
                if len(self._suspect[place]) >= REFUSALS:
                    raise _refuses(place, refused)
                return
            self._ready.append(refused)
        self._served.add(place)
        self._release(place)

    def _release(self, place: str) -> None:
        """Gives those their rows that a store refused, though not all."""
        self._ready.extend(self._suspect[place])
        self._suspect[place].clear()

    def _fetch(self, task: Task, size: int, file: int) -> None:
        """In a thread: one object, tried again until its time is over."""
        deadline = time.monotonic() + self._timeout
        fetched = _Fetched(task, size, None, reason=Fail.UNREACHABLE)
        try:
            for tried in count():
                try:
                    mtime = self._read(Address.of(os.fsdecode(task.file)), file)
                    fetched = _Fetched(task, size, file, mtime)
                    break
                except ItemError as error:
                    reason = error.reason
                    pause = min(PAUSE * 2**tried, LONGEST_PAUSE) * random.uniform(0.5, 1)  # noqa: S311
                    again = reason is Fail.UNREACHABLE and time.monotonic() + pause < deadline
                    if not again or self._ended.wait(pause):
                        fetched = _Fetched(task, size, None, reason=reason)
                        break
                    self._retries += 1
        except BaseException as error:
            fetched = _Fetched(task, size, None, error=error)
        finally:
            if fetched.file is None:
                os.ftruncate(file, 0)
                self._free.append(file)
            self._came.put(fetched)
            with self._waking:
                self._wake()

    def _read(self, address: Address, file: int) -> int | None:
        """Writes an object into a file; the time of its last change. Raises ItemError."""
        found, pieces = self._stores.read(address)
        if (found.size or 0) > self._limits.file_bytes:
            raise ItemError(Fail.TOO_LARGE)
        os.ftruncate(file, 0)
        written = 0
        for piece in pieces:
            if self._ended.is_set():
                raise ItemError(Fail.UNREACHABLE)
            written += os.pwrite(file, piece, written)
            if written > self._limits.file_bytes:
                raise ItemError(Fail.TOO_LARGE)
        if found.size is not None and written != found.size:  # cut on the way
            raise ItemError(Fail.UNREACHABLE)
        return found.mtime


def _refuses(place: str, task: Task) -> Stopped:
    what = "may not be read" if task.problem == str(Fail.DENIED) else "cannot be reached"
    return Stopped(
        f"objects of {place} {what}, one after the other: check the network and the credentials. "
        "The rows so far are kept; the same command resumes"
    )
