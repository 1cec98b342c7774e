from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from comit.cli import main, unforeseen
from comit.identifiers import Identifiers

ROOT = Path(__file__).parent.parent
HEAVY = {
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "cv2",
    "pyarrow",
    "pydicom",
    "numpy",
}


def comit(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.parametrize(
    "words",
    [["--help"], ["screen", "--help"], ["train", "--help"], ["dicom", "--help"], ["--version"]],
)
def test_help_loads_nothing_heavy(words):
    code = (
        "import sys\nfrom comit.cli import main\n"
        f"try: main({words})\nexcept SystemExit: pass\n"
        "print(*sorted(m.partition('.')[0] for m in sys.modules), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout
    assert HEAVY & set(run.stderr.split()) == set()


def test_help_names_the_exit_codes():
    text = comit("screen", "--help").output
    assert all(f"  {code}  " in text for code in (0, 2, 3, 4))


def one_line(result, code, *parts):
    assert result.exit_code == code
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert all(str(p) in lines[0] for p in parts), lines[0]


def test_a_screened_folder_has_a_row_a_file(tmp_path, tiny_model, pictures):
    out = tmp_path / "r.parquet"
    result = comit(
        "screen", pictures, "--out", out, "--model", tiny_model, "--report", tmp_path / "r.json"
    )
    assert result.exit_code == 0, result.output
    assert pq.read_metadata(out).num_rows == len(list(pictures.iterdir()))
    assert "ok" in result.stderr and "images in" in result.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["rows"] == report["status"]["ok"] == pq.read_metadata(out).num_rows


def test_several_inputs_have_the_ids_of_the_folder_that_holds_them(
    tmp_path, tiny_model, pictures, null_engine
):
    out, given = tmp_path / "r.parquet", sorted(pictures.glob("*.png"))
    options = ("--model", tiny_model, "--masks", "none")
    assert comit("screen", *given, "--out", out, *options).exit_code == 0
    rows = pq.read_table(out).to_pylist()
    assert [r["path"] for r in rows] == [p.name for p in given]
    assert [r["row_id"] for r in rows] == [Identifiers().row_id(p.name.encode()) for p in given]
    again = comit("screen", out, "--out", tmp_path / "again.parquet", *options)
    one_line(again, 2, "r.parquet holds results of comit; give the folder or the manifest")


def test_failed_rows_give_exit_code_3(tmp_path, tiny_model, pictures, null_engine):
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    out = tmp_path / "r.parquet"
    result = comit("screen", pictures, "--out", out, "--model", tiny_model)
    assert result.exit_code == 3
    assert "truncated" in result.stderr and "Traceback" not in result.stderr


def test_wrong_use_is_one_line_exit_2_and_nothing_overwritten(tmp_path, tiny_model, pictures):
    out = tmp_path / "r.parquet"
    kept = pa.table({"row_id": ["1"], "file_mtime": [1]})
    pq.write_table(kept.replace_schema_metadata({"comit_version": "0.1.0"}), out)
    before = out.read_bytes()
    empty = tmp_path / "empty"
    empty.mkdir()
    no_path = tmp_path / "m.csv"
    no_path.write_text("file\na.png\n")
    not_a_model = tmp_path / "bad.onnx"
    not_a_model.write_bytes(b"nonsense")
    screen = ("screen", "--out", out, "--model", tiny_model)
    one_line(comit(*screen, tmp_path / "nowhere"), 2, "nowhere", "does not exist")
    one_line(comit(*screen, empty), 2, "empty", "holds no files")
    run = tmp_path / "run"
    run.mkdir()
    one_line(
        comit("screen", pictures, "--out", out, "--model", run), 2, f"comit export onnx {run} --out"
    )
    one_line(comit("worklist", tmp_path / "no.parquet", "--out", out), 2, "no.parquet does not")
    one_line(comit(*screen, pictures, no_path), 2, "m.csv is a table")
    one_line(comit(*screen, pictures, "--exclude", "["), 2, "'[' is no pattern")
    one_line(comit(*screen, no_path, "--include-hidden"), 2, "--include-hidden is for folders")
    one_line(comit(*screen, no_path), 2, "m.csv", "no column 'path'")
    one_line(comit("screen", pictures, "--out", out, "--model", not_a_model), 2, "bad.onnx")
    one_line(comit(*screen, pictures, "--report", tmp_path / "no" / "r.json"), 2, "r.json")
    full = ("screen", pictures, "--out", tmp_path, "--model", tiny_model)
    one_line(comit(*full), 2, "folder with other files in it")
    one_line(
        comit("screen", pictures, "--out", tmp_path / "no" / "r.parquet", "--model", tiny_model),
        2,
        "cannot be written",
    )
    manifest = tmp_path / "same.csv"
    manifest.write_text("path\na.png\n")
    one_line(comit("screen", manifest, "--out", manifest, "--model", tiny_model), 2, "is the input")
    assert manifest.read_text() == "path\na.png\n"
    thesis = tmp_path / "thesis.parquet"
    thesis.write_text("years of work")
    one_line(comit("screen", pictures, "--out", thesis, "--model", tiny_model), 2, "not a whole")
    cohort = tmp_path / "cohort.parquet"
    pq.write_table(kept, cohort)
    one_line(comit("screen", pictures, "--out", cohort, "--model", tiny_model), 2, "did not write")
    assert pq.read_table(cohort) == kept
    one_line(comit("screen", pictures, "--out", "r.csv", "--model", tiny_model), 2, "in .parquet")
    one_line(comit("screen", pictures, "--out", "/dev/null", "--model", tiny_model), 2, "neither")
    one_line(comit("screen", pictures, "--out", "", "--model", tiny_model), 2, "neither")
    one_line(comit(*screen, pictures, "--report", out), 2, "is the output")
    one_line(comit(*screen, pictures, "--metrics-file", "/dev/null"), 2, "is not a file")
    long = tmp_path / ("n" * 300)  # names that the operating system refuses
    one_line(comit(*screen, long), 2, "cannot be used: File name too long")
    one_line(comit("screen", pictures, "--out", f"{long}.parquet"), 2, "File name too long")
    one_line(comit(*screen, pictures, "--report", long), 2, "File name too long")
    assert thesis.read_text() == "years of work"
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_an_engine_that_is_not_here_says_so_in_one_line(
    monkeypatch, tmp_path, tiny_model, pictures
):
    monkeypatch.setitem(sys.modules, "pycuda", None)
    out = tmp_path / "r.parquet"
    one_line(
        comit("screen", pictures, "--out", out, "--model", tiny_model, "--engine", "tensorrt"),
        2,
        "engine tensorrt (",
        "pycuda",
        "pip install 'comit[gpu]'",
    )


def test_an_error_names_what_was_typed_and_no_other_path(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["comit", "screen", "/archive/2026", "--out", "r.parquet"])
    denied = (errno.EACCES, "Permission denied")
    for path in ("/archive/2026", "/archive"):
        assert unforeseen(OSError(*denied, path)) == f"{path} cannot be used: Permission denied"
    for path in ("/archive/2026/DOE^JANE.dcm", "/elsewhere", None):
        said = unforeseen(OSError(*denied, path))
        assert said == "a file or a folder cannot be used: Permission denied"


@pytest.mark.parametrize(
    "words",
    [
        ["screen", "x", "--out", "-"],
        ["screen", "x", "--out", "r.parquet", "--metrics-file", "-"],
        ["worklist", "r.parquet", "--out", "-"],
        ["report", "r.parquet", "--out", "-"],
        ["data", "merge", __file__, "--out", "-"],
        ["export", "onnx", "run", "--out", "-"],
    ],
)
def test_nothing_is_called_like_standard_output(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    result = comit(*words)
    assert result.exit_code == 2 and "would be standard output" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_report_goes_to_standard_output(tmp_path, tiny_model, pictures, null_engine, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "r.parquet"
    done = comit("screen", pictures, "--out", out, "--model", tiny_model, "--report", "-")
    assert json.loads(done.stdout)["rows"] == 9
    assert not (tmp_path / "-").exists()


def test_a_report_that_cannot_be_written_says_that_results_are_complete(
    tmp_path, tiny_model, pictures, null_engine, monkeypatch
):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    out, report = tmp_path / "r.parquet", tmp_path / "night.json"
    done = comit("screen", pictures, "--out", out, "--model", tiny_model, "--report", report, "-q")
    one_line(done, 1, "results are complete", "night.json", "No space left")
    assert pq.read_table(out).num_rows == 9


HELD = """
import sys
import comit.engine
from comit.__main__ import run
from comit.bench.null import NullEngine

class Held(NullEngine):
    batches = 0

    def infer(self, images):
        self.batches += 1
        if self.batches == 2:
            print("at work", flush=True)
            sys.stdin.readline()
        return super().infer(images)

comit.engine.load_engine = lambda *_, **__: Held()
run()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_run_and_the_same_command_resumes_it(
    tmp_path, tiny_model, pictures, null_engine, number
):
    files = [str(p) for p in pictures.iterdir()]
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,id\n" + "".join(f"{files[i % len(files)]},{i}\n" for i in range(300)))
    out = tmp_path / "r.parquet"
    command = ["screen", manifest, "--out", out, "--model", tiny_model, "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, *map(str, command)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGHUP, signal.SIG_DFL
        ),  # pytest may be under nohup
    )
    assert process.stdout.readline() == "at work\n"
    os.kill(process.pid, number)
    _, said = process.communicate("go on\n", timeout=60)
    assert process.returncode == 4, said
    assert "same command resumes" in said
    assert not out.exists()
    result = comit(*command)
    assert result.exit_code == 0, result.output
    assert "from an earlier, interrupted run" in result.stderr
    assert pq.read_table(out)["row_id"].to_pylist() == [str(i) for i in range(300)]


def test_closed_standard_streams_do_no_harm(tmp_path, tiny_model, pictures):
    out = tmp_path / "r.parquet"
    command = [
        sys.executable,
        "-m",
        "comit",
        "screen",
        pictures,
        "--out",
        out,
        "--model",
        tiny_model,
    ]
    closing = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *map(str, command)]
    assert subprocess.run(closing, cwd=ROOT).returncode == 0
    assert pq.read_table(out)["status"].to_pylist() == ["ok"] * 9


def test_names_with_control_characters_are_shown_and_not_obeyed(tmp_path):
    result = comit("screen", tmp_path / "a\x1b[31mred", "--out", tmp_path / "r.parquet")
    assert "\x1b" not in result.stderr and "\\x1b" in result.stderr


@pytest.mark.parametrize(
    ("given", "code"), [("--version", 0), ("screen missing --out x.parquet", 2), ("unknown", 2)]
)
def test_a_library_that_aborts_as_the_process_ends_changes_no_exit_code(given, code, tmp_path):
    """Arrow does so now and then."""
    script = (
        "import ctypes; libc = ctypes.CDLL(None); libc.__cxa_atexit(libc.abort, None, None)\n"
        "from comit.__main__ import run; run()"
    )
    command = [sys.executable, "-c", script, *given.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == code
    assert ("comit, version" in done.stdout) == (code == 0)
    assert ("missing" in done.stderr) == ("missing" in given)
