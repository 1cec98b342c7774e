"""comit beside its peers (:mod:`comit.bench.peers`) on the same files in the same run.

Every repeat runs all of them in a new order, each in a process of its own, so that what else the
machine does falls on all. Scores are compared before any rate is reported.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from comit.bench.peers import PEERS, Answer, Task, missing
from comit.bench.steady import spread
from comit.bench.throughput import listed, run
from comit.config import usable_cores
from comit.engine import load_engine
from comit.errors import ComitError, ParityError, UsageError
from comit.screen import Options

TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2, "fp16": 2e-3}  # of a score, from ours in fp32
LIMIT = 1800.0  # seconds for one peer


@dataclass(frozen=True)
class Compared:
    """One peer, or comit itself, over all repeats."""

    peer: str
    what: str
    precision: str
    steady: dict[str, float]  # images a second between the rows at 10 % and 90 %
    images_per_second: dict[str, float]  # with start-up of its worker processes
    ratio: dict[str, float]  # comit at the same precision / this one, steady, repeat by repeat
    whole_ratio: dict[str, float]  # the same with start-up
    score_difference: float | None  # largest, from comit in fp32; None for another network
    note: str = ""  # why it was not run


def measure(
    source: Path,
    options: Options,
    repeat: int = 3,
    images: int | None = None,
    only: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> list[Compared]:
    """Runs comit in every precision and all peers ``repeat`` times.

    Raises ParityError where a peer that runs our network scores otherwise, UsageError for a name
    in ``only`` that is no peer.
    """
    if unknown := set(only) - set(PEERS):
        raise UsageError(f"peer {min(unknown)!r}: choose {', '.join(PEERS)}")
    paths = listed(source, options.pattern)
    paths = list(islice(cycle(paths), images or len(paths)))
    precisions = possible(options.model)
    chosen = {name: PEERS[name] for name in only or PEERS}
    absent = {name: why for name, peer in chosen.items() if (why := missing(peer))}
    if usable_cores() == 2 and not only:
        absent |= {n: "N is 2 here: see loader2" for n in chosen if n.startswith("loadern-")}
    absent |= {
        name: "this CPU has no bf16"
        for name, peer in chosen.items()
        if peer.precision not in precisions
    }
    runs = [f"comit-{p}" for p in precisions] + [n for n in chosen if n not in absent]
    found: dict[str, list[Answer]] = {name: [] for name in runs}
    reference = reference_scores(paths, options.model)
    order = random.Random(0)  # noqa: S311
    for turn in range(repeat):
        order.shuffle(runs)
        for name in list(runs):
            try:
                answer = one(name, paths, options)
            except ComitError as error:
                if turn:
                    raise
                absent[name] = str(error)
                runs.remove(name)
                continue
            found[name].append(answer)
            say(f"{turn + 1}/{repeat} {name}: {answer.steady:.2f} images/s")
            if not turn:
                check(name, answer, reference)
    return [
        *(
            summary(name, answers, found, reference, len(paths))
            for name, answers in found.items()
            if answers
        ),
        *(
            not_run(name, PEERS[name].what, PEERS[name].precision, why)
            for name, why in absent.items()
        ),
        *(
            not_run(name, name, "", "needs a GPU; written without one, so not at all")
            for name in ("DALI", "nvImageCodec")
            if not only
        ),
    ]


def possible(model: Path) -> list[str]:
    """fp32, and bf16 where OpenVINO computes in it on this CPU."""
    engine = load_engine(model, "openvino", "cpu")
    return ["fp32", *([engine.precision] if engine.precision != "fp32" else [])]


def reference_scores(paths: Sequence[Path], model: Path) -> dict[Path, list[float]]:
    """Scores of our own reader and OpenVINO in fp32, by file.

    Raises UsageError for a file that cannot be screened: most peers would end there.
    """
    from comit.bench.stages import grids

    engine = load_engine(model, "openvino", "cpu", "fp32")
    scores = {}
    for path in dict.fromkeys(paths):
        images = grids([path], Options(model=model), 1)
        if not len(images):
            raise UsageError(f"{path} cannot be screened, and peers would fail on it; leave it out")
        scores[path] = engine.predict(images).scores[0].tolist()
    return scores


def check(name: str, answer: Answer, reference: dict[Path, list[float]]) -> None:
    """Raises ParityError where scores differ by more than the precision explains."""
    off = difference(answer, reference)
    if off is not None and off > TOLERANCE[PEERS[name].precision]:
        raise ParityError(f"{name} scores otherwise than comit (by {off:.4f}): not the same work")


def difference(answer: Answer, reference: dict[Path, list[float]]) -> float | None:
    """Largest difference of a score from ours in fp32; None without scores."""
    if not answer.scores:
        return None
    ours = np.array(list(reference.values()))
    return float(np.abs(np.array(answer.scores)[: len(ours)] - ours).max())


def one(name: str, paths: Sequence[Path], options: Options) -> Answer:
    """One run of comit or of a peer."""
    if name.startswith("comit-"):
        return ours(name.removeprefix("comit-"), paths, options)
    kind = "dicom" if paths[0].suffix == ".dcm" else "raster"
    task = Task(name, str(options.model), tuple(map(str, paths)), usable_cores(), kind)
    with tempfile.TemporaryDirectory(prefix="comit-bench-") as folder:
        errors = Path(folder) / "errors"
        with errors.open("w") as to:
            done = subprocess.run(
                [sys.executable, "-m", "comit.bench.peers"],
                input=json.dumps(asdict(task)),
                stdout=subprocess.PIPE,
                stderr=to,
                text=True,
                timeout=LIMIT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )
        if done.returncode:
            last = [line for line in errors.read_text().splitlines() if line.strip()][-1:]
            raise ComitError(f"failed: {last[0][:160] if last else done.returncode}")
    return Answer(**json.loads(done.stdout.splitlines()[-1]))


def ours(precision: str, paths: Sequence[Path], options: Options) -> Answer:
    """The whole of ``comit screen`` with masks for every row, in this precision."""
    import dataclasses

    unique = list(dict.fromkeys(paths))
    taken = dataclasses.replace(options, engine="openvino", device="cpu", precision=precision)
    done = run(unique, len(paths), taken)
    return Answer(done.seconds, done.steady, [])


def summary(
    name: str,
    answers: list[Answer],
    found: dict[str, list[Answer]],
    reference: dict[Path, list[float]],
    images: int,
) -> Compared:
    """Rates and ratios of one, with their spread."""
    peer = PEERS.get(name)
    precision = peer.precision if peer else name.removeprefix("comit-")
    beside = found[f"comit-{precision}"]
    pairs = list(zip(beside, answers, strict=True))
    return Compared(
        peer=name,
        what=peer.what if peer else "comit screen, OpenVINO, masks and Parquet written",
        precision=precision,
        steady=spread([a.steady for a in answers]),
        images_per_second=spread([images / a.seconds for a in answers]),
        ratio=spread([c.steady / a.steady for c, a in pairs]),
        whole_ratio=spread([a.seconds / c.seconds for c, a in pairs]),
        score_difference=difference(answers[0], reference),
    )


def not_run(name: str, what: str, precision: str, why: str) -> Compared:
    """A peer that is listed all the same."""
    return Compared(name, what, precision, {}, {}, {}, {}, None, f"not run: {why}")
