"""The faults that a run must survive, a few of each; the long form is ``comit.bench faults``."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from random import Random

import pytest

from comit.bench.faults import Extent, dicoms, everything, fuzz
from comit.errors import ItemError
from comit.image.header import quiet, read_header


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
@pytest.mark.parametrize("files", [50, pytest.param(300, marks=pytest.mark.nightly)])
def test_mutated_real_files_lose_nothing(shared, files):
    folders = [shared / name for name in ("dicom", "originals", "cxr/images")]
    figures = list(everything(Extent(fuzzed=files), folders, ("mutated",)))
    assert figures and all(figure.passed for figure in figures), figures


def test_a_mutated_file_can_be_made_again_and_headers_are_changed_in_every_encoding(tmp_path):
    syntaxes = (dicoms.IMPLICIT, dicoms.EXPLICIT, dicoms.DEFLATED, dicoms.BIG_ENDIAN)
    for i, syntax in enumerate(syntaxes):
        (tmp_path / str(i)).write_bytes(dicoms.make(syntax=syntax))
    start = fuzz.seeds([tmp_path])
    assert set(start) == set(syntaxes)
    assert fuzz.mutant(start, 0, 7) == fuzz.mutant(start, 0, 7) != fuzz.mutant(start, 1, 7)
    for files in start.values():
        changed = 0
        for number in range(40):
            data = fuzz._header(files[0], Random(number))
            with suppress(ItemError), quiet():
                changed += read_header(data).elements != read_header(files[0]).elements
        assert changed > 5
