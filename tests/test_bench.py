"""The benchmarks measure what they say, on a fake engine whose speed is known."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import resultfiles as rf
from click.testing import CliRunner
from numpy.typing import NDArray

import comit.bench.stages as stages_module
import comit.bench.throughput as throughput_module
from comit import machine as machine_module
from comit.bench import compare, decoding, latency, peers
from comit.bench.cli import GENERATED, bench
from comit.bench.files import KINDS, generate
from comit.bench.latency import by_batch, measure, rate
from comit.bench.peers import PEERS
from comit.bench.plan import SHIPPED, START_UP, Rates, Wanted, plan, read_rates
from comit.bench.stages import STAGES, Stages
from comit.bench.steady import Watch, steady_rate
from comit.engine.base import Engine, Inference
from comit.errors import ComitError, MissingExtra, ParityError, UsageError
from comit.image import open_image
from comit.image.preprocess import preprocess
from comit.machine import commit, machine
from comit.options import Options

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
        return Inference(np.zeros((n, 4), np.float32), np.zeros((n, 2, 224, 224), np.uint8))


def test_first_call_is_reported_apart() -> None:
    found = measure(Sleeper, calls=5, seconds=0.1)
    assert found.first_ms >= 200
    assert 20 <= found.p50_ms < found.first_ms
    assert (found.batch_size, found.calls) == (4, 5)


@pytest.mark.parametrize(("calls", "names"), [(9, 1), (10, 2), (100, 3)])
def test_a_percentile_takes_enough_calls(
    calls: int, names: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    found = measure(Sleeper, calls, seconds=0.01)
    assert [found.p90_ms, found.p99_ms].count(None) == 3 - names
    series = dict(latency.percentiles([found]))
    assert list(series) == ["p50", "p90", "p99"][:names]
    assert sorted(v for (v,) in series.values()) == [v for (v,) in series.values()]


def test_batches_grow_until_memory_ends_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def load(size: int) -> Engine:
        if size == 8:
            raise RuntimeError("bad_alloc: out of memory")
        return Sleeper(size)

    found = by_batch(load, [8, 1, 64], 2, 0.01, said.append)
    assert [f.batch_size for f in found] == [1]
    assert said == [
        *(f"timing batches of {size}: 2 calls, and all lanes for 0.01 s" for size in (1, 8)),
        "batch size 8 and above: not run, out of memory",
    ]
    monkeypatch.setattr(latency, "free_memory", lambda: -1.0)
    assert [f.batch_size for f in by_batch(Sleeper, [1, 64], 2, 0.01, said.append)] == [1]
    assert said[-1] == "batch size 64 and above: not run, they would not fit into memory"


def test_plot_is_a_picture_and_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    found = by_batch(Sleeper, [1, 2], 2, 0.01)
    latency.plot(found, tmp_path / "l.png")
    assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match=r"FILE\.png"):
        latency.plot(found, tmp_path / "l.nothing")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match="a plot"):
        latency.plot(found, tmp_path / "m.png")


def test_rate_counts_images_of_all_lanes() -> None:
    one, three = Sleeper(), Sleeper(lanes=3)
    alone, together = rate(one, 0.3), rate(three, 0.3)
    assert alone <= 4 / 0.02 and together <= 3 * 4 / 0.02  # 4 images in 20 ms at best, a lane
    assert (one.most, three.most) == (1, 3)


def test_steady_rate_leaves_start_and_end_out() -> None:
    # 100 rows a second between 10 and 90 of 100; slow before and after
    marks = [(10.0, 10), *((10.0 + 0.1 * i, 10) for i in range(1, 9)), (99.0, 10)]
    assert steady_rate(marks) == pytest.approx(100)
    assert steady_rate(marks[:2]) == 0


def test_watch_notes_rows_and_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch()
    with watch.progress("screening", 3) as step:
        step()
        step(2)
    assert [n for _, n in watch.marks] == [1, 2] and watch.dispatch_seconds >= 0
    assert capsys.readouterr() == ("", "")


def stages(**core_ms: float) -> Stages:
    return Stages(core_ms, engine_rate=100.0, disk_rate=30.0, file_bytes=10.0)


def test_a_run_is_beside_the_stages_before_and_after_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.png").touch()
    order: list[str] = []
    costs = iter([10.0, 30.0, 50.0])  # the machine gets slower; so do the runs

    def fake_alone(*_: object) -> Stages:
        order.append("alone")
        return stages(decode=next(costs))

    def fake_run(*_: object) -> throughput_module.Run:
        order.append("run")
        steady = {1: 90.0, 2: 45.0}[order.count("run")]
        return throughput_module.Run(9, 1.0, 2.0, 9.0, steady, 9.0, 9.0, 0.1, {}, [], {})

    monkeypatch.setattr(throughput_module, "alone", fake_alone)
    monkeypatch.setattr(throughput_module, "run", fake_run)
    monkeypatch.setattr(throughput_module, "usable_cores", lambda: 2)
    found = throughput_module.measure(tmp_path, Options(), repeat=2)
    assert order == ["alone", "run", "alone", "run", "alone"]
    assert (found.ceilings["cpu"]["max"], found.ceilings["cpu"]["min"]) == (100, 50)
    assert (found.efficiency["min"], found.efficiency["max"]) == (0.9, 0.9)


def test_cold_files_are_read_once_by_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(4)]
    for path in paths:
        path.write_bytes(bytes(1000))
    order: list[str] = []
    forget, read = stages_module.forget, stages_module.read_alone
    monkeypatch.setattr(stages_module, "forget", lambda p: order.append("forget") or forget(p))

    def slow(path: Path) -> int:
        order.append(path.name)
        time.sleep(0.1)
        return read(path)

    monkeypatch.setattr(stages_module, "read_alone", slow)
    with ThreadPoolExecutor(2) as threads:
        rate = stages_module.bytes_per_second([*paths, tmp_path / "0"], threads)
    assert order[0] == "forget" and sorted(order[1:]) == ["0", "0", "1", "2", "3"]
    assert 1000 < rate <= 5000 / 0.3  # 5 files by 2 threads take 3 x 0.1 s at least


def test_without_masks_the_ceiling_is_of_scores_alone(tiny_model: Path, pictures: Path) -> None:
    class TwoStage(Sleeper):
        two_stage, scored = True, 0

        def scores(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
            self.scored += 1
            time.sleep(0.001)
            return np.zeros((len(images), 4), np.float32)

    engine = TwoStage()
    paths, options = sorted(pictures.iterdir()), Options(model=tiny_model, masks="none")
    found = stages_module.measure(paths, options, engine, 1, 0.05, cold=True)
    assert engine.scored > 2 and found.engine_rate > 0
    assert engine.calls == 3  # the sample: 9 pictures in batches of 4
    assert found.disk_rate > 0


def test_throughput_refuses_masks_of_flagged_images(pictures: Path) -> None:
    with pytest.raises(UsageError, match="comit bench flagged"):
        throughput_module.measure(pictures, Options(masks="flagged"))


def test_ceilings_are_of_cores_gpu_and_disk() -> None:
    on_cpu = stages(read=1, decode=9, engine=30)
    assert throughput_module.ceilings(on_cpu, 2, cold=False) == {"cpu": 50}  # 2000 / 40
    on_gpu = stages(read=1, decode=9)
    assert throughput_module.ceilings(on_gpu, 2, cold=True) == {"cpu": 200, "gpu": 100, "disk": 30}


@pytest.mark.parametrize(
    ("limits", "efficiency", "workers", "dispatch", "expected"),
    [
        ({"cpu": 50.0}, 0.97, 2, 0.3, "engine"),
        ({"cpu": 200.0, "gpu": 100.0}, 0.97, 2, 0.3, "gpu"),
        ({"cpu": 50.0}, 0.5, 2, 40.0, "dispatch"),
        ({"cpu": 200.0}, 0.5, 1, 0.3, "workers"),
    ],
)
def test_bottleneck_is_what_to_change_first(
    limits: dict[str, float], efficiency: float, workers: int, dispatch: float, expected: str
) -> None:
    core_ms = {"read": 1.0, "decode": 5.0, "preprocess": 4.0, "engine": 30.0}
    found = throughput_module.find_bottleneck(core_ms, limits, efficiency, workers, 2, dispatch)
    assert found == expected and found in throughput_module.ADVICE


@pytest.mark.parametrize("kind", KINDS)
def test_generated_files_are_screened_and_always_the_same(kind: str, tmp_path: Path) -> None:
    once = generate(kind, 2, tmp_path / "a", size=(256, 240))
    again = generate(kind, 2, tmp_path / "b", size=(256, 240))
    assert [p.read_bytes() for p in once] == [p.read_bytes() for p in again]
    assert once[0].read_bytes() != once[1].read_bytes()
    image = open_image(once[0].read_bytes())
    assert image.skip is None and (image.height, image.width) == (256, 240)
    assert np.ptp(image.samples()) > 100


def test_generated_lossless_files_hold_what_raw_ones_do(tmp_path: Path) -> None:
    kinds = ("dicom", "jpeg-lossless", "jpeg2000")
    files = [generate(kind, 1, tmp_path / kind, size=(256, 240))[0] for kind in kinds]
    raw, *packed = [open_image(file.read_bytes()).samples() for file in files]
    assert all(np.array_equal(raw, other) for other in packed)
    assert all(file.stat().st_size < 0.8 * raw.nbytes for file in files[1:])


def test_files_of_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose png"):
        generate("gif", 1, tmp_path)


def test_throughput_command_measures_pipeline_and_stages(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    path = tmp_path / "t.json"
    options = f"--model {tiny_model} --engine openvino --repeat 1 --seconds 0.05 --images 40"
    done = CliRunner().invoke(
        bench, ["throughput", str(pictures), *options.split(), "--json", str(path)]
    )
    assert done.exit_code == 0, done.output
    assert "bottleneck:" in done.output
    found = json.loads(path.read_text())["figures"][0]
    assert tuple(found["core_ms"]) == STAGES and min(found["core_ms"].values()) > 0
    assert found["images"] == 40 and found["distinct"] == 9
    assert found["runs"][0]["screened"] == 40
    assert found["runs"][0]["wall"] > found["runs"][0]["seconds"]
    expected = found["steady"]["median"] / found["ceilings"]["cpu"]["median"]
    assert found["efficiency"]["median"] == pytest.approx(expected, rel=0.01)
    # and what was written is what the plan reads
    rates = read_rates(path)
    assert rates.core_ms == found["core_ms"]
    assert plan(Wanted(1e6, 64), rates).images_per_second > 0


def test_throughput_wants_files_or_a_kind(tmp_path: Path) -> None:
    done = CliRunner().invoke(bench, ["throughput"])
    assert isinstance(done.exception, UsageError)
    with pytest.raises(UsageError, match="no files"):
        throughput_module.measure(tmp_path, Options())


def test_sweep_changes_one_thing_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None, int | None]] = []

    def fake_run(paths: object, images: int, options: Options) -> object:
        seen.append((images, options.workers, options.batch_size))
        return SimpleNamespace(steady=1.0, images_per_second=1.0)

    monkeypatch.setattr(throughput_module, "run", fake_run)
    found = throughput_module.grow([tmp_path], 40, Options(), cores=2)
    assert seen[:3] == [(10, None, None), (20, None, None), (40, None, None)]
    assert {g.what for g in found} == {"files", "workers", "batch_size"}
    assert [g.value for g in found if g.what == "workers"] == [1, 2, 4]


RATES = Rates("test", {"decode": 10.0, "engine": 30.0}, 0.5, 1e6, 0.9)


@pytest.mark.parametrize(
    ("wanted", "rate", "bottleneck"),
    [
        (Wanted(9000, cores=4), 90, "engine"),  # 0.9 x 4000 / 40
        (Wanted(9000, cores=4, disk=5e7), 45, "disk"),  # 0.9 x 50 files a second
        (Wanted(9000, cores=4, gpus=1, gpu_rate=100), 90, "gpu"),
        (Wanted(9000, cores=4, gpus=1, disk=1e10), 360, "decode"),  # the engine left the CPU
        (Wanted(9000, cores=400, disk=1e12), 1800, "dispatch"),
    ],
)
def test_plan_is_the_smallest_ceiling(wanted: Wanted, rate: float, bottleneck: str) -> None:
    found = plan(wanted, RATES)
    assert (found.images_per_second, found.bottleneck) == (rate, bottleneck)
    assert found.seconds == pytest.approx(START_UP + 9000 / rate, abs=0.1)


def test_plan_says_what_it_assumes() -> None:
    assert "on the CPU" in plan(Wanted(1, 1, gpus=1), RATES).assumed[-1]
    assert len(plan(Wanted(1, 1), RATES).assumed) == 2
    measured = replace(RATES, core_ms={"decode": 10.0})  # with a GPU
    assert len(plan(Wanted(1, 1, gpus=1), measured).assumed) == 3


def test_plan_command_has_figures_of_its_own(tmp_path: Path) -> None:
    assert set(SHIPPED) == set(KINDS) == set(GENERATED)
    for kind in KINDS:
        words = f"plan --images 1e6 --gpus 4 --cores 64 --disk 7e9 --kind {kind}"
        done = CliRunner().invoke(bench, words.split())
        assert done.exit_code == 0 and "what would lift it" in done.output
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UsageError, match="throughput --json"):
        read_rates(tmp_path / "x.json")


def test_decoders_are_compared_pixel_for_pixel(tmp_path: Path) -> None:
    pytest.importorskip("pylibjpeg")
    for kind in ("dicom", "jpeg2000"):
        generate(kind, 1, tmp_path / kind, size=(128, 128))
    path = tmp_path / "d.json"
    done = CliRunner().invoke(
        bench, ["decode", str(tmp_path), "--repeat", "1", "--json", str(path)]
    )
    assert done.exit_code == 0, done.output
    found = {(f["syntax"], f["decoder"]): f for f in json.loads(path.read_text())["figures"]}
    native = found["Explicit VR Little Endian", "native"]
    assert (native["files"], native["equal"], native["refused"]) == (1, 1, 0)
    assert any(name.startswith("JPEG 2000") for name, _ in found)
    assert all(f["equal"] == 1 and f["ratio"] > 0 for f in found.values())


def test_a_decoder_of_ours_that_errs_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    generate("dicom", 1, tmp_path, size=(128, 128))
    monkeypatch.setattr(decoding, "ours", lambda data: np.zeros((128, 128), np.uint16))
    with pytest.raises(ComitError, match="other values"):
        decoding.measure([tmp_path], 1)


@pytest.mark.nightly
def test_compare_runs_a_peer_and_names_what_is_missing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate("dicom", 3, tmp_path / "files", size=(256, 256))
    absent = replace(PEERS["ray"], packages=("no_such_package",))
    monkeypatch.setitem(PEERS, "ray", absent)
    found = compare.measure(
        tmp_path / "files",
        Options(model=tiny_model),
        repeat=1,
        images=16,
        only=["loader2-openvino-fp32", "ray"],
    )
    by_name = {f.peer: f for f in found}
    ours = by_name["comit-fp32"]
    assert ours.ratio["median"] == ours.whole_ratio["median"] == 1
    assert ours.score_difference is not None and ours.score_difference < 1e-5
    peer = by_name["loader2-openvino-fp32"]
    assert peer.score_difference is not None and peer.score_difference < 1e-5
    assert peer.steady["median"] > 0 and peer.ratio["median"] > 0
    best = [f for f in found if f.peer.startswith("comit-")][-1]
    assert peer.default_pair == f"comit {best.precision} / peer fp32"
    expected = best.steady["median"] / peer.steady["median"]
    assert peer.default_ratio["median"] == pytest.approx(expected, rel=0.01)
    assert by_name["ray"].note == "not run: no_such_package is not installed"
    with pytest.raises(UsageError, match="choose plain-loop"):
        compare.measure(tmp_path / "files", Options(model=tiny_model), only=["nobody"])


def test_compare_names_a_file_that_cannot_be_screened(tiny_model: Path, tmp_path: Path) -> None:
    generate("png", 2, tmp_path, size=(256, 256))
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(UsageError, match=r"notes\.txt cannot be screened"):
        compare.measure(tmp_path, Options(model=tiny_model), repeat=1, only=["plain-loop"])


@pytest.mark.parametrize("kind", ["png", "dicom"])
def test_peers_read_what_we_read(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    path = generate(kind, 1, tmp_path, size=(256, 256))[0]
    image = open_image(path.read_bytes())
    ours = preprocess(image.samples(), image.presentation).pixels
    path = path.rename(tmp_path / "without-suffix")
    assert np.array_equal(peers.read(str(path), compare.kind_of([path]))[0], ours)


def test_peers_read_one_kind(tmp_path: Path) -> None:
    paths = [generate(kind, 1, tmp_path, size=(64, 64))[0] for kind in ("png", "dicom")]
    assert [compare.kind_of([path]) for path in paths] == ["raster", "dicom"]
    with pytest.raises(UsageError, match="a folder of each"):
        compare.kind_of(paths)


def test_scores_of_batches_in_any_order_are_those_of_their_files() -> None:
    batches = [([2], [[3, 3, 3]]), ([0, 1], [[1, 1, 1], [2, 2, 2]]), ([3], [[4, 4, 4]])]

    def run() -> peers.Scores:
        for at, scores in batches:
            time.sleep(0.01)
            yield at, np.array(scores, np.float32)

    found = peers.answer(PEERS["ray"], run)
    assert [row[0] for row in found.scores] == [1, 2, 3, 4] and found.steady
    del batches[2:]  # too few for a steady rate
    assert peers.answer(PEERS["ray"], run).steady is None
    assert not peers.answer(PEERS["torchxrayvision"], run).scores


def test_ratios_are_at_equal_precision_and_at_the_one_comit_chooses() -> None:
    def answers(seconds: float, *steady: float | None) -> list[peers.Answer]:
        return [peers.Answer(seconds, s, [[0.5, 0.5, 0.5]]) for s in steady]

    found = {
        "comit-fp32": answers(2.0, 20.0, 20.0),
        "comit-bf16": answers(1.0, 40.0, 60.0),
        "plain-loop": answers(3.0, 10.0, 10.0),
        "monai": answers(3.0, 10.0, None),
    }
    reference = np.full((1, 3), 0.5, np.float32)
    peer = compare.summary("plain-loop", found["plain-loop"], found, reference, "bf16")
    assert (peer.ratio["median"], peer.whole_ratio["median"]) == (2, 1.5)
    assert (peer.default_ratio["median"], peer.default_pair) == (5, "comit bf16 / peer fp32")
    short = compare.summary("monai", found["monai"], found, reference, "bf16")
    assert not short.steady and not short.ratio and not short.default_ratio
    assert short.whole_ratio["median"] == 1.5


def test_a_peer_that_does_not_end_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "LIMIT", 0.01)
    with pytest.raises(ComitError, match=r"failed: not done after 0\.01 s"):
        compare.one("plain-loop", [tmp_path], Options(), "raster")


def test_other_scores_are_refused() -> None:
    reference = np.array([[0.5, 0.5, 0.7]], np.float32)
    nan, same = float("nan"), [0.5, 0.5, 0.7]
    for scores in ([[0.5, 0.5, 0.5]], [[0.5, 0.5, nan]], [same, same], []):
        answer = peers.Answer(1.0, 1.0, scores)
        for name in ("plain-loop", "comit-fp32"):
            with pytest.raises(ParityError, match="not the same work"):
                compare.check(name, answer, reference)
        compare.check("torchxrayvision", answer, reference)
    compare.check("comit-bf16", peers.Answer(1.0, 1.0, [[0.5, 0.5, 0.69]]), reference)
    off = compare.difference(peers.Answer(1.0, 1.0, [[0.5, 0.5, 0.5]]), reference)
    assert off == pytest.approx(0.2)


def test_machine_names_what_a_figure_depends_on() -> None:
    here = machine()
    assert 1 <= here["cores"] <= len(os.sched_getaffinity(0))
    total = re.search(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())
    assert total and here["memory_bytes"] == pytest.approx(int(total[1]) * 1024, rel=0.05)
    assert here["packages"]["numpy"] == np.__version__
    assert json.loads(json.dumps(here)) == here  # plain values only


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
    assert set(written["figures"][0]) == set(asdict(measure(Sleeper, 2, 0.05)))


@pytest.mark.nightly
def test_a_network_of_any_width_is_timed_untrained(tmp_path: Path) -> None:
    path = tmp_path / "l.json"
    options = "--width 0.0625 --engine onnxruntime --batch-size 1 --calls 2 --seconds 0.05"
    done = CliRunner().invoke(bench, ["latency", *options.split(), "--json", str(path)])
    assert done.exit_code == 0, done.output
    assert json.loads(path.read_text())["figures"][0]["images_per_second"] > 0
    done = CliRunner().invoke(bench, ["latency", "--width", "1", "--model", "a.onnx"])
    assert isinstance(done.exception, UsageError)


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


@pytest.mark.parametrize("failing", ["flagged", "breaking", ""])
def test_cpu_suite_names_what_failed(failing: str, tmp_path: Path) -> None:
    notes = {"flagged": "not run: ray is not installed", "breaking": "failed: MemoryError"}
    text = json.dumps({"figures": [{"peer": "ray", "note": notes.get(failing, "")}]}, indent=1)
    (tmp_path / "note.json").write_text(text)
    (tmp_path / "python").write_text(
        f'''#!/bin/bash
[ "$1" = -c ] && echo fp32 && exit
echo "$*"
[ "$4" = compare ] && cp "{tmp_path}/note.json" "${{@: -1}}" || echo {{}} > "${{@: -1}}"
[ "$4" != "{failing}" ]
'''
    )
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "bench" / "cpu_suite.sh"), "--tiny", str(tmp_path / "out"), "xrays"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    said, *errors = done.stdout, *done.stderr.splitlines()
    assert "--width 1 --batch-size=1 --batch-size=2 --calls 4 --calls 2" in said
    assert "--precision fp32" in said and "memory xrays --rows=2" in said
    if failing == "flagged":
        assert errors == ["failed: flagged"]
        assert "peer not run: compare-png: ray: not run: ray is not installed" in said
    elif failing:
        assert "failed: compare-png: ray: failed: MemoryError" in errors
    else:
        assert not errors and said.endswith("all ran\n")
    assert done.returncode == bool(failing)


def test_a_comparison_is_timed_with_the_same_masks_and_with_others(tmp_path: Path) -> None:
    from comit.bench.differences import measure as differences

    results = rf.write(tmp_path / "r.parquet", [rf.ok("a"), rf.unscored("b", "failed", "empty")])
    same, another = differences(results, 20, 1)
    assert (same.masks, another.masks, same.rows, another.rows) == ("same", "another", 20, 20)
    assert all(c.peak_bytes > 2**24 and c.seconds > 0 < c.cpu_seconds for c in (same, another))
    with pytest.raises(UsageError, match="no rows with masks"):
        differences(rf.write(tmp_path / "n.parquet", [rf.unscored("b", "failed", "empty")]), 2, 1)


@pytest.mark.nightly
def test_memory_of_a_run_counts_all_its_processes(tiny_model: Path, pictures: Path) -> None:
    from comit.bench.memory import measure as memory

    few, more = memory(pictures, [2, 20], ["--model", str(tiny_model), "--workers", "1"])
    assert (few.rows, more.rows) == (2, 20)
    assert few.peak_bytes > 100 * 2**20  # an interpreter with OpenVINO and a decoder
    assert more.ratio == round(more.peak_bytes / few.peak_bytes, 3)


@pytest.mark.nightly
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


def test_a_share_that_holds_nothing_to_screen_ends(tmp_path: Path) -> None:
    from comit.bench.stages import front

    for i in range(40):
        (tmp_path / f"{i}.png").write_text("no picture")
    paths = [*sorted(tmp_path.iterdir()), tmp_path / "vanished.png"]
    share = front(paths, 0.05, "tagged")
    assert share.images == 0 and share.nbytes >= 40 * len("no picture")
