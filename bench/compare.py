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
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comit.bench.peers import PEERS, Answer, Task, missing
from comit.bench.steady import spread
from comit.bench.throughput import listed, run
from comit.config import usable_cores
from comit.engine import load_engine
from comit.errors import ComitError, ParityError, UsageError
from comit.image.dicom import is_dicom
from comit.options import Options
from comit.results import SCORES, read

TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2, "fp16": 2e-3}  # of a score, from ours in fp32
LIMIT = 1800.0  # seconds for one peer


@dataclass(frozen=True)
class Compared:
    """One peer, or comit itself, over all repeats."""

    peer: str
    what: str
    precision: str
    steady: dict[str, float]  # images a second between the rows at 10 % and 90 %; empty: too few
    images_per_second: dict[str, float]  # of all its time, see comit.bench.peers.Answer
    ratio: dict[str, float]  # comit at the same precision / this one, steady, repeat by repeat
    whole_ratio: dict[str, float]  # the same of all their time; comit's has its model's load in it
    default_ratio: dict[str, float]  # comit at the precision it chooses / this one, steady
    default_pair: str  # the precisions of that: "comit bf16 / peer fp32"
    score_difference: float | None  # largest, from comit in fp32; None for another network
    note: str = ""  # why it was not run, or what it failed of


def measure(
    source: Path,
    options: Options,
    repeat: int = 3,
    images: int | None = None,
    only: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> list[Compared]:
    """Runs comit in every precision and all peers ``repeat`` times.

    Raises ParityError where comit, or a peer that runs our network, scores otherwise, UsageError
    for a name in ``only`` that is no peer and for files of which only some are DICOM.
    """
    if unknown := set(only) - set(PEERS):
        raise UsageError(f"peer {min(unknown)!r}: choose {', '.join(PEERS)}")
    paths = listed(source, options.pattern)
    paths = list(islice(cycle(paths), images or len(paths)))
    kind = kind_of(paths)
    precisions = possible(options.model)
    chosen = {name: PEERS[name] for name in only or PEERS}
    absent = {name: f"not run: {why}" for name, peer in chosen.items() if (why := missing(peer))}
    if usable_cores() == 2 and not only:
        same = "not run: N is 2 here: see loader2"
        absent |= {name: same for name in chosen if name.startswith("loadern-")}
    absent |= {
        name: "not run: this CPU has no bf16"
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
                answer = one(name, paths, options, kind)
            except ComitError as error:
                if turn or name not in PEERS:
                    raise
                absent[name] = str(error)
                runs.remove(name)
                continue
            check(name, answer, reference)
            found[name].append(answer)
            say(f"{turn + 1}/{repeat} {name}: {answer.steady or 0:.2f} images/s")
    return [
        *(
            summary(name, answers, found, reference, precisions[-1])
            for name, answers in found.items()
            if answers
        ),
        *(
            not_run(name, PEERS[name].what, PEERS[name].precision, why)
            for name, why in absent.items()
        ),
        *(
            not_run(name, name, "", "not run: needs a GPU; written without one, so not at all")
            for name in ("DALI", "nvImageCodec")
            if not only
        ),
    ]


def possible(model: Path) -> list[str]:
    """fp32, and bf16 where OpenVINO computes in it on this CPU; the last is comit's default."""
    engine = load_engine(model, "openvino", "cpu")
    return ["fp32", *([engine.precision] if engine.precision != "fp32" else [])]


def kind_of(paths: Sequence[Path]) -> str:
    """``dicom`` or ``raster``, by their first bytes; raises UsageError where both are there."""
    kinds = set()
    for path in dict.fromkeys(paths):
        with path.open("rb") as file:
            kinds.add("dicom" if is_dicom(file.read(4096)) else "raster")
    if len(kinds) > 1:
        raise UsageError("some of the files are DICOM; peers read one kind: give a folder of each")
    return kinds.pop()


def reference_scores(paths: Sequence[Path], model: Path) -> NDArray[np.float32]:
    """(N, 3) scores of our own reader and OpenVINO in fp32, as :data:`comit.results.SCORES`.

    Raises UsageError for a file that cannot be screened: most peers would end there.
    """
    from comit.bench.stages import grids

    engine = load_engine(model, "openvino", "cpu", "fp32")
    scores = {}
    for path in dict.fromkeys(paths):
        images = grids([path], Options(model=model), 1)
        if not len(images):
            raise UsageError(f"{path} cannot be screened, and peers would fail on it; leave it out")
        scores[path] = engine.predict(images).scores[0, : len(SCORES)]
    return np.array([scores[path] for path in paths])


def precision_of(name: str) -> str:
    """Of a peer, or of ``comit-PRECISION``."""
    return PEERS[name].precision if name in PEERS else name.removeprefix("comit-")


def check(name: str, answer: Answer, reference: NDArray[np.float32]) -> None:
    """Raises ParityError where scores differ by more than the precision explains."""
    if name in PEERS and not PEERS[name].own_network:
        return
    off = difference(answer, reference)
    if off is None or not off <= TOLERANCE[precision_of(name)]:  # NaN is neither
        by = "has none" if off is None else f"by {off:.4f}"
        raise ParityError(f"{name} scores otherwise than comit in fp32 ({by}): not the same work")


def difference(answer: Answer, reference: NDArray[np.float32]) -> float | None:
    """Largest difference of a score from ours in fp32; None without scores."""
    if not answer.scores:
        return None
    found = np.array(answer.scores, np.float32)  # a row without scores has NaN
    return float(np.abs(found - reference).max()) if found.shape == reference.shape else np.inf


def one(name: str, paths: Sequence[Path], options: Options, kind: str) -> Answer:
    """One run of comit or of a peer."""
    if name not in PEERS:
        return ours(precision_of(name), paths, options)
    task = Task(name, str(options.model), tuple(map(str, paths)), usable_cores(), kind)
    with tempfile.TemporaryDirectory(prefix="comit-bench-") as folder:
        errors = Path(folder) / "errors"
        with errors.open("w") as to:
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "comit.bench.peers"],
                    input=json.dumps(asdict(task)),
                    stdout=subprocess.PIPE,
                    stderr=to,
                    text=True,
                    timeout=LIMIT,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                )
            except subprocess.TimeoutExpired:
                raise ComitError(f"failed: not done after {LIMIT:g} s") from None
        if done.returncode:
            last = [line for line in errors.read_text().splitlines() if line.strip()][-1:]
            raise ComitError(f"failed: {last[0][:160] if last else done.returncode}")
    return Answer(**json.loads(done.stdout.splitlines()[-1]))


def ours(precision: str, paths: Sequence[Path], options: Options) -> Answer:
    """The whole of ``comit screen`` with masks for every row, in this precision."""
    unique = list(dict.fromkeys(paths))
    taken = replace(options, engine="openvino", device="cpu", precision=precision)
    with tempfile.TemporaryDirectory(prefix="comit-bench-") as folder:
        out = Path(folder) / "results.parquet"
        done = run(unique, len(paths), taken, out=out)
        rows = read(out, ["row_id", *SCORES]).to_pylist()
    rows.sort(key=lambda row: int(row["row_id"]))
    return Answer(done.wall, done.steady or None, [[row[s] for s in SCORES] for row in rows])


def summary(
    name: str,
    answers: list[Answer],
    found: dict[str, list[Answer]],
    reference: NDArray[np.float32],
    default: str,
) -> Compared:
    """Rates and ratios of one, with their spread; ``default`` is the precision comit chooses."""
    peer, precision = PEERS.get(name), precision_of(name)
    beside = found[f"comit-{precision}"]
    off = [d for answer in answers if (d := difference(answer, reference)) is not None]
    return Compared(
        peer=name,
        what=peer.what if peer else "comit screen, OpenVINO, masks and Parquet written",
        precision=precision,
        steady=spread(steady) if all(steady := [a.steady or 0.0 for a in answers]) else {},
        images_per_second=spread([len(reference) / a.seconds for a in answers]),
        ratio=ratio(beside, answers),
        whole_ratio=spread([a.seconds / c.seconds for c, a in zip(beside, answers, strict=True)]),
        default_ratio=ratio(found[f"comit-{default}"], answers),
        default_pair=f"comit {default} / {'peer' if peer else 'comit'} {precision}",
        score_difference=max(off, default=None),
    )


def ratio(fast: list[Answer], slow: list[Answer]) -> dict[str, float]:
    """Of the steady rates, repeat by repeat; empty where a run was too short to have one."""
    found = [f.steady / s.steady for f, s in zip(fast, slow, strict=True) if f.steady and s.steady]
    return spread(found) if len(found) == len(fast) else {}


def not_run(name: str, what: str, precision: str, why: str) -> Compared:
    """A peer that is listed all the same."""
    return Compared(name, what, precision, {}, {}, {}, {}, {}, "", None, why)
