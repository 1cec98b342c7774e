"""The GPU suite: what it computes, on a small scale on the CPU, and that nothing goes unsaid."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from comit.bench import gpu as suite  # noqa: E402
from comit.bench.gpu import Part, Settings, Suite, convolutions, flops, markdown, run  # noqa: E402
from comit.cli import main  # noqa: E402

SMALL = Settings(
    device="cpu", batch_sizes=(1, 2), width=0.125, gemm=64, copied=4096, repeat=2, seconds=0.05,
    screened=5, side=0.25,
)  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The suite on a machine without a GPU, told to use the CPU."""
    out = tmp_path_factory.mktemp("suite") / "r"
    said: list[str] = []
    run(SMALL, out, said.append)
    found: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    assert [line.split(":")[0] for line in said] == [p["name"] for p in found["parts"]]
    found["md"] = out.with_suffix(".md").read_text()
    return found


def part(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (p for p in report["parts"] if p["name"] == name)
    return found  # type: ignore[no-any-return]


@pytest.mark.nightly
def test_what_cannot_run_says_why(report: dict[str, Any]) -> None:
    for name in ("kernel parity", "torch variants", "kernel rates"):
        assert part(report, name)["status"] == "not run"
        assert part(report, name)["reason"] == "needs a GPU"
        assert f"- {name}: not run, needs a GPU" in report["md"]
    rows = [r for r in part(report, "engine latency")["rows"] if r["engine"] == "tensorrt"]
    assert rows and all("tensorrt runs on NVIDIA GPUs" in r["why not"] for r in rows)
    assert "tensorrt fp16 1: UsageError: tensorrt runs on NVIDIA GPUs" in report["md"]


@pytest.mark.nightly
def test_engines_that_are_here_are_compared_and_timed(report: dict[str, Any]) -> None:
    compared = {(r["engine"], r["precision"]): r for r in part(report, "engine parity")["rows"]}
    for precision in ("fp32", "fp16"):
        assert compared["onnxruntime", precision]["ok"] is True
    assert compared["torch", "fp32"]["score"] < 1e-5
    timed = [r for r in part(report, "engine latency")["rows"] if "p50 ms" in r]
    assert {(r["engine"], r["batch"]) for r in timed} == {
        ("onnxruntime", 1), ("onnxruntime", 2), ("torch", 2)  # fp32 at one size alone
    }  # fmt: skip
    for row in timed:
        assert row["TFLOP/s"] == pytest.approx(row["images/s"] * flops(0.125) / 1e12)


@pytest.mark.nightly
def test_every_kind_of_file_goes_through_the_whole_pipeline(report: dict[str, Any]) -> None:
    rows = part(report, "pipeline")["rows"]
    compressed = {"raw jpg", "jpeg dcm", "jpeg2000 dcm"}
    assert {r["files"] for r in rows} == {"raw png", "raw dcm", *compressed}
    ran = [r for r in rows if r["engine"] != "tensorrt"]
    assert len(ran) == 7 and all(r["images/s"] > 0 for r in ran)
    assert all(r["screened"] == (4 if r["files"] in compressed else 5) for r in ran)


@pytest.mark.nightly
def test_layers_are_held_against_the_ceilings_of_the_same_run(report: dict[str, Any]) -> None:
    assert [r["what"].split()[0] for r in part(report, "ceilings")["rows"]] == [
        "fp16", "copy", "copy", "copy"
    ]  # fmt: skip
    rows = part(report, "layers")["rows"]
    assert sum(r["times"] for r in rows) == 39
    assert all(r["bound by"] in ("arithmetic", "memory") and r["of the bound"] > 0 for r in rows)


def test_the_three_unpoolings_are_one_function() -> None:
    import torch.nn.functional as F

    from comit.model.network import pool_positions, unpool

    x = torch.relu(torch.randn(2, 3, 8, 8))
    pooled, indices = F.max_pool2d(x, 2, return_indices=True)
    expected = F.max_unpool2d(pooled, indices, [2, 2])
    assert torch.equal(suite.scatter(pooled, indices, x.shape), expected)
    assert torch.equal(unpool(pooled, pool_positions(x, pooled)), expected)


def test_the_papers_network_takes_92_gflop() -> None:
    assert sum(convolutions(1.0).values()) == 39
    assert flops(1.0) == pytest.approx(92.0e9, rel=0.01)


def test_kernels_are_compared_with_the_definitions(
    kernels_library: Any, monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    from cpu_device import CpuDevice

    device = CpuDevice(kernels_library)
    monkeypatch.setattr(suite, "open_kernels", lambda name: device)
    tested = Suite(Settings(device="cpu", data=pictures, batch_sizes=(2,), repeat=1))
    rows: list[dict[str, Any]] = []
    tested.kernel_parity(rows)
    assert [r["ok"] for r in rows] == [True] * 3
    assert [r["images"] for r in rows] == [12, 9, 9]
    rates: list[dict[str, Any]] = []
    tested.kernel_rates(rates)
    assert len(rates) == 3 and all(r["images/s"] > 0 for r in rates)
    shifted = suite.preprocess
    monkeypatch.setattr(
        suite, "preprocess", lambda *a: (r := shifted(*a))._replace(pixels=r.pixels + 0.002)
    )
    rows = []
    tested.kernel_parity(rows)
    assert rows[0]["ok"] is False


def test_a_part_that_fails_is_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Suite, rows: list[dict[str, Any]]) -> None:
        rows.append({"so far": 1})
        raise RuntimeError("no\nluck")

    def wide(self: Suite, rows: list[dict[str, Any]]) -> None:
        rows.append({"ok": False, "difference": 1.0})

    others = ("torch_variants", "unpooling", "layers", "engine_parity", "latency",
              "kernel_rates", "pipeline")  # fmt: skip
    nothing = {name: lambda self, rows: None for name in others}
    for name, method in {**nothing, "ceilings": broken, "kernel_parity": wide}.items():
        monkeypatch.setattr(Suite, name, method)
    parts = run(SMALL, tmp_path / "r", lambda line: None)
    assert (parts[0].status, parts[0].reason) == ("failed", "RuntimeError: no")
    assert parts[0].rows == [{"so far": 1}]
    assert (parts[1].status, parts[1].reason) == ("failed", "1 of 1 beyond the tolerance")
    assert [p.status for p in parts[2:]] == ["ok"] * 7
    given = ["bench", "gpu", "--device", "cpu", "--out", str(tmp_path / "c")]
    assert CliRunner().invoke(main, given).exit_code == 1


def test_a_part_of_which_nothing_ran_is_not_ok() -> None:
    part = Part("one")
    suite._run(part, lambda rows: rows.append({"why not": "no"}))
    assert (part.status, part.reason) == ("not run", "nothing of it could run")


def test_when_the_time_is_over_what_is_left_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Suite, "ceilings", lambda self, rows: time.sleep(0.01))
    parts = run(Settings(device="cpu", minutes=1e-9), tmp_path / "r", lambda line: None)
    assert all(p.status == "not run" and "minutes were over" in p.reason for p in parts[1:])


def test_a_report_puts_what_did_not_run_first() -> None:
    here = {"date": "d", "gpus": [], "cpu": "c", "cores": 1, "packages": {}, "comit": "0",
            "commit": "abc"}  # fmt: skip
    parts = [Part("one", "ok", rows=[{"a": 1234.5, "b": 0.00012345}, {"a": 2.0, "why not": "no"}]),
             Part("two", "not run", "no luck")]  # fmt: skip
    text = markdown(here, parts)
    assert text.index("What did not run") < text.index("## one")
    assert "- two: not run, no luck" in text and "| 1,234 | 0.0001234 |" in text
