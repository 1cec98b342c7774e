"""Phantoms: readable by what reads patients, and marked as synthetic wherever one looks."""

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from comit.demo import KINDS, demo, draw
from comit.errors import UsageError
from comit.image import open_image
from comit.image.preprocess import preprocess


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "phantoms"
    demo(path)
    return path


def pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name != "README.txt")


def test_twelve_hold_each_kind_once(folder: Path) -> None:
    assert len(pictures(folder)) == len(KINDS) == 12
    assert Counter(p.suffix for p in pictures(folder)) == {".dcm": 7, ".png": 3, ".jpg": 2}
    headers = [pydicom.dcmread(p) for p in folder.glob("*.dcm")]
    assert {ds.PhotometricInterpretation for ds in headers} == {"MONOCHROME1", "MONOCHROME2"}
    assert len({ds.file_meta.TransferSyntaxUID for ds in headers}) == 4  # raw, RLE, J2K, JPEG-LS
    assert len({ds.SOPInstanceUID for ds in headers}) == 7


def test_all_are_read_and_two_are_skipped(folder: Path) -> None:
    skipped = {}
    for path in pictures(folder):
        image = open_image(path.read_bytes())
        preprocess(image.samples(), image.presentation)
        if image.skip:
            skipped[path.name] = str(image.skip)
    assert skipped == {
        "synthetic-07-lateral-raw.dcm": "view",
        "synthetic-08-hand-raw.dcm": "anatomy",
    }


def test_every_codec_keeps_the_drawn_pixels(folder: Path) -> None:
    for number, kind in enumerate(KINDS, start=1):
        if kind.suffix == "dcm":
            drawn = draw(kind.subject, np.random.default_rng((0, number)))
            top = 2**kind.bits - 1
            expected = np.round(drawn * top).astype(int)
            read = pydicom.dcmread(next(folder.glob(f"synthetic-{number:02d}-*"))).pixel_array
            shown = top - read.astype(int) if kind.inverted else read.astype(int)
            assert np.array_equal(shown, expected), kind


def test_lungs_are_dark_and_the_middle_is_bright(folder: Path) -> None:
    """Whatever the photometric interpretation: a chest, shown the right way round."""
    for path in pictures(folder):
        if "chest" in path.name:
            image = open_image(path.read_bytes())
            pixels = preprocess(image.samples(), image.presentation).pixels
            lungs = pixels[70:120, 50:80].mean(), pixels[70:110, 160:180].mean()
            middle = pixels[70:150, 108:116].mean()
            assert max(lungs) < middle - 0.2, path.name
            assert pixels[40:44, 2:6].mean() < min(lungs), path.name  # air beside the neck


def test_everything_says_synthetic(folder: Path) -> None:
    assert "NOT PATIENTS" in (folder / "README.txt").read_text()
    for path in pictures(folder):
        assert path.name.startswith("synthetic-")
        if path.suffix == ".dcm":
            ds = pydicom.dcmread(path)
            assert ds.PatientName == "SYNTHETIC^PHANTOM"
            assert ds.PatientID.startswith("SYNTHETIC") and ds.InstitutionName == "SYNTHETIC"
        else:  # the words in the picture: white strokes in the corner that is air
            pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            corner = pixels[: pixels.shape[0] // 18, : pixels.shape[1] // 4]
            assert np.mean(corner > 0.8 * np.iinfo(pixels.dtype).max) > 0.05, path.name


def test_a_seed_draws_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = demo(tmp_path / "again", count=6)
    assert [p.name for p in again] == [p.name for p in pictures(folder)[:6]]
    assert all(p.read_bytes() == (folder / p.name).read_bytes() for p in again)
    other = demo(tmp_path / "other", count=1, seed=1)
    assert other[0].read_bytes() != again[0].read_bytes()


def test_count_goes_past_the_kinds(tmp_path: Path) -> None:
    made = demo(tmp_path / "many", count=13)
    assert made[12].name == "synthetic-13-chest-8bit.png"
    assert made[12].read_bytes() != made[0].read_bytes()


def test_a_folder_that_holds_anything_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(UsageError, match="cannot be written"):
        demo(tmp_path / "mine.txt" / "below")
