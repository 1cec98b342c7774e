"""Collections with outlines of lungs, drawn small: what is read, and what is drawn from it."""

from __future__ import annotations

from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from comit.cli import main
from comit.data.outlined import _parts, between, draw, jsrt, nlm_tuberculosis
from comit.data.tables import Found, Row
from comit.errors import UsageError
from comit.model.data import load, read_manifest

LEFT, RIGHT = (slice(20, 80), slice(10, 40)), (slice(30, 80), slice(60, 95))


def area(*places: tuple[slice, slice], side: int = 100) -> NDArray[np.uint8]:
    """A mask, 255 in these places of a grid of 100 that is drawn ``side`` wide."""
    grid = np.zeros((100, 100), np.uint8)
    for place in places:
        grid[place] = 255
    return np.kron(grid, np.ones((side // 100, side // 100), np.uint8))


def png(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


def text(path: Path, words: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(words)


def mask(row: Row, kind: str) -> NDArray[np.bool_]:
    drawn: NDArray[np.bool_] = cv2.imread(str(row[kind]), cv2.IMREAD_UNCHANGED) > 0
    return drawn


def named(found: Found) -> dict[str, Row]:
    return {r["path"].stem: r for r in found[0]}


def labels(row: Row) -> tuple[bool | None, ...]:
    return row["healthy"], row["covid"], row["other"]


@pytest.fixture
def tuberculosis(tmp_path: Path) -> Path:
    folder = tmp_path / "nlm"
    china, montgomery = folder / "ChinaSet_AllFiles", folder / "MontgomerySet"
    ramp = np.add.outer(np.arange(100), np.arange(100)).astype(np.uint8)
    readings = {
        "CHNCXR_0001_0": "male 45yrs\nnormal\n",
        "CHNCXR_0327_1": "Female, 28yrs\n\nSTB in the right upper field\n",
        "CHNCXR_0328_1": "female 10month\nnormal\n",
        "CHNCXR_0329_1": "male 30yrs\nPTB\n",  # no picture
    }
    for name, words in readings.items():
        text(china / "ClinicalReadings" / f"{name}.txt", words)
        if not name.startswith("CHNCXR_0329"):
            png(china / "CXR_png" / f"{name}.png", ramp)
    png(folder / "shcxr-lung-mask" / "mask" / "CHNCXR_0001_0_mask.png", area(LEFT, RIGHT))
    for name, words in (
        ("MCUCXR_0001_0", "Patient's Sex: F\nPatient's Age: 027Y\nnormal\n"),
        ("MCUCXR_0104_1", "Patient's Sex: M\nPatient's Age: 063Y\nabnormal, effusion\n"),
        ("MCUCXR_0105_1", ""),
    ):
        png(montgomery / "CXR_png" / f"{name}.png", ramp)
        if words:
            text(montgomery / "ClinicalReadings" / f"{name}.txt", words)
    for side, place in (("left", LEFT), ("right", RIGHT)):
        png(montgomery / "ManualMask" / f"{side}Mask" / "MCUCXR_0001_0.png", area(place) // 255)
    png(montgomery / "ManualMask" / "leftMask" / "MCUCXR_0104_1.png", area(LEFT, RIGHT))
    return folder


def test_nlm_sets_are_labelled_by_name_and_described_by_reading(
    tuberculosis: Path, tmp_path: Path
) -> None:
    found = nlm_tuberculosis(tuberculosis, tmp_path)
    rows = named(found)
    assert found[1] == 1  # CHNCXR_0329_1 has a reading alone
    assert labels(rows["CHNCXR_0001_0"]) == labels(rows["MCUCXR_0001_0"]) == (True, False, False)
    assert labels(rows["CHNCXR_0327_1"]) == labels(rows["MCUCXR_0104_1"]) == (False, False, True)
    assert labels(rows["MCUCXR_0105_1"]) == (False, False, True)
    assert rows["MCUCXR_0105_1"]["finding"] == "Tuberculosis"  # without a reading
    assert rows["CHNCXR_0327_1"]["finding"] == "STB in the right upper field"
    assert (rows["CHNCXR_0327_1"]["age"], rows["CHNCXR_0327_1"]["sex"]) == (28, "F")
    assert (rows["MCUCXR_0104_1"]["age"], rows["MCUCXR_0104_1"]["sex"]) == (63, "M")
    assert rows["CHNCXR_0328_1"]["age"] == pytest.approx(10 / 12)
    assert rows["CHNCXR_0001_0"]["disease_boxes"] == []
    assert rows["CHNCXR_0327_1"]["disease_boxes"] is None
    assert {r["source"] for r in rows.values()} == {"shenzhen", "montgomery"}
    assert len({r["patient_id"] for r in rows.values()}) == 6


def test_a_name_and_a_reading_that_disagree_leave_labels_unknown(
    tuberculosis: Path, tmp_path: Path
) -> None:
    row = named(nlm_tuberculosis(tuberculosis, tmp_path))["CHNCXR_0328_1"]
    assert labels(row) == (None, False, None) and row["disease_boxes"] is None


@pytest.mark.parametrize("name", ["CHNCXR_0001_0", "MCUCXR_0001_0"])
def test_outlines_become_lungs_and_what_is_between_them(
    name: str, tuberculosis: Path, tmp_path: Path
) -> None:
    row = named(nlm_tuberculosis(tuberculosis, tmp_path))[name]
    assert (mask(row, "lung_mask") == (area(LEFT, RIGHT) > 0)).all()
    middle = area((slice(30, 80), slice(40, 60)))  # rows 20 to 30 have one lung: nothing between
    assert (mask(row, "ignore_mask") == (middle > 0)).all()


def test_half_an_outline_is_none_even_in_two_pieces(tuberculosis: Path, tmp_path: Path) -> None:
    rows = named(nlm_tuberculosis(tuberculosis, tmp_path))
    assert "lung_mask" not in rows["MCUCXR_0104_1"] and "lung_mask" not in rows["CHNCXR_0327_1"]


def test_an_outline_in_one_piece_is_none(tuberculosis: Path, tmp_path: Path) -> None:
    bridge = (slice(40, 42), slice(30, 70))
    path = tuberculosis / "shcxr-lung-mask" / "mask" / "CHNCXR_0001_0_mask.png"
    png(path, area(LEFT, RIGHT, bridge))
    assert "lung_mask" not in named(nlm_tuberculosis(tuberculosis, tmp_path))["CHNCXR_0001_0"]


def test_what_is_between_lungs_is_not_in_the_notches_of_one() -> None:
    notch = area(LEFT)
    notch[50:60, 20:30] = 0
    place = between(notch > 0, area(RIGHT) > 0)
    assert (place == (area((slice(30, 80), slice(40, 60))) > 0)).all()
    assert (between(area(RIGHT) > 0, notch > 0) == place).all()


def test_outlines_of_one_picture_have_one_size(tuberculosis: Path, tmp_path: Path) -> None:
    path = tuberculosis / "MontgomerySet" / "ManualMask" / "leftMask" / "MCUCXR_0001_0.png"
    png(path, area(LEFT, side=200))
    with pytest.raises(UsageError, match="MCUCXR_0001_0: the outlines of its lungs differ in size"):
        nlm_tuberculosis(tuberculosis, tmp_path)
    path.write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"MCUCXR_0001_0\.png cannot be read as a mask"):
        nlm_tuberculosis(tuberculosis, tmp_path)


SIDE = 2048
WHITE = (slice(200, 600), slice(400, 900))  # as bone is


def raw() -> NDArray[np.uint16]:
    """A picture of JSRT, of optical densities: white is 0."""
    ramp = np.add.outer(np.arange(SIDE), np.arange(SIDE)) // 4 + 2000
    ramp[WHITE] = 0
    return ramp.astype(np.uint16)


@pytest.fixture
def nodules(tmp_path: Path) -> Path:
    folder = tmp_path / "jsrt"
    (folder / "All247images").mkdir(parents=True)
    for name in ("JPCLN001", "JPCLN002", "JPCNN001"):
        (folder / "All247images" / f"{name}.IMG").write_bytes(raw().astype(">u2").tobytes())
    text(
        folder / "Clinical_Information" / "CLNDAT_EN.txt",
        "JPCLN001.IMG\t5\t14\t53\tmale\t1634\t692\tmalignant\tl.upper lobe\tlung cancer"
        "JPCLN002.IMG\t5\t30\t?\tFemale\t1614\t1090\tbenign\tl.upper lobe(S5)\t\thematoma\r\n"
        "JPCLN003.IMG\t5\t30\t63\tfemale\t1303\t447\tmalignant\tl.upper lobe\tlung cancer\r\n",
    )
    text(
        folder / "Clinical_Information" / "CNNDAT_EN.TXT", "JPCNN001.IMG 54  female  non-nodule\r\n"
    )
    for fold, name in ((1, "JPCLN001"), (2, "JPCNN001")):
        for lung, place in (("left lung", LEFT), ("right lung", RIGHT)):
            path = folder / "scratch" / f"fold{fold}" / "masks" / lung / f"{name}.gif"
            path.parent.mkdir(parents=True)
            grey = area(place, side=1000)
            path.write_bytes(imagecodecs.gif_encode(grey))
    return folder


def test_jsrt(nodules: Path, tmp_path: Path) -> None:
    found = jsrt(nodules, tmp_path)
    rows = named(found)
    assert found[1] == 1  # JPCLN003.IMG
    assert labels(rows["JPCLN001"]) == (False, False, True)
    assert labels(rows["JPCNN001"]) == (True, False, False)
    side = 14 / 0.175  # 80 pixels
    assert rows["JPCLN001"]["disease_boxes"] == [[1594, 652, pytest.approx(side), side]]
    assert rows["JPCNN001"]["disease_boxes"] == []
    assert [(r["age"], r["sex"]) for r in found[0]] == [(53, "M"), (None, "F"), (54, "F")]
    assert (mask(rows["JPCLN001"], "lung_mask") == (area(LEFT, RIGHT, side=1000) > 0)).all()
    middle = area((slice(30, 80), slice(40, 60)), side=1000)
    assert (mask(rows["JPCNN001"], "ignore_mask") == (middle > 0)).all()
    assert "lung_mask" not in rows["JPCLN002"]


def test_jsrt_pictures_keep_all_bits_and_become_white_on_black(
    nodules: Path, tmp_path: Path
) -> None:
    path = named(jsrt(nodules, tmp_path))["JPCLN001"]["path"]
    shown = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert shown.dtype == np.uint16 and shown.shape == (SIDE, SIDE)
    assert (shown == (4095 - raw()) * 16).all() and (shown[WHITE] == 65520).all()


def test_training_sees_the_nodule_the_lungs_and_bone_as_white(
    nodules: Path, tmp_path: Path
) -> None:
    out = tmp_path / "made" / "jsrt.parquet"
    out.parent.mkdir()
    done = CliRunner().invoke(main, ["data", "jsrt", str(nodules), "--out", str(out)])
    assert done.exit_code == 0, done.output
    rows = sorted(read_manifest(out), key=lambda r: r["path"])
    assert rows[0]["path"] == "jsrt/JPCLN001.png" and rows[1]["lung_mask"] is None
    cohort = load(rows, out.parent)
    assert (cohort.images[:, 30:60, 50:90] > cohort.images[:, 150:, 150:].max()).all()
    assert cohort.has_lung.tolist() == [True, False, True]
    assert cohort.ignore[0, 112, 112] == 1 and cohort.lung[0, 112, 112] == 0
    assert cohort.lung[0, 112, 50] == 1 and cohort.has_disease.all()
    row, column = np.nonzero(cohort.disease[0])
    assert row.mean() == pytest.approx(692 * 224 / SIDE - 0.5, abs=1)
    assert column.mean() == pytest.approx(1634 * 224 / SIDE - 0.5, abs=1)
    assert not cohort.disease[2].any()


def test_raw_pictures_that_are_none_of_jsrts_are_refused(nodules: Path, tmp_path: Path) -> None:
    path = nodules / "All247images" / "JPCLN001.IMG"
    path.write_bytes(raw().astype("<u2").tobytes())
    with pytest.raises(UsageError, match=r"JPCLN001\.IMG has values above 12 bits"):
        jsrt(nodules, tmp_path)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UsageError, match="has 8,388,606 bytes; a picture of JSRT has 8,388,608"):
        jsrt(nodules, tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("JPCLN001.IMG 5 Doe 53 male 1634 692 malignant", "JPCLN001: no numbers for size, x and y"),
        ("JPCLN001.IMG 5 15", "JPCLN001: no numbers for size, x and y"),
        ("Doe", "has no record of a picture"),
    ],
)
def test_clinical_data_that_are_none_are_refused(
    words: str, said: str, nodules: Path, tmp_path: Path
) -> None:
    text(nodules / "Clinical_Information" / "CLNDAT_EN.txt", words)
    with pytest.raises(UsageError, match=said) as refused:
        jsrt(nodules, tmp_path)
    assert "Doe" not in str(refused.value)


def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no JPCLN\*\.IMG and no JPCNN\*\.IMG"):
        jsrt(tmp_path, tmp_path)
    with pytest.raises(UsageError, match=r"has no CXR_png/CHNCXR_\*\.png and no CXR_png/MCUCXR_"):
        nlm_tuberculosis(tmp_path, tmp_path)


def test_a_mask_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "masks").write_text("a file in the way")
    with pytest.raises(UsageError, match=r"masks/a\.png cannot be written"):
        draw(tmp_path / "masks" / "a.png", np.zeros((4, 4), np.uint8))


@pytest.mark.real
@pytest.mark.parametrize("source", ["jsrt", "shenzhen"])
def test_what_is_between_lungs_is_what_the_study_set_leaves_out(source: str, shared: Path) -> None:
    folder = shared / "cxr" / "more" / source
    if not folder.is_dir():
        pytest.skip(f"no study set at {folder}")
    agreements = []
    for path in sorted((folder / "lung_mask").glob("*.png"))[:40]:
        lungs, ignored = (
            cv2.imread(str(p), cv2.IMREAD_UNCHANGED) > 0
            for p in (path, folder / "ignore_mask" / f"ignore_{path.name}")
        )
        ours = between(*_parts(lungs))
        agreements.append((ours & ignored).sum() / (ours | ignored).sum())
    assert np.median(agreements) > 0.999
