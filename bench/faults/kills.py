"""kill -9 at random times, of the whole command with its decoding processes."""

from __future__ import annotations

import random
import time
from pathlib import Path

import cv2
import numpy as np

from comit.bench.faults.commit import Outcome, rows_of
from comit.bench.faults.process import orphans, run
from comit.errors import ComitError

FILES = 700


def archive(folder: Path, files: int, seed: int = 0) -> None:
    """Tiny pictures in subfolders of a thousand, one in fifty of them broken."""
    noise = np.random.default_rng(seed)
    for i in range(files):
        below = folder / f"{i // 1000:03d}"
        below.mkdir(parents=True, exist_ok=True)
        picture = cv2.GaussianBlur(noise.integers(0, 256, (64, 64), np.uint8), (0, 0), 4)
        picture = cv2.normalize(picture, picture, 0, 255, cv2.NORM_MINMAX)
        data = cv2.imencode(".png", picture)[1].tobytes()
        (below / f"{i}.png").write_bytes(data[:-30] if i % 50 == 7 else data)


def random_kills(work: Path, kills: int, seed: int = 0) -> tuple[Outcome, int]:
    """Kills runs until there were so many, letting each result be finished by a resumed run.

    Results are in turn a file and a folder. Returns the sums, and the processes left behind.
    """
    pictures, chance, outcome = work / "pictures", random.Random(seed), Outcome()  # noqa: S311
    archive(pictures, FILES)
    usual = max(run(["screen", pictures, "--out", work / "usual.parquet", "-q"]).seconds, 0.5)
    expected = rows_of(work / "usual.parquet")
    round_ = 0
    while outcome.faults < kills:
        out = work / (f"r{round_}.parquet" if round_ % 2 else f"r{round_}/")
        round_ += 1
        while True:
            at = chance.uniform(0, 1.1 * usual) if outcome.faults < kills else None
            ended = run(
                ["screen", pictures, "--out", out, "-q"], kill_after=at, env={"R": str(work)}
            )
            if ended.exit_code == -9:
                outcome.faults += 1
                continue
            if ended.exit_code not in (0, 3):  # 0: it was killed with all done
                raise ComitError(
                    f"a run that was not killed ended with {ended.exit_code}: {ended.said}"
                )
            break
        outcome.compare(out, expected)
    for _ in range(50):  # decoding processes end when their pipe does
        if not (left := orphans(f"R={work}")):
            break
        time.sleep(0.1)
    return outcome, left
