"""What ``import comit`` offers: the results of a run, image by image, in the caller's process."""

from __future__ import annotations

import gc
import io
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from test_cli import HEAVY
from test_gate import between, gated
from test_heap import THREADS

import comit
from comit.api.result import Flags, Scores
from comit.bench.faults.dicoms import make, picture
from comit.errors import ComitError, ItemError, MissingExtra, Stopped, UsageError
from comit.image import open_image
from comit.image.preprocess import preprocess
from comit.look.picture import Masks, draw
from comit.pipeline.pool import WORKER
from comit.reasons import Caution, Fail, Skip
from comit.results import FINDINGS

NO_PICTURE = ("cut.png", "ct.dcm", "empty.dcm", "note.txt")
ENGINE = {"engine": "openvino", "precision": "fp32", "workers": 2}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """PNG, JPEG and DICOM that can be scored, and what cannot: skipped, damaged, no picture.

    None has fewer columns than the grid, for which BLAS rounds by the number of its threads.
    """
    folder = tmp_path_factory.mktemp("inputs")
    for i, name in enumerate(("0.png", "1.png", "2.jpg", "3.png", "4.jpg")):
        grey = picture(300 + 40 * i, 280, 16 if i == 1 else 8)
        cv2.imwrite(str(folder / name), grey if i == 1 else grey.astype(np.uint8))
    dicom = {
        "plain": {},
        "window": {"WindowCenter": 1500, "WindowWidth": 2500, "ViewPosition": "AP"},
        "negative": {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 0},
        "untagged": {"ViewPosition": None, "PatientAge": "009Y"},
        "lateral": {"ViewPosition": "LL"},
        "ct": {"Modality": "CT"},
    }
    for i, (name, tags) in enumerate(dicom.items()):
        tags |= {"SOPInstanceUID": f"1.2.3.{i + 10}"}
        (folder / f"{name}.dcm").write_bytes(make(picture(260 + 10 * i, 240), **tags))
    noise = np.random.default_rng(0).integers(0, 256, (2500, 2000), np.uint8)
    cv2.imwrite(str(folder / "large.png"), cv2.GaussianBlur(noise, (0, 0), 30) * 20)
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:2000])
    (folder / "empty.dcm").touch()
    (folder / "note.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def files(inputs) -> list[Path]:
    return sorted(path for path in inputs.iterdir())


@pytest.fixture(scope="module")
def screener(tiny_model) -> Iterator[comit.Screener]:
    with comit.Screener(tiny_model, **ENGINE) as screener:
        yield screener


@pytest.fixture(scope="module")
def results(screener, files) -> list[comit.Result]:
    return list(screener.screen(files))


def python(script: str, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, **options)


def processes(screener: comit.Screener) -> list[subprocess.Popen[bytes]]:
    return [worker.process for worker in screener._service._pool._workers]


# -- names ----------------------------------------------------------------------------------------


def test_importing_comit_loads_nothing_heavy_and_names_everything():
    code = """
import sys, comit
names = dir(comit)
print(*sorted(m.partition(".")[0] for m in sys.modules))
assert {*comit.__all__} <= {*names} and "__version__" in names
for name in comit.__all__:
    getattr(comit, name)
try:
    comit.nothing
except AttributeError as error:
    print(error)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    loaded, error = done.stdout.splitlines()
    assert {*HEAVY, "click", "rich"} & {*loaded.split()} == set()
    assert error == "module 'comit' has no attribute 'nothing'"


def test_errors_come_out_of_another_process_as_they_went_in():
    for error in (ItemError(Fail.CORRUPT), MissingExtra("engine x", "gpu"), Stopped("stopped")):
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert type(copy) is type(error) and str(copy) == str(error)
        assert copy.__dict__ == error.__dict__
    assert pickle.loads(pickle.dumps(ItemError(Fail.CORRUPT))).reason.meaning  # noqa: S301


# -- one file -------------------------------------------------------------------------------------


def test_an_image_is_read_as_the_network_sees_it(files):
    for path in files:
        if path.name in NO_PICTURE:
            continue
        data = path.read_bytes()
        image = open_image(data)
        expected = preprocess(image.samples(), image.presentation)
        found = comit.read_image(path)
        assert np.array_equal(found.pixels, expected.pixels) and found.skip == image.skip
        assert np.array_equal(found.samples, image.samples())
        facts = found.facts
        assert (facts.rows, facts.cols) == found.samples.shape == found.picture().shape
        assert (facts.file_size, facts.file_crc32) == (len(data), zlib.crc32(data))
        assert facts.file_mtime == path.stat().st_mtime_ns // 1000
        of_bytes = comit.read_image(data)
        assert np.array_equal(of_bytes.pixels, found.pixels)
        assert of_bytes.facts.file_mtime is None
        assert of_bytes.facts.values() | {"file_mtime": facts.file_mtime} == facts.values()


def test_what_a_policy_leaves_out_is_decoded_and_says_so():
    lateral = make(ViewPosition="LL")
    found = comit.read_image(lateral)
    assert found.skip == Skip.VIEW and found.facts.view == "LL"
    everything = comit.read_image(lateral, "all")
    assert everything.skip is None and Caution.OTHER_VIEW in everything.facts.warnings
    assert np.array_equal(found.pixels, everything.pixels)
    plain = make(ViewPosition=None)
    assert comit.read_image(plain).skip is None
    assert comit.read_image(plain, "strict").skip == Skip.UNVERIFIED_VIEW
    with pytest.raises(UsageError, match="'some' is not one of 'strict', 'tagged', 'all'"):
        comit.read_image(plain, "some")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (make(Modality="CT"), Skip.MODALITY),
        (make(NumberOfFrames=2, PixelData=picture().tobytes() * 2), Skip.MULTI_FRAME),
        (b"a text", Skip.UNSUPPORTED_FORMAT),
        (b"", Fail.EMPTY),
        (make(np.full((96, 80), 7, np.uint16)), Fail.BLANK),
        (make()[:4000], Fail.TRUNCATED),
    ],
)
def test_what_cannot_be_decoded_raises_its_reason(data, reason):
    with pytest.raises(ItemError) as raised:
        comit.read_image(data)
    assert raised.value.reason == reason


def test_what_is_no_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (("fifo", Skip.NOT_A_FILE), ("gone.png", Fail.VANISHED)):
        with pytest.raises(ItemError) as raised:
            comit.read_image(tmp_path / name)
        assert raised.value.reason == reason


# -- results --------------------------------------------------------------------------------------


def table(out: Path) -> dict[str, dict]:
    return {row["path"]: row for row in pq.read_table(out).to_pylist()}


def as_written(result: comit.Result) -> dict:
    """The values as a Parquet file gives them back: floats of 32 bits, times, lists."""
    row = dict(result.row.values())
    row["warnings"] = [*row["warnings"]]
    for name in ("lung_fraction", "disease_fraction"):
        row[name] = None if row[name] is None else float(np.float32(row[name]))
    return row


@pytest.fixture(scope="module")
def strict_model(tmp_path_factory, tiny_model, files) -> Path:
    """A model with a gate that rejects some of the files."""
    folder = tmp_path_factory.mktemp("gated")
    with comit.Screener(gated(tiny_model, folder, {"threshold": 0.0}), **ENGINE) as screener:
        chest = [result.scores.chest for result in screener.screen(files)]
    cut = between([score for score in chest if score is not None])
    return gated(tiny_model, folder, {"threshold": cut})


@pytest.mark.parametrize("masks", ["all", "flagged", "none"])
def test_results_are_those_of_a_run_bit_for_bit(tmp_path, strict_model, inputs, files, masks):
    options = {**ENGINE, "model": strict_model, "masks": masks}
    comit.screen(inputs, tmp_path / "r.parquet", comit.Options(**options))
    rows = table(tmp_path / "r.parquet")
    assert len(rows) == len(files)
    reasons = {row["reason"] for row in rows.values()}
    assert {None, "not_a_chest", "view", "modality", "truncated", "empty"} <= reasons
    with comit.Screener(**options) as screener:
        found = [*screener.screen(files)]
        of_bytes = [*screener.screen(path.read_bytes() for path in files)]
    assert [result.path for result in found] == [*map(str, files)]
    for path, result, again in zip(files, found, of_bytes, strict=True):
        row, expected = as_written(result), rows[path.name]
        mtime = expected["file_mtime"]
        assert row.pop("file_mtime") == (mtime and path.stat().st_mtime_ns // 1000)
        assert row == {name: expected[name] for name in row}
        assert again.path is None and again.row.file_mtime is None
        row = as_written(again)
        assert row == {name: expected[name] for name in row} | {"file_mtime": None}


def test_a_result_names_what_a_row_holds(screener, results, files):
    status = {path.name: result.status for path, result in zip(files, results, strict=True)}
    assert status["cut.png"] == status["empty.dcm"] == "failed" and status["ct.dcm"] == "skipped"
    assert "ok" in status.values()
    for result in results:
        row = result.row
        assert result.reason == row.reason and result.warnings == row.warnings
        assert result.flags == Flags(row.flag_unhealthy, row.flag_covid)
        assert result.facts.values() == {n: getattr(row, n) for n in result.facts.values()}
        assert [*result.to_dict()] == ["path", *row.values()]
        assert {*row.values()} == {*FINDINGS}
        copy = pickle.loads(pickle.dumps(result))  # noqa: S301
        assert copy == result
        if result.status != "ok":
            assert result.scores == Scores(None, None, None, None)
            assert result.lungs is result.disease is None
            assert f"{result.status}, {result.reason}" in repr(result)
            continue
        assert 0 <= result.scores.unhealthy == row.score_unhealthy <= 1
        assert f"covid {result.scores.covid:.3f}" in repr(result)
        lungs, disease = result.lungs, result.disease
        for mask in (lungs, disease):
            assert mask.shape == (224, 224) and mask.dtype == np.bool_
        assert np.count_nonzero(lungs) / 224**2 == result.lung_fraction
        inside = np.count_nonzero(lungs & disease) / np.count_nonzero(lungs)
        assert inside == result.disease_fraction


# -- arrays ---------------------------------------------------------------------------------------


def test_an_array_is_shown_as_a_file_of_these_values_whatever_their_scale(screener, pictures):
    for path in pictures.glob("*.png"):
        samples = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        (file,) = screener.screen(path)
        halves = samples.astype(np.float64) / 2
        pixels = comit.read_image(path).pixels
        for array in (samples, samples.astype(np.int32), halves, samples.tolist()):
            (found,) = screener.screen([array])
            assert found.scores == file.scores and found.warnings == file.warnings
            assert (found.status, found.facts.rows) == ("ok", file.facts.rows)
            assert np.array_equal(found.lungs, file.lungs)
        (found,) = screener.screen(pixels)  # what was stretched stays as it is
        assert found.scores == file.scores and found.facts.rows == 224
        (negative,) = screener.screen(samples.max() - samples)
        assert negative.scores != file.scores
    several = np.stack([samples, samples[::-1]])
    first, second = screener.screen(several)
    assert first.scores == file.scores != second.scores


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros((1, 300, 300)), r"\(1, 300, 300\)"),
        (np.zeros((300, 300, 3)), r"\(300, 300, 3\)"),
        (np.zeros(300), r"\(300,\)"),
        (None, r"\(\)"),
        (np.zeros((300, 300), bool), "bool"),
        (np.zeros((300, 300), complex), "complex128"),
    ],
)
def test_what_is_no_image_is_the_callers_mistake(screener, array, why):
    with pytest.raises(ValueError, match=why) as raised:
        list(screener.screen([array]))
    assert "\n" not in str(raised.value)


def test_what_cannot_be_screened_of_an_array_is_a_reason(screener, tiny_model):
    noise = np.random.default_rng(0).random((300, 300))
    holed = noise.copy()
    holed[3, 3] = np.nan
    images = [noise, holed, np.zeros((300, 300)), noise[:50], noise[:, :20]]
    found = [(r.status, r.reason) for r in screener.screen(images)]
    failed = ("nonfinite", "blank", "too_small", "too_small")
    assert found == [("ok", None), *(("failed", reason) for reason in failed)]
    with comit.Screener(tiny_model, view_policy="strict", **ENGINE) as strict:
        (result,) = strict.screen([noise])
    assert (result.status, result.reason) == ("skipped", "unverified_view")


# -- streams --------------------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_images_and_of_few_ahead(screener, files, results):
    expected = {result.path: result for result in results}
    taken = 0

    def endless():
        nonlocal taken
        for path in itertools.cycle(map(str, files)):
            taken += 1
            yield path

    ahead = screener._service.ahead
    for i, result in enumerate(itertools.islice(screener.screen(endless()), 200)):
        assert result.path == str(files[i % len(files)]) and result == expected[result.path]
        assert taken <= i + 1 + ahead
    assert not [*screener.screen([])]


def test_bytes_that_are_ahead_are_bounded_too(screener, files):
    """Whoever brings them waits until a decoding process has read some."""
    data = max(files, key=lambda path: path.stat().st_size).read_bytes()
    stopped = processes(screener)
    try:
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        brought = []

        def bring():
            for _ in range(100):
                brought.append(screener.submit(data))

        thread = threading.Thread(target=bring)
        thread.start()
        thread.join(2.0)
        assert thread.is_alive() and len(brought) == 8  # two files' worth for each slot of two
    finally:
        for process in stopped:
            process.send_signal(signal.SIGCONT)
    thread.join()
    assert {future.result().status for future in brought} == {"ok"}


def test_threads_share_a_screener(screener, files, results):
    def everything(turn: int) -> list[comit.Result]:
        if turn % 2:
            return [*screener.screen(files)]
        return [screener.submit(path).result() for path in files]

    with ThreadPoolExecutor(6) as threads:
        for found in threads.map(everything, range(6)):
            assert found == results


def test_images_of_several_kinds_may_be_mixed(screener, files, results):
    ok = [(p, r) for p, r in zip(files, results, strict=True) if r.status == "ok"]
    images = [
        image
        for path, _ in ok
        for image in (path, comit.read_image(path).pixels, path.read_bytes(), str(path))
    ]
    found = [*screener.screen(images)]
    assert [r.path for r in found[::4]] == [r.path for r in found[3::4]] == [str(p) for p, _ in ok]
    for i, (_, result) in enumerate(ok):
        assert {r.scores for r in found[4 * i : 4 * i + 4]} == {result.scores}


def test_paths_are_relative_to_where_the_caller_is(screener, files, results, monkeypatch):
    monkeypatch.chdir(files[0].parent)
    found = [*screener.screen(path.name for path in files)]
    assert [result.row for result in found] == [result.row for result in results]
    monkeypatch.chdir("/")
    (gone,) = screener.screen(files[0].name)
    assert gone.reason == "vanished"
    (zero,) = screener.screen(["zero\0byte.png"])
    assert zero.reason == "read_error"


def test_a_file_that_hangs_its_decoder_costs_itself_and_holds_up_nobody(tiny_model, pictures):
    """The first process is stopped with its file: others' images do not wait for a full batch."""
    paths = sorted(pictures.iterdir())
    with comit.Screener(tiny_model, timeout=8.0, **ENGINE) as screener:
        expected = [*screener.screen(paths)]
        hung_process = processes(screener)[0]
        hung_process.send_signal(signal.SIGSTOP)
        hung = screener.submit(paths[0])
        for path, result in zip(paths[1:4], expected[1:4], strict=True):
            assert screener.submit(path).result() == result
        assert not hung.done()
        assert (hung.result().status, hung.result().reason) == ("failed", "timeout")
        processes(screener)[1].kill()
        again = [*screener.screen(paths)]
        lost = [r.reason for r, e in zip(again, expected, strict=True) if r != e]
        assert lost in ([], ["crash"])


# -- life and death -------------------------------------------------------------------------------


def gone(pids: list[int], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        gc.collect()
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_a_screener_is_pickled_as_its_options_and_loads_where_it_is_used(screener, files, results):
    copy = pickle.loads(pickle.dumps(screener))  # noqa: S301
    assert copy.options == screener.options and copy._service is None
    (result,) = copy.screen(files[0])
    assert result == results[0] and copy.engine.name == "openvino"
    pids = [process.pid for process in processes(copy)]
    assert not {*pids} & {process.pid for process in processes(screener)}
    del copy
    assert gone(pids)


def test_a_closed_screener_has_answered_all_and_takes_no_more(tiny_model, files, results):
    with comit.Screener(tiny_model, **ENGINE) as screener:
        pids = [process.pid for process in processes(screener.load())]
        futures = [screener.submit(path) for path in files]
    assert [future.result() for future in futures] == results
    assert gone(pids, 0.1)
    screener.close()
    for call in (screener.load, lambda: screener.submit(files[0]), lambda: screener.engine):
        with pytest.raises(UsageError, match="this screener is closed"):
            call()
    with pytest.raises(UsageError, match="this screener is closed"):
        next(screener.screen(files))
    with comit.Screener(tiny_model) as never:
        pass  # nothing was loaded
    assert never._service is None


def test_options_are_checked_at_once_and_the_model_where_it_is_loaded(tmp_path):
    with pytest.raises(UsageError, match="'some' is not one of 'all', 'flagged', 'none'"):
        comit.Screener(masks="some")
    screener = comit.Screener(tmp_path / "none.onnx")
    with pytest.raises(ComitError, match=r"none\.onnx cannot be read"):
        screener.load()


def test_what_ends_it_reaches_everybody_who_waits_and_the_next_call_begins_anew(
    tiny_model, files, results, monkeypatch
):
    monkeypatch.setattr("comit.pipeline.pool.START_PAUSE", 0.01)
    monkeypatch.setattr("comit.pipeline.pool.WORKER", "raise SystemExit(1)")
    with comit.Screener(tiny_model, **ENGINE) as screener:
        futures = [screener.submit(path) for path in files]
        for future in futures:
            with pytest.raises(Stopped, match="is comit installed completely"):
                future.result()
        monkeypatch.setattr("comit.pipeline.pool.WORKER", WORKER)
        assert [*screener.screen(files)] == results


UNGUARDED = """
import multiprocessing, os, sys
import comit

model, *files = sys.argv[1:]
screener = comit.Screener(model, engine="openvino", precision="fp32", workers=1)
print(*(result.scores for result in screener.screen(files)), sep=";", flush=True)
child = multiprocessing.get_context("fork").Process(
    target=lambda: print(*(r.scores for r in screener.screen(files)), sep=";", flush=True)
)
child.start()
child.join()
assert child.exitcode == 0
print(*(result.scores for result in screener.screen(files)), sep=";", flush=True)
print(*(worker.process.pid for worker in screener._service._pool._workers), flush=True)
"""


@pytest.mark.parametrize("how", ["a script", "standard input"])
def test_a_program_needs_no_guard_may_fork_and_ends_without_closing(
    tmp_path, tiny_model, pictures, how
):
    paths = sorted(map(str, pictures.iterdir()))[:3]
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    with script.open() as source:
        name = str(script) if how == "a script" else "-"
        words = [sys.executable, "-W", "ignore", name, str(tiny_model), *paths]
        done = subprocess.run(words, stdin=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr
    *scores, pids = done.stdout.splitlines()
    assert len(scores) == 3 and len({*scores}) == 1
    assert gone([int(pid) for pid in pids.split()])


# -- pictures -------------------------------------------------------------------------------------


def test_a_picture_is_drawn_of_what_was_screened_alone(screener, files, results, tmp_path):
    path, result = next(
        (p, r)
        for p, r in zip(files, results, strict=True)
        if r.status == "ok" and p.suffix == ".dcm"
    )
    image = comit.read_image(path)
    expected = draw(image.picture(), Masks(result.lungs, result.disease))
    for given in (None, path, str(path), path.read_bytes(), image):
        assert np.array_equal(result.overlay(given), expected)
    filled = result.overlay(fill=True)
    assert filled.shape == expected.shape and not np.array_equal(filled, expected)
    (of_bytes,) = screener.screen(path.read_bytes())
    with pytest.raises(UsageError, match="has no path: give it the image"):
        of_bytes.overlay()
    assert np.array_equal(of_bytes.overlay(path), expected)
    (of_array,) = screener.screen(image.samples)
    assert of_array.overlay(image.samples).shape == expected.shape
    for other in (files[0], image.samples[1:]):
        with pytest.raises(ItemError, match="changed"):
            result.overlay(other)
    skipped = next(r for r in results if r.status == "skipped")
    with pytest.raises(UsageError, match=rf"no masks to draw \(skipped, {skipped.reason}\)"):
        skipped.overlay()


def test_a_figure_shows_the_picture_and_the_scores(results, monkeypatch):
    pytest.importorskip("matplotlib")
    result = next(r for r in results if r.status == "ok")
    figure = result.plot()
    (axes,) = figure.axes
    (shown,) = axes.images
    assert np.array_equal(shown.get_array(), result.overlay())
    assert f"covid {result.scores.covid:.2f}" in axes.get_title()
    assert "chest" not in axes.get_title()  # this model has no gate
    figure.savefig(io.BytesIO(), format="png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"Result.plot .*pip install 'comit\[plot\]'"):
        result.plot()


# -- whole runs -----------------------------------------------------------------------------------


def test_a_run_tells_how_far_it_is_and_prints_nothing(tmp_path, tiny_model, pictures, capfd):
    seen: list[tuple[int, int]] = []
    out, options = tmp_path / "r.parquet", comit.Options(model=tiny_model, **ENGINE)

    def full(done: int, total: int) -> None:
        seen.append((done, total))
        if done > 4:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        comit.screen(pictures, out, options, progress=full)
    assert not out.exists() and seen[-1][0] > 4
    seen.clear()
    report = comit.screen(pictures, out, options, progress=lambda *n: seen.append(n))
    assert isinstance(report, comit.Report) and report.status["ok"] == 9
    assert seen == sorted(seen) and seen[-1] == (9, 9)
    assert capfd.readouterr() == ("", "")
    rows = comit.read_results(out, ["path", "lung_rle"]).to_pylist()
    assert {row["path"] for row in rows} == {path.name for path in pictures.iterdir()}
    assert comit.decode_mask(rows[0]["lung_rle"]).shape == (224, 224)


CALLER = """
import os, signal, sys, threading
import cv2, comit

_, model, source, out = sys.argv[1:]

def state():
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    umask = os.umask(0o027)
    os.umask(umask)
    return handlers, umask, dict(os.environ), os.getcwd(), cv2.getNumThreads(), sys.path[:]

before = state()
comit.screen(source, out, comit.Options(model=model, engine="openvino", workers=1))
with comit.Screener(model, engine="openvino", workers=1) as screener:
    (result,) = screener.screen(source + "/0.png")
assert result.status == "ok" and state() == before
assert threading.enumerate() == [threading.main_thread()]
"""


def test_a_call_leaves_the_process_as_it_is(tmp_path, tiny_model, pictures):
    out = tmp_path / "r.parquet"
    done = python(CALLER + THREADS, "as it is", tiny_model, pictures, out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("<heap nr=") > 1  # threads have arenas of their own
