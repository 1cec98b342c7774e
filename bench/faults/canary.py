"""A name planted wherever a name could stand, and every place where it must not be found."""

from __future__ import annotations

import os
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset

from comit.bench.faults.dicoms import dataset, write
from comit.bench.faults.process import run
from comit.errors import ComitError
from comit.results import STAGING
from comit.run.target import RUN

NAME = "CANARYBIRD"
TEXT = ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT", "CS", "AS", "DA", "TM", "DT")
DECIDE = {  # what decides whether and how a file is decoded: planted in a file of its own
    *("Modality", "BodyPartExamined", "ViewPosition", "PhotometricInterpretation"),
    *("PresentationLUTShape", "VOILUTFunction", "SpecificCharacterSet", "BurnedInAnnotation"),
    *("PatientOrientation", "LossyImageCompression"),
}
ROWS = 600  # two shards


@dataclass
class Searched:
    """What was looked through, and where the name was."""

    tags: int = 0
    runs: int = 0
    files: int = 0
    found: tuple[str, ...] = ()


def planted(deciding: bool) -> tuple[bytes, int]:
    """A DICOM file with the name in every text tag of the dictionary, and their number."""
    ds = dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are no dates
        count = _plant(ds, deciding)
        return write(ds), count


def _plant(ds: Dataset, deciding: bool) -> int:
    count = 0
    for tag, (vr, _, _, retired, _) in DicomDictionary.items():
        keyword = keyword_for_tag(tag)
        if vr not in TEXT or tag >> 16 <= 2 or retired or not keyword:
            continue
        if (keyword in DECIDE) and not deciding:
            continue
        value = f"{NAME}^{keyword}"[:16] if vr in ("AE", "SH", "CS") else f"{NAME}^{keyword}"
        ds.add_new(tag, vr if vr not in ("DA", "TM", "DT", "AS", "CS") else "LO", value)
        ds[tag].VR = vr
        count += 1
    return count


def search(work: Path) -> Searched:
    """Screens with every kind of identifiers, whole and interrupted, and looks for the name."""
    done = Searched()
    for mode in ("plain", "hashed", "none"):
        secret = NAME if mode != "plain" else "item"
        for manifest in (False, True):
            folder = work / f"{mode}-{manifest:d}"
            source = _source(folder / "in" / secret, secret, manifest, done)
            _watch(folder, source, mode, done)
    return done


def _source(root: Path, name: str, manifest: bool, done: Searched) -> Path:
    root.mkdir(parents=True)
    good, done.tags = planted(deciding=False)
    (root / f"{name}.dcm").write_bytes(good)
    (root / f"{name}-odd.dcm").write_bytes(planted(deciding=True)[0])
    (root / f"{name}-cut.dcm").write_bytes(good[:-2000])
    (root / f"{name}-not.txt").write_text(NAME)
    (root / f"{name}-away").symlink_to(f"/nowhere/{name}")
    if not manifest:
        for i in range(ROWS):
            os.link(root / f"{name}.dcm", root / f"{name}-{i}.dcm")
        return root
    files = sorted(p.name for p in root.iterdir())
    paths = [files[i % len(files)] for i in range(ROWS)]
    table = pa.table(
        {"path": paths, "id": [f"{name}{i}" for i in range(ROWS)], "who": [name] * ROWS}
    )
    pq.write_table(table, root / "manifest.parquet")
    return root / "manifest.parquet"


def _watch(folder: Path, source: Path, mode: str, done: Searched) -> None:
    """An interrupted and a resumed run, a second night, a refusal; then looks at all they left."""
    scratch, results = folder / "tmp", folder / "out" / "r"
    scratch.mkdir()
    (folder / "out").mkdir()
    key = folder / "key"
    key.write_text("0123456789abcdef" * 2)
    key.chmod(0o600)
    said = []
    command = ["screen", source, "--out", f"{results}/", "--identifiers", mode]
    command += ["--key", key] * (mode == "hashed")
    command += ["--log-format", "json", "--report", folder / "out" / "report.json"]
    command += ["--metrics-file", folder / "out" / "m.prom", "--workers", "1"]
    env = {"TMPDIR": str(scratch)}
    staging = folder / "out" / "r" / STAGING
    begun, part = ((staging / name).exists for name in (RUN, "part-00000.parquet"))
    for when, number in ((begun, signal.SIGKILL), (part, signal.SIGTERM), (None, 0), (None, 0)):
        ended = run(command, kill_when=when, signal=number, env=env)
        said.append(ended.said)
        done.runs += 1
        _look(folder / "out", scratch, mode, done)
    if ended.exit_code != 0 and ended.exit_code != 3:
        raise ComitError(f"the run to be searched failed: {ended.said}")
    said.append(
        run([*command, "--masks", "none", "--restart", "--view-policy", "all"], env=env).said
    )
    done.runs += 1
    if any(NAME in text for text in said):
        done.found += (f"{mode}: messages",)


def _look(out: Path, scratch: Path, mode: str, done: Searched) -> None:
    for path in sorted((*out.rglob("*"), *scratch.rglob("*"))):
        if path.is_file():
            done.files += 1
            if holds(path):
                done.found += (f"{mode}: {path.relative_to(out.parent)}",)
        if NAME in path.relative_to(out.parent).as_posix():
            done.found += (f"{mode}: a name",)


def holds(path: Path) -> bool:
    """Whether a file holds the name, in its bytes or, if it is Parquet, in any value."""
    if NAME.encode() in path.read_bytes():
        return True
    try:
        rows = pq.read_table(path)
    except (OSError, pa.ArrowException):
        return False
    return NAME in str(rows.schema.metadata) or NAME in str(rows.to_pydict())
