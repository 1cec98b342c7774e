"""What only a GPU shows: the kernels and engines there, against the same definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from comit.console import Console
from comit.demo import demo
from comit.engine import gpu_present, load_engine
from comit.errors import ComitError
from comit.options import Options
from comit.screening import screen

torch = pytest.importorskip("torch")
from comit.bench.gpu import (  # noqa: E402
    generated,
    open_kernels,
    preprocessing_parity,
    runs_parity,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not gpu_present(), reason="no NVIDIA GPU here"),
]


@pytest.fixture(scope="module")
def kernels() -> Any:
    gpu = open_kernels("cuda:0")
    with gpu.current():
        yield gpu


def test_preprocessing_is_the_cpus(kernels: Any) -> None:
    assert preprocessing_parity(kernels, generated(), kernels.stream())["ok"]


def test_run_lengths_are_cocos(kernels: Any) -> None:
    assert runs_parity(kernels, kernels.stream())["ok"]


@pytest.mark.parametrize("name", ["tensorrt", "onnxruntime", "torch"])
def test_an_engine_gives_an_image_the_same_bits_whatever_its_neighbours(
    name: str, tiny_model: Path
) -> None:
    try:
        engine = load_engine(tiny_model, name, "cuda:0", batch_size=4)
    except ComitError as error:
        pytest.skip(str(error))
    images = np.random.default_rng(0).random((7, 1, 224, 224), np.float32)
    full = engine.predict(images)
    for i in (0, 3, 6):
        alone = engine.infer(images[i : i + 1])
        assert np.array_equal(alone.scores[0], full.scores[i])
        assert np.array_equal(alone.masks[0], full.masks[i])


@pytest.mark.parametrize("name", ["tensorrt", "torch"])
def test_rows_by_way_of_stored_samples_are_the_cpus(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    demo(tmp_path / "in", 60)

    def rows(**options: Any) -> tuple[Any, dict[str, Any]]:
        out, given = tmp_path / "r.parquet", Options(model=tiny_model, batch_size=16, **options)
        report = screen(tmp_path / "in", out, given, console=Console(quiet=True))
        return report, {row["path"]: row for row in pq.read_table(out).to_pylist()}

    try:
        report, found = rows(engine=name, device="cuda:0")
    except ComitError as error:
        pytest.skip(str(error))
    if not report.engine["takes_samples"]:
        pytest.skip("neither pycuda nor CuPy runs the kernels here")
    _, expected = rows(engine="torch", device="cpu", precision="fp32")
    assert found.keys() == expected.keys()
    for path, row in found.items():
        for column in ("status", "reason", "warnings", "voi", "rows", "cols"):
            assert row[column] == expected[path][column], (path, column)
        if row["status"] == "ok":
            for score in ("score_unhealthy", "score_covid", "score_other"):
                assert row[score] == pytest.approx(expected[path][score], abs=5e-3)
            assert row["lung_fraction"] == pytest.approx(expected[path]["lung_fraction"], abs=0.02)
