"""Published layouts, drawn small: what each reader makes of them, and the manifest."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from comit.cli import main
from comit.data.manifest import balance_views, counts, merge, split_by_patient, write
from comit.data.readers import (
    bimcv,
    bimcv_label,
    chestxray14,
    chexpert,
    collection,
    covid_chestxray,
    kermany,
    radiography,
)
from comit.errors import UsageError
from comit.model.data import read_manifest


def picture(path: Path, height: int = 40, width: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width), 90, np.uint8))
    return path


def labels(row: dict[str, Any]) -> tuple[bool | None, ...]:
    return row["healthy"], row["covid"], row["other"]


@pytest.fixture
def nih(tmp_path: Path) -> Path:
    folder = tmp_path / "nih"
    folder.mkdir()
    (folder / "Data_Entry_2017.csv").write_text(
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
        "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
        "00000001_000.png,Cardiomegaly|Emphysema,0,1,58,M,PA,2682,2749,0.143,0.143,\n"
        "00000001_001.png,No Finding,1,1,058Y,M,AP,2682,2749,0.143,0.143,\n"
        "00000002_000.png,No Finding,0,2,81,F,PA,2500,2048,0.171,0.171,\n"
    )
    (folder / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "00000001_000.png,Cardiomegaly,225.08,547.01,86.77,79.18,,,\n"
    )
    picture(folder / "images_001" / "images" / "00000001_000.png")
    picture(folder / "images_002" / "images" / "00000001_001.png")
    return folder


def test_chestxray14(nih: Path) -> None:
    rows, missing = chestxray14(nih)
    assert missing == 1  # 00000002_000.png is in a part that is not here
    first, second = rows
    assert labels(first) == (False, False, True) and labels(second) == (True, False, False)
    assert first["disease_boxes"] == [[225.08, 547.01, 86.77, 79.18]]
    assert second["disease_boxes"] is None  # not annotated, which is not the same as empty
    assert first["patient_id"] == second["patient_id"] == "ChestX-ray14:1"
    assert (second["view"], second["age"], second["sex"]) == ("AP", 58.0, "M")


def test_a_box_that_is_none_is_named_by_its_row(nih: Path) -> None:
    with (nih / "BBox_List_2017.csv").open("a") as file:
        file.write("\n00000001_001.png,Mass,Doe,1,2,3,,,\n")
    with pytest.raises(UsageError, match=r"BBox_List_2017.csv, row 3: four numbers") as error:
        chestxray14(nih)
    assert "Doe" not in str(error.value)


CHEXPERT = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,"
    "Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,"
    "Pleural Effusion,Pleural Other,Fracture,Support Devices\n"
)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("ignore", {"1": False, "2": True}),
        ("positive", {"1": False, "2": True, "3": False, "4": False}),
        ("negative", {"1": False, "2": True, "3": True}),
    ],
)
def test_chexpert(policy: Any, expected: dict[str, bool], tmp_path: Path) -> None:
    def line(patient: int, view: str, none: str, edema: str, devices: str = "") -> str:
        path = f"CheXpert-v1.0-small/train/patient0000{patient}/study1/view1_{view}.jpg"
        picture(tmp_path / path)
        ap = "AP" if view == "frontal" else ""
        side = view.capitalize()
        return f"{path},Female,68,{side},{ap},{none},,,,,{edema},,,,,,,,{devices}\n"

    folder = tmp_path / "CheXpert-v1.0-small"
    table = [
        line(1, "frontal", "", "1.0"),
        line(2, "frontal", "1.0", "", "1.0"),  # a pacemaker is no disease
        line(3, "frontal", "1.0", "-1.0"),
        line(4, "frontal", "", "-1.0"),
        line(5, "frontal", "", ""),
        line(6, "lateral", "1.0", ""),
    ]
    (folder / "train.csv").write_text(CHEXPERT + "".join(table))
    rows, missing = chexpert(folder, policy)
    assert missing == 0
    found = {r["patient_id"].removeprefix("CheXpert:patient0000"): r["healthy"] for r in rows}
    assert found == expected
    assert all(r["covid"] is False and r["view"] == "AP" for r in rows)


@pytest.fixture
def cohen(tmp_path: Path) -> Path:
    folder = tmp_path / "covid-chestxray-dataset"
    (folder / "annotations").mkdir(parents=True)
    (folder / "metadata.csv").write_text(
        "patientid,offset,sex,age,finding,view,modality,date,folder,filename,license\n"
        "2,0,M,65,Pneumonia/Viral/COVID-19,PA,X-ray,2020,images,a.jpeg,CC BY\n"
        "3,0,F,74,Pneumonia/Viral/SARS,AP Supine,X-ray,2004,images,b.jpeg,\n"
        "4,0,F,30,No Finding,AP,X-ray,2020,images,c.jpeg,\n"
        "5,0,F,30,todo,AP,X-ray,2020,images,d.jpeg,\n"
        "6,0,F,30,Pneumonia/Viral/COVID-19,L,X-ray,2020,images,e.jpeg,\n"
        "7,0,F,30,Pneumonia/Viral/COVID-19,Axial,CT,2020,volumes,f.nii.gz,\n"
    )
    for name in "abcde":
        picture(folder / "images" / f"{name}.jpeg")
    boxes = {
        "images": [{"id": 7, "file_name": "a.jpeg", "height": 40, "width": 30}],
        "categories": [{"id": 1, "name": "Right Lung"}, {"id": 2, "name": "Left Lung"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "bbox": [2, 3, 10, 30]},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [15, 3, 10, 30]},
        ],
    }
    path = folder / "annotations" / "imageannotation_ai_lung_bounding_boxes.json"
    path.write_text(json.dumps(boxes))
    return folder


def test_covid_chestxray(cohen: Path) -> None:
    rows, _ = covid_chestxray(cohen)
    by_name = {r["path"].name: r for r in rows}
    assert set(by_name) == {"a.jpeg", "b.jpeg", "c.jpeg", "d.jpeg"}  # frontal X-rays alone
    assert [labels(by_name[f"{n}.jpeg"]) for n in "abcd"] == [
        (False, True, False),
        (False, False, True),
        (True, False, False),
        (None, None, None),
    ]
    assert by_name["a.jpeg"]["lung_boxes"] == [[2, 3, 10, 30], [15, 3, 10, 30]]
    assert by_name["b.jpeg"]["lung_boxes"] is None and by_name["b.jpeg"]["view"] == "AP Supine"


def test_outlines_become_masks_of_lungs_and_of_lesions(cohen: Path, tmp_path: Path) -> None:
    outlines = {
        "images": [{"id": 1, "file_name": "a.jpeg", "height": 40, "width": 30}],
        "categories": [
            {"id": 1, "name": "Left lung"},
            {"id": 2, "name": "Ground glass opacities"},
            {"id": 3, "name": "Pneumothorax"},
            {"id": 4, "name": "Endotracheal tube"},
        ],
        "annotations": [
            {"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 10, 0, 10, 20, 0, 20]]},
            {"image_id": 1, "category_id": 2, "segmentation": [[2, 2, 6, 2, 6, 6, 2, 6]]},
            {"image_id": 1, "category_id": 3, "segmentation": [[20, 30, 24, 30, 24, 34, 20, 34]]},
            {"image_id": 1, "category_id": 4, "segmentation": [[0, 0, 29, 0, 29, 39, 0, 39]]},
        ],
    }
    listed = tmp_path / "outlines.json"
    listed.write_text(json.dumps(outlines))
    rows, _ = covid_chestxray(cohen, listed, tmp_path / "masks")
    (row,) = [r for r in rows if r["path"].name == "a.jpeg"]
    lung, disease = (
        cv2.imread(str(row[k]), cv2.IMREAD_UNCHANGED) > 0 for k in ("lung_mask", "disease_mask")
    )
    assert lung.shape == (40, 30) and lung.sum() == 10 * 20
    assert disease.sum() == 2 * 16 and disease[3, 3] and disease[31, 21]  # tubes are no disease


def test_a_collection_is_covid_unless_its_table_says_otherwise(tmp_path: Path) -> None:
    for name in ("1.png", "2.png", "3.png"):
        picture(tmp_path / name)
    table = tmp_path / "sirm.csv"
    table.write_text("filename,patient,view\n1.png,x,PA\n2.png,x,lateral\n3.png,,\ngone.png,,PA\n")
    rows, missing = collection(tmp_path, table, "SIRM")
    assert [(r["path"].name, r["view"]) for r in rows] == [("1.png", "PA"), ("3.png", "")]
    assert missing == 1 and all(labels(r) == (False, True, False) for r in rows)
    assert rows[0]["patient_id"] == "SIRM:x" and rows[1]["patient_id"] == "SIRM:3.png"
    table.write_text("filename,finding\n1.png,normal\n2.png,bacterial pneumonia\n")
    assert [labels(r) for r in collection(tmp_path, table, "BSTI")[0]] == [
        (True, False, False),
        (False, False, True),
    ]


@pytest.mark.parametrize(
    ("finding", "expected"),
    [
        ("COVID-19 pneumonia", (False, True, False)),
        ("Healthy", (True, False, False)),
        ("Pneumonia, not viral", (False, False, True)),
        ("todo", (None, None, None)),
        ("Unknown", (None, None, None)),
    ],
)
def test_what_a_collections_finding_says(
    finding: str, expected: tuple[bool | None, ...], tmp_path: Path
) -> None:
    picture(tmp_path / "a.png")
    table = tmp_path / "table.csv"
    table.write_text(f'filename,finding\na.png,"{finding}"\n')
    ((row,), _) = collection(tmp_path, table, "SIRM")
    assert (row["healthy"], row["covid"], row["other"]) == expected


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_may_have_excels_delimiters(delimiter: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    table = tmp_path / "table.csv"
    lines = (["filename", "patient", "finding"], ["a.png", "7", "normal"])
    table.write_text("".join(delimiter.join(cells) + "\n" for cells in lines))
    ((row,), _) = collection(tmp_path, table, "ours")
    assert row["patient_id"] == "ours:7" and labels(row) == (True, False, False)


@pytest.mark.parametrize("finding", ["COVID-19 negative", "non-COVID pneumonia", "No COVID"])
def test_a_finding_that_denies_covid_is_refused(finding: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    table = tmp_path / "table.csv"
    table.write_text(f"filename,finding\na.png,{finding}\n")
    with pytest.raises(UsageError, match="write Normal, or the other disease's name") as refused:
        collection(tmp_path, table, "SIRM")
    assert "table.csv, row 2, column 'finding'" in str(refused.value)
    assert finding not in str(refused.value)


def test_counts_need_no_optional_column() -> None:
    bare = {"path": "a.png", "split": "train", "healthy": True, "covid": False, "other": False}
    lines = counts([bare, bare | {"view": None}])
    assert lines[1].split()[-3:] == ["no", "view", "2"]


@pytest.mark.parametrize(
    ("tests", "covid"),
    [
        ([(10, True)], True),
        ([(24, True)], False),  # 14 days from the nearest positive test
        ([(23, True)], True),
        ([(12, True), (11, False)], False),  # nearer to a negative one
        ([(11, True), (12, False)], True),
        ([(11, True), (9, False)], True),  # equally near: not closer to the negative one
        ([(5, False)], False),
        ([], None),
    ],
)
def test_bimcv_labels_by_the_nearest_test(
    tests: list[tuple[int, bool]], covid: bool | None
) -> None:
    dated = [(date(2020, 3, day), result) for day, result in tests]
    assert bimcv_label(date(2020, 3, 10), dated) is covid
    assert bimcv_label(None, dated) is None


def test_bimcv(tmp_path: Path) -> None:
    tests = tmp_path / "derivatives" / "EHR"
    tests.mkdir(parents=True)
    (tests / "sil_reg_covid_posi.tsv").write_text(
        "participant\tdate\ttest\tresult\n"
        "sub-S03047\t20.03.2020\tPCR\tPOSITIVO\n"
        "sub-S03047\t01.05.2020\tIGG\tINDETERMINADO\n"
    )
    for session, day in (("ses-E01", "20200321.0"), ("ses-E02", "20200501")):
        folder = tmp_path / "sub-S03047" / session / "mod-rx"
        picture(folder / f"sub-S03047_{session}_run-1_bp-chest_vp-pa_dx.png")
        picture(folder / f"sub-S03047_{session}_run-1_bp-chest_vp-ll_dx.png")
        (folder.parent.parent / f"sub-S03047_{session}_sessions.tsv").write_text(
            f"session_id\tstudy_date\n{session}\t{day}\n"
        )
    rows, _ = bimcv(tmp_path)
    assert [(r["path"].parts[-3], labels(r)) for r in rows] == [
        ("ses-E01", (False, True, False)),
        ("ses-E02", (None, False, None)),  # 42 days later: without COVID, and nothing else known
    ]
    assert {r["patient_id"] for r in rows} == {"BIMCV-COVID19+:sub-S03047"}


@pytest.mark.parametrize(
    ("tested", "taken", "where"),
    [
        ("Jane Doe", "20200321", "tests.tsv, row 2, column 'date': not a date like 17.03.2020"),
        ("20.03.2020", "2020", "sessions.tsv, row 2, column 'study_date': not a date"),
    ],
)
def test_an_odd_date_is_named_and_not_quoted(
    tested: str, taken: str, where: str, tmp_path: Path
) -> None:
    tests = tmp_path / "derivatives" / "EHR"
    tests.mkdir(parents=True)
    (tests / "tests.tsv").write_text(f"participant\tdate\tresult\nsub-1\t{tested}\tPOSITIVO\n")
    (tmp_path / "sessions.tsv").write_text(f"session_id\tstudy_date\nses-1\t{taken}\n")
    with pytest.raises(UsageError, match=where) as refused:
        bimcv(tmp_path)
    assert "Jane" not in str(refused.value)


def test_radiography(tmp_path: Path) -> None:
    for kind in ("COVID", "Normal", "Lung_Opacity", "Viral Pneumonia"):
        picture(tmp_path / kind / "images" / f"{kind}-1.png")
    mask = picture(tmp_path / "COVID" / "masks" / "COVID-1.png")
    rows, _ = radiography(tmp_path)
    assert [labels(r) for r in rows] == [
        (False, True, False),
        (True, False, False),
        (False, False, True),
        (False, False, True),
    ]
    assert [r["lung_mask"] for r in rows] == [mask, None, None, None]


@pytest.fixture
def children(tmp_path: Path) -> Path:
    folder = tmp_path / "chest_xray"
    for name in (
        "train/PNEUMONIA/person1_bacteria_1.jpeg",
        "train/PNEUMONIA/person1_bacteria_2.jpeg",
        "test/PNEUMONIA/person1_virus_6.jpeg",
        "val/PNEUMONIA/person1946_bacteria_4874.jpeg",
        "train/NORMAL/IM-0115-0001.jpeg",
        "train/NORMAL/NORMAL2-IM-0115-0001-0002.jpeg",
        "test/NORMAL/NORMAL-1003233-0001.jpeg",  # as Mendeley has them
        "test/PNEUMONIA/VIRUS-1003233-0002.jpeg",
        "train/PNEUMONIA/._person1_bacteria_1.jpeg",
    ):
        picture(folder / name)
    return folder


def test_kermany(children: Path) -> None:
    rows = {r["path"].stem: r for r in kermany(children)[0]}
    assert len(rows) == 8
    assert labels(rows["IM-0115-0001"]) == (True, False, False)
    assert labels(rows["person1_virus_6"]) == (False, False, True)
    assert rows["person1_virus_6"]["finding"] == "Viral pneumonia"
    assert rows["person1946_bacteria_4874"]["finding"] == "Bacterial pneumonia"
    assert rows["IM-0115-0001"]["disease_boxes"] == []
    assert rows["person1_virus_6"]["disease_boxes"] is None
    assert {r["view"] for r in rows.values()} == {"AP"}


def test_a_child_of_several_folders_is_one_patient(children: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    done = CliRunner().invoke(main, ["data", "kermany", str(children), "--out", str(out)])
    assert done.exit_code == 0, done.output
    rows = read_manifest(out)  # which refuses a patient in two splits
    patients = [r["patient_id"].removeprefix("kermany:") for r in rows]
    assert sorted(patients) == sorted(
        ["person1"] * 3 + ["person1946"] + ["IM-0115"] * 2 + ["1003233"] * 2
    )
    assert {r["label_basis"] for r in rows} == {"two physicians"}


def test_a_folder_without_children_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "NORMAL" / "IM-0115-0001.jpeg")
    with pytest.raises(UsageError, match="has no train/PNEUMONIA"):
        kermany(tmp_path)


def many(patients: int = 40) -> list[dict[str, Any]]:
    return [
        {
            "path": Path(f"/p/{i}-{k}.png"),
            "source": "a" if i % 2 else "b",
            "patient_id": f"patient {i}",
            "view": "PA" if k else "AP Supine",
            "healthy": i % 4 == 0,
            "covid": False,
            "other": i % 4 != 0,
        }
        for i in range(patients)
        for k in range(1 + i % 3)
    ]


def test_splits_keep_patients_whole_in_every_source() -> None:
    rows = many()
    split_by_patient(rows, seed=1)
    places: dict[str, set[str]] = {}
    for row in rows:
        places.setdefault(row["patient_id"], set()).add(row["split"])
    assert all(len(p) == 1 for p in places.values())
    for source in "ab":
        here = {r["patient_id"]: r["split"] for r in rows if r["source"] == source}.values()
        sizes = [list(here).count(s) for s in ("train", "val", "test")]
        assert sizes == [14, 2, 4]
    again = list(reversed(many()))
    split_by_patient(again, seed=1)
    assert {r["path"]: r["split"] for r in again} == {r["path"]: r["split"] for r in rows}


def test_balanced_views_are_as_many_ap_as_pa_in_each_group() -> None:
    kept = balance_views(many(), seed=0)
    assert len({r["path"] for r in kept}) == len(kept) > 0
    for source in "ab":
        for healthy in (True, False):
            here = [r for r in kept if (r["source"], r["healthy"]) == (source, healthy)]
            views = [r["view"] for r in here]
            assert views.count("PA") == views.count("AP Supine")


@pytest.mark.parametrize(
    ("view", "words"), [("", "no views"), ("PA", "no pictures of both AP and PA")]
)
def test_views_that_cannot_be_balanced_are_said(view: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        balance_views([row | {"view": view} for row in many()], seed=0)


def manifest(path: Path, *rows: tuple[str, str, str | None]) -> Path:
    """A manifest of rows (path, split, patient)."""
    label = {"source": "a", "healthy": True, "covid": False, "other": False}
    write([label | {"path": p, "split": s, "patient_id": who} for p, s, who in rows], path)
    return path


def test_a_patient_in_two_splits_is_refused_unnamed(tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    whole = [("1.png", "train", "Jane"), ("2.png", "train", "Jane"), ("3.png", "test", "Joe")]
    assert len(read_manifest(manifest(out, *whole, ("4.png", "val", None)))) == 4
    manifest(out, *whole, ("4.png", "test", "Jane"), ("5.png", "val", "Joe"))
    with pytest.raises(UsageError, match="1 in test and train, 1 in test and val") as refused:
        read_manifest(out)
    assert "Jane" not in str(refused.value)
    manifest(out, ("1.png", "train", None), ("./1.png", "val", None))
    with pytest.raises(UsageError, match="pictures in more than one split: 1 in train and val"):
        read_manifest(out)


def test_manifests_with_a_picture_or_a_split_patient_in_common_are_not_merged(
    tmp_path: Path,
) -> None:
    out = tmp_path / "both.parquet"
    a = manifest(tmp_path / "a.parquet", ("1.png", "train", "Jane"))
    (tmp_path / "b").mkdir()
    again = manifest(tmp_path / "b" / "b.parquet", ("../1.png", "train", "Jane"))
    with pytest.raises(UsageError, match="has 1 pictures that those before it have too"):
        merge([a, again], out)
    other = manifest(tmp_path / "c.parquet", ("2.png", "test", "Jane"))
    with pytest.raises(UsageError, match="patients in more than one split: 1 in test and train"):
        merge([a, other], out)
    assert not out.exists()


def test_merged_manifests_find_their_masks_and_keep_their_basis(tmp_path: Path) -> None:
    label = {"source": "a", "healthy": True, "covid": False, "other": False, "split": "train"}
    here = tmp_path / "deep"
    here.mkdir()
    kinds = ("path", "lung_mask", "disease_mask", "ignore_mask")
    row = {k: here / f"{k}.png" for k in kinds}
    write([label | row | {"label_basis": "two physicians"}], here / "m.parquet")
    merge([here / "m.parquet"], tmp_path / "both.parquet")
    (read,) = read_manifest(tmp_path / "both.parquet")
    assert [read[k] for k in kinds] == [f"deep/{k}.png" for k in kinds]
    assert read["label_basis"] == "two physicians"


def test_counts_are_those_of_the_papers_tables() -> None:
    rows = many(4)  # patients 0..3 with 1, 2, 3, 1 pictures
    split_by_patient(rows, seed=0)
    lines = counts(rows)
    assert lines[-1].split() == ["all", "0", "0", "1", "0", "6", "3", "4", "4"]
    assert any(line.split() == ["b", "healthy", "AP", "Supine", "1"] for line in lines)


def test_the_command_writes_what_training_reads(nih: Path, cohen: Path, tmp_path: Path) -> None:
    made = []
    for name, folder in (("chestxray14", nih), ("covid-chestxray", cohen)):
        out = tmp_path / "manifests" / f"{name}.parquet"
        out.parent.mkdir(exist_ok=True)
        done = CliRunner().invoke(main, ["data", name, str(folder), "--out", str(out)])
        assert done.exit_code == 0, done.output
        made.append(out)
        for row in read_manifest(out):
            assert (out.parent / row["path"]).is_file() and not Path(row["path"]).is_absolute()
    both = tmp_path / "both.parquet"
    done = CliRunner().invoke(main, ["data", "merge", *map(str, made), "--out", str(both)])
    assert done.exit_code == 0, done.output
    assert "6 pictures in" in done.output
    rows = read_manifest(both)
    assert {r["source"] for r in rows} == {"ChestX-ray14", "covid-chestxray"}
    assert all((both.parent / r["path"]).is_file() for r in rows)
    assert [r["lung_boxes"] for r in rows if r["path"].endswith("a.jpeg")] == [
        [[2, 3, 10, 30], [15, 3, 10, 30]]
    ]


def test_a_collection_goes_whole_into_the_split_that_is_named(nih: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    options = ["--out", str(out), "--split", "test"]
    done = CliRunner().invoke(main, ["data", "chestxray14", str(nih), *options])
    assert done.exit_code == 0, done.output
    assert {r["split"] for r in read_manifest(out)} == {"test"}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Data_Entry_2017"):
        chestxray14(tmp_path)
    (tmp_path / "metadata.csv").write_text("patientid,finding,filename\n")
    with pytest.raises(UsageError, match="'view'"):
        covid_chestxray(tmp_path)
    with pytest.raises(UsageError, match="derivatives/EHR"):
        bimcv(tmp_path)
    with pytest.raises(UsageError, match="no picture"):
        write([], tmp_path / "m.parquet")
    with pytest.raises(UsageError, match="cannot be read"):
        merge([tmp_path / "metadata.csv"], tmp_path / "m.parquet")
