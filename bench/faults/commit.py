"""The commit protocol under faults: kills at every step, full and failing disks, races, cut parts.

Every run is a forked child that drives the :class:`comit.run.run.Run` with rows that are known,
so a kill is a real SIGKILL, and thousands of runs take minutes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from comit import durable
from comit.errors import ComitError
from comit.results import RUN, Row
from comit.run.run import Run, compact
from comit.source.base import SHARD, Item, Listing
from comit.source.worklist import Writer

ITEMS = SHARD + 88  # two shards
SETTINGS = {"model": "a"}
METADATA = {
    "comit_model_sha256": "a",
    "comit_preprocessing": "1",
    "comit_thresholds": "null",
    "comit_schema": "2",
    "comit_identifiers": "plain",
    "comit_view_policy": "tagged",
    "comit_root": "/archive",
}
Rows = dict[str, tuple[object, ...]]


@dataclass
class Outcome:
    """What a kind of fault did, summed over all its runs."""

    faults: int = 0
    lost: int = 0
    duplicated: int = 0
    differing: int = 0
    unfinished: int = 0  # runs that the next one could not finish
    unclear: int = 0  # runs that ended otherwise than they should: by an error that is not ours

    def compare(self, found: Path, expected: Rows) -> None:
        """Counts the rows of a result that are not as they should be."""
        have = rows_of(found)
        self.duplicated += pq.read_table(found, columns=["row_id"]).num_rows - len(have)
        self.lost += len(expected.keys() - have.keys())
        self.differing += sum(have[k] != v for k, v in expected.items() if k in have)
        self.differing += len(have.keys() - expected.keys())


def rows_of(results: Path) -> Rows:
    """Every value of every row by its id, without what names the run."""
    rows = pq.read_table(results).drop_columns(list(RUN)).to_pylist()
    return {row["row_id"]: tuple(map(str, row.values())) for row in rows}


def row(index: int, seed: int) -> Row:
    """A row whose every value depends on its item."""
    return Row(
        status="ok",
        warnings=("colour",) if index % 3 else (),
        score_covid=(index + seed) / 4096,
        file_size=index + 1000 * seed,
        file_mtime=index,
        lung_rle={"size": [224, 224], "counts": f"{index}x{seed}"},
    )


def night(out: str, changed: range = range(0), items: int = ITEMS, model: str = "a") -> None:
    """One run: a list of ``items``, of which some have ``changed``."""

    def listed(to: BinaryIO, paths: BinaryIO) -> Listing:
        found = [
            Item(f"id{i}", f"{i}.png", b"%d" % i, f"{i}.png", i + 1000 * (i in changed), i)
            for i in range(items)
        ]
        with Writer(to, paths) as writer:
            for start in range(0, items, SHARD):
                writer.write(found[start : start + SHARD])
        return Listing()

    with Run(out) as run:
        if not run.list(listed):
            return
        run.freeze({"model": model}, METADATA | {"comit_model_sha256": model})
        for index, item in run.todo():
            number = int(item.path[:-4] if item.path else "")
            run.add(index, row(number, int(number in changed)))
        run.finish()


@dataclass(frozen=True)
class Scene:
    """A commit to be disturbed: what is there, what is done, what must be there in the end."""

    name: str
    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    results: Callable[[Path], Path]


def _file(folder: Path) -> str:
    return str(folder / "r.parquet")


def _grown(folder: Path) -> str:
    return f"{folder}/results/"


def _two_nights(folder: Path) -> None:
    night(_grown(folder), items=40)
    night(_grown(folder), items=60)


def _compacted(folder: Path) -> None:
    compact(folder, 1000)


SCENES = (
    Scene("file", lambda d: None, lambda d: night(_file(d)), lambda d: d / "r.parquet"),
    Scene(
        "file replaced",
        lambda d: night(_file(d), items=9),
        lambda d: night(_file(d)),
        lambda d: d / "r.parquet",
    ),
    Scene("first night", lambda d: None, lambda d: night(_grown(d)), lambda d: d / "results"),
    Scene(
        "night that adds and replaces",
        _two_nights,
        lambda d: night(_grown(d), changed=range(30, 50), items=ITEMS),
        lambda d: d / "results",
    ),
    Scene(
        "compaction",
        _two_nights,
        lambda d: _compacted(Path(_grown(d))),
        lambda d: d / "results",
    ),
)


def forked(action: Callable[[], None]) -> int:
    """Runs in a child; its exit code, that of a ComitError, or -9 where it was killed."""
    return waited(forked_off(action))


def forked_off(action: Callable[[], None]) -> int:
    """Runs in a child that is not waited for; its process id."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        action()
        code = 0
    except ComitError as error:
        code = error.exit_code
    finally:
        os._exit(code)


def waited(pid: int) -> int:
    """The exit code of a child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def expected(scene: Scene, work: Path) -> Rows:
    """The rows of an undisturbed run."""
    folder = work / "undisturbed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    scene.prepare(folder)
    scene.act(folder)
    return rows_of(scene.results(folder))


def disturbed(
    scene: Scene,
    work: Path,
    disturb: Callable[[int], contextlib.AbstractContextManager[None]],
    codes: tuple[int, ...],
    every: int = 1,
) -> Outcome:
    """Makes the fault at each operation (or each ``every``-th) until a run ends without one."""
    rows, outcome = expected(scene, work), Outcome()
    before, folder = work / "before", work / "disturbed"
    shutil.rmtree(before, ignore_errors=True)
    before.mkdir()
    scene.prepare(before)
    step = 0
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)

        def act(step: int = step) -> None:
            with disturb(step):
                scene.act(folder)

        code = forked(act)
        if code == 0:
            return outcome
        outcome.faults += 1
        outcome.unclear += code not in codes
        # The next run finishes it. Compaction that was undone has nothing to be resumed.
        if forked(lambda: scene.act(folder)) != 0:
            outcome.unfinished += 1
        else:
            outcome.compare(scene.results(folder), rows)
        step += every


@contextlib.contextmanager
def counted(step: int, fault: Callable[[], None]) -> Iterator[None]:
    """Calls ``fault`` before operation number ``step`` on disk, of all that can change it."""
    left = [step]

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == -1:
                fault()
            return real(*args, **kwargs)

        return operation

    for name in ("fsync", "link", "rename", "replace", "unlink", "mkdir", "rmdir", "open"):
        setattr(os, name, before(getattr(os, name)))
    for name in ("replace", "unlink", "touch", "mkdir", "rmdir", "chmod"):
        setattr(Path, name, before(getattr(Path, name)))
    yield  # in a child that ends: nothing to put back


def kill() -> None:
    """The end, without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


def kills_at_every_step(work: Path, every: int = 1) -> dict[str, Outcome]:
    """SIGKILL before each operation (or each ``every``-th) on disk."""
    return {s.name: disturbed(s, work, lambda n: counted(n, kill), (-9,), every) for s in SCENES}


class _Failing:
    """A file whose write, fsync or close fails, once it is that call's turn."""

    def __init__(self, file: BinaryIO, turn: Callable[[str], None]) -> None:
        self._file, self._turn = file, turn

    def write(self, data: bytes) -> int:
        self._turn("write")
        return self._file.write(data)

    def close(self) -> None:
        if not self._file.closed:
            self._turn("close")
        self._file.close()

    def __enter__(self) -> _Failing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def failing(kind: str, step: int) -> Iterator[None]:
    """The ``step``-th write, fsync or close of what comit writes says EIO."""
    left = [step]

    def turn(what: str) -> None:
        if what == kind:
            left[0] -= 1
            if left[0] == -1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    create, fsync = durable.create, os.fsync
    made: Any = lambda path: _Failing(create(path), turn)  # noqa: E731
    durable.create = made

    def failing_fsync(fd: int) -> None:
        turn("fsync")
        fsync(fd)

    os.fsync = failing_fsync  # type: ignore[assignment]
    yield


def failing_disk(work: Path, every: int = 1) -> dict[str, Outcome]:
    """EIO at each write (or each ``every``-th), each fsync and each close."""
    return {
        kind: disturbed(
            SCENES[3], work, partial(failing, kind), (2, 4), every if kind == "write" else 1
        )
        for kind in ("write", "fsync", "close")
    }


def full_disk(work: Path, steps: int) -> Outcome:
    """A small tmpfs with less and less room: the run stops, room is made, the run goes on."""
    disk, outcome = work / "disk", Outcome()
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise ComitError("a small tmpfs cannot be mounted here; run as root, or in unshare -rm")
    try:
        scene = SCENES[3]
        rows = expected(scene, work)
        for step in range(steps):
            folder = disk / "archive"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            scene.prepare(folder)
            ballast = disk / "ballast"
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            with ballast.open("wb") as file:
                file.write(bytes(max(free - step * 4096, 0)))
            code = forked(partial(scene.act, folder))
            ballast.unlink()
            if code == 0:
                break
            outcome.faults += 1
            outcome.unclear += code not in (2, 4)
            if forked(partial(scene.act, folder)) != 0:
                outcome.unfinished += 1
            else:
                outcome.compare(scene.results(folder), rows)
        return outcome
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def races(work: Path, count: int) -> Outcome:
    """Two runs on one output at the same moment: one writes, or one after the other."""
    outcome = Outcome()
    for scene in (SCENES[0], SCENES[3]):
        rows = expected(scene, work)
        for _ in range(count // 2):
            folder = work / "race"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            scene.prepare(folder)
            start, go = os.pipe()

            def run(folder: Path = folder, start: int = start, scene: Scene = scene) -> None:
                os.read(start, 1)
                scene.act(folder)

            pids = [forked_off(run) for _ in range(2)]
            os.write(go, b"go")
            codes = sorted(map(waited, pids))
            os.close(go)
            os.close(start)
            outcome.faults += 1
            outcome.unfinished += codes not in ([0, 0], [0, 2])
            outcome.compare(scene.results(folder), rows)
    return outcome


def cut_footers(work: Path, every: int = 1) -> Outcome:
    """A part that ends at each byte of its footer: it is found out and made again."""
    outcome, folder = Outcome(), work / "cut"
    scene = SCENES[0]
    rows = expected(scene, work)
    folder.mkdir()

    def interrupted() -> None:
        setattr(Run, "finish", lambda self: kill())  # noqa: B010 (a child that ends)
        scene.act(folder)

    if forked(interrupted) != -signal.SIGKILL:
        raise ComitError("the run to be cut did not get as far as its parts")
    part = folder / ".r.parquet.comit" / "part-00000.parquet"
    whole = part.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    kept = work / "cut-before"
    shutil.copytree(folder, kept)
    for length in range(len(whole) - footer, len(whole), every):
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        part.write_bytes(whole[:length])
        outcome.faults += 1
        if forked(lambda: scene.act(folder)) != 0:
            outcome.unfinished += 1
        else:
            outcome.compare(scene.results(folder), rows)
    return outcome


def other_model(work: Path) -> bool:
    """Whether resuming with another model is refused, and the run can then be resumed."""
    folder = work / "model"
    folder.mkdir()
    scene = SCENES[0]

    def interrupted() -> None:
        with counted(40, kill):
            scene.act(folder)

    if forked(interrupted) != -signal.SIGKILL:
        raise ComitError("the run to be resumed was not interrupted")
    refused = forked(lambda: night(_file(folder), model="b")) == 2
    outcome = Outcome()
    resumed = forked(lambda: scene.act(folder)) == 0
    outcome.compare(scene.results(folder), expected(scene, work))
    return refused and resumed and outcome == Outcome()
