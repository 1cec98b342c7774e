"""Decoding processes that run ahead of the engine and can be killed one by one.

A file that hangs or crashes its decoder costs its own row and a new process; the item queued
behind it is given to another. Pixels travel through the :class:`comit.pipeline.ring.Ring`, messages
through one pipe a process (:mod:`comit.pipeline.worker` draws the conversation).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import Pipe
from selectors import EVENT_READ, DefaultSelector

import numpy as np

from comit.errors import Stopped
from comit.image.base import Limits, ViewPolicy
from comit.image.preprocess import SIZE
from comit.image.samples import Source
from comit.pipeline.clock import Clock
from comit.pipeline.ring import Block, Ring
from comit.pipeline.worker import AHEAD, SLOT, Done, Need, Task
from comit.reasons import Fail

WORKER = "from comit.pipeline.worker import main; main()"
START_TIMEOUT = 60.0  # seconds for a process to start and import its codecs
START_TRIES = 5  # of processes that end before they are ready, one after the other in one place,
START_PAUSE = 0.1  # and seconds before the second try, doubled for each more: memory may come back
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # glibc: keep the memory of pictures instead of faulting it in for each anew.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
}
TICK = 0.25  # seconds between looks at the clock while nothing arrives


class _Worker:
    """One process, what it was given and what it holds."""

    def __init__(
        self,
        program: str,
        ring: Ring,
        slots: int,
        limits: Limits,
        policy: ViewPolicy,
        now: float,
        tries: int,
        inherited: tuple[int, ...],
    ) -> None:
        self.pipe, theirs = Pipe()
        self.tries = tries  # to start a process here since one was ready, with this one
        self.slots = slots  # offset of its own part of the ring
        with theirs:
            numbers = (theirs.fileno(), ring.fd, ring.size, slots)
            reading = json.dumps((policy, asdict(limits)))
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", program, *map(str, numbers), reading],
                pass_fds=(theirs.fileno(), ring.fd, *inherited),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # codecs print; headers name patients
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),  # noqa: PTH109
                    **ENVIRONMENT,
                },
            )
        self.queue: deque[Task] = deque()  # the first one is being decoded
        self.finished = 0
        self.block: Block | None = None  # for an item that its slot cannot hold
        self.wants: int | None = None  # bytes asked for and not granted yet
        self.ready = False
        self.since = now  # when it started, or started its first item

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


class Pool:
    """``workers`` decoding processes and the ring they share; a context manager.

    ``ring_bytes`` bounds the memory of pictures over 1 MiB beside the workers' own 2 MiB each,
    ``timeout`` the seconds that reading and decoding one file may take. ``program`` is the Python
    of a process, if not :data:`WORKER`: it calls :func:`comit.pipeline.worker.main`. ``inherited``
    are file descriptors that the processes have too, under the same numbers.
    """

    def __init__(
        self,
        workers: int,
        ring_bytes: int,
        limits: Limits,
        timeout: float,
        policy: ViewPolicy = "tagged",
        program: str | None = None,
        inherited: tuple[int, ...] = (),
    ) -> None:
        self._limits, self._timeout, self._policy = limits, timeout, policy
        self._program, self._inherited = program, inherited
        own = AHEAD * SLOT
        self._ring = Ring(ring_bytes, reserved=workers * own)
        self._clock = Clock()
        self._waiting: deque[_Worker] = deque()  # for memory, first come first served
        self._selector = DefaultSelector()
        self._bell = os.pipe()
        for end in self._bell:
            os.set_blocking(end, False)
        self._selector.register(self._bell[0], EVENT_READ)
        self._workers: list[_Worker] = []
        try:
            for i in range(workers):
                self._workers.append(self._start(i * own, tries=1))
        except BaseException:
            self.close()
            raise
        self.seconds = 0.0  # that workers spent reading, decoding and preprocessing

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes and frees the memory."""
        for worker in self._workers:
            worker.kill()
        self._selector.close()
        self._ring.close()
        self._clock.close()
        for end in self._bell:
            os.close(end)

    def wake(self) -> None:
        """Has :meth:`run` ask for tasks at once; any thread may call it while the pool is open."""
        with suppress(BlockingIOError):  # it has been called a thousand times since
            os.write(self._bell[1], b"\0")

    def run(
        self, tasks: Iterable[Task | None], turn: Callable[[], object] = lambda: None
    ) -> Iterator[tuple[Done, Source | None]]:
        """Decodes files and yields them as they finish, in no fixed order.

        None among the tasks says that there is none for now; it ends when there is none and all
        others are done. ``turn`` is called after every wait of at most :data:`TICK`.

        With every :class:`Done` that has no reason comes a view into the ring, valid until the
        next one is asked for: (224, 224) float32 pixels, or where the task asks for them and the
        GPU takes them, samples as they are stored, or what else the program gives.
        """
        source = iter(tasks)
        again: deque[Task] = deque()
        while True:
            yield from ((done, None) for done in self._feed(source, again))
            if not any(worker.queue for worker in self._workers):
                return
            arrived = [key.data for key, _ in self._selector.select(TICK)]
            if None in arrived:
                arrived.remove(None)
                os.read(self._bell[0], 2**16)
            turn()
            now = self._clock.seconds()
            late = [w for w in self._workers if w not in arrived and self._is_late(w, now)]
            for worker in late:
                yield from self._replace(worker, again, Fail.TIMEOUT)
            for worker in arrived:
                try:
                    message = worker.pipe.recv()
                except (
                    Exception
                ):  # it has died, or sends what cannot be read: its memory is damaged
                    yield from self._replace(worker, again, Fail.CRASH)
                    continue
                if isinstance(message, Done):
                    yield from self._finish(worker, message)
                elif isinstance(message, Need):
                    worker.wants = message.nbytes
                    self._waiting.append(worker)
                else:
                    worker.ready, worker.since = True, self._clock.seconds()
                self._grant()

    def _start(self, slots: int, tries: int) -> _Worker:
        now = self._clock.seconds()
        try:
            program = self._program or WORKER
            worker = _Worker(
                program,
                self._ring,
                slots,
                self._limits,
                self._policy,
                now,
                tries,
                self._inherited,
            )
        except OSError as error:  # no process, no memory or no file number left
            raise Stopped(
                f"a decoding process cannot be started: {error.strerror}. Fewer --workers may do; "
                "the same command resumes"
            ) from error
        self._selector.register(worker.pipe, EVENT_READ, worker)
        return worker

    def _feed(self, source: Iterator[Task | None], again: deque[Task]) -> Iterator[Done]:
        """Gives every worker something to do; yields what has a problem, which is not opened."""
        for depth in range(AHEAD):
            for worker in self._workers:
                if len(worker.queue) > depth:
                    continue
                task = again.popleft() if again else next(source, None)
                while task is not None and task.problem is not None:
                    yield Done(task.item, task.problem)
                    task = next(source, None)
                if task is None:
                    break
                if not worker.queue:
                    worker.since = self._clock.seconds()
                worker.queue.append(task)
                with suppress(OSError):  # it has died: its pipe says so when it is read
                    worker.pipe.send(task)

    def _is_late(self, worker: _Worker, now: float) -> bool:
        if not worker.queue or worker.wants is not None:
            return False
        return now - worker.since > (self._timeout if worker.ready else START_TIMEOUT)

    def _finish(self, worker: _Worker, done: Done) -> Iterator[tuple[Done, Source | None]]:
        worker.queue.popleft()
        worker.since = self._clock.seconds()
        self.seconds += done.seconds
        view: Source | None = None
        if done.reason is None:
            slot = worker.slots + worker.finished % AHEAD * SLOT
            offset = worker.block.offset if worker.block else slot
            if done.stored is not None:
                view = done.stored.at(self._ring.memory, offset)
            else:
                view = np.ndarray((SIZE, SIZE), np.float32, self._ring.memory, offset)
        worker.finished += 1
        yield done, view
        self._release(worker)

    def _grant(self) -> None:
        """Serves requests for memory in their order, so that a large one is not overtaken."""
        while self._waiting:
            worker = self._waiting[0]
            wants = worker.wants or 0
            if wants <= self._ring.largest:
                worker.block = self._ring.allocate(wants)
                if worker.block is None:
                    return
            self._waiting.popleft()
            worker.wants, worker.since = None, self._clock.seconds()
            with suppress(OSError):  # as in _feed
                worker.pipe.send(worker.block and worker.block.offset)

    def _release(self, worker: _Worker) -> None:
        if worker.block is not None:
            self._ring.free(worker.block)
            worker.block = None

    def _replace(
        self, worker: _Worker, again: deque[Task], reason: Fail
    ) -> Iterator[tuple[Done, None]]:
        """Puts a new process in the place of a dead or late one; its first item is lost.

        One that was not ready had begun none. Raises Stopped where processes do not get ready.
        """
        self._selector.unregister(worker.pipe)
        worker.kill()
        if not worker.ready and worker.tries >= START_TRIES:
            raise Stopped(_not_started(worker, reason))
        self._release(worker)
        if worker in self._waiting:
            self._waiting.remove(worker)
        if not worker.ready:
            time.sleep(START_PAUSE * 2 ** (worker.tries - 1))
        tries = 1 if worker.ready else worker.tries + 1
        self._workers[self._workers.index(worker)] = self._start(worker.slots, tries)
        lost = worker.queue.popleft() if worker.ready and worker.queue else None
        again.extend(worker.queue)
        if lost is not None:
            yield Done(lost.item, str(reason)), None
        self._grant()


def _not_started(worker: _Worker, reason: Fail) -> str:
    """What to say of a place in which no process gets ready."""
    if reason is Fail.TIMEOUT:
        return (
            f"a decoding process did not start within {START_TIMEOUT:g} s, {START_TRIES} times: "
            "the machine is too busy, or the disk that comit is installed on too slow; the same "
            "command resumes"
        )
    code = worker.process.returncode
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return (
        f"a decoding process {how} while it started, {START_TRIES} times. Is there memory for "
        "more processes (fewer --workers may do), and is comit installed completely? Try: "
        f"{sys.executable} -c 'import comit.pipeline.worker, cv2'; the same command resumes"
    )
