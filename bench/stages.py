"""Each stage of the pipeline alone, with every core busy at it: what the machine could do.

A stage runs in as many processes as there are cores, all at once, so that shared caches, memory
and cores that are half of one are in the figure. Its *core-milliseconds per image* are what it
takes of one core: processes x seconds / images.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from comit.card import read_card
from comit.engine.base import IMAGE
from comit.errors import ItemError, UsageError
from comit.options import Options
from comit.pipeline.pool import ENVIRONMENT
from comit.screening import operating_point

if TYPE_CHECKING:
    from comit.engine.base import Engine, Inference
    from comit.results import Row

HELD = 64 * 2**20  # bytes of files that a process holds at once
STAGES = ("read", "decode", "preprocess", "engine", "postprocess", "write")


@dataclass(frozen=True)
class Share:
    """What one process took for its share of the files, stage after stage."""

    images: int
    nbytes: int
    seconds: dict[str, float]  # read: of CPU, as waiting for a disk holds no core; else wall
    disk_seconds: float  # wall, of reading


@dataclass(frozen=True)
class Stages:
    """One measurement of every stage alone on the same files."""

    core_ms: dict[str, float]  # core-milliseconds an image; an engine on a GPU is not in it
    engine_rate: float  # images a second, all lanes
    disk_rate: float  # images a second, read by all processes at once; cold: files put out first
    file_bytes: float  # of a file, mean


def measure(
    paths: Sequence[Path],
    options: Options,
    engine: Engine,
    cores: int,
    seconds: float,
    cold: bool = False,
) -> Stages:
    """Times read, decode, preprocess, postprocess, write and the engine on ``paths``.

    Each takes about ``seconds``; with ``cold`` reading the disk is one pass over all files, put
    out of the page cache before. The engine computes what the pipeline would: scores alone where
    no masks are wanted. Raises UsageError where no file can be screened.
    """
    from comit.bench.latency import rate

    with as_decoders(), ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as processes:
        list(processes.map(warm_up, range(cores)))
        disk = bytes_per_second(paths, processes) if cold else 0.0
        parts = [list(paths[i::cores]) or list(paths) for i in range(cores)]
        shares = list(processes.map(front, parts, [seconds] * cores, [options.view_policy] * cores))
        images = sum(s.images for s in shares)
        if not images:
            raise UsageError("none of the files can be screened; see comit screen")
        core_ms = {
            name: 1000 * sum(s.seconds[name] for s in shares) / images for name in shares[0].seconds
        }
        if engine.takes_samples:
            core_ms["preprocess"] = 0.0  # the engine's, and in its rate
        sample = grids(paths, options, 4 * engine.batch_size)
        inference = engine.predict(sample)
        point = operating_point(read_card(options.model).operating_points, options)
        with tempfile.TemporaryDirectory(prefix="comit-bench-") as folder:
            answers = Path(folder) / "answers.npz"
            np.savez(answers, scores=inference.scores, masks=inference.masks)
            back = list(
                processes.map(
                    rows_alone,
                    [answers] * cores,
                    [point] * cores,
                    [options.masks] * cores,
                    [seconds] * cores,
                )
            )
            core_ms["postprocess"] = 1000 * sum(s for s, _ in back) / sum(n for _, n in back)
    wanted = engine.scores if engine.two_stage and options.masks == "none" else engine.infer
    engine_rate = rate(engine, seconds, wanted)
    if engine.device == "cpu":
        core_ms["engine"] = 1000 * cores / engine_rate
    core_ms["write"] = 1000 * write_alone(rows_of(inference, point, options.masks), seconds)
    file_bytes = sum(s.nbytes for s in shares) / images
    warm = sum(s.images / max(s.disk_seconds, 1e-9) for s in shares)
    return Stages(
        core_ms={name: round(core_ms[name], 4) for name in STAGES if name in core_ms},
        engine_rate=round(engine_rate, 3),
        disk_rate=round(disk / file_bytes if cold else warm, 1),
        file_bytes=round(file_bytes, 1),
    )


def bytes_per_second(paths: Sequence[Path], processes: Executor) -> float:
    """Of one pass over all files by all processes at once, none in the page cache before."""
    forget(paths)
    started = time.perf_counter()
    nbytes = sum(processes.map(read_alone, paths))
    return nbytes / (time.perf_counter() - started)


def read_alone(path: Path) -> int:
    """Reads a file as the pipeline does; its bytes, 0 where it cannot be read."""
    from comit.image.base import Limits
    from comit.pipeline.worker import read_file

    with suppress(ItemError):
        return len(read_file(os.fsencode(path), Limits().file_bytes).data)
    return 0


def forget(paths: Sequence[Path]) -> None:
    """Puts files out of the page cache (posix_fadvise), where the system heeds it."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


@contextmanager
def as_decoders() -> Iterator[None]:
    """Processes that start meanwhile have the environment of decoding processes."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def warm_up(_: int) -> None:
    """Starts a process as a decoding process starts: codecs loaded, a thread each."""
    import cv2
    import imagecodecs  # noqa: F401

    import comit.image.dicom
    import comit.image.raster
    import comit.pipeline.rows  # noqa: F401

    cv2.setNumThreads(1)
    time.sleep(0.2)  # so that every process takes one


def front(paths: list[Path], seconds: float, policy: Any) -> Share:
    """Read, decode and preprocess, a stage after the other over files held in memory."""
    from comit.image import open_image
    from comit.image.base import Limits
    from comit.image.preprocess import preprocess
    from comit.pipeline.worker import read_file

    took = dict.fromkeys(("read", "decode", "preprocess"), 0.0)
    images = nbytes = seen = 0
    disk, ahead, buffer = 0.0, cycle(paths), np.empty(0, np.uint8)
    until, limits = time.perf_counter() + 3 * seconds, Limits()
    while not images or time.perf_counter() < until:
        if not images and seen >= len(paths):
            break  # each once, and none of them can be screened
        held: list[bytes] = []
        wall, cpu = time.perf_counter(), time.process_time()
        for file in islice(ahead, 32):
            seen += 1
            with suppress(ItemError):  # the pipeline gives it a row that says why
                held.append(read_file(os.fsencode(file), limits.file_bytes).data)
            if sum(map(len, held)) >= HELD:
                break
        took["read"] += time.process_time() - cpu
        disk += time.perf_counter() - wall
        for data in held:
            wall = time.perf_counter()
            try:
                image = open_image(data, limits, policy)
                if image.skip is not None:
                    continue
                if buffer.nbytes < image.nbytes:
                    buffer = np.ones(image.nbytes, np.uint8)
                    wall = time.perf_counter()  # the ring's memory is there already
                    image = open_image(data, limits, policy)
                samples = image.samples(buffer.data)
                decoded = time.perf_counter()
                preprocess(samples, image.presentation)
            except ItemError:
                continue
            took["decode"] += decoded - wall
            took["preprocess"] += time.perf_counter() - decoded
            images += 1
        nbytes += sum(map(len, held))
    return Share(images, nbytes, took, disk)


def grids(paths: Sequence[Path], options: Options, count: int) -> NDArray[np.float32]:
    """(up to count, 1, 224, 224) float32 of the first files that can be screened."""
    from comit.image import open_image
    from comit.image.preprocess import preprocess

    found = []
    for path in paths:
        try:
            image = open_image(path.read_bytes(), policy=options.view_policy)
            if image.skip is None:
                found.append(preprocess(image.samples(), image.presentation).pixels)
        except ItemError:
            continue
        if len(found) == count:
            break
    return np.array(found, np.float32).reshape(-1, *IMAGE)


def rows_of(inference: Inference, point: Any, masks: str) -> list[Row]:
    """The rows of an engine's answer, as screening makes them."""
    from comit.pipeline.rows import scored_rows
    from comit.pipeline.worker import Done
    from comit.results import Facts

    facts = Facts(
        view="PA", rows=1024, cols=1024, voi="none", file_size=1, file_mtime=1, file_crc32=1
    )
    described = [Done(i, None, facts) for i in range(len(inference.scores))]
    return scored_rows(described, inference, point, None, masks)


def rows_alone(answers: Path, point: Any, masks: str, seconds: float) -> tuple[float, int]:
    """Seconds and images of making rows, again and again for about ``seconds``."""
    from comit.engine.base import Inference

    with np.load(answers) as held:
        inference = Inference(held["scores"], held["masks"])
    return repeated(lambda: len(rows_of(inference, point, masks)), seconds)


def write_alone(rows: list[Row], seconds: float) -> float:
    """Seconds a row of taking rows, and of writing, checking and publishing parts of them."""
    from comit.run.run import Run
    from comit.source import write_worklist
    from comit.source.base import SHARD, Selection
    from comit.source.inputs import Input

    with tempfile.TemporaryDirectory(prefix="comit-bench-") as folder:
        manifest = Path(folder) / "rows.csv"
        lines = (f"{i},{i}.png\n" for i in range(SHARD))
        manifest.write_text("id,path\n" + "".join(lines))

        def shard() -> tuple[float, int]:
            with Run(Path(folder) / "rows.parquet", restart=True) as run:
                given = Input.of(manifest)
                run.list(lambda to, files: write_worklist(given, to, files, Selection()))
                run.freeze({}, {})
                items, source = [i for i, _ in run.todo()], cycle(rows)
                started = time.perf_counter()
                for i in items:
                    run.add(i, next(source))
                return time.perf_counter() - started, len(items)

        took, done, until = 0.0, 0, time.perf_counter() + seconds
        while not done or time.perf_counter() < until:
            more, items = shard()
            took, done = took + more, done + items
        return took / done


def repeated(what: Callable[[], int], seconds: float) -> tuple[float, int]:
    """Calls ``what``, which returns how many images it did, for about ``seconds``; the totals."""
    what()
    started, done = time.perf_counter(), 0
    while not done or time.perf_counter() < started + seconds:
        done += what()
    return time.perf_counter() - started, done
