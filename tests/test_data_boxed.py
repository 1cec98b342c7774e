"""Collections of DICOM files with boxes, drawn small: labels, patients, boxes, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from comit.bench.faults import dicoms
from comit.cli import main
from comit.data.boxed import Readings, rsna_pneumonia, siim, vindr
from comit.data.tables import Found, Row
from comit.errors import UsageError
from comit.model.data import load, read_manifest

HEIGHT, WIDTH = 400, 320


def dicom(path: Path, patient: str = "", **tags: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = dicoms.picture(HEIGHT, WIDTH)
    ds = dicoms.dataset(stored, PatientID=patient, PatientName="Doe^Jane", **tags)
    path.write_bytes(dicoms.write(ds))
    return path


def copy(path: Path, height: int, width: int) -> None:
    """A reduced picture; what it shows does not matter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.add.outer(np.arange(height), np.arange(width)) % 256
    cv2.imwrite(str(path), ramp.astype(np.uint8))


def named(found: Found) -> dict[str, Row]:
    return {r["path"].stem: r for r in found[0]}


def labels(row: Row) -> tuple[bool | None, ...]:
    return row["healthy"], row["covid"], row["other"]


STUDIES = "id,Negative for Pneumonia,Typical Appearance,Indeterminate Appearance,"
STUDIES += "Atypical Appearance\n"
STUDIES += "s1_study,0,1,0,0\ns2_study,1,0,0,0\ns3_study,0,0,1,0\ns4_study,0,0,0,1\n"
BOX = "{'x': 20.5, 'y': 40, 'width': 30, 'height': 100}"


@pytest.fixture
def kaggle_siim(tmp_path: Path) -> Path:
    folder = tmp_path / "siim"
    for study, image, patient in (
        ("s1", "a", "p1"),
        ("s1", "b", "p1"),
        ("s2", "c", "p1"),
        ("s3", "d", "p2"),
        ("s4", "e", ""),
    ):
        tags = {"PatientAge": "061Y", "PatientSex": "F", "ViewPosition": None}
        dicom(folder / "train" / study / f"series-{image}" / f"{image}.dcm", patient, **tags)
    (folder / "train_study_level.csv").write_text(STUDIES)
    (folder / "train_image_level.csv").write_text(
        "id,boxes,label,StudyInstanceUID\n"
        f'a_image,"[{BOX}, {BOX}]",opacity 1 20.5 40 50.5 140 opacity 1 20.5 40 50.5 140,s1\n'
        "b_image,,none 1 0 0 1 1,s1\n"
        "c_image,,none 1 0 0 1 1,s2\n"
        f'd_image,"[{BOX}]",opacity 1 20.5 40 50.5 140,s3\n'
        f'e_image,"[{BOX}]",opacity 1 20.5 40 50.5 140,s4\n'
        "gone_image,,none 1 0 0 1 1,s2\n"
    )
    return folder


def test_siim_calls_the_appearance(kaggle_siim: Path) -> None:
    found = siim(kaggle_siim)
    rows = named(found)
    assert found[1] == 1  # gone.dcm
    assert labels(rows["a"]) == (False, True, False)
    assert labels(rows["c"]) == (True, False, False)
    assert labels(rows["d"]) == (False, None, None)  # indeterminate
    assert labels(rows["e"]) == (False, False, True)
    assert rows["a"]["finding"] == "Typical Appearance"
    assert {r["label_basis"] for r in rows.values()} == {"appearance, radiologists"}
    assert (rows["a"]["age"], rows["a"]["sex"], rows["a"]["view"]) == (61.0, "F", "")


def test_siim_boxes_are_drawn_known_to_be_none_or_unknown(kaggle_siim: Path) -> None:
    rows = named(siim(kaggle_siim))
    assert rows["a"]["disease_boxes"] == [[20.5, 40, 30, 100]] * 2
    assert rows["c"]["disease_boxes"] == []  # negative: there is nothing to draw
    assert rows["b"]["disease_boxes"] is None  # typical, and nobody drew in this one of two


def test_siim_patients_are_those_of_the_headers(kaggle_siim: Path) -> None:
    rows = named(siim(kaggle_siim))
    assert rows["a"]["patient_id"] == rows["c"]["patient_id"] == "siim:p1"  # of two studies
    assert rows["e"]["patient_id"] == "siim:s4"  # no PatientID: the study


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("train_study_level.csv", "Atypical Appearance", "Else", "lacks the column 'Atypical"),
        ("train_image_level.csv", "boxes", "opacities", "lacks the column 'boxes'"),
        ("train_study_level.csv", "s2_study,1", "s2_study,0", "row 3: one of the four"),
        ("train_study_level.csv", "s4_study", "s5_study", "row 6: its study is not in"),
        ("train_image_level.csv", "'width': 30", "'Doe': 30", "row 2, column 'boxes': not a"),
    ],
)
def test_what_is_wrong_with_siims_tables_is_said(
    file: str, old: str, new: str, words: str, kaggle_siim: Path
) -> None:
    table = kaggle_siim / file
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(UsageError, match=words) as refused:
        siim(kaggle_siim)
    assert "Doe" not in str(refused.value)


def test_a_broken_dicom_file_is_named_without_its_patient(kaggle_siim: Path) -> None:
    path = kaggle_siim / "train" / "s1" / "series-a" / "a.dcm"
    path.write_bytes(b"Doe^Jane" * 100)
    with pytest.raises(UsageError, match=r"a\.dcm cannot be read as a DICOM picture") as refused:
        siim(kaggle_siim)
    assert "Doe" not in str(refused.value)


def test_boxes_are_scaled_to_copies(kaggle_siim: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copy(copies / "a.png", HEIGHT // 2, WIDTH // 4)  # squeezed, as some copies are
    copy(copies / "deep" / "c.jpg", 64, 64)
    rows, missing = siim(kaggle_siim, copies)
    assert missing == 4  # b, d and e have no copy, gone has nothing
    by_name = {r["path"].name: r for r in rows}
    assert by_name["a.png"]["disease_boxes"] == [[20.5 / 4, 20, 7.5, 50]] * 2
    assert by_name["c.jpg"]["disease_boxes"] == []
    assert by_name["a.png"]["patient_id"] == by_name["c.jpg"]["patient_id"] == "siim:p1"


def test_training_sees_boxes_in_their_place_in_files_and_in_copies(
    kaggle_siim: Path, tmp_path: Path
) -> None:
    copies = tmp_path / "copies"
    for name in "abcde":
        copy(copies / f"{name}.png", 100, 64)
    masks = []
    for options in ([], ["--copies", str(copies)]):
        out = tmp_path / f"m{len(options)}.parquet"
        command = ["data", "siim", str(kaggle_siim), "--out", str(out), *options]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
        assert "1 listed pictures are not there" in done.output
        rows = sorted(read_manifest(out), key=lambda r: Path(r["path"]).stem)
        cohort = load(rows, out.parent)
        assert cohort.has_disease.tolist() == [True, False, True, True, True]
        assert cohort.findings[:, 0].tolist() == [1, 1, 0, -1, 0]
        masks.append(cohort.disease)
    drawn = np.zeros((224, 224), np.uint8)
    drawn[22:78, 14:35] = 1  # rows 40 to 140 of 400, columns 20.5 to 50.5 of 320
    for mask in masks:
        assert (mask[0] == drawn).all() and not mask[2].any()


def test_a_patient_of_several_studies_is_in_one_split(tmp_path: Path) -> None:
    folder = tmp_path / "siim"
    studies, images = STUDIES.splitlines()[0] + "\n", "id,boxes,label,StudyInstanceUID\n"
    for i in range(30):
        dicom(folder / "train" / f"s{i}" / "x" / f"i{i}.dcm", f"p{i % 10}")
        studies += f"s{i}_study,1,0,0,0\n"
        images += f"i{i}_image,,none 1 0 0 1 1,s{i}\n"
    (folder / "train_study_level.csv").write_text(studies)
    (folder / "train_image_level.csv").write_text(images)
    out = tmp_path / "m.parquet"
    done = CliRunner().invoke(main, ["data", "siim", str(folder), "--out", str(out)])
    assert done.exit_code == 0, done.output
    splits: dict[str, set[str]] = {}
    for row in read_manifest(out):
        splits.setdefault(row["patient_id"], set()).add(row["split"])
    assert len(splits) == 10 and all(len(s) == 1 for s in splits.values())
    assert {s for held in splits.values() for s in held} == {"train", "val", "test"}


@pytest.fixture
def rsna(tmp_path: Path) -> Path:
    folder = tmp_path / "rsna"
    for name in ("u1", "u2", "u3"):
        path = folder / "stage_2_train_images" / f"{name}.dcm"
        dicom(path, name, ViewPosition="AP", PatientAge="51")  # patientId is the picture's
    (folder / "stage_2_train_labels.csv").write_text(
        "patientId,x,y,width,height,Target\n"
        "u1,20.0,40.0,30.0,100.0,1\nu1,60,40,30,100,1\nu2,,,,,0\nu3,,,,,0\nu4,,,,,0\n"
    )
    (folder / "stage_2_detailed_class_info.csv").write_text(
        "patientId,class\nu1,Lung Opacity\nu1,Lung Opacity\nu2,Normal\n"
        "u3,No Lung Opacity / Not Normal\nu4,Normal\n"
    )
    listed = [
        {"subset_img_id": "u1", "img_id": "00000013_005.png", "orig_labels": ["Mass"]},
        {"subset_img_id": "u2", "img_id": "00000013_006.png"},
        {"subset_img_id": "u3", "img_id": "00000014_000.png"},
    ]
    path = folder / "pneumonia-challenge-dataset-mappings_2018.json"
    path.write_text(json.dumps(listed))
    return folder


def test_rsna_pneumonia(rsna: Path) -> None:
    found = rsna_pneumonia(rsna)
    rows = named(found)
    assert found[1] == 1  # u4.dcm
    assert labels(rows["u1"]) == labels(rows["u3"]) == (False, False, True)
    assert labels(rows["u2"]) == (True, False, False)
    assert rows["u1"]["disease_boxes"] == [[20, 40, 30, 100], [60, 40, 30, 100]]
    assert rows["u2"]["disease_boxes"] == []
    assert rows["u3"]["disease_boxes"] is None  # abnormal, and only opacities are drawn
    assert rows["u1"]["patient_id"] == rows["u2"]["patient_id"] == "rsna-pneumonia:13"
    assert (rows["u1"]["view"], rows["u1"]["age"]) == ("AP", 51.0)


def test_rsna_boxes_are_scaled_to_copies(rsna: Path, tmp_path: Path) -> None:
    copy(tmp_path / "copies" / "u1.png", 2 * HEIGHT, WIDTH)
    ((row,), _) = rsna_pneumonia(rsna, tmp_path / "copies")
    assert row["disease_boxes"] == [[20, 80, 30, 200], [60, 80, 30, 200]]


def test_rsna_pictures_without_known_patients_are_refused(rsna: Path) -> None:
    mapping = rsna / "pneumonia-challenge-dataset-mappings_2018.json"
    listed = json.loads(mapping.read_text())
    mapping.write_text(json.dumps(listed[1:]))
    with pytest.raises(UsageError, match="does not have the picture u1"):
        rsna_pneumonia(rsna)
    mapping.write_text(json.dumps([{"subset_img_id": "u1"}]))
    with pytest.raises(UsageError, match="is not RSNA's list"):
        rsna_pneumonia(rsna)
    mapping.unlink()
    with pytest.raises(UsageError, match="it alone tells which pictures are of one patient"):
        rsna_pneumonia(rsna)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("stage_2_train_labels.csv", "Target", "target", "lacks the column 'Target'"),
        ("stage_2_train_labels.csv", "u1,60,", "u1,Doe,", "row 3: four numbers make a box"),
        ("stage_2_detailed_class_info.csv", "u2,Normal", "u2,Doe", "row 4: class is none of"),
    ],
)
def test_what_is_wrong_with_rsnas_tables_is_said(
    file: str, old: str, new: str, words: str, rsna: Path
) -> None:
    table = rsna / file
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(UsageError, match=words) as refused:
        rsna_pneumonia(rsna)
    assert "Doe" not in str(refused.value)


READ = (  # picture, reader, finding, box: what three readers of VinDr-CXR say
    ("sick", "R1", "Infiltration", "20,40,50,140"),
    ("sick", "R2", "Infiltration", "22,41,52,141"),
    ("sick", "R2", "Calcification", "1,2,3,4"),
    ("sick", "R3", "No finding", ",,,"),
    ("well", "R1", "No finding", ",,,"),
    ("well", "R2", "No finding", ",,,"),
    ("well", "R3", "No finding", ",,,"),
    ("doubt", "R1", "Nodule/Mass", "1,2,3,4"),
    ("doubt", "R2", "No finding", ",,,"),
    ("doubt", "R3", "No finding", ",,,"),
    ("apart", "R1", "ILD", "1,2,3,4"),
    ("apart", "R2", "Edema", "1,2,3,4"),
    ("apart", "R3", "No finding", ",,,"),
    ("gone", "R1", "No finding", ",,,"),
)


@pytest.fixture
def kaggle_vindr(tmp_path: Path) -> Path:
    folder = tmp_path / "kaggle"
    for name in ("sick", "well", "doubt", "apart"):
        dicom(folder / "train" / f"{name}.dicom", PatientAge="018M", PatientSex="M")
    lines = [f"{image},{what},0,{who},{box}\n" for image, who, what, box in READ]
    header = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
    (folder / "train.csv").write_text(header + "".join(lines))
    return folder


@pytest.fixture
def physionet_vindr(kaggle_vindr: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "physionet"
    (folder / "annotations").mkdir(parents=True)
    (kaggle_vindr / "train").rename(folder / "train")
    dicom(folder / "test" / "later.dicom")
    dicom(folder / "test" / "fine.dicom")
    lines = [f"{image},{who},{what},{box}\n" for image, who, what, box in READ]
    tables = {
        "annotations_train": "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n"
        + "".join(lines),
        "annotations_test": "image_id,class_name,x_min,y_min,x_max,y_max\n"
        "later,Pneumothorax,20,40,50,140\nfine,No finding,,,,\n",
        "image_labels_train": "image_id,rad_id,Infiltration,Pneumonia,No finding\n"
        "well,R1,0,1,0\nwell,R2,0,1.0,0\nwell,R3,0,0,1\n",
        "image_labels_test": "image_id,Pneumothorax,Other disease,No finding\n"
        "later,1,0,0\nfine,0,0,1\n",
    }
    for name, text in tables.items():
        (folder / "annotations" / f"{name}.csv").write_text(text)
    return folder


def test_vindr_is_what_more_than_half_of_its_readers_say(kaggle_vindr: Path) -> None:
    found = vindr(kaggle_vindr)
    rows = named(found)
    assert found[1] == 1
    assert labels(rows["sick"]) == labels(rows["apart"]) == (False, False, True)
    assert labels(rows["well"]) == (True, False, False)
    assert labels(rows["doubt"]) == (None, False, None)  # one of three
    assert rows["sick"]["disease_boxes"] == [[20, 40, 30, 100], [22, 41, 30, 100]]
    assert rows["sick"]["finding"] == "Infiltration"
    assert rows["well"]["disease_boxes"] == []
    assert rows["doubt"]["disease_boxes"] is None
    assert rows["apart"]["disease_boxes"] is None  # sick, and they do not agree of what
    assert (rows["sick"]["view"], rows["sick"]["age"], rows["sick"]["sex"]) == ("PA", 1.5, "M")
    assert len({r["patient_id"] for r in rows.values()}) == 4


def test_vindr_of_physionet_has_labels_without_boxes_and_a_test_set(physionet_vindr: Path) -> None:
    rows = named(vindr(physionet_vindr))
    assert labels(rows["well"]) == (False, False, True)  # two of three say pneumonia
    assert rows["well"]["disease_boxes"] is None and rows["well"]["finding"] == "Pneumonia"
    assert labels(rows["sick"]) == (False, False, True)
    assert labels(rows["fine"]) == (True, False, False) and rows["fine"]["disease_boxes"] == []
    assert labels(rows["later"]) == (False, False, True)
    assert rows["later"]["disease_boxes"] == [[20, 40, 30, 100]]
    assert rows["later"]["label_basis"] == "consensus of 5 radiologists"
    assert rows["sick"]["label_basis"] == "majority of 3 radiologists"


def test_vindr_may_be_there_in_part(physionet_vindr: Path) -> None:
    for path in (physionet_vindr / "test").iterdir():
        path.unlink()
    (physionet_vindr / "test").rmdir()
    rows, missing = vindr(physionet_vindr)
    assert len(rows) == 4 and missing == 3  # two of test, and gone.dicom


def test_vindr_boxes_are_scaled_to_copies(kaggle_vindr: Path, tmp_path: Path) -> None:
    copy(tmp_path / "copies" / "sick.png", HEIGHT // 2, WIDTH // 2)
    ((row,), missing) = vindr(kaggle_vindr, tmp_path / "copies")
    assert row["disease_boxes"] == [[10, 20, 15, 50], [11, 20.5, 15, 50]] and missing == 4


def test_half_of_an_even_number_of_readers_is_unknown() -> None:
    readings = Readings()
    readings.findings["R1"].add("ILD")
    assert readings.unhealthy() is True and readings.agreed() == ["ILD"]
    readings.findings["R2"].clear()
    assert readings.unhealthy() is None and readings.agreed() == []


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        (siim, "has no train_study_level.csv"),
        (rsna_pneumonia, "has no stage_2_detailed_class_info.csv"),
        (vindr, r"neither annotations/annotations_train.csv \(PhysioNet\) nor train.csv"),
    ],
)
def test_a_folder_of_another_layout_is_refused(
    reader: Callable[[Path], Found], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        reader(tmp_path)


def test_vindr_boxes_that_are_none_are_named_by_row(kaggle_vindr: Path) -> None:
    table = kaggle_vindr / "train.csv"
    table.write_text(table.read_text().replace("20,40,50,140", "Doe,40,50,140"))
    with pytest.raises(UsageError, match="row 2: four numbers make a box") as refused:
        vindr(kaggle_vindr)
    assert "Doe" not in str(refused.value)
    table.write_text(table.read_text().replace("x_max", "right"))
    with pytest.raises(UsageError, match="lacks the column 'x_max'"):
        vindr(kaggle_vindr)
