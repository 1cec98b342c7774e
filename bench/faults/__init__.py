"""What a run survives: every fault is made for real, and has a figure.

python -m comit.bench faults              all of them, hours
python -m comit.bench faults --short      a few of each, what CI runs

Mutated files, screened twice and with the real network, take most of it. They can be made in
pieces: ``--only mutated --data FOLDER --mutants 5000 --from 5000`` are numbers 5,000 to 9,999.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from comit.bench.faults import archive, canary, commit, fuzz, kills, zoo
from comit.bench.faults.commit import Outcome
from comit.demo import demo


class Figure(NamedTuple):
    """One kind of fault and what came of it."""

    fault: str
    figure: str
    passed: bool


@dataclass(frozen=True)
class Extent:
    """How many of each."""

    kills: int = 200
    full_disks: int = 400  # at most: it ends when the disk is large enough
    races: int = 50
    steps: int = 1  # operations on disk from one that is killed to the next
    every: int = 1  # bytes between two cuts of a footer
    writes: int = 1  # between two that fail
    fuzzed: int = 50_000
    first: int = 0  # of the mutated files: the long form can be run in pieces
    files: int = 100_000


SHORT = Extent(kills=6, races=10, steps=3, every=200, writes=40, fuzzed=100, files=3000)


def outcome(fault: str, count: str, found: Outcome) -> Figure:
    """The figure of a fault that rows must survive."""
    text = (
        f"{found.faults} {count}, {found.lost} rows lost, {found.duplicated} duplicated, "
        f"{found.differing} differing"
    )
    if found.unfinished:
        text += f"; {found.unfinished} could not be finished by the next run"
    if found.unclear:
        text += f"; {found.unclear} ended by an error that is not ours"
    return Figure(fault, text, found == Outcome(found.faults) and found.faults > 0)


def at_every_step(work: Path, extent: Extent) -> Iterator[Figure]:
    """kill -9 before each operation on disk of each kind of commit."""
    for scene, found in commit.kills_at_every_step(work, extent.steps).items():
        yield outcome(f"kill at every step: {scene}", "kills", found)


def at_random(work: Path, extent: Extent) -> Iterator[Figure]:
    """kill -9 of the whole command."""
    found, left = kills.random_kills(work, extent.kills)
    figure = outcome("kill at random times", "kills", found)
    text = f"{figure.figure}, {left} processes left behind"
    yield figure._replace(figure=text, passed=figure.passed and not left)


def failing_disk(work: Path, extent: Extent) -> Iterator[Figure]:
    """EIO."""
    for kind, found in commit.failing_disk(work, extent.writes).items():
        yield outcome(f"{kind} fails, each in turn", "failures", found)


def full_disk(work: Path, extent: Extent) -> Iterator[Figure]:
    """ENOSPC."""
    found = commit.full_disk(work, extent.full_disks)
    yield outcome("disk full, 4 KiB more room each time", "full disks", found)


def races(work: Path, extent: Extent) -> Iterator[Figure]:
    """Two runs at once."""
    yield outcome("two runs at once", "races", commit.races(work, extent.races))


def footers(work: Path, extent: Extent) -> Iterator[Figure]:
    """Parts that end early."""
    yield outcome("part cut inside its footer", "cuts", commit.cut_footers(work, extent.every))


def other_model(work: Path, extent: Extent) -> Iterator[Figure]:
    """A run that may not be resumed as asked."""
    passed = commit.other_model(work)
    yield Figure(
        "resume with another model", "refused" if passed else "NOT refused, or lost", passed
    )


def bad_input(work: Path, extent: Extent) -> Iterator[Figure]:
    """One of every kind of input."""
    visit = zoo.run(work)
    aborts = int(visit.exit_code != 3)
    text = f"{visit.classes} classes in, {visit.rows} rows out, {aborts} aborts"
    text += f"; {len(visit.wrong)} rows otherwise than stated"
    text += f"; {visit.disturbed} neighbours changed"
    wrong = "".join(f"\n  {name!a}: {found}" for name, found in visit.wrong.items())
    passed = not (aborts or visit.wrong or visit.disturbed) and visit.classes == visit.rows
    yield Figure("bad input", text + wrong, passed)


def mutations(work: Path, extent: Extent, folders: list[Path]) -> Iterator[Figure]:
    """Files with changed bytes; without real ones, drawn ones."""
    if not folders:
        demo(work / "drawn", 24, 0)
        folders = [work / "drawn"]
    found = fuzz.fuzz(work, folders, extent.fuzzed, extent.first)
    reasons = ", ".join(f"{reason} {n}" for reason, n in found.reasons.most_common())
    kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(found.kinds.items()))
    text = (
        f"{found.files} files, {found.rows} rows, {found.aborts} aborts, {len(found.crashed)} "
        f"uncaught exceptions, {len(found.differing)} rows other than in the first of two runs; "
        f"peak memory {found.peak_bytes / 2**20:.0f} MiB, of a decoding process "
        f"{found.decoder_bytes / 2**20:.0f} MiB ({reasons}) of {kinds}"
    )
    for what, numbers in (("crash", found.crashed), ("other row", found.differing)):
        if numbers:
            text += f"\n  {what}: file {', '.join(map(str, numbers[:20]))}"
    yield Figure("mutated files", text, found.passed)


def names(work: Path, extent: Extent) -> Iterator[Figure]:
    """A patient's name in every tag."""
    found = canary.search(work)
    text = f"planted in {found.tags} tags, paths and columns: in {len(found.found)} of "
    text += f"{found.files} files and the messages of {found.runs} runs"
    yield Figure("planted name", "\n  ".join([text, *found.found]), not found.found)


def large(work: Path, extent: Extent) -> Iterator[Figure]:
    """Many tiny files, an engine that costs nothing."""
    found = archive.nights(work, extent.files)
    yield Figure(
        "archive of tiny files",
        f"{found.files} files in {found.first_seconds} s; unchanged: {found.unchanged_seconds} s, "
        f"{found.ratio:.3f} of that; {found.new_files} new ones: {found.new_seconds} s; peak "
        f"memory {found.peak_bytes / 2**20:.0f} MiB, {found.memory_ratio:.2f} times that of "
        f"{found.small_files} files",
        True,  # figures to be read: what is fast enough is for the reader to say
    )


def everything(extent: Extent, folders: list[Path], only: tuple[str, ...] = ()) -> Iterator[Figure]:
    """Makes the faults (those named in ``only``) and yields a figure for each."""
    kinds: dict[str, Callable[[Path, Extent], Iterator[Figure]]] = {
        "steps": at_every_step,
        "kills": at_random,
        "failing": failing_disk,
        "full": full_disk,
        "races": races,
        "footers": footers,
        "model": other_model,
        "zoo": bad_input,
        "mutated": lambda work, extent: mutations(work, extent, folders),
        "names": names,
        "archive": large,
    }
    for kind, figures in kinds.items():
        if not only or kind in only:
            with TemporaryDirectory(prefix="comit-faults-") as work:
                yield from figures(Path(work), extent)
