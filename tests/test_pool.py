from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import deque
from pathlib import Path

import cv2
import numpy as np
import pytest

from comit.bench.faults import dicoms
from comit.bench.faults.dicoms import make
from comit.durable import nameless
from comit.errors import Stopped
from comit.image import open_image
from comit.image.base import Limits
from comit.image.preprocess import preprocess
from comit.pipeline.pool import WORKER, Pool
from comit.pipeline.worker import Task


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = []
    for i in range(12):  # the last four are larger than a slot
        noise = rng.integers(0, 256, (300 + 160 * i, 700), np.uint8)
        picture = cv2.GaussianBlur(noise, (0, 0), 9)
        paths.append(root / f"{i}.png")
        cv2.imwrite(str(paths[-1]), picture)
    return [os.fsencode(p) for p in paths]


def pool(workers=2, ring_bytes=2**24, timeout=30.0):
    return Pool(workers, ring_bytes, Limits(), timeout)


def tasks(files):
    return (Task(i, file) for i, file in enumerate(files))


def at_work(decoders):
    """A process that has started and has files to read."""
    return next(w.process for w in decoders._workers if w.ready and w.queue)


def test_pixels_are_those_of_decoding_and_preprocessing_in_this_process(pictures):
    with pool() as decoders:
        seen = {d.item: p.copy() for d, p in decoders.run(tasks(pictures))}
    assert sorted(seen) == list(range(len(pictures)))
    for i, path in enumerate(pictures):
        image = open_image(Path(os.fsdecode(path)).read_bytes())
        expected = preprocess(image.samples(), image.presentation).pixels
        assert np.array_equal(seen[i], expected)


def test_a_problem_is_a_reason_and_not_an_exception(pictures, tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "note.txt").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes(Path(os.fsdecode(pictures[0])).read_bytes()[:2000])
    files = ["empty.png", "note.txt", "cut.png", "missing.png", "zero\0byte.png"]
    with pool() as decoders:
        reasons = {
            files[d.item]: d.reason
            for d, _ in decoders.run(tasks(os.fsencode(tmp_path / f) for f in files))
        }
    assert reasons == {
        "empty.png": "empty",
        "note.txt": "unsupported_format",
        "cut.png": "truncated",
        "missing.png": "vanished",
        "zero\0byte.png": "read_error",
    }


def test_work_may_come_later_and_whoever_brings_it_wakes_the_pool(pictures, monkeypatch):
    """One process is stopped with its file: the other takes what is brought meanwhile."""
    monkeypatch.setattr("comit.pipeline.pool.TICK", 60.0)
    inbox, turns = deque([Task(0, pictures[0]), Task(1, pictures[1])]), []

    def arriving():
        while True:
            yield inbox.popleft() if inbox else None

    def bring():
        inbox.append(Task(2, pictures[2]))
        decoders.wake()

    with pool() as decoders:
        list(decoders.run(tasks(pictures)))  # both have started
        stopped = decoders._workers[0].process
        stopped.send_signal(signal.SIGSTOP)
        threading.Timer(1.0, bring).start()
        order = []
        for done, _ in decoders.run(arriving(), lambda: turns.append(len(order))):
            order.append(done.item)
            if done.item == 2:
                stopped.send_signal(signal.SIGCONT)
        assert order == [1, 2, 0] and {*turns} == {0, 1, 2}
        assert not list(decoders.run(arriving()))  # nothing for now: it ends


def test_processes_read_files_that_have_no_name(pictures):
    content = Path(os.fsdecode(pictures[0])).read_bytes()
    with nameless() as file:
        file.write(content)
        file.flush()
        inherited = (file.fileno(),)
        with Pool(1, 2**24, Limits(), 30.0, inherited=inherited) as decoders:
            work = [Task(0, pictures[0]), Task(1, b"/dev/fd/%d" % file.fileno())]
            (_, named), (done, read) = ((d, np.array(p)) for d, p in decoders.run(work))
    assert (done.facts.file_size, done.facts.file_crc32) == (len(content), zlib.crc32(content))
    assert np.array_equal(named, read)


def test_a_killed_process_costs_the_item_in_hand_and_no_other(pictures):
    work = pictures * 10
    with pool() as decoders:
        results = {}
        for done, pixels in decoders.run(tasks(work)):
            results[done.item] = done.reason
            assert (pixels is None) == (done.reason is not None)
            if len(results) == 20:
                at_work(decoders).kill()
    assert sorted(results) == list(range(len(work)))
    lost = [r for r in results.values() if r is not None]
    assert lost in ([], ["crash"])  # none where it died between two items


def test_a_process_that_hangs_is_replaced_after_the_time_limit(pictures):
    work = pictures * 3
    with pool(timeout=2.0) as decoders:
        results = {}
        for done, _ in decoders.run(tasks(work)):
            results[done.item] = done.reason
            if len(results) == 5:
                at_work(decoders).send_signal(signal.SIGSTOP)
    assert sorted(results) == list(range(len(work)))
    assert [r for r in results.values() if r is not None] == ["timeout"]


def test_a_process_that_cannot_be_started_stops_the_run_and_leaves_none(monkeypatch):
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *words, **options):
            if len(started) == 2:
                raise OSError(errno.EMFILE, "Too many open files")
            super().__init__(*words, **options)
            started.append(self)

    monkeypatch.setattr("comit.pipeline.pool.subprocess.Popen", Popen)
    with pytest.raises(Stopped, match=r"Too many open files.*the same command resumes"):
        pool(workers=3)
    assert [p.returncode for p in started] == [-signal.SIGKILL] * 2


def test_a_process_that_never_gets_ready_stops_the_run_and_says_why(pictures, monkeypatch):
    monkeypatch.setattr("comit.pipeline.pool.START_PAUSE", 0.01)
    monkeypatch.setattr("comit.pipeline.pool.WORKER", "raise SystemExit(1)")
    with pool() as decoders, pytest.raises(Stopped, match=r"exit code 1 .*5 times.*completely"):
        list(decoders.run(tasks(pictures)))
    monkeypatch.setattr("comit.pipeline.pool.WORKER", "import os; os.kill(os.getpid(), 9)")
    with pool() as decoders, pytest.raises(Stopped, match=r"signal 9 .*the same command resumes"):
        list(decoders.run(tasks(pictures)))
    monkeypatch.setattr("comit.pipeline.pool.WORKER", "import time; time.sleep(60)")
    monkeypatch.setattr("comit.pipeline.pool.START_TIMEOUT", 0.1)
    with pool() as decoders, pytest.raises(Stopped, match=r"within 0.1 s.*the same command res"):
        list(decoders.run(tasks(pictures)))


@pytest.mark.parametrize("kills", [1, 4])
def test_processes_that_are_killed_while_they_start_cost_no_row(pictures, monkeypatch, kills):
    monkeypatch.setattr("comit.pipeline.pool.START_PAUSE", 0.01)
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *words, **options):
            super().__init__(*words, **options)
            started.append(self)
            if len(started) <= kills:
                self.kill()

    monkeypatch.setattr("comit.pipeline.pool.subprocess.Popen", Popen)
    with pool(workers=1) as decoders:
        reasons = {d.item: d.reason for d, _ in decoders.run(tasks(pictures))}
    assert reasons == dict.fromkeys(range(len(pictures)))
    assert len(started) == kills + 1


def test_a_process_killed_at_work_and_the_next_one_as_it_starts_cost_one_row(pictures, monkeypatch):
    class Popen(subprocess.Popen):
        def __init__(self, *words, **options):
            super().__init__(*words, **options)
            if results:
                killed.append(self)
                if len(killed) <= 2:
                    self.kill()

    work, results, killed = pictures * 5, {}, []
    monkeypatch.setattr("comit.pipeline.pool.START_PAUSE", 0.01)
    monkeypatch.setattr("comit.pipeline.pool.subprocess.Popen", Popen)
    with pool() as decoders:
        for done, _ in decoders.run(tasks(work)):
            results[done.item] = done.reason
            if len(results) == 20:
                at_work(decoders).kill()
    assert sorted(results) == list(range(len(work)))
    assert [r for r in results.values() if r is not None] in ([], ["crash"])
    assert len(killed) == 3


def test_a_process_that_sends_what_cannot_be_read_is_replaced(pictures, monkeypatch):
    garbled = """
import os, sys
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
pipe.send(None)
pipe.recv()
pipe.send_bytes(b"\\x80\\x05no pickle")
pipe.recv()
"""
    monkeypatch.setattr("comit.pipeline.pool.WORKER", garbled)
    with pool(workers=1) as decoders:
        monkeypatch.setattr("comit.pipeline.pool.WORKER", WORKER)
        reasons = {d.item: d.reason for d, _ in decoders.run(tasks(pictures))}
    assert reasons == {i: "crash" if i == 0 else None for i in range(len(pictures))}


SUSPENDED = """
import os, signal, sys, threading
from comit.image.base import Limits
from comit.pipeline.worker import Task
from comit.pipeline.pool import Pool

with Pool(1, 2**24, Limits(), timeout=3.0) as decoders:
    for done, _ in decoders.run(Task(i, os.fsencode(sys.argv[1])) for i in range(9)):
        print(done.item, done.reason, flush=True)
        if done.item == 3:
            worker = decoders._workers[0].process
            worker.send_signal(signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)
            threading.Timer(1.0, worker.send_signal, [signal.SIGCONT]).start()
"""


def test_time_in_which_the_machine_stood_still_counts_for_no_limit(pictures):
    """The decoder holds a file before, during and for a second after a pause above the limit."""
    command = [sys.executable, "-c", SUSPENDED, os.fsdecode(pictures[0])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert os.WIFSTOPPED(os.waitpid(run.pid, os.WUNTRACED)[1])
        time.sleep(3.5)
        run.send_signal(signal.SIGCONT)
        said, _ = run.communicate(timeout=60)
    assert said.splitlines() == [f"{i} None" for i in range(9)]


def test_an_image_larger_than_the_ring_fails_alone(pictures):
    with pool(ring_bytes=1_300_000) as decoders:
        reasons = {d.item: d.reason for d, _ in decoders.run(tasks(pictures))}
    assert {i for i, reason in reasons.items() if reason == "too_large"} == {10, 11}
    assert [reasons[i] for i in range(10)] == [None] * 10  # 9 has 1740 x 700 pixels


def test_a_small_ring_is_shared_in_turn(pictures):
    with pool(workers=3, ring_bytes=1_450_000) as decoders:  # one of the large ones at a time
        done = [d for d, p in decoders.run(tasks(pictures)) if p is not None]
    assert len(done) == len(pictures)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are Linux's")
def test_memory_is_asked_for_or_refused_and_no_neighbour_pays(pictures, tmp_path):
    """98 million pixels of colour in 140 kB need more than the ring and a decoder have."""
    packer = zlib.compressobj(9, wbits=-15)
    rows = [packer.compress(bytes([i % 200]) * 9900 * 3) for i in range(9900)]
    stream = b"".join(rows) + packer.flush()
    syntax = b"1.2.840.10008.1.2.8.1\0"  # deflated frames
    bomb = make(np.zeros((96, 80, 3), np.uint8), dicoms.JPEG, stream + b"\0" * (len(stream) % 2),
                8, Rows=9900, Columns=9900, PhotometricInterpretation="YBR_FULL")  # fmt: skip
    bomb = bomb.replace(dicoms.JPEG.encode(), syntax)
    (tmp_path / "bomb.dcm").write_bytes(bomb)
    files = [*pictures[:3], os.fsencode(tmp_path / "bomb.dcm"), *pictures[3:6]]
    with pool(workers=1, ring_bytes=512 * 2**20) as decoders:
        reasons = {d.item: d.reason for d, _ in decoders.run(tasks(files))}
    assert reasons == {i: "too_large" if i == 3 else None for i in range(7)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are Linux's")
def test_a_decoding_process_dumps_no_core_and_has_a_bound(pictures):
    with pool(workers=1) as decoders:
        for i, _ in enumerate(decoders.run(tasks(pictures))):
            if i == 3:
                pid = at_work(decoders).pid
                limits = resource.prlimit(pid, resource.RLIMIT_CORE)
                bound, _ = resource.prlimit(pid, resource.RLIMIT_DATA)
    assert limits == (0, 0) and 2**28 <= bound < 2**30
