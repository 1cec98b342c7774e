"""Readers of collections of DICOM files with boxes: SIIM-FISABIO-RSNA, VinDr-CXR, RSNA pneumonia.

Their boxes are in pixels of the published DICOM files. Each reader takes ``copies``, a folder of
PNG or JPEG copies of any size, named as the DICOM files are: then the manifest lists the copies,
and boxes are scaled to them. Patients, ages and sizes come from the DICOM headers all the same.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from comit.data.tables import Found, Row, as_number, one_file, table_rows, with_pictures
from comit.errors import ItemError, UsageError

Box = list[float]  # x, y, w, h in pixels

APPEARANCES: dict[str, tuple[bool, bool | None, bool | None]] = {  # healthy, covid, other
    "Negative for Pneumonia": (True, False, False),
    "Typical Appearance": (False, True, False),
    "Indeterminate Appearance": (False, None, None),
    "Atypical Appearance": (False, False, True),
}
RSNA_CLASSES = ("Normal", "Lung Opacity", "No Lung Opacity / Not Normal")
RSNA_PATIENTS = "pneumonia-challenge-dataset-mappings_2018.json"
NO_FINDING = "No finding"
VIEWS = {"PA": "PA", "AP": "AP"}


class Header(NamedTuple):
    """What is taken from a DICOM header."""

    patient: str  # empty where there is none
    age: float | None  # years
    sex: str | None
    view: str  # PA, AP or empty
    height: int
    width: int


@dataclass(frozen=True)
class Picture:
    """What the manifest lists, with the header of its DICOM file."""

    path: Path
    header: Header
    scale: tuple[float, float] = (1.0, 1.0)  # of x and y, from the DICOM file to ``path``

    def scaled(self, boxes: list[Box]) -> list[Box]:
        """Boxes in pixels of the DICOM file, in pixels of ``path``."""
        across, down = self.scale
        return [[x * across, y * down, w * across, h * down] for x, y, w, h in boxes]

    def row(self, source: str, patient: str) -> Row:
        """The part of a row that does not depend on labels."""
        return {
            "path": self.path,
            "source": source,
            "patient_id": f"{source}:{patient}",
            "view": self.header.view,
            "age": self.header.age,
            "sex": self.header.sex,
        }


class Pictures:
    """The pictures of a data set by their names without suffix."""

    def __init__(self, files: Iterable[Path], copies: Path | None) -> None:
        self.originals = _named(files, (".dcm", ".dicom"))
        self.copies: dict[str, Path] | None = None
        if copies is not None:
            self.copies = _named(copies.rglob("*"), (".png", ".jpg", ".jpeg"))

    def find(self, name: str) -> Picture | None:
        """None where the DICOM file, or its copy, is not there. Raises UsageError if unreadable."""
        original = self.originals.get(name)
        if original is None:
            return None
        if self.copies is None:
            return Picture(original, _header(original))
        copy = self.copies.get(name)
        if copy is None:
            return None
        header = _header(original)
        height, width = _size(copy)
        return Picture(copy, header, (width / header.width, height / header.height))


def _named(files: Iterable[Path], suffixes: tuple[str, ...]) -> dict[str, Path]:
    return {p.stem: p for p in sorted(files) if p.suffix.lower() in suffixes}


def siim(folder: Path, copies: Path | None = None) -> Found:
    """SIIM-FISABIO-RSNA COVID-19 (2021), as on Kaggle: ``train/STUDY/SERIES/IMAGE.dcm``,
    ``train_study_level.csv``, ``train_image_level.csv``.

    Labels are what radiologists call the *appearance*, not PCR: typical is COVID-19; negative and
    atypical are not; indeterminate is unknown. Healthy is "negative for pneumonia": another
    disease may be there. Negative studies have no boxes, and that is known; a picture without a
    box in another study may be the one of several that nobody drew in, which is unknown.
    The patient is the PatientID of the header, which ties studies together, or else the study.
    """
    studies = {}
    table = one_file(folder, "train_study_level.csv")
    for number, line in enumerate(table_rows(table, ("id", *APPEARANCES)), 2):
        called = [name for name in APPEARANCES if as_number(line[name]) == 1]
        if len(called) != 1:
            raise UsageError(f"{table}, row {number}: one of the four appearances must be 1")
        studies[line["id"].removesuffix("_study")] = called[0]
    listed = one_file(folder, "train_image_level.csv")
    lines = table_rows(listed, ("id", "boxes", "StudyInstanceUID"))
    pictures = Pictures(one_file(folder, "train").glob("*/*/*"), copies)
    rows: list[Row] = []
    for number, line in enumerate(lines, 2):
        study = line["StudyInstanceUID"]
        if study not in studies:
            raise UsageError(f"{listed}, row {number}: its study is not in {table.name}")
        boxes = _siim_boxes(line["boxes"], f"{listed}, row {number}, column 'boxes'")
        picture = pictures.find(line["id"].removesuffix("_image"))
        if picture is None:
            rows.append({"path": None})
            continue
        healthy, covid, other = APPEARANCES[studies[study]]
        rows.append(
            picture.row("siim", picture.header.patient or study)
            | {
                "finding": studies[study],
                "healthy": healthy,
                "covid": covid,
                "other": other,
                "disease_boxes": picture.scaled(boxes) if boxes or healthy else None,
                "label_basis": "appearance, radiologists",
                "license": "Kaggle SIIM-FISABIO-RSNA 2021: academic and non-commercial use; "
                "BIMCV CC BY 4.0; RICORD CC BY-NC 4.0",
            }
        )
    return with_pictures(rows)


def _siim_boxes(text: str, where: str) -> list[Box]:
    """Of ``[{'x': 1.5, 'y': 2, 'width': 3, 'height': 4}, ...]``; empty or nan is none."""
    if text.strip().lower() in ("", "nan"):
        return []
    try:
        listed = json.loads(text.replace("'", '"'))
        return [[float(b[k]) for k in ("x", "y", "width", "height")] for b in listed]
    except (ValueError, KeyError, TypeError):  # their words quote the cell
        raise UsageError(f"{where}: not a list of boxes with x, y, width and height") from None


def rsna_pneumonia(folder: Path, copies: Path | None = None) -> Found:
    """RSNA Pneumonia Detection Challenge (2018), as on Kaggle: ``stage_2_train_images/*.dcm``,
    ``stage_2_train_labels.csv``, ``stage_2_detailed_class_info.csv``; and RSNA's own
    ``pneumonia-challenge-dataset-mappings_2018.json``.

    The pictures are ChestX-ray14's, read again by radiologists. What Kaggle calls patientId is
    one picture: only the mapping tells the patients, so it must be there. Boxes draw opacities:
    a normal picture has none; one that is "not normal" without opacity has other disease, not
    drawn. Nobody has COVID-19: the pictures are older.
    """
    table = one_file(folder, "stage_2_detailed_class_info.csv")
    classes = {}
    for number, line in enumerate(table_rows(table, ("patientId", "class")), 2):
        if line["class"] not in RSNA_CLASSES:
            raise UsageError(f"{table}, row {number}: class is none of {', '.join(RSNA_CLASSES)}")
        classes[line["patientId"]] = line["class"]
    listed = one_file(folder, "stage_2_train_labels.csv")
    edges = ("x", "y", "width", "height")
    boxes: dict[str, list[Box]] = defaultdict(list)
    for number, line in enumerate(table_rows(listed, ("patientId", *edges, "Target")), 2):
        if as_number(line["Target"]) == 1:
            boxes[line["patientId"]].append(
                _box([line[k] for k in edges], f"{listed}, row {number}")
            )
    patients = _rsna_patients(folder)
    pictures = Pictures(one_file(folder, "stage_2_train_images").glob("*"), copies)
    rows: list[Row] = []
    for name, kind in classes.items():
        picture = pictures.find(name)
        if picture is None:
            rows.append({"path": None})
            continue
        if name not in patients:
            raise UsageError(f"{folder / RSNA_PATIENTS} does not have the picture {name}")
        healthy = kind == "Normal"
        drawn = kind == "Lung Opacity" and boxes[name]
        rows.append(
            picture.row("rsna-pneumonia", patients[name])
            | {
                "finding": kind,
                "healthy": healthy,
                "covid": False,
                "other": not healthy,
                "disease_boxes": [] if healthy else picture.scaled(drawn) if drawn else None,
                "label_basis": "radiologists (RSNA)",
                "license": "RSNA: with attribution, or Kaggle's rules; images: NIH",
            }
        )
    return with_pictures(rows)


def _rsna_patients(folder: Path) -> dict[str, str]:
    """Kaggle's patientId -> number of the patient in ChestX-ray14."""
    path = folder / RSNA_PATIENTS
    if not path.is_file():
        raise UsageError(
            f"{folder} has no {RSNA_PATIENTS}: it alone tells which pictures are of one patient; "
            "get it from RSNA's page of the challenge"
        )
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        # 00000013_005.png is the sixth picture of patient 13
        return {e["subset_img_id"]: str(int(e["img_id"].split("_")[0])) for e in listed}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{path} is not RSNA's list of subset_img_id and img_id") from None


def vindr(folder: Path, copies: Path | None = None) -> Found:
    """VinDr-CXR (Nguyen et al. 2022), as at PhysioNet (``annotations/annotations_train.csv``,
    ``annotations_test.csv``, ``image_labels_*.csv``; ``train``, ``test``) or as on Kaggle
    (``train.csv``, ``train``); pictures are ``IMAGE.dicom``.

    Three radiologists read each picture of train, five agreed on test. Healthy is where none of
    them found anything; unhealthy, where more than half did; between the two is unknown. A box
    counts where more than half of the readers name its finding, wherever they draw it: heart and
    aorta too, as in ChestX-ray14. Nobody has COVID-19: the pictures are older. All are PA; the
    files name no patient, so each picture is one of its own.
    """
    tables = sorted((folder / "annotations").glob("annotations_*.csv")) or [folder / "train.csv"]
    if not tables[0].is_file():
        raise UsageError(
            f"{folder} has neither annotations/annotations_train.csv (PhysioNet) nor train.csv "
            "(Kaggle)"
        )
    rows: list[Row] = []
    for table in tables:
        part = "test" if table.stem.endswith("test") else "train"
        pictures = Pictures((folder / part).glob("*"), copies)  # one may be left out
        for name, readings in _vindr_readings(table).items():
            picture = pictures.find(name)
            rows.append({"path": None} if picture is None else _vindr_row(picture, readings, part))
    return with_pictures(rows)


class Readings:
    """What the readers of one picture found."""

    def __init__(self) -> None:
        self.findings: dict[str, set[str]] = defaultdict(set)  # by reader; empty: no finding
        self.boxes: dict[str, list[Box]] = defaultdict(list)  # by finding

    def agreed(self) -> list[str]:
        """Findings that more than half of the readers name."""
        named = sorted(set().union(*self.findings.values()))
        readers = len(self.findings)
        return [f for f in named if 2 * sum(f in s for s in self.findings.values()) > readers]

    def unhealthy(self) -> bool | None:
        """True where more than half of the readers find anything, False where none does."""
        finders = sum(bool(s) for s in self.findings.values())
        return None if 0 < 2 * finders <= len(self.findings) else finders > 0


def _vindr_readings(table: Path) -> dict[str, Readings]:
    """Of a table of boxes, and of the table of labels beside it where there is one."""
    edges = ("x_min", "y_min", "x_max", "y_max")
    readings: dict[str, Readings] = defaultdict(Readings)
    for number, line in enumerate(table_rows(table, ("image_id", "class_name", *edges)), 2):
        here = readings[line["image_id"]]
        found = here.findings[line.get("rad_id", "")]  # test has none: the readers agreed
        name = line["class_name"]
        if name.lower() == NO_FINDING.lower():
            continue
        found.add(name)
        x, y, right, bottom = _box([line[k] for k in edges], f"{table}, row {number}")
        here.boxes[name].append([x, y, right - x, bottom - y])
    labels = table.with_name(table.name.replace("annotations_", "image_labels_"))
    if labels != table and labels.is_file():  # diseases of the whole picture have no box
        for line in table_rows(labels, ("image_id", NO_FINDING)):
            found = readings[line["image_id"]].findings[line.get("rad_id", "")]
            beside = ("image_id", "rad_id", NO_FINDING)
            found.update(k for k, v in line.items() if k not in beside and as_number(v) == 1)
    return readings


def _vindr_row(picture: Picture, readings: Readings, part: str) -> Row:
    unhealthy, agreed = readings.unhealthy(), readings.agreed()
    boxes = [box for name in agreed for box in readings.boxes[name]]
    named = agreed or sorted(set().union(*readings.findings.values()))
    known = "consensus of 5 radiologists" if part == "test" else "majority of 3 radiologists"
    return picture.row("vindr-cxr", picture.path.stem) | {
        "view": "PA",
        "finding": "|".join(named) or NO_FINDING,
        "healthy": None if unhealthy is None else not unhealthy,
        "covid": False,
        "other": unhealthy,
        "disease_boxes": picture.scaled(boxes) if boxes else None if named else [],
        "label_basis": known,
        "license": "PhysioNet Credentialed Health Data License 1.5.0, or Kaggle's rules",
    }


def _box(cells: list[str], where: str) -> Box:
    numbers = [v for v in map(as_number, cells) if v is not None]
    if len(numbers) < 4:
        raise UsageError(f"{where}: four numbers make a box")
    return numbers


def _header(path: Path) -> Header:
    """Raises UsageError where the file is no DICOM picture."""
    from pydicom import dcmread

    tags = ["PatientID", "PatientAge", "PatientSex", "ViewPosition", "Rows", "Columns"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values
            ds = dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
            said: dict[str, Any] = {tag: ds.get(tag) for tag in tags}
        height, width = int(said["Rows"]), int(said["Columns"])
        if height < 1 or width < 1:
            raise ValueError
    except Exception:  # of any kind, as pydicom's are; and quoting values
        raise UsageError(f"{path} cannot be read as a DICOM picture; get it again") from None
    return Header(
        patient=str(said["PatientID"] or "").strip(),
        age=_years(str(said["PatientAge"] or "")),
        sex=str(said["PatientSex"] or "").strip() or None,
        view=VIEWS.get(str(said["ViewPosition"] or "").strip().upper(), ""),
        height=height,
        width=width,
    )


def _years(text: str) -> float | None:
    """Years of an Age String such as 061Y or 018M (PS3.5 6.2)."""
    text = text.strip().upper()
    unit = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}.get(text[-1:])
    value = as_number(text if unit is None else text[:-1])
    return None if value is None else value / (unit or 1.0)


def _size(path: Path) -> tuple[int, int]:
    """Height and width of a PNG or JPEG."""
    from comit.image import open_image

    try:
        image = open_image(path.read_bytes())
    except (OSError, ItemError) as error:
        reason = error.reason if isinstance(error, ItemError) else "not readable"
        raise UsageError(f"{path}: {reason}; make the copy again") from error
    return image.height, image.width
