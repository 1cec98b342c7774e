"""A whole training run: reads the cohorts, trains, reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comit.console import Console
from comit.errors import UsageError
from comit.model.curves import CURVES, draw_curves
from comit.model.data import Cohort, load, read_gate, read_manifest
from comit.model.inference import pick_device
from comit.model.loop import CHECKPOINT, METRICS, Trainer
from comit.model.recipe import TrainConfig
from comit.model.report import write_report


def train(
    manifest: Path,
    out: Path,
    config: TrainConfig | None = None,
    *,
    device: str = "auto",
    init: Path | None = None,
    teachers: Sequence[Path] = (),
    gate: Path | None = None,
    resume: bool = False,
    test: bool = False,
    workers: int = 2,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains on ``train``, chooses the epoch by ``val``; with ``test`` also reports on that.

    Recipes are to be compared on val alone, so test is not even read unless it is asked for,
    which ``resume`` also does for a run that is finished.

    Writes ``out/weights.safetensors``, ``run.json``, ``metrics.csv`` (an epoch a line; drawn in
    ``curves.png``) and ``checkpoint.pt``; returns what ``run.json`` holds
    (:mod:`comit.model.report`). ``init`` is a local VGG16 file for the encoder, or a network to
    go on from with another recipe, as :func:`.opened.network_of` takes it: an earlier run, an
    .onnx file of comit's, or "bundled". ``teachers`` are such networks: masks that an image lacks
    are taken from them, so that every image trains both decoders, and a share ``config.soften`` of
    the class labels. ``gate`` is a manifest of pictures that are no frontal chest radiograph
    (:func:`.data.read_gate`); without one, and with ``config.spoil`` 0, the gate is not trained.
    With ``resume`` it goes on from the last finished epoch and gives, on a CPU
    bit for bit, the weights of a run
    that was not interrupted: every random number derives from the seed and the epoch. (The number
    of threads has to be the same too: it decides the order of sums.)

    On an NVIDIA GPU it computes in bf16 (fp16 before Ampere), fp32 parts in TF32, and holds the
    images there if they fit; that path has not been run on a GPU yet.

    Raises UsageError, before anything is written: manifest, device, ``init`` or ``out`` unfit.
    """
    console = console or Console()
    chosen = pick_device(device)
    checkpoint = out / CHECKPOINT
    if resume and not checkpoint.exists():
        raise UsageError(f"{out} holds no checkpoint to resume; run without --resume")
    if not resume and checkpoint.exists():
        raise UsageError(f"{out} already holds a run; add --resume, or choose another --out")
    rows = splits(read_manifest(manifest), manifest)
    for row in read_gate(gate) if gate is not None else ():
        rows.setdefault(row["split"], []).append(row)
    if not test:
        rows.pop("test", None)
    cohorts = load_splits(rows, manifest, workers, console)
    trainer = Trainer(
        cohorts["train"],
        cohorts["val"],
        out,
        config or TrainConfig(),
        chosen,
        init,
        console,
        teachers,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out} cannot be made a folder for the run") from error
    if resume:
        trainer.restore()
    trainer.run()
    try:
        draw_curves(out / METRICS, out / CURVES)
    except ModuleNotFoundError:
        console.line(f"no {CURVES}: matplotlib is not installed")
    return write_report(out, cohorts, chosen, console)


def splits(rows: list[dict[str, Any]], manifest: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by split, ``test`` only where there are any; raises UsageError for one that lacks."""
    found = {s: [r for r in rows if r["split"] == s] for s in ("train", "val", "test")}
    for name in ("train", "val"):
        if not found[name]:
            raise UsageError(f"{manifest} has no rows with split {name!r}")
    if not any(r["healthy"] for r in found["val"]) or all(
        r["covid"] is not False for r in found["val"]
    ):
        raise UsageError(
            f"{manifest}: split 'val' needs healthy images and images without COVID; "
            "the thresholds on the scores come from them"
        )
    return {k: v for k, v in found.items() if v}


def load_splits(
    rows: dict[str, list[dict[str, Any]]], manifest: Path, workers: int, console: Console
) -> dict[str, Cohort]:
    """Reads the images of each split, showing progress; raises UsageError."""
    cohorts = {}
    for name, members in rows.items():
        with console.progress(f"reading {name}", len(members)) as step:
            cohorts[name] = load(members, manifest.parent, workers, step)
    return cohorts
