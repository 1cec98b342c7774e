"""A decoding process: takes file names from a pipe, writes pixels into the ring.

Started by :mod:`comit.pipeline.pool`. It owns nothing that outlives it:
files are opened for reading, memory is granted by the parent, so it may be killed at any time.

    parent                          worker
      Task(item, file)     ->         reads and opens the file
                           <-       Need(bytes)     only for what its slot cannot hold
      offset in the ring   ->         decodes into the ring, as far as the task wants
                           <-       Done(item, ...)

It has two slots of the ring to itself, used in turn: what is decoded ahead lies in one while the
parent takes the pixels out of the other.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import stat
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
from imagecodecs import deflate_crc32

from comit.errors import ItemError
from comit.image import open_image
from comit.image.base import Image, Limits, ViewPolicy
from comit.image.preprocess import SIZE, Presentation, preprocess
from comit.image.samples import Form, Rows, Source, takes
from comit.pipeline.confine import Memory, forbid_core_dumps
from comit.reasons import Caution, Fail, Skip
from comit.results import Facts
from comit.source.base import microseconds

AHEAD = 2  # items a process has at once: the next waits in its pipe while it decodes
# Bytes that decoding may take for itself, as most radiographs do, beside three times the file's;
# what takes more than that asks the ring for it.
WORKING = 256 * 2**20
SLOT = 2**20  # bytes of a slot: 1024 x 1024 of 8 bits; a grid takes 200,704


class Task(NamedTuple):
    """One file to open, and how far to go with it."""

    item: int  # its index in the work list
    file: bytes
    want: str = "grid"  # a key of STORES
    problem: str | None = None  # a reason known before: it is not opened


class Need(NamedTuple):
    """Asks for a block of the ring."""

    nbytes: int


class Stored(NamedTuple):
    """What an item that is not the grid left at the beginning of its slot or block."""

    shape: tuple[int, int]
    dtype: str
    form: Form  # rows are a PNG's scanlines, inflated and no more
    presentation: Presentation

    def at(self, memory: mmap.mmap, offset: int) -> Source:
        """A view of them."""
        dtype = np.dtype(self.dtype)
        if self.form == "rows":
            height, width = self.shape
            lines = np.ndarray((height, 1 + width * dtype.itemsize), np.uint8, memory, offset)
            return Rows(lines, dtype)
        return np.ndarray(self.shape, dtype, memory, offset)


class Kept(NamedTuple):
    """How an item was stored, and what was found on the way."""

    stored: Stored | None = None  # as Done has it
    voi: str | None = None
    warnings: tuple[Caution, ...] = ()


class Done(NamedTuple):
    """One item is finished. Without a reason its slot or block begins with what is ``stored``."""

    item: int  # its index in the work list
    reason: str | None
    facts: Facts = Facts()
    seconds: float = 0.0  # of this process: reading, decoding, preprocessing
    stored: Stored | None = None  # None is the pixels of the grid, (224, 224) float32
    gated: bool = True  # the gate may skip it: tags do not verify it, nor does the policy take all


def main(stores: Mapping[str, Store] | None = None) -> None:
    """Serves items until the pipe closes. Arguments: pipe, ring, its size, slots; JSON.

    ``stores`` are what a task may want, if not :data:`STORES`.
    """
    pipe, ring, size, slots = (int(a) for a in sys.argv[1:5])
    policy, limits = json.loads(sys.argv[5])
    forbid_core_dumps()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    warnings.simplefilter("ignore")  # pydicom's quote header values, which name patients
    import cv2

    cv2.setNumThreads(1)
    connection = Connection(pipe)
    memory = mmap.mmap(ring, size)
    try:
        connection.send(None)  # ready
        parent = Parent(connection, memory, slots)
        while True:
            task = parent.next_task()
            store = (stores or STORES)[task.want]
            connection.send(_process(task, store, Limits(**limits), policy, parent))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


class Parent:
    """The other end of the pipe; tasks that arrive ahead of a grant are kept for later."""

    def __init__(self, connection: Connection, memory: mmap.mmap, slots: int) -> None:
        self.connection, self.memory, self.slots = connection, memory, slots
        self.tasks: deque[Task] = deque()
        self.taken = -1
        self.waited = 0.0  # seconds, for memory of the item in hand
        self.own, self.allowed = Memory(), 0

    def next_task(self) -> Task:
        """The next one, in the order they were sent."""
        self.taken += 1
        self.waited = 0.0
        return self.tasks.popleft() if self.tasks else self.connection.recv()

    def allow(self, file_bytes: int) -> None:
        """Bounds what this process takes for a file, until more is asked for."""
        self.allowed = WORKING + 3 * file_bytes  # as read, a frame of it, a part in hand
        self.own.allow(self.allowed)

    def place(self, nbytes: int, working: int = 0) -> int:
        """The offset of memory for an item: its slot, or a block of the ring, waited for.

        ``working`` are bytes that decoding takes for itself. What of them is beyond WORKING is
        asked for with the rest and left unused there, so that the ring bounds it too. Raises
        ItemError ``too_large``.
        """
        more = max(working - WORKING, 0)
        nbytes += more
        if nbytes <= SLOT:
            return self.slots + self.taken % AHEAD * SLOT
        asked = time.perf_counter()
        self.connection.send(Need(nbytes))
        while isinstance(message := self.connection.recv(), Task):
            self.tasks.append(message)
        self.waited += time.perf_counter() - asked
        if message is None:
            raise ItemError(Fail.TOO_LARGE)
        self.own.allow(self.allowed + more)
        return int(message)


def _process(task: Task, store: Store, limits: Limits, policy: ViewPolicy, parent: Parent) -> Done:
    started = time.perf_counter()
    contents = Contents()
    image: Image | None = None
    reason: str | None = None
    kept = Kept()
    try:
        contents = read_file(task.file, limits.file_bytes, parent.allow)
        image = open_image(contents.data, limits, policy)
        if image.skip is not None:
            reason = image.skip
        else:
            kept = store(image, contents.data, parent)
    except ItemError as error:
        reason = error.reason
    except MemoryError:
        reason = Fail.TOO_LARGE
    except Exception:  # a decoder's own error; its text may hold header values
        reason = Fail.CRASH
    facts = image.facts if image else Facts()
    return Done(
        task.item,
        reason and str(reason),
        replace(
            facts,
            voi=kept.voi,
            file_size=contents.size,
            file_mtime=contents.mtime,
            file_crc32=contents.crc32,
            warnings=(),
        ).warned(*(image.warnings if image else ()), *kept.warnings, *facts.warnings),
        seconds=time.perf_counter() - started - parent.waited,
        stored=kept.stored,
        gated=image is None or (not image.verified and policy != "all"),
    )


def _store_grid(image: Image, data: bytes, parent: Parent) -> Kept:
    """Puts the pixels of the grid into the ring."""
    offset = parent.place(image.nbytes, image.working)
    pixels, voi, found = preprocess(image.samples(parent.memory, offset), image.presentation)
    # The stored values are done with: the grid takes their place.
    np.ndarray((SIZE, SIZE), np.float32, parent.memory, offset)[...] = pixels
    return Kept(None, voi, found)


def _store_samples(image: Image, data: bytes, parent: Parent) -> Kept:
    """Puts samples into the ring as they are, of a PNG its scanlines, where the GPU takes them."""
    from comit.image.scanlines import read_rows

    shape, dtype, shown = (image.height, image.width), image.dtype.str, image.presentation
    if not takes(shape, image.dtype, shown):
        return _store_grid(image, data, parent)
    rows = read_rows(data)
    if rows is not None:
        offset = parent.place(rows.data.nbytes)
        np.ndarray(rows.data.shape, np.uint8, parent.memory, offset)[...] = rows.data
        return Kept(Stored(shape, dtype, "rows", shown))
    offset = parent.place(image.height * image.width * image.dtype.itemsize, image.working)
    samples = image.samples(parent.memory, offset)
    if image.in_place:
        np.ndarray(shape, image.dtype, parent.memory, offset)[...] = samples
    return Kept(Stored(shape, dtype, "samples", shown))


# Each decodes an opened image, whose file's bytes come with it, into a slot or block; ItemError.
Store = Callable[[Image, bytes, Parent], Kept]
STORES: dict[str, Store] = {"grid": _store_grid, "samples": _store_samples}


class Contents(NamedTuple):
    """What was read of a file, and what tells whether it has changed since."""

    data: bytes = b""
    size: int | None = None  # bytes
    mtime: int | None = None  # microseconds since 1970
    crc32: int | None = None  # ISO/IEC 13239; tells two files of one SOPInstanceUID apart


def read_file(file: bytes, limit: int, allow: Callable[[int], None] = lambda _: None) -> Contents:
    """All bytes of a regular file; raises ItemError. A FIFO or a device is never opened.

    ``allow`` is told how many they are before they are read.
    """
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # noqa: PTH116 (bytes)
            raise ItemError(Skip.NOT_A_FILE)
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as stream:  # noqa: PTH123
            before = os.fstat(fd)
            if before.st_size > limit:
                raise ItemError(Fail.TOO_LARGE)
            allow(before.st_size)
            data = stream.read(before.st_size + 1)  # one more shows a file that grows
            after = os.fstat(fd)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if isinstance(error, FileNotFoundError):
            raise ItemError(Fail.VANISHED) from None
        if isinstance(error, PermissionError):
            raise ItemError(Fail.PERMISSION) from None
        raise ItemError(Fail.READ_ERROR) from None
    if len(data) != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
        raise ItemError(Fail.CHANGED)
    crc32 = deflate_crc32(data)
    return Contents(data, before.st_size, microseconds(before.st_mtime_ns), crc32)
