"""The faults that a run must survive, a few of each; the long form is ``comit.bench faults``."""

from __future__ import annotations

import subprocess

import pytest

from comit.bench.faults import SHORT, Extent, everything


def made(kind, folders=(), extent=SHORT):
    figures = list(everything(extent, list(folders), (kind,)))
    assert figures
    for figure in figures:
        assert figure.passed, figure


@pytest.mark.parametrize(
    "kind",
    [
        *("steps", "kills", "failing", "races", "footers", "model"),
        *("zoo", "mutated", "names", "archive"),
    ],
)
def test_nothing_is_lost(kind):
    made(kind)


def test_a_full_disk_loses_nothing(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no tmpfs can be mounted here; as root, or in unshare -rm, one can")
    subprocess.run(["umount", str(tmp_path)], check=True)
    made("full")


@pytest.mark.real
def test_mutated_real_files_lose_nothing(shared):
    made("mutated", [shared / "dicom", shared / "originals"], Extent(fuzzed=1000))
