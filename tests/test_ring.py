from __future__ import annotations

import random
from itertools import pairwise

import pytest

from comit.pipeline.ring import ALIGNMENT, Block, Ring


@pytest.fixture
def ring():
    ring = Ring(16 * ALIGNMENT)
    yield ring
    ring.close()


def test_blocks_are_page_aligned_and_at_least_as_large_as_asked(ring):
    block = ring.allocate(ALIGNMENT + 1)
    assert block == Block(0, 2 * ALIGNMENT)
    assert ring.allocate(1) == Block(2 * ALIGNMENT, ALIGNMENT)


def test_a_full_ring_grants_nothing_until_a_block_returns(ring):
    block = ring.allocate(16 * ALIGNMENT)
    assert ring.allocate(1) is None
    ring.free(block)
    assert ring.allocate(16 * ALIGNMENT) == block


def test_random_traffic_never_overlaps_and_leaves_one_free_piece(ring):
    rng, held = random.Random(0), []
    for _ in range(2000):
        if held and rng.random() < 0.5:
            ring.free(held.pop(rng.randrange(len(held))))
        elif (block := ring.allocate(rng.randrange(1, 6 * ALIGNMENT))) is not None:
            ends = sorted((b.offset, b.offset + b.size) for b in [*held, block])
            assert all(a[1] <= b[0] for a, b in pairwise(ends))
            held.append(block)
    for block in held:
        ring.free(block)
    assert ring.allocate(ring.size) == Block(0, ring.size)


def test_memory_is_shared_through_its_file_descriptor(ring):
    import mmap

    other = mmap.mmap(ring.fd, ring.size)
    ring.memory[5] = 77
    assert other[5] == 77
    other.close()
