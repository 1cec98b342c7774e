"""The whole pipeline beside each of its stages alone, on the same files in the same run.

*Efficiency* is the end-to-end rate over the smallest ceiling. docs/explanation/benchmarks.md
defines both.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from comit.bench.memory import family, manifest, proportional
from comit.bench.stages import Stages, forget
from comit.bench.stages import measure as measure_stages
from comit.bench.steady import EDGE, Watch, spread, steady_rate
from comit.config import usable_cores
from comit.engine import load_engine
from comit.errors import UsageError
from comit.options import Options
from comit.run.report import Report
from comit.screening import screen

EVERY = 2.0  # seconds between looks at memory: a look takes 8 ms of CPU and holds the run up
ADVICE = {
    "read": "files that lie closer, or larger reads",
    "decode": "more cores, or files in a syntax that decodes faster",
    "preprocess": "more cores",
    "engine": "another engine or precision (bf16 where the CPU has it), more cores, or a GPU",
    "postprocess": "--masks flagged or none, or more cores",
    "write": "--masks flagged or none, or a faster disk",
    "gpu": "a second GPU, a lower precision, or larger batches",
    "disk": "a faster disk or network, or compressed files",
    "workers": "more decoding processes (--workers)",
    "dispatch": "a second comit on its own half of the files: one thread hands everything on",
}


@dataclass(frozen=True)
class Run:
    """One run of the whole pipeline."""

    screened: int
    seconds: float  # first file to last row; the decoding processes start as the model loads
    wall: float  # of all: listing, the model's load, rows, publishing
    images_per_second: float  # screened / seconds
    steady: float  # images a second between the rows at 10 % and 90 %; 0 with too few batches
    first_tenth: float  # images a second between the rows at 5 % and 15 %
    last_tenth: float  # and between those at 85 % and 95 %
    dispatch_core_ms: float  # an image, of the thread that hands everything on
    stage_seconds: dict[str, float]
    memory: list[tuple[float, int]]  # seconds, bytes (PSS) of the run's processes
    engine: dict[str, Any]


@dataclass(frozen=True)
class Grown:
    """The rate with one thing changed."""

    what: str  # files, workers, batch_size
    value: int
    steady: float  # images a second
    images_per_second: float  # with start-up


@dataclass(frozen=True)
class Throughput:
    """Repeats of stages alone and pipeline, in turn; spreads are median, min and max of them."""

    source: str
    images: int  # of a run
    distinct: int  # files; a run goes through them again until it has its images
    cores: int
    workers: int
    masks: str
    engine: dict[str, Any]
    cold: bool  # files were put out of the page cache before every run
    core_ms: dict[str, float]  # core-milliseconds an image of each stage alone, median
    core_ms_total: float
    ceilings: dict[str, dict[str, float]]  # images a second
    steady: dict[str, float]  # images a second, end to end; with too few batches all of the run
    images_per_second: dict[str, float]  # with start-up
    efficiency: dict[str, float]  # steady / smallest ceiling, of the stages just before and after
    bottleneck: str
    advice: str
    dispatch_core_ms: float
    file_bytes: float  # of a file, mean
    disk_bytes_per_second: float
    engine_rate: float  # images a second, alone, all lanes
    load: list[float]  # processes that ran, last minute, before and after
    peak_bytes: int
    sweep: list[Grown] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    stages: list[Stages] = field(default_factory=list)


def measure(
    source: Path,
    options: Options,
    seconds: float = 2.0,
    repeat: int = 1,
    images: int | None = None,
    cold: bool = False,
    sweep: bool = False,
) -> Throughput:
    """Measures stages and pipeline in turn: ``repeat`` runs, each between two looks at the stages.

    ``images`` of a run: the files of ``source`` over and over; None is each file once. ``cold``
    puts them out of the page cache first, which makes the disk a ceiling. Raises UsageError
    where nothing can be screened, and for masks of flagged images: what those cost depends on
    how many there are.
    """
    if options.masks == "flagged":
        raise UsageError("throughput takes --masks all or none; for flagged: comit bench flagged")
    paths = listed(source, options.pattern)
    images = images or len(paths)
    if cold and images > len(paths):
        raise UsageError("cold files are read once: leave out --images, or give more files")
    cores = usable_cores()
    load = [os.getloadavg()[0]]
    stages, runs = [alone(paths, options, cores, seconds, cold)], []
    for _ in range(repeat):
        runs.append(run(paths, images, options, cold))
        stages.append(alone(paths, options, cores, seconds, cold))
    workers = options.workers or min(cores, 32)
    limits = [ceilings(mean(*around), cores, cold) for around in pairwise(stages)]
    rates = [r.steady or r.images_per_second for r in runs]
    core_ms = {
        name: round(statistics.median(s.core_ms[name] for s in stages), 3)
        for name in stages[0].core_ms
    }
    efficiency = spread([r / min(c.values()) for r, c in zip(rates, limits, strict=True)])
    dispatch = statistics.median(r.dispatch_core_ms for r in runs)
    medians = {name: statistics.median(c[name] for c in limits) for name in limits[0]}
    bottleneck = find_bottleneck(core_ms, medians, efficiency["median"], workers, cores, dispatch)
    load.append(os.getloadavg()[0])
    return Throughput(
        source=str(source),
        images=images,
        distinct=len(paths),
        cores=cores,
        workers=workers,
        masks=options.masks,
        engine=runs[0].engine,
        cold=cold,
        core_ms=core_ms,
        core_ms_total=round(sum(core_ms.values()), 3),
        ceilings={name: spread([c[name] for c in limits]) for name in limits[0]},
        steady=spread(rates),
        images_per_second=spread([r.images_per_second for r in runs]),
        efficiency=efficiency,
        bottleneck=bottleneck,
        advice=ADVICE[bottleneck],
        dispatch_core_ms=round(dispatch, 4),
        file_bytes=stages[0].file_bytes,
        disk_bytes_per_second=round(
            statistics.median(s.disk_rate * s.file_bytes for s in stages), 0
        ),
        engine_rate=statistics.median(s.engine_rate for s in stages),
        load=[round(value, 2) for value in load],
        peak_bytes=max((b for r in runs for _, b in r.memory), default=0),
        sweep=grow(paths, images, options, cores) if sweep else [],
        runs=runs,
        stages=stages,
    )


def listed(source: Path, pattern: str = "*") -> list[Path]:
    """The files of a folder, or the one file; raises UsageError without any."""
    paths = sorted(p for p in source.rglob(pattern) if p.is_file()) if source.is_dir() else [source]
    if not paths or not paths[0].is_file():
        raise UsageError(f"{source} holds no files")
    return paths


def alone(
    paths: Sequence[Path], options: Options, cores: int, seconds: float, cold: bool
) -> Stages:
    """The stages alone, with an engine that is gone afterwards."""
    engine = load_engine(
        options.model, options.engine, options.device, options.precision, options.batch_size
    )
    try:
        return measure_stages(paths, options, engine, cores, seconds, cold)
    finally:
        engine.close()


def mean(before: Stages, after: Stages) -> Stages:
    """Between two measurements: a machine whose neighbours come and go is followed halfway."""
    return Stages(
        core_ms={name: (ms + after.core_ms[name]) / 2 for name, ms in before.core_ms.items()},
        engine_rate=(before.engine_rate + after.engine_rate) / 2,
        disk_rate=(before.disk_rate + after.disk_rate) / 2,
        file_bytes=before.file_bytes,
    )


def ceilings(stages: Stages, cores: int, cold: bool) -> dict[str, float]:
    """Images a second that each resource allows by itself."""
    found = {"cpu": 1000 * cores / sum(stages.core_ms.values())}
    if "engine" not in stages.core_ms:
        found["gpu"] = stages.engine_rate  # its copies are in the engine's rate
    if cold:
        found["disk"] = stages.disk_rate
    return found


def find_bottleneck(
    core_ms: dict[str, float],
    limits: dict[str, float],
    efficiency: float,
    workers: int,
    cores: int,
    dispatch_ms: float,
) -> str:
    """What to change first: a name in :data:`ADVICE`."""
    smallest = min(limits, key=limits.__getitem__)
    reached = efficiency * limits[smallest]
    if efficiency < 1 - EDGE:
        if dispatch_ms * reached > 800:  # one thread is busy four fifths of the time
            return "dispatch"
        before = sum(core_ms[s] for s in ("read", "decode", "preprocess"))
        if workers < cores and 1000 * workers / before < 1.1 * reached:
            return "workers"
    return max(core_ms, key=core_ms.__getitem__) if smallest == "cpu" else smallest


def run(
    paths: Sequence[Path],
    images: int,
    options: Options,
    cold: bool = False,
    out: Path | None = None,
) -> Run:
    """Screens ``images`` files, ``paths`` over and over, to ``out`` or to nowhere."""
    if cold:
        forget(paths)
    with tempfile.TemporaryDirectory(prefix="comit-bench-") as folder:
        source = manifest(paths, images, Path(folder))
        watch = Watch()
        taken = replace(options, root=None, pattern="*")
        with memory_watched() as memory:
            started = time.perf_counter()
            results = out or Path(folder) / "results.parquet"
            report: Report = screen(source, results, taken, console=watch)
            wall = time.perf_counter() - started
    if not report.screened:
        raise UsageError("none of the files can be screened; see comit screen")
    share = report.screened / report.rows
    return Run(
        screened=report.screened,
        seconds=report.seconds,
        wall=round(wall, 3),
        images_per_second=report.images_per_second,
        steady=round(share * steady_rate(watch.marks), 3),
        first_tenth=round(share * steady_rate(watch.marks, 0.05, 0.15), 3),
        last_tenth=round(share * steady_rate(watch.marks, 0.85, 0.95), 3),
        dispatch_core_ms=round(1000 * watch.dispatch_seconds / report.rows, 4),
        stage_seconds=report.stage_seconds,
        memory=memory,
        engine=report.engine,
    )


@contextmanager
def memory_watched() -> Iterator[list[tuple[float, int]]]:
    """Yields a list to which (seconds, bytes) of this process and all below it are added."""
    found: list[tuple[float, int]] = []
    ended, started = threading.Event(), time.perf_counter()

    def watch() -> None:
        while not ended.wait(EVERY):
            used = sum(map(proportional, family(os.getpid())))
            found.append((round(time.perf_counter() - started, 1), used))

    thread = threading.Thread(target=watch, name="memory")
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def grow(paths: Sequence[Path], images: int, options: Options, cores: int) -> list[Grown]:
    """The rate with a quarter to all of the images, one to all workers, batches of 1 to 16."""
    found = []

    def note(what: str, value: int, rows: int, taken: Options) -> None:
        done = run(paths, rows, taken)
        found.append(Grown(what, value, done.steady, done.images_per_second))

    for rows in sorted({max(images // 4, 1), max(images // 2, 1), images}):
        note("files", rows, rows, options)
    for workers in sorted({1, 2, cores // 2, cores, 2 * cores} - {0}):
        note("workers", workers, images, replace(options, workers=workers))
    for size in (1, 2, 4, 8, 16):
        note("batch_size", size, images, replace(options, batch_size=size))
    return found
