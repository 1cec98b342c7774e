"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest


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
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported .onnx with its card: width 0.125, random weights, scores that vary by image."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from comit.card import Card, OperatingPoint
    from comit.export.to_onnx import export_onnx
    from comit.model.network import COMiTNet, NetworkConfig

    torch.manual_seed(0)
    network = COMiTNet(NetworkConfig(width=0.125, mean=0.45, std=0.3)).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.running_mean, 0.0, 0.1)
            torch.nn.init.uniform_(layer.running_var, 0.05, 0.4)
            torch.nn.init.uniform_(layer.weight, 0.6, 1.4)
            torch.nn.init.normal_(layer.bias, 0.0, 0.1)
    card = Card(
        name="tiny",
        sha256="",
        width=0.125,
        mean=0.45,
        std=0.3,
        operating_points={
            "90": OperatingPoint(0.5, 0.5, {"unhealthy": 10, "covid": 10}),
            "99": OperatingPoint(0.9, 0.9, {"unhealthy": 10, "covid": 10}),
        },
    )
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    export_onnx(network, card, path)
    return path


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
