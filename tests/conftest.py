"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import shutil
import tarfile
import time
from collections.abc import Iterator
from ctypes import CDLL
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"  # made by make_tiny.py
STARTED = time.monotonic()
# Waiting threads of PyTorch sleep; spinning beside another process, they take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("comit")
    group.addoption(
        "--share", metavar="DAY/DAYS", help="of the files with nightly tests, those of this day"
    )
    group.addoption(
        "--minutes", type=float, help="after so many minutes no further nightly test is started"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves of the nightly tests those of the day: whole files, of which each has its day."""
    if not (share := config.getoption("--share")):
        return
    day, days = map(int, share.split("/"))
    nightly = [item for item in items if item.get_closest_marker("nightly")]
    files = sorted({item.path for item in nightly})
    today = set(files[day % days :: days])
    others = [item for item in nightly if item.path not in today]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in set(others)]


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("--minutes")
    if minutes and item.get_closest_marker("nightly") and time.monotonic() > STARTED + 60 * minutes:
        pytest.skip(f"the {minutes:g} minutes for nightly tests are over")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real X-rays and DICOM files, which is no part of the repository."""
    beside = Path(__file__).resolve().parent.parent.parent / "shared"
    folder = Path(os.environ.get("COMIT_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real X-rays at {folder}; see COMIT_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def faults(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs that a release of comit got wrong: a folder a kind, with a README."""
    folder = tmp_path_factory.mktemp("faults")
    with tarfile.open(shared / "faults.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "faults"


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """An exported .onnx with its card: random weights, scores and masks that vary by image."""
    return DATA / "tiny.onnx"


@pytest.fixture(scope="session")
def tiny_half() -> bytes:
    """The same network as an fp16 file."""
    return (DATA / "tiny-fp16.onnx").read_bytes()


@pytest.fixture(scope="session")
def kernels_library(tmp_path_factory: pytest.TempPathFactory) -> CDLL:
    """The CUDA kernels compiled for the CPU by g++, for a CpuDevice."""
    if not shutil.which("g++"):
        pytest.skip("g++ is not here")
    from cpu_device import build

    return build(tmp_path_factory.mktemp("kernels") / "kernels.so")


@pytest.fixture
def null_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Screening by one decoding process and without a network, for tests of files and rows.

    Scores and masks mean nothing, but depend on every pixel. The model's card is read as always.
    """
    from comit.bench.null import NullEngine

    monkeypatch.setattr("comit.engine.load_engine", lambda *_, **__: NullEngine())
    monkeypatch.setattr("comit.screening.decoders", lambda: 1)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of nine grey pictures that can be screened: PNG of 8 and 16 bits, and JPEG."""
    import cv2
    import numpy as np

    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(9):
        noise = rng.integers(0, 256, (260 + 20 * i, 300), np.uint8)
        blurred = cv2.GaussianBlur(noise, (0, 0), 3 + 4 * i).astype(np.float32)
        spread = (blurred - blurred.min()) / np.ptp(blurred)
        depth, suffix = [(255, ".png"), (65535, ".png"), (255, ".jpg")][i % 3]
        kind = np.uint16 if depth > 255 else np.uint8
        cv2.imwrite(str(folder / f"{i}{suffix}"), (spread * depth).astype(kind))
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from two, and lose much beside other processes."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cohort_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training manifest of 16 drawn images: 8 to train on, 4 each in val and test."""
    pytest.importorskip("torch")
    from training_runs import rows, write

    folder = tmp_path_factory.mktemp("cohort")
    return write(folder / "manifest.parquet", rows(folder))


@pytest.fixture(scope="session")
def finished(cohort_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two epochs."""
    import torch
    from training_runs import QUIET, TINY

    from comit.model.train import train

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "run"
    train(cohort_manifest, out, TINY, device="cpu", test=True, console=QUIET)
    torch.set_num_threads(threads)
    return out
