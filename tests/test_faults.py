"""The faults that a run must survive, a few of each; the long form is ``comit.bench faults``."""

from __future__ import annotations

import subprocess
import sys

import pytest

from comit.bench.faults import Extent, everything


def made(kind):
    """In a process of its own: faults fork, and a fork of what has run networks may never end."""
    command = [sys.executable, "-m", "comit", "bench", "faults", "--short", "--only", kind]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "ok " in done.stdout, done.stdout + done.stderr


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
    folders = [shared / "dicom", shared / "originals"]
    figures = list(everything(Extent(fuzzed=1000), folders, ("mutated",)))
    assert figures and all(figure.passed for figure in figures), figures
