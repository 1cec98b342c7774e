"""The engine alone: how long a batch takes, and how many images a second it can do."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from comit.engine.base import IMAGE, Engine


@dataclass(frozen=True)
class Latency:
    """One engine at one batch size, one call at a time; then all its lanes at once."""

    engine: str
    precision: str
    device: str
    batch_size: int
    calls: int
    first_ms: float  # of the first call, which may compile; not in what follows
    p50_ms: float
    p90_ms: float
    p99_ms: float
    lanes: int
    images_per_second: float  # all lanes busy


def measure(engine: Engine, calls: int = 30, seconds: float = 3.0) -> Latency:
    """Times ``calls`` full batches of random images after two that warm up, then the rate.

    The percentiles are those of the calls, interpolated: with 30 calls p99 is near the slowest.
    """
    images = noise(engine.batch_size)
    first = _timed(engine, images)
    _timed(engine, images)
    p50, p90, p99 = np.percentile([_timed(engine, images) for _ in range(calls)], [50, 90, 99])
    return Latency(
        engine=engine.name,
        precision=engine.precision,
        device=engine.device,
        batch_size=engine.batch_size,
        calls=calls,
        first_ms=round(first * 1e3, 3),
        p50_ms=round(float(p50) * 1e3, 3),
        p90_ms=round(float(p90) * 1e3, 3),
        p99_ms=round(float(p99) * 1e3, 3),
        lanes=engine.lanes,
        images_per_second=round(rate(engine, seconds), 3),
    )


def rate(engine: Engine, seconds: float) -> float:
    """Images a second with every lane busy for about ``seconds`` on random images.

    Each lane does one batch to warm up and then at least two.
    """
    images = noise(engine.batch_size)

    def lane(until: float) -> int:
        done = 0
        while done < 2 or time.perf_counter() < until:
            engine.infer(images)
            done += 1
        return done

    with ThreadPoolExecutor(engine.lanes) as threads:
        list(threads.map(lambda _: engine.infer(images), range(engine.lanes)))
        started = time.perf_counter()
        batches = sum(threads.map(lane, [started + seconds] * engine.lanes))
        return batches * engine.batch_size / (time.perf_counter() - started)


def noise(n: int) -> NDArray[np.float32]:
    """(n, 1, 224, 224) float32 uniform in [0, 1], the same each time."""
    return np.random.default_rng(0).random((n, *IMAGE), dtype=np.float32)


def _timed(engine: Engine, images: NDArray[np.float32]) -> float:
    started = time.perf_counter()
    engine.infer(images)
    return time.perf_counter() - started
