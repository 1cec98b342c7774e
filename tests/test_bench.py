"""The benchmarks measure what they say, on a fake engine whose speed is known."""

import json
import os
import subprocess
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

import comit.bench.throughput as throughput_module
from comit.bench import machine as machine_module
from comit.bench.cli import bench
from comit.bench.latency import measure, rate
from comit.bench.machine import commit, machine
from comit.engine.base import Engine, Inference
from comit.errors import UsageError
from comit.screen import Options

ROOT = Path(__file__).parent.parent


class Sleeper(Engine):
    """20 ms a batch, 200 ms the first time; counts how many calls overlap."""

    name, precision, device = "sleeper", "fp32", "cpu"

    def __init__(self, batch_size: int = 4, lanes: int = 1) -> None:
        self.batch_size, self.lanes = batch_size, lanes
        self.calls = self.running = self.most = 0
        self.mutex = threading.Lock()

    def infer(self, images: NDArray[np.float32]) -> Inference:
        with self.mutex:
            self.calls += 1
            self.running += 1
            self.most = max(self.most, self.running)
            pause = 0.2 if self.calls == 1 else 0.02
        time.sleep(pause)
        with self.mutex:
            self.running -= 1
        n = len(images)
        return Inference(np.zeros((n, 3), np.float32), np.zeros((n, 2, 224, 224), np.uint8))


def test_first_call_is_reported_apart() -> None:
    found = measure(Sleeper(), calls=5, seconds=0.1)
    assert found.first_ms >= 200
    assert 20 <= found.p50_ms < 150 and found.p50_ms <= found.p90_ms <= found.p99_ms
    assert (found.batch_size, found.calls) == (4, 5)


def test_rate_counts_images_of_all_lanes() -> None:
    one, three = Sleeper(), Sleeper(lanes=3)
    alone, together = rate(one, 0.3), rate(three, 0.3)
    assert alone <= 4 / 0.02  # 4 images in 20 ms at best
    assert (one.most, three.most) == (1, 3)
    assert together > 1.5 * alone


def test_throughput_is_beside_the_engine_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written: list[Path] = []

    def fake_screen(source: Path, out: Path, options: Options, console: object) -> object:
        written.append(out)
        return SimpleNamespace(
            rows=12, screened=10, seconds=2.0, images_per_second=5.0, stage_seconds={}, engine={}
        )

    monkeypatch.setattr(throughput_module, "load_engine", lambda *a: Sleeper())
    monkeypatch.setattr(throughput_module, "rate", lambda engine, seconds: 10.0)
    monkeypatch.setattr(throughput_module, "screen", fake_screen)
    found = throughput_module.measure(tmp_path, Options())
    assert (found.ratio, found.screened, found.alone_after) == (0.5, 10, 10.0)
    assert not written[0].parent.exists()  # the results are thrown away

    monkeypatch.setattr(throughput_module, "screen", lambda *a, **k: SimpleNamespace(screened=0))
    with pytest.raises(UsageError, match="no image"):
        throughput_module.measure(tmp_path, Options())


def test_machine_names_what_a_figure_depends_on() -> None:
    here = machine()
    assert here["cores"] >= 1 and here["memory_bytes"] > 2**28
    assert here["packages"]["numpy"] == np.__version__
    json.dumps(here)  # plain values only


def test_commit_tells_changed_files(tmp_path: Path) -> None:
    assert commit(tmp_path) is None

    def git(*words: str) -> None:
        who = ["-c", "user.name=n", "-c", "user.email=e@x"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    clean = commit(tmp_path)
    assert clean and len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == clean + "+"


def test_latency_command_prints_a_table_and_writes_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("comit.engine.load_engine", lambda *a: Sleeper(batch_size=a[4]))
    monkeypatch.setattr(machine_module, "gpus", lambda: [])
    options = "--batch-size 1 --batch-size 2 --calls 2 --seconds 0.05"
    path = tmp_path / "l.json"
    done = CliRunner().invoke(bench, ["latency", *options.split(), "--json", str(path)])
    assert done.exit_code == 0, done.output
    *_, head, first, second = done.output.splitlines()
    assert head.split()[:4] == ["engine", "precision", "device", "batch_size"]
    assert [first.split()[3], second.split()[3]] == ["1", "2"]
    written = json.loads(path.read_text())
    assert [f["batch_size"] for f in written["figures"]] == [1, 2]
    assert written["machine"]["cores"] >= 1
    assert set(written["figures"][0]) == set(asdict(measure(Sleeper(), 2, 0.05)))


def test_gpu_suite_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu_suite.sh")],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("gpu_suite: no NVIDIA GPU") and not done.stdout


def test_memory_of_a_run_counts_all_its_processes(tiny_model: Path, pictures: Path) -> None:
    from comit.bench.memory import measure as memory

    few, more = memory(pictures, [2, 20], ["--model", str(tiny_model), "--workers", "1"])
    assert (few.rows, more.rows) == (2, 20)
    assert few.peak_bytes > 100 * 2**20  # an interpreter with OpenVINO and a decoder
    assert more.ratio == round(more.peak_bytes / few.peak_bytes, 3)


def test_masks_of_flagged_images_are_compared_with_all(tmp_path, tiny_model, pictures) -> None:
    to = tmp_path / "f.json"
    arguments = ["flagged", str(pictures), "--model", str(tiny_model), "--precision", "fp32"]
    arguments += ["--share", "0.4", "--share", "1", "--repeat", "1", "--json", str(to)]
    result = CliRunner().invoke(bench, arguments)
    assert result.exit_code == 0, result.output
    some, every = json.loads(to.read_text())["figures"]
    assert (some["images"], some["flagged_images"]) == (9, 4)
    assert (every["images"], every["flagged_images"]) == (9, 9)
    assert some["ratio"] == pytest.approx(some["flagged_per_second"] / some["all_per_second"], 0.1)
