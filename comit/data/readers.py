"""Readers of published layouts: a folder in, rows of a training manifest out.

A row is a dictionary: ``path`` (absolute), ``source``, ``patient_id``, ``view`` (PA, AP, AP
Supine), ``finding`` (the source's words), ``healthy``, ``covid``, ``other`` (True, False, or None
for unknown), and where the source has them ``lung_boxes``, ``disease_boxes`` (lists of
[x, y, w, h] in the picture's pixels; an empty list says that somebody looked and found nothing),
``lung_mask``, ``disease_mask``, ``ignore_mask`` (paths; the last is where the lungs' outline says
nothing), ``age`` (years), ``sex``, ``label_basis`` (who or what the labels come from), ``license``.

Here are the readers of tables and of folders; :mod:`.boxed` has those of DICOM files with boxes,
:mod:`.outlined` those that draw outlines of lungs into PNG files.

All raise UsageError naming the file or column that is missing, or the row and column that cannot
be read, never what stands there: it may name somebody. Row 1 is the header. Rows whose picture is
not there are left out, as parts of these collections often are; how many is the second value
returned.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal

from comit.data.boxed import rsna_pneumonia, siim, vindr
from comit.data.outlined import draw, jsrt, nlm_tuberculosis
from comit.data.tables import Found, Row, as_number, one_file, table_rows, with_pictures
from comit.errors import UsageError

Uncertain = Literal["ignore", "positive", "negative"]

FRONTAL = {"PA": "PA", "AP": "AP", "AP SUPINE": "AP Supine", "APS": "AP Supine", "AP ERECT": "AP"}
PICTURES = {".png", ".jpg", ".jpeg", ".dcm"}
CHEXPERT_FINDINGS = (  # train.csv's columns that are findings of the chest
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
)
LESIONS = ("ground glass", "consolidation", "pleural effusion", "pneumothorax")
LUNGS = ("left lung", "right lung")


def chestxray14(folder: Path) -> Found:
    """ChestX-ray14 (Wang et al., CVPR 2017): ``Data_Entry_2017*.csv``, ``images*/``, boxes.

    Unhealthy is every label but No Finding. Boxes of ``BBox_List_2017.csv`` are in pixels of the
    published 1024 x 1024 pictures. Nobody has COVID-19: the pictures are older.
    """
    table = table_rows(one_file(folder, "Data_Entry_2017*.csv"), ("Image Index", "Finding Labels"))
    boxes: dict[str, list[list[float]]] = defaultdict(list)
    for listed in folder.glob("BBox_List_2017*.csv"):
        with listed.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)  # the header splits "Bbox [x,y,w,h]" at its commas
            next(lines, None)
            for number, line in enumerate(filter(None, lines), 2):
                box = [as_number(v) for v in line[2:6]]
                if len(box) < 4 or None in box:
                    raise UsageError(f"{listed}, row {number}: four numbers make a box")
                boxes[line[0]].append([v for v in box if v is not None])
    pictures = _pictures(folder)

    def row(line: dict[str, str]) -> Row:
        name = line["Image Index"]
        healthy = line["Finding Labels"] == "No Finding"
        return {
            "path": pictures.get(name),
            "source": "ChestX-ray14",
            "patient_id": f"ChestX-ray14:{line['Patient ID']}",
            "view": line["View Position"],
            "finding": line["Finding Labels"],
            "healthy": healthy,
            "covid": False,
            "other": not healthy,
            "disease_boxes": boxes.get(name),
            "age": as_number(line.get("Patient Age", "").rstrip("Y")),
            "sex": line.get("Patient Gender") or line.get("Patient Sex"),
        }

    return with_pictures(row(line) for line in table)


def chexpert(folder: Path, uncertain: Uncertain = "ignore") -> Found:
    """CheXpert (Irvin et al., AAAI 2019): frontal pictures of ``train.csv`` and ``valid.csv``.

    Healthy is No Finding; unhealthy is at least one of the twelve findings (devices are none).
    A finding of -1 is uncertain: ``positive`` counts it as present, ``negative`` as absent, and
    ``ignore`` as neither, so that a picture with doubts alone is not healthy. Pictures that are
    then neither healthy nor unhealthy are left out.
    """
    rows = []
    for table in (one_file(folder, "train.csv"), *folder.glob("valid.csv")):
        for line in table_rows(table, ("Path", "Frontal/Lateral", "AP/PA", "No Finding")):
            if line["Frontal/Lateral"] != "Frontal":
                continue
            values = {k: as_number(line.get(k)) for k in CHEXPERT_FINDINGS}
            present = {1.0} | ({-1.0} if uncertain == "positive" else set())
            found = [k for k, v in values.items() if v in present]
            healthy = not found and as_number(line["No Finding"]) == 1
            doubtful = uncertain == "ignore" and -1.0 in values.values()
            if found or (healthy and not doubtful):
                rows.append(_chexpert_row(folder, line, found, healthy))
    return with_pictures(rows)


def _chexpert_row(folder: Path, line: dict[str, str], found: list[str], healthy: bool) -> Row:
    parts = Path(line["Path"]).parts  # CheXpert-v1.0-small/train/patient00001/study1/view1_...
    patient = next((p for p in parts if p.startswith("patient")), line["Path"])
    here = [folder.joinpath(*parts[i:]) for i in (0, 1)]
    return {
        "path": next((p for p in here if p.is_file()), None),
        "source": "CheXpert",
        "patient_id": f"CheXpert:{patient}",
        "view": line["AP/PA"],
        "finding": "|".join(found) or "No Finding",
        "healthy": healthy,
        "covid": False,
        "other": not healthy,
        "age": as_number(line.get("Age")),
        "sex": line.get("Sex"),
    }


def covid_chestxray(folder: Path, outlines: Path | None = None, masks: Path | None = None) -> Found:
    """covid-chestxray-dataset (Cohen et al., arXiv 2003.11597): frontal X-rays of metadata.csv.

    Lung boxes come from ``annotations/imageannotation_ai_lung_bounding_boxes.json`` (COCO), which
    radiologists drew. ``outlines`` is General Blockchain's COCO file of segmentations: outlines
    of lungs and lesions are drawn into PNG files in the folder ``masks``, which it then needs.
    Findings that are "todo" or "Unknown" leave the labels unknown.
    """
    lines = table_rows(
        one_file(folder, "metadata.csv"), ("patientid", "finding", "view", "filename")
    )
    listed = folder / "annotations" / "imageannotation_ai_lung_bounding_boxes.json"
    boxes: dict[str, list[list[float]]] = defaultdict(list)
    if listed.exists():
        for name, annotation, _ in _coco(listed):
            boxes[name].append([float(v) for v in annotation["bbox"]])
    drawn = _outlines(outlines, masks) if outlines is not None else {}
    rows = []
    for line in lines:
        view = FRONTAL.get(line["view"].strip().upper())
        if view is None or line.get("modality", "X-ray") != "X-ray":
            continue
        words = line["finding"].split("/")[-1].strip()
        known = words.lower() not in ("", "todo", "unknown", "n/a")
        healthy = words.lower() == "no finding"
        covid = "covid-19" in line["finding"].lower()
        path = folder / (line.get("folder") or "images") / line["filename"]
        rows.append(
            {
                "path": path if path.is_file() else None,
                "source": "covid-chestxray",
                "patient_id": f"covid-chestxray:{line['patientid']}",
                "view": view,
                "finding": words,
                "healthy": healthy if known else None,
                "covid": covid if known else None,
                "other": (not healthy and not covid) if known else None,
                "lung_boxes": boxes.get(line["filename"]),
                **drawn.get(line["filename"], {}),
                "age": as_number(line.get("age")),
                "sex": line.get("sex") or None,
                "license": line.get("license") or None,
                "url": line.get("url") or None,
            }
        )
    return with_pictures(rows)


def collection(folder: Path, table: Path, source: str) -> Found:
    """Any folder with a CSV: SIRM, Eurorad, BSTI, Radiopaedia, the Spanish collection.

    Columns: ``filename`` (below ``folder``); optional ``patient`` (else each picture is its own),
    ``view``, ``finding``. Without ``finding`` all are COVID-19: these collections were gathered
    for it. A view other than PA and AP is left out; an empty one is kept. A finding that says
    COVID-19 and a negation is refused; todo, unknown and the like are unknown.
    """
    rows = []
    for number, line in enumerate(table_rows(table, ("filename",)), 2):
        words = line.get("view", "").strip()
        view = FRONTAL.get(words.upper(), "")
        if words and not view:
            continue
        finding = line.get("finding", "COVID-19").strip()
        healthy, covid = _said(finding, f"{table}, row {number}, column 'finding'")
        path = folder / line["filename"]
        rows.append(
            {
                "path": path if path.is_file() else None,
                "source": source,
                "patient_id": f"{source}:{line.get('patient') or line['filename']}",
                "view": view,
                "finding": finding,
                "healthy": healthy,
                "covid": covid,
                "other": None if healthy is None else not healthy and not covid,
            }
        )
    return with_pictures(rows)


def _said(finding: str, where: str) -> tuple[bool | None, bool | None]:
    """Healthy and COVID-19 by a finding's words, None where they say neither.

    Raises UsageError for COVID-19 beside a negation, which may be health or another disease.
    """
    words = finding.lower()
    if words in ("", "todo", "unknown", "n/a", "na", "none"):
        return None, None
    covid = "covid" in words
    if covid and set(re.split(r"[^a-z]+", words)) & {"no", "non", "not", "without", "negative"}:
        raise UsageError(
            f"{where}: COVID-19 beside a negation; write Normal, or the other disease's name"
        )
    return words in ("no finding", "normal", "healthy"), covid


def bimcv(folder: Path) -> Found:
    """BIMCV-COVID19+ (de la Iglesia Vayá et al., arXiv 2006.01174), labelled as in 4.4.

    Pictures are ``sub-*/ses-*/mod-rx/*_vp-{ap,pa}_*.png``; days come from the ``*sessions.tsv``
    (``session_id``, ``study_date`` as 20200317), tests from ``derivatives/EHR/*.tsv``
    (``participant``, ``date`` as 17.03.2020, ``result``). The paper trains on none of them.
    A picture without COVID-19 has no other label: its report is not read.
    """
    tables = sorted((folder / "derivatives" / "EHR").glob("*.tsv"))
    if not tables:
        raise UsageError(f"{folder} has no table of tests: derivatives/EHR/*.tsv")
    tests: dict[str, list[tuple[date, bool]]] = defaultdict(list)
    for table in tables:
        for number, line in enumerate(table_rows(table, ("participant", "date", "result")), 2):
            if line["result"] in ("POSITIVO", "NEGATIVO"):
                done = _day(line["date"], "%d.%m.%Y", f"{table}, row {number}, column 'date'")
                tests[line["participant"]].append((done, line["result"] == "POSITIVO"))
    days: dict[str, date] = {}
    for table in sorted(folder.rglob("*sessions.tsv")):
        for number, line in enumerate(table_rows(table, ("session_id", "study_date")), 2):
            if digits := line["study_date"].split(".")[0]:
                where = f"{table}, row {number}, column 'study_date'"
                days[line["session_id"]] = _day(digits, "%Y%m%d", where)
    rows = []
    for path in sorted(folder.glob("sub-*/ses-*/mod-rx/*")):
        view = next((v for v in ("PA", "AP") if f"_vp-{v.lower()}" in path.name), None)
        if path.suffix.lower() not in PICTURES or view is None:
            continue
        subject, session = path.parts[-4], path.parts[-3]
        covid = bimcv_label(days.get(session), tests.get(subject, []))
        rows.append(
            {
                "path": path,
                "source": "BIMCV-COVID19+",
                "patient_id": f"BIMCV-COVID19+:{subject}",
                "view": view,
                "finding": {True: "COVID-19", False: "COVID-19 negative", None: ""}[covid],
                "healthy": False if covid else None,
                "covid": covid,
                "other": False if covid else None,
            }
        )
    return with_pictures(rows)


def _day(text: str, form: str, where: str) -> date:
    try:
        return datetime.strptime(text.strip(), form).date()
    except ValueError:  # its words quote the cell
        raise UsageError(f"{where}: not a date like {date(2020, 3, 17):{form}}") from None


def bimcv_label(taken: date | None, tests: list[tuple[date, bool]]) -> bool | None:
    """Section 4.4: negative if the nearest test is, or the nearest positive one is 14 days away.

    ``tests`` are (day, positive). None without a day or a test. Of a positive and a negative test
    on days equally near, the positive one counts: the paper asks for closer to a negative one.
    """
    if taken is None or not tests:
        return None
    positive = [abs((taken - day).days) for day, result in tests if result]
    negative = [abs((taken - day).days) for day, result in tests if not result]
    if not positive or min(positive) >= 14:
        return False
    return not negative or min(negative) >= min(positive)


def radiography(folder: Path) -> Found:
    """COVID-19 Radiography Database (Chowdhury et al.): ``COVID``, ``Normal``, ``Lung_Opacity``
    and ``Viral Pneumonia``, each with ``images`` and ``masks`` (of the lungs, generated).

    It names no patients and no views, and gathers other collections, covid-chestxray among them:
    each picture is taken for a patient of its own, which its makers do not promise.
    """
    rows = []
    kinds = {"COVID": "COVID-19", "Normal": "Normal", "Lung_Opacity": "Lung opacity"}
    for kind, finding in {**kinds, "Viral Pneumonia": "Viral pneumonia"}.items():
        for path in sorted((folder / kind / "images").glob("*.png")):
            mask = folder / kind / "masks" / path.name
            rows.append(
                {
                    "path": path,
                    "source": "COVID-19 Radiography",
                    "patient_id": f"COVID-19 Radiography:{path.stem}",
                    "view": "",
                    "finding": finding,
                    "healthy": kind == "Normal",
                    "covid": kind == "COVID",
                    "other": kind not in ("Normal", "COVID"),
                    "lung_mask": mask if mask.is_file() else None,
                }
            )
    if not rows:
        raise UsageError(f"{folder} has none of {', '.join(kinds)} with a folder images")
    return with_pictures(rows)


def _outlines(listed: Path, masks: Path | None) -> dict[str, dict[str, Path]]:
    """Draws COCO outlines as PNG; file name -> ``lung_mask``, ``disease_mask``."""
    import numpy as np
    from pycocotools import mask as coco

    if masks is None:
        raise UsageError("outlines are drawn into PNG files; say into which folder")
    areas: dict[tuple[str, str], Any] = {}
    for name, annotation, category in _coco(listed):
        kinds = {"lung_mask": LUNGS, "disease_mask": LESIONS}
        for kind in (k for k, words in kinds.items() if category.lower().startswith(words)):
            height, width = annotation["size"]
            outline = annotation["segmentation"]
            encoded = (
                coco.merge(coco.frPyObjects(outline, height, width))
                if isinstance(outline, list)
                else coco.frPyObjects(outline, height, width)
                if isinstance(outline["counts"], list)
                else outline
            )
            area = np.asarray(coco.decode(encoded), np.uint8)
            before = areas.get((name, kind))
            areas[name, kind] = area if before is None else before | area
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for (name, kind), area in areas.items():
        path = masks / f"{Path(name).stem}.{kind.removesuffix('_mask')}.png"
        draw(path, area * 255)
        found[name][kind] = path
    return found


def _coco(path: Path) -> Iterable[tuple[str, dict[str, Any], str]]:
    """File name, annotation (with ``size`` [height, width]) and category of each annotation."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        images = {i["id"]: i for i in data["images"]}
        categories = {c["id"]: str(c["name"]) for c in data["categories"]}
        for annotation in data["annotations"]:
            image = images[annotation["image_id"]]
            sized = annotation | {"size": [image["height"], image["width"]]}
            yield image["file_name"], sized, categories[annotation["category_id"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a COCO file of annotations") from error


def _pictures(folder: Path) -> dict[str, Path]:
    """File name -> path of every PNG below folders whose name begins with ``images``."""
    return {p.name: p for part in sorted(folder.glob("images*")) for p in part.rglob("*.png")}


def kermany(folder: Path) -> Found:
    """Kermany's children (Cell 2018): ``train``, ``test`` and ``val``, in each ``NORMAL``,
    ``PNEUMONIA``. One to five years old, frontal (AP), before COVID-19; two physicians' labels.

    The published split is not taken over: its val has 16 pictures, and the number in the name
    tells whose a picture is (``person1_bacteria_1``, ``IM-0115-0001``; ``BACTERIA-1001259-0001``
    at Mendeley). One number is one patient wherever it stands, so that no child is split; a name
    without one is a patient of its own.
    """
    for kind in ("NORMAL", "PNEUMONIA"):
        one_file(folder, f"train/{kind}")
    rows = []
    found = (
        p for part in ("train", "test", "val") for p in sorted(folder.glob(f"{part}/*/*.jp*g"))
    )
    for path in found:
        healthy = path.parent.name == "NORMAL"
        if path.name.startswith(".") or not (healthy or path.parent.name == "PNEUMONIA"):
            continue  # a Mac's notes
        cause = re.search("bacteria|virus", path.stem.lower())
        pneumonia = {"bacteria": "Bacterial pneumonia", "virus": "Viral pneumonia"}
        finding = pneumonia[cause[0]] if cause else "Pneumonia"
        number = re.match(r"(?:NORMAL2-)?(person\d+|IM-\d+)[_-]|[A-Z]+-(\d+)-", path.stem)
        child = next(filter(None, number.groups())) if number else path.stem
        rows.append(
            {
                "path": path,
                "source": "kermany-children",
                "patient_id": f"kermany:{child}",
                "view": "AP",
                "finding": "Normal" if healthy else finding,
                "healthy": healthy,
                "covid": False,
                "other": not healthy,
                "disease_boxes": [] if healthy else None,
                "label_basis": "two physicians",
                "license": "CC BY 4.0",
            }
        )
    return with_pictures(rows)


# Readers of a folder alone
READERS: dict[str, Callable[[Path], Found]] = {
    "chestxray14": chestxray14,
    "bimcv": bimcv,
    "radiography": radiography,
    "kermany": kermany,
}
# and of copies of its pictures
BOXED: dict[str, Callable[[Path, Path | None], Found]] = {
    "siim": siim,
    "vindr": vindr,
    "rsna-pneumonia": rsna_pneumonia,
}
# and the folder of the manifest, to draw into
OUTLINED: dict[str, Callable[[Path, Path], Found]] = {
    "nlm-tuberculosis": nlm_tuberculosis,
    "jsrt": jsrt,
}
