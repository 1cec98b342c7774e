"""What surrounds a night: view policies, logs and metrics."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from comit.bench.faults.dicoms import make, picture
from comit.console import Console
from comit.errors import ItemError
from comit.image import open_image
from comit.options import Options
from comit.run.run import Run
from comit.screening import screen
from comit.terminal.prometheus import SUCCESS, Metrics

ROOT = Path(__file__).parent.parent


def judged(data: bytes, policy):
    image = open_image(data, None, policy)
    return str(image.skip) if image.skip else [str(w) for w in image.warnings]


@pytest.mark.parametrize(
    ("tags", "strict", "tagged", "everything"),
    [
        ({}, [], [], []),
        ({"ViewPosition": None}, "unverified_view", ["unverified_view"], ["unverified_view"]),
        ({"BodyPartExamined": None}, "unverified_view", ["unverified_view"], ["unverified_view"]),
        ({"ViewPosition": "LL"}, "view", "view", ["other_view"]),
        ({"BodyPartExamined": "HAND"}, "anatomy", "anatomy", ["other_anatomy"]),
        ({"Modality": "CT"}, "modality", "modality", "modality"),
        ({"NumberOfFrames": 2}, "multi_frame", "multi_frame", "multi_frame"),
    ],
)
def test_a_view_policy_decides_what_is_screened(tags, strict, tagged, everything):
    if "NumberOfFrames" in tags:
        tags["PixelData"] = picture().tobytes() * 2
    data = make(**tags)
    assert judged(data, "strict") == strict
    assert judged(data, "tagged") == tagged
    assert judged(data, "all") == everything


def test_a_file_without_tags_is_not_screened_strictly(pictures):
    for path in pictures.iterdir():
        assert judged(path.read_bytes(), "strict") == "unverified_view"
        assert judged(path.read_bytes(), "all") == ["unverified_view"]


def test_json_logs_are_an_object_a_line():
    stream = io.StringIO()
    console = Console(stream, log_format="json")
    console.line("a\x1b[31m\nb", "started", items=3)
    console.error("no\tdisk", 4)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(x["event"], x["message"]) for x in lines] == [
        ("started", "a\x1b[31m\nb"),
        ("error", "comit: no\tdisk"),
    ]
    assert lines[0]["items"] == 3 and lines[1]["exit_code"] == 4
    assert all(x["time"].endswith("+00:00") for x in lines)
    assert "\x1b" not in stream.getvalue()


def test_a_quiet_console_says_errors_alone():
    stream = io.StringIO()
    console = Console(stream, quiet=True)
    console.line("hello")
    console.error("stop", 2)
    assert stream.getvalue() == "comit: stop\n"


def test_a_full_disk_under_the_log_ends_nothing():
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    console = Console(Full())
    console.line("hello")
    console.error("stop", 2)
    with console.progress("screening", 3) as step:
        step(3)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\x00",
        b"# TYPE comit_last_success_timestamp_seconds gauge\n",
        b"comit_last_success_timestamp_seconds\n",
        b"comit_last_success_timestamp_seconds often\n",
        b"{} 1\n",
    ],
)
def test_an_odd_metrics_file_is_replaced(tmp_path, content):
    path = tmp_path / "comit.prom"
    path.write_bytes(content)
    with Run(tmp_path / "r.parquet") as sink:
        sink.items = 5
        Metrics(path, sink).succeeded()
    assert metrics(path)["comit_items",] == 5


def command(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "comit", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        **options,
    )


def test_a_run_and_its_refusal_are_logged_as_json(tmp_path, tiny_model, pictures):
    arguments = ("screen", pictures, "--out", tmp_path / "r.parquet", "--log-format", "json")
    done = command(*arguments, "--model", tiny_model, "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    (finished,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert finished["event"] == "finished"
    assert finished["report"]["status"] == {"ok": 9, "skipped": 0, "failed": 0}
    refused = command(*arguments, "--model", tmp_path / "no.onnx")
    assert refused.returncode == 2
    (error,) = [json.loads(line) for line in refused.stderr.splitlines()]
    assert (error["event"], error["exit_code"]) == ("error", 2)


def metrics(path):
    families = text_string_to_metric_families(path.read_text())
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_say_how_a_run_went_and_keep_the_last_success(
    tmp_path, tiny_model, pictures, null_engine
):
    path, out = tmp_path / "comit.prom", tmp_path / "results"
    (pictures / "broken.png").write_bytes(b"")

    def night(**options):
        chosen = Options(model=tiny_model, metrics_file=path, **options)
        return screen(pictures, out, chosen, console=Console(quiet=True))

    night()
    first = metrics(path)
    assert first["comit_rows", "ok"] == 9 and first["comit_rows", "failed"] == 1
    assert first["comit_items",] == 10 and first["comit_running",] == 0
    assert first["comit_stage_seconds", "decode"] > 0
    night()
    second = metrics(path)
    assert second["comit_items",] == 0 and second["comit_unchanged",] == 10
    assert second[SUCCESS,] >= first[SUCCESS,]
    with pytest.raises(ZeroDivisionError), Run(out) as sink:
        sink.items = 5
        with Metrics(path, sink):
            assert metrics(path)["comit_running",] == 1
            raise ZeroDivisionError
    third = metrics(path)
    assert third["comit_running",] == 0
    assert third[SUCCESS,] == second[SUCCESS,]


def test_metrics_that_cannot_be_written_end_no_night(tmp_path, tiny_model, pictures, null_engine):
    chosen = Options(model=tiny_model, metrics_file=tmp_path / "no" / "comit.prom")
    report = screen(pictures, tmp_path / "r.parquet", chosen, console=Console(quiet=True))
    assert report.rows == 9


def test_every_metric_is_in_the_docs(tmp_path):
    text = (ROOT / "docs" / "reference" / "running.md").read_text()
    code = (ROOT / "comit" / "terminal" / "prometheus.py").read_text()
    names = set(re.findall(r'"(comit_\w+)"', code))
    assert len(names) > 6
    for name in names:
        assert f"`{name}" in text, name


def test_a_decoder_is_never_asked_for_what_a_policy_leaves_out():
    with pytest.raises(ItemError, match="no_pixels"):
        open_image(make(PixelData=None), None, "all")
    assert str(open_image(make(PixelData=None, ViewPosition="LL")).skip) == "view"
