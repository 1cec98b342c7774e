"""The shared memory that decoders write into: one segment, handed out in blocks by the parent.

Only the parent allocates and frees, so a worker can be killed at any moment and nothing has to be
repaired but the blocks it held. The segment has no name: it is gone when the last process is.
"""

from __future__ import annotations

import mmap
import os
from bisect import insort
from typing import NamedTuple

from comit.durable import nameless

ALIGNMENT = 4096  # bytes: a page, so that blocks can be page-locked one by one


class Block(NamedTuple):
    """A piece of the ring."""

    offset: int
    size: int


class Ring:
    """A segment of ``size`` bytes and the list of its free pieces.

    Its first ``reserved`` bytes are never handed out: they are the caller's to divide.
    """

    def __init__(self, size: int, reserved: int = 0) -> None:
        reserved = _round_up(reserved)
        self.size = reserved + _round_up(size)
        self.largest = self.size - reserved  # bytes of the largest block there can be
        with nameless() as file:
            self.fd = os.dup(file.fileno())
        os.ftruncate(self.fd, self.size)
        self.memory = mmap.mmap(self.fd, self.size)
        self._free = [Block(reserved, self.largest)]  # by offset; neighbours are merged

    def allocate(self, size: int) -> Block | None:
        """A block of at least ``size`` bytes, the lowest that fits; None while there is none."""
        size = _round_up(size)
        for i, free in enumerate(self._free):
            if free.size >= size:
                rest = Block(free.offset + size, free.size - size)
                self._free[i : i + 1] = [rest] if rest.size else []
                return Block(free.offset, size)
        return None

    def free(self, block: Block) -> None:
        """Takes a block back."""
        insort(self._free, block)
        i = self._free.index(block)
        for j in (i, i - 1):  # merge with the next, then with the one before
            if 0 <= j < len(self._free) - 1:
                a, b = self._free[j], self._free[j + 1]
                if a.offset + a.size == b.offset:
                    self._free[j : j + 2] = [Block(a.offset, a.size + b.size)]

    def close(self) -> None:
        """Unmaps the segment."""
        self.memory.close()
        os.close(self.fd)


def _round_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
