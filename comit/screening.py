"""The whole job: from a folder or manifest of chest X-rays to scores and masks in Parquet.

source --> decode + preprocess --> engine --> postprocess --> run
items      processes, ahead        lanes      rows            parts, then one file

An engine on a GPU may preprocess itself: then the processes decode alone, and what goes through
shared memory to the lanes are samples as they are stored.

Pool        decodes into shared memory, in bounded bytes      comit.pipeline.pool
Lanes       threads that keep the engine busy                 comit.pipeline.lanes
Run         freezes the work list, commits rows, merges       comit.run.run
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comit import __version__, preprocess_version
from comit.card import BUNDLED, OperatingPoint, read_card
from comit.config import decoders, ring_bytes
from comit.console import Console
from comit.errors import Stopped, UsageError
from comit.identifiers import Identifiers, Mode, read_key
from comit.results import SCHEMA_VERSION, UIDS
from comit.run.report import Report

if TYPE_CHECKING:
    from comit.engine.base import Engine
    from comit.pipeline.lanes import Lanes
    from comit.run.merge import Tally
    from comit.run.run import Run

if TYPE_CHECKING:
    from comit.image.base import ViewPolicy
    from comit.pipeline.lanes import Lanes, Masks
    from comit.pipeline.worker import Done, Task
    from comit.run.run import Run


# What options may say; the command line offers the same.
CHOICES = {
    "engine": ("auto", "openvino", "onnxruntime", "torch", "tensorrt"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "masks": ("all", "flagged", "none"),
    "operating_point": ("90", "99"),
    "view_policy": ("strict", "tagged", "all"),
    "identifiers": ("none", "hashed", "plain"),
}
MOST_WORKERS = 512


def _is_whole(value: Any, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


# Options, what holds of their values, and what to say where it does not.
RULES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("model",), lambda v: isinstance(v, Path), "is not a path"),
    (("root", "key", "metrics_file"), lambda v: v is None or isinstance(v, Path), "is not a path"),
    (("batch_size",), lambda v: v is None or _is_whole(v), "is not a whole number above 0"),
    (("ring_bytes",), _is_whole, "is not a whole number above 0"),
    (
        ("workers",),
        lambda v: v is None or _is_whole(v, MOST_WORKERS),
        f"is not a whole number from 1 to {MOST_WORKERS}",
    ),
    (("timeout",), lambda v: isinstance(v, int | float) and v > 0, "is not a number above 0"),
    (("device", "pattern"), lambda v: isinstance(v, str) and v != "", "is not a text"),
    (
        ("exclude", "keep"),
        lambda v: isinstance(v, tuple) and all(isinstance(text, str) for text in v),
        "is not a tuple of texts",
    ),
    (
        ("include_hidden", "retry_failed", "restart"),
        lambda v: isinstance(v, bool),
        "is neither True nor False",
    ),
)


@dataclass(frozen=True)
class Options:
    """How to screen; the defaults are for a nightly run.

    Raises UsageError for values that there are not and for options that would have no effect, in
    the words of the command line.
    """

    model: Path = BUNDLED  # an .onnx file that comit exported, its card beside it
    engine: str = "auto"  # tensorrt, openvino, onnxruntime, torch; auto is the fastest
    device: str = "auto"  # cpu, cuda:0, cuda:0,cuda:1
    precision: str = "auto"  # fp32, bf16, fp16; auto is the fastest the device computes well
    batch_size: int | None = None  # images; None is the engine's own choice
    workers: int | None = None  # decoding processes; None: as cores and memory allow, 32 at most
    pattern: str = "*"  # file names to take from a folder
    exclude: tuple[str, ...] = ()  # patterns of files and folders to leave out, as in .gitignore
    include_hidden: bool = False  # screen also what machines make: comit.source.leave_out
    root: Path | None = None  # where a manifest's paths begin, and what they may not leave
    masks: Masks = "all"  # which rows get masks: all, flagged or none
    operating_point: str = "90"  # specificity in % that the flags' thresholds have: 90 or 99
    timeout: float = 60.0  # seconds that reading and decoding one file may take
    view_policy: ViewPolicy = "tagged"  # what is taken for frontal chest: strict, tagged or all
    identifiers: Mode = "plain"  # paths and UIDs in the results: none, hashed or plain
    key: Path | None = None  # file with the key of hashed identifiers
    keep: tuple[str, ...] = ()  # manifest columns to pass through unless identifiers are plain
    retry_failed: bool = False  # screen again what failed in the results that are there
    ring_bytes: int = 512 * 2**20  # for decoded pixels; a quarter of the usable memory at most
    restart: bool = False  # forget an unfinished run
    metrics_file: Path | None = None  # how the run goes, in Prometheus' text format

    def __post_init__(self) -> None:
        for name in ("model", "root", "key", "metrics_file"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))
        for name in ("exclude", "keep"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        for names, holds, why in RULES:
            for name in names:
                if not holds(value := getattr(self, name)):
                    raise invalid(name, value, why)
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise invalid(name, value, f"is not one of {', '.join(map(repr, choices))}")
        if self.keep and self.identifiers == "plain":
            raise UsageError(
                "--keep is for hidden identifiers: with --identifiers plain every column of a "
                "manifest is passed through"
            )
        if self.key is not None and self.identifiers != "hashed":
            raise UsageError(
                "a key is for hashed identifiers: add --identifiers hashed, or no --key"
            )
        if self.identifiers == "hashed" and self.key is None:
            raise UsageError(
                "hashed identifiers need a key that you hold: --identifiers hashed --key FILE; "
                "make one: (umask 077; openssl rand -hex 32 > comit.key)"
            )


def invalid(name: str, value: object, why: str) -> UsageError:
    """What to say of an option's value."""
    return UsageError(f"invalid value for '--{name.replace('_', '-')}': {value!r} {why}")


def screen(
    source: Path | str | Sequence[Path | str],
    out: Path | str,
    options: Options | None = None,
    *,
    console: Console | None = None,
    stop: threading.Event | None = None,
) -> Report:
    """Screens every item of ``source`` and writes one row for each to ``out``.

    ``source`` is a folder, an image file, or a Parquet or CSV manifest; or several folders and
    images, which are screened as a part of the folder that holds them all. ``out`` is a Parquet
    file, replaced as a whole, or a folder (a name that ends in ``/`` or has no suffix), to which a
    file is added of what is new or has changed. Setting ``stop`` ends the run after the images in
    hand. Raises UsageError where nothing can be done as asked, Stopped where the run ended early
    and the same call resumes it.
    """
    from comit.engine import load_engine
    from comit.image.base import Limits
    from comit.pipeline.lanes import Lanes
    from comit.pipeline.pool import Pool
    from comit.run.run import Run
    from comit.source import write_worklist
    from comit.source.base import Selection
    from comit.source.inputs import Input
    from comit.terminal.prometheus import Metrics

    options, stop, console = options or Options(), stop or threading.Event(), console or Console()
    given = Input.of(source)
    if Path(out).exists() and any(path.samefile(out) for path in given.paths):
        raise UsageError(f"{out} is the input; give the results another name")
    card = read_card(options.model)
    point = operating_point(card.operating_points, options)
    workers = options.workers or decoders()
    with Run(out, options.restart, options.retry_failed) as run, ExitStack() as stack:
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
        )
        private = names.mode != "plain"
        root = options.root or given.root
        settings: dict[str, Any] = {
            "input": names.text(given.described()),
            "root": names.text(os.fsencode(root.resolve())),
            "pattern": options.pattern,
            "exclude": [names.text(os.fsencode(p)) for p in options.exclude],
            "include hidden": options.include_hidden,
            "model": card.sha256,
            "preprocessing": preprocess_version,
            "operating point": asdict(point) if point else None,
            "gate": card.gate and card.gate.threshold,
            "masks": options.masks,
            "view policy": options.view_policy,
            "identifiers": names.described(),
            "schema": SCHEMA_VERSION,
        }
        run.accept(metadata(card.name, settings))
        if not run.list(lambda to, files: write_worklist(given, to, files, taken), private):
            Metrics(options.metrics_file, run).succeeded()
            return nothing_new(run)
        # The decoding processes start while the engine compiles.
        pool = stack.enter_context(
            Pool(
                workers,
                ring_bytes(options.ring_bytes),
                Limits(),
                options.timeout,
                options.view_policy,
            )
        )
        engine = load_engine(
            options.model,
            name=options.engine,
            device=options.device,
            precision=options.precision,
            batch_size=options.batch_size,
            progress=lambda line: console.line(line, "engine"),
        )
        settings |= {"engine": engine.name, "precision": engine.precision}
        run.freeze(settings, metadata(card.name, settings))
        started = time.perf_counter()
        with (
            closing(engine),
            Lanes(engine, run.add, point, card.gate, options.masks) as lanes,
            console.progress("screening", run.items) as lanes.on_rows,
            Metrics(options.metrics_file, run, lanes, pool) as metrics,
        ):
            for done, image in pool.run(unproblematic(run, lanes, stop, engine.takes_samples)):
                lanes.add(anonymous(done, names), image)
            lanes.flush()
            stack.close()  # the decoders' memory is free for merging
        seconds = time.perf_counter() - started
        if stop.is_set():
            raise Stopped(f"stopped; the rows so far are kept. The same command resumes {out}")
        stages = {"decode": pool.seconds, **lanes.seconds}
        tally = run.finish()
        metrics.succeeded()
        return report(run, tally, lanes, engine, settings, seconds, stages)


def unproblematic(run: Run, lanes: Lanes, stop: threading.Event, raw: bool) -> Iterator[Task]:
    """Every item still to do; those with a known problem get their row here."""
    from comit.pipeline.worker import Done, Task

    shown = 0
    for index, item in run.todo():
        if stop.is_set():
            return
        if run.done > shown:  # rows of an earlier run
            lanes.on_rows(run.done - shown, earlier=True)
            shown = run.done
        if item.problem is not None:
            lanes.add(Done(index, str(item.problem)), None)
        else:
            yield Task(index, item.file, "samples" if raw else "grid")


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


def anonymous(done: Done, names: Identifiers) -> Done:
    """What decoding found, with the identifiers that results may have."""
    if names.mode == "plain":
        return done
    hidden: dict[str, Any] = {name: names.uid(getattr(done, name)) for name in UIDS}
    return done._replace(**hidden)


def metadata(model: str, settings: dict[str, Any]) -> dict[str, str]:
    """Key-value metadata of the Parquet file: where its numbers come from."""
    point, gate = settings["operating point"], settings["gate"]
    thresholds = (point or {}) | ({} if gate is None else {"chest": gate})
    return {
        "comit_version": __version__,
        "comit_schema": SCHEMA_VERSION,
        "comit_model": model,
        "comit_model_sha256": settings["model"],
        "comit_preprocessing": settings["preprocessing"],
        "comit_engine": settings.get("engine", ""),
        "comit_precision": settings.get("precision", ""),
        "comit_thresholds": json.dumps(thresholds or None),
        "comit_view_policy": settings["view policy"],
        "comit_identifiers": settings["identifiers"],
        "comit_root": settings["root"],
        "comit_exclude": json.dumps(settings["exclude"]),
        "comit_include_hidden": json.dumps(settings["include hidden"]),
        "comit_intended_use": "research use only; not for diagnosis",
    }


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
    settings: dict[str, Any],
    seconds: float,
    stages: dict[str, float],
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
        settings=settings,
        left_out=run.listing.left_out,
        notes=[*run.listing.notes, *engine.notes],
    )
