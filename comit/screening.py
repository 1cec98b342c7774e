"""The whole job: from X-rays in a folder, manifest or store to scores and masks in Parquet.

source --> decode + preprocess --> engine --> postprocess --> run
items      processes, ahead        lanes      rows            parts, then one file

An engine on a GPU may preprocess itself: then the processes decode alone, and what goes through
shared memory to the lanes are samples as they are stored.

Fetcher     reads objects of stores ahead, in bounded bytes   comit.pipeline.fetch
Pool        decodes into shared memory, in bounded bytes      comit.pipeline.pool
Lanes       threads that keep the engine busy                 comit.pipeline.lanes
Run         freezes the work list, commits rows, merges       comit.run.run
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from comit.card import OperatingPoint, read_card
from comit.config import decoders, ring_bytes
from comit.console import Console, Silent
from comit.errors import Stopped, UsageError
from comit.identifiers import Identifiers, read_key
from comit.options import Options
from comit.run.provenance import Provenance
from comit.run.report import Report

if TYPE_CHECKING:
    from comit.engine.base import Engine
    from comit.pipeline.lanes import Lanes
    from comit.pipeline.worker import Task
    from comit.run.merge import Tally
    from comit.run.run import Run


def screen(
    source: Path | str | Sequence[Path | str],
    out: Path | str,
    options: Options | None = None,
    *,
    progress: Callable[[int, int], object] | None = None,
    console: Console | None = None,
    stop: threading.Event | None = None,
) -> Report:
    """Screens every item of ``source`` and writes one row for each to ``out``.

    ``source`` is a folder, an image file, an address (``s3://bucket/prefix/``), or a Parquet or CSV
    manifest; or several folders and images, which are screened as a part of the folder that holds
    them all. ``out`` is a Parquet
    file, replaced as a whole, or a folder (a name that ends in ``/`` or has no suffix), to which a
    file is added of what is new or has changed.

    ``progress`` is called with the number of rows that are done and of all, by one thread at a
    time; what it raises ends the run. A ``console`` in its place shows more. Setting ``stop`` ends
    the run after the images in hand. Raises UsageError where nothing can be done as asked, Stopped
    where the run ended early and the same call resumes it.
    """
    from comit.engine import load_engine
    from comit.image.base import Limits
    from comit.pipeline.fetch import Fetcher
    from comit.pipeline.lanes import Lanes
    from comit.pipeline.pool import Pool
    from comit.run.run import Run
    from comit.source import write_worklist
    from comit.source.address import Stores
    from comit.source.base import Selection
    from comit.source.inputs import Input
    from comit.terminal.prometheus import Metrics

    options, stop = options or Options(), stop or threading.Event()
    console = console or Silent(progress)
    given = Input.of(source)
    if Path(out).exists() and any(path.samefile(out) for path in given.paths):
        raise UsageError(f"{out} is the input; give the results another name")
    card = read_card(options.model)
    point = operating_point(card.operating_points, options)
    with Run(out, options.restart, options.retry_failed) as run:
        names = identifiers(options, run)
        ours = tuple(p for p in (run.out, run.staging, options.metrics_file) if p)
        taken = Selection(
            options.pattern,
            ours,
            options.exclude,
            options.include_hidden,
            names,
            options.keep,
            options.root,
            options.endpoint,
            options.timeout,
        )
        provenance = Provenance.of(
            given.described(),
            given.place(options.root),
            names,
            card,
            point,
            pattern=options.pattern,
            exclude=options.exclude,
            include_hidden=options.include_hidden,
            masks=options.masks,
            view_policy=options.view_policy,
        )
        run.accept(provenance.metadata(), options.upgrade)
        private = names.mode != "plain"
        if not run.list(lambda to, files: write_worklist(given, to, files, taken), private):
            Metrics(options.metrics_file, run).succeeded()
            return nothing_new(run)
        # The decoding processes start while the engine compiles, and have ended before the merge.
        workers, limits = options.workers or decoders(), Limits()
        stores = Stores(options.endpoint, options.timeout)
        with (
            Fetcher(stores, workers, limits, options.timeout) as fetcher,
            Pool(
                workers,
                ring_bytes(options.ring_bytes),
                limits,
                options.timeout,
                options.view_policy,
                inherited=fetcher.files,
            ) as pool,
            fetcher.waking(pool.wake),
        ):
            engine = load_engine(
                options.model,
                name=options.engine,
                device=options.device,
                precision=options.precision,
                batch_size=options.batch_size,
                progress=lambda line: console.line(line, "engine"),
            )
            provenance = provenance.on(engine.name, engine.precision)
            run.freeze(provenance.settings(), provenance.metadata(), names)
            started, resumed = time.perf_counter(), 0
            with (
                closing(engine),
                console.progress("screening", run.items) as step,
                Lanes(engine, run.add, point, card.gate, options.masks, step) as lanes,
                Metrics(options.metrics_file, run, lanes, pool) as metrics,
            ):
                todo = fetcher.tasks(tasks(run, stop, engine.takes_samples))
                for decoded, image in pool.run(todo):
                    done = fetcher.done(decoded)
                    if run.done > resumed:
                        step(run.done - resumed, earlier=True)
                        resumed = run.done
                    lanes.add(done, image)
                if run.done > resumed:  # behind the last item of this run
                    step(run.done - resumed, earlier=True)
                lanes.flush()
        seconds = time.perf_counter() - started
        if stop.is_set():
            raise Stopped(f"stopped; the rows so far are kept. The same command resumes {out}")
        stages = {"decode": pool.seconds, **lanes.seconds}
        tally = run.finish()
        metrics.succeeded()
        notes = [*engine.notes, *fetcher.notes()]
        return report(run, tally, lanes, engine, provenance, seconds, stages, notes)


def tasks(run: Run, stop: threading.Event, raw: bool) -> Iterator[tuple[Task, int | None]]:
    """What is still to be done, with its bytes as listed, until the run is to stop."""
    from comit.pipeline.worker import Task

    for index, item in run.todo():
        if stop.is_set():
            return
        problem = item.problem and str(item.problem)
        yield Task(index, item.file, "samples" if raw else "grid", problem), item.size


def operating_point(points: dict[str, OperatingPoint], options: Options) -> OperatingPoint | None:
    """The card's thresholds at the chosen specificity; None where the card has none at all."""
    if not points and options.masks != "flagged":
        return None
    if options.operating_point not in points:
        has = f"it has {', '.join(sorted(points))}" if points else "it has none"
        raise UsageError(
            f"the model's card has no operating point at {options.operating_point} %; {has}"
        )
    return points[options.operating_point]


def identifiers(options: Options, run: Run) -> Identifiers:
    """What the results may say of paths and UIDs; raises UsageError for a key that is none."""
    if options.key is not None:
        return Identifiers("hashed", read_key(options.key))
    return Identifiers(options.identifiers, run.key() if options.identifiers == "none" else b"")


def nothing_new(run: Run) -> Report:
    """The report of a night on which nothing was to be done."""
    return Report(
        out=str(run.out),
        run_id="",
        rows=0,
        status={"ok": 0, "skipped": 0, "failed": 0},
        reasons={},
        warnings={},
        flagged={},
        failed=[],
        rows_in_out=run.rows_in_out(),
        unchanged=run.unchanged,
        resumed_rows=0,
        screened=0,
        seconds=0.0,
        images_per_second=0.0,
        stage_seconds={},
        engine={},
        settings={},
        left_out=run.listing.left_out,
        notes=[*run.listing.notes],
    )


def report(
    run: Run,
    tally: Tally,
    lanes: Lanes,
    engine: Engine,
    provenance: Provenance,
    seconds: float,
    stages: dict[str, float],
    notes: list[str],
) -> Report:
    """Sums a run up."""
    return Report(
        out=str(run.out),
        run_id=run.run_id,
        rows=tally.rows,
        status={s: tally.status[s] for s in ("ok", "skipped", "failed")},
        reasons=dict(tally.reasons.most_common()),
        warnings=dict(tally.warnings.most_common()),
        flagged=dict(tally.flagged),
        failed=tally.failed,
        rows_in_out=run.rows_in_out(),
        unchanged=run.unchanged,
        resumed_rows=run.done,
        screened=lanes.screened,
        seconds=round(seconds, 3),
        images_per_second=round(lanes.screened / seconds, 2) if seconds else 0.0,
        stage_seconds={k: round(v, 3) for k, v in stages.items()},
        engine={
            "name": engine.name,
            "precision": engine.precision,
            "device": engine.device,
            "batch_size": engine.batch_size,
            "lanes": engine.lanes,
            "takes_samples": engine.takes_samples,
        },
        settings=provenance.settings(),
        left_out=run.listing.left_out,
        notes=[*run.listing.notes, *notes],
    )
