"""The engine alone: how long a batch takes, and how many images a second it can do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comit.bench.memory import proportional
from comit.engine.base import IMAGE, Engine
from comit.errors import MissingExtra, UsageError
from comit.machine import clock

SIZES = (1, 8, 64, 256)  # images a batch
SHARE = 0.8  # of the memory that is free, that a batch may be expected to take


@dataclass(frozen=True)
class Latency:
    """One engine at one batch size, one call at a time; then all its lanes at once."""

    engine: str
    precision: str
    device: str
    batch_size: int
    calls: int
    load_ms: float  # loading and compiling
    first_ms: float  # of the first call, which may compile; not in what follows
    p50_ms: float
    p90_ms: float | None  # None with fewer than 10 calls
    p99_ms: float | None  # and with fewer than 100
    lanes: int
    images_per_second: float  # all lanes busy
    mhz_before: float | None  # of the cores, mean; None where the system does not say
    mhz_after: float | None
    memory_bytes: int  # of this process (PSS) afterwards


def by_batch(
    load: Callable[[int], Engine],
    sizes: Sequence[int],
    calls: int = 30,
    seconds: float = 3.0,
    say: Callable[[str], None] = lambda line: None,
) -> list[Latency]:
    """Measures growing batches until memory ends the list, which is said.

    A size is not begun where what the last one took, scaled up, would take more than 80 % of the
    free memory: the kernel would kill somebody.
    """
    found: list[Latency] = []
    before = proportional(os.getpid())
    for size in sorted(set(sizes)):
        if found:
            took = max(found[-1].memory_bytes - before, 0) / found[-1].batch_size * size
            if took > SHARE * free_memory():
                say(f"batch size {size} and above: not run, they would not fit into memory")
                break
        say(f"timing batches of {size}: {calls} calls, and all lanes for {seconds:g} s")
        try:
            found.append(measure(partial(load, size), calls, seconds))
        except (MemoryError, RuntimeError) as error:
            if not (isinstance(error, MemoryError) or "memory" in str(error).lower()):
                raise
            say(f"batch size {size} and above: not run, out of memory")
            break
    return found


def measure(load: Callable[[], Engine], calls: int = 30, seconds: float = 3.0) -> Latency:
    """Times ``calls`` full batches of random images after two that warm up, then the rate.

    The percentiles are those of the calls, interpolated; p90 takes 10 of them, p99 takes 100.
    """
    mhz = clock()
    started = time.perf_counter()
    engine = load()
    loading = time.perf_counter() - started
    try:
        images = noise(engine.batch_size)
        first = _timed(engine, images)
        _timed(engine, images)
        times = [_timed(engine, images) for _ in range(calls)]
        p50, p90, p99 = (round(float(p) * 1e3, 3) for p in np.percentile(times, [50, 90, 99]))
        images_per_second = rate(engine, seconds)
        return Latency(
            engine=engine.name,
            precision=engine.precision,
            device=engine.device,
            batch_size=engine.batch_size,
            calls=calls,
            load_ms=round(loading * 1e3, 1),
            first_ms=round(first * 1e3, 3),
            p50_ms=p50,
            p90_ms=p90 if calls >= 10 else None,
            p99_ms=p99 if calls >= 100 else None,
            lanes=engine.lanes,
            images_per_second=round(images_per_second, 3),
            mhz_before=mhz,
            mhz_after=clock(),
            memory_bytes=proportional(os.getpid()),
        )
    finally:
        engine.close()


def rate(
    engine: Engine, seconds: float, compute: Callable[[NDArray[np.float32]], object] | None = None
) -> float:
    """Images a second with every lane busy for about ``seconds`` on random images.

    ``compute`` is what the engine does, infer by default. Each lane does one batch to warm up and
    then at least two.
    """
    images, work = noise(engine.batch_size), compute or engine.infer

    def lane(until: float) -> int:
        done = 0
        while done < 2 or time.perf_counter() < until:
            work(images)
            done += 1
        return done

    with ThreadPoolExecutor(engine.lanes) as threads:
        list(threads.map(lambda _: work(images), range(engine.lanes)))
        started = time.perf_counter()
        batches = sum(threads.map(lane, [started + seconds] * engine.lanes))
        return batches * engine.batch_size / (time.perf_counter() - started)


def noise(n: int) -> NDArray[np.float32]:
    """(n, 1, 224, 224) float32 uniform in [0, 1], the same each time."""
    return np.random.default_rng(0).random((n, *IMAGE), dtype=np.float32)


def free_memory() -> float:
    """Bytes that can be taken without swapping; infinite where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    found = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return 1024.0 * next(found, 2**53)


def plot(found: Sequence[Latency], to: Path) -> None:
    """Draws time a batch and images a second over the batch size.

    Raises MissingExtra without matplotlib, UsageError where ``to`` cannot be written.
    """
    figure = new_figure()
    left, right = figure.subplots(1, 2)
    sizes = [f.batch_size for f in found]
    for name, values in percentiles(found):
        left.plot(sizes, values, marker="o", label=name)
    left.set(xlabel="images a batch", ylabel="milliseconds a batch", xscale="log", yscale="log")
    left.legend()
    right.plot(sizes, [f.images_per_second for f in found], marker="o")
    right.set(xlabel="images a batch", ylabel="images a second, all lanes", xscale="log")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    figure.suptitle(f"{found[0].engine} {found[0].precision} on {found[0].device}")
    try:
        figure.savefig(to)
    except (OSError, ValueError) as error:
        raise UsageError(f"{to} cannot be written as a picture; name it FILE.png") from error


def new_figure() -> Any:
    """An empty figure of matplotlib; raises MissingExtra without it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("a plot", "train") from None
    return Figure(figsize=(9, 4), layout="constrained")


def percentiles(found: Sequence[Latency]) -> Iterator[tuple[str, list[float]]]:
    """Name and milliseconds of each percentile that was taken, by batch size."""
    for name in ("p50", "p90", "p99"):
        values = [getattr(f, f"{name}_ms") for f in found]
        if None not in values:
            yield name, values


def _timed(engine: Engine, images: NDArray[np.float32]) -> float:
    started = time.perf_counter()
    engine.infer(images)
    return time.perf_counter() - started
