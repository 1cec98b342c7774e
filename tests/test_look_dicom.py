"""``comit dicom``: objects that a PACS takes, of the radiograph they come from and no other."""

from __future__ import annotations

import io
import shutil
import subprocess
import warnings
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import resultfiles as rf
from click.testing import CliRunner
from pydicom import dcmread

from comit.bench.faults import dicoms
from comit.cli import main
from comit.console import Console
from comit.errors import ItemError
from comit.image import open_image
from comit.image.preprocess import picture
from comit.look.dicom import export, make
from comit.look.picture import DISEASE, LUNGS
from comit.look.reference import pack, reference, unpack
from comit.masks import decode_mask
from comit.options import Options
from comit.results import read
from comit.screening import screen

hd = pytest.importorskip("highdicom")

KINDS = ("seg", "sr", "sc")
SAID = {"model": "tiny", "model_sha256": "ab" * 32, "thresholds": rf.THRESHOLDS}
DRAWN = ("SOPInstanceUID", "DimensionOrganizationUID", "TrackingUID")
GEOMETRY = (  # what a projection radiograph of unknown spacing has no values for
    "PixelSpacing",
    "ImagerPixelSpacing",
    "SliceThickness",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
)


def radiograph(**tags) -> bytes:
    """A chest radiograph of 300 x 260."""
    return dicoms.make(dicoms.picture(300, 260), **tags)


def row(**columns):
    return rf.ok("a", "a.dcm", sop_instance_uid="1.2.3.4") | columns


def bytes_of(kind, data, **columns):
    """An object for a radiograph, whose header and picture are as the decoding process has them."""
    image = open_image(data)
    grey = picture(image.samples(), image.presentation)
    return make(kind, unpack(pack(reference(data))), row(**columns), SAID, lambda: grey)


def made(kind, data=None, **columns):
    return dcmread(io.BytesIO(bytes_of(kind, data or radiograph(), **columns)))


def everything(ds):
    """All elements, also those in sequences."""
    return {element.keyword for element in ds.iterall()}


def errors(path: Path) -> list[str]:
    """What dciodvfy of dicom3tools, which is not ours, finds wrong."""
    tool = shutil.which("dciodvfy")
    if tool is None:
        pytest.skip("no dciodvfy; Debian has it in dicom3tools")
    run = subprocess.run([tool, path], capture_output=True, check=False)
    said = (run.stdout + run.stderr).decode("utf-8", "replace").splitlines()
    assert said, "it did not run"
    return [line for line in said if line.startswith("Error")]


def on_grid(mask: np.ndarray) -> np.ndarray:
    """(H, W) to (224, 224) by nearest neighbours: the pixel that holds each cell's centre."""
    y, x = (((np.arange(224) + 0.5) * n / 224).astype(int) for n in mask.shape)
    return mask[np.ix_(y, x)]


@pytest.mark.parametrize("shape", [(224, 224), (300, 260), (1023, 831)])
def test_masks_come_back_from_a_segmentation_bit_for_bit(tmp_path, shape):
    data = dicoms.make(dicoms.picture(*shape))
    size = dict(zip(("rows", "cols"), shape, strict=True))
    (tmp_path / "a.dcm").write_bytes(bytes_of("seg", data, **size))
    seg = hd.seg.segread(tmp_path / "a.dcm")
    pixels = seg.get_pixels_by_source_instance(["1.2.3.4"], segment_numbers=[1, 2])
    assert pixels.shape == (1, *shape, 2)
    assert np.array_equal(on_grid(pixels[0, ..., 0]), rf.LUNGS)
    assert np.array_equal(on_grid(pixels[0, ..., 1]), rf.DISEASE)


def test_an_empty_mask_is_a_segment_all_the_same():
    from comit.masks import encode

    nothing = encode(np.zeros((1, 224, 224), bool))[0]
    seg = made("seg", disease_rle=nothing)
    assert seg.NumberOfFrames == 2 and not seg.pixel_array[1].any()


def test_segments_are_coded_and_name_the_algorithm():
    lungs, disease = made("seg").SegmentSequence
    code = lungs.SegmentedPropertyTypeCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("39607008", "SCT")
    code = disease.SegmentedPropertyTypeCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("52988006", "SCT")
    assert {lungs.SegmentAlgorithmType, disease.SegmentAlgorithmType} == {"AUTOMATIC"}
    algorithm = lungs.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("tiny", "ab" * 32)


def test_a_report_holds_scores_flags_fraction_and_the_algorithm():
    report = hd.sr.srread(io.BytesIO(bytes_of("sr", radiograph(), score_covid=0.25)))
    (group,) = report.content.get_image_measurement_groups()
    found = {m.name.value: m.value for m in group.get_measurements()}
    assert found == {
        "score_unhealthy": 0.5,
        "score_covid": 0.25,
        "score_other": 0.25,
        "disease_fraction": pytest.approx(0.02),
    }
    assert flags(group) == {"flag_unhealthy": "No", "flag_covid": "No"}
    texts = {item.get("TextValue") for item in _items(report)}
    assert {"tiny", "model_sha256: " + "ab" * 32, "threshold covid: 0.4"} <= texts
    assert report.VerificationFlag == "UNVERIFIED" and report.PreliminaryFlag == "PRELIMINARY"


def flags(group):
    """Those of our own codes; the group's algorithm is an evaluation too."""
    found = group.get_qualitative_evaluations()
    return {q.name.value: q.value.meaning for q in found if q.name.scheme_designator == "99COMIT"}


def _items(item):
    yield item
    for below in item.get("ContentSequence", ()):
        yield from _items(below)


def test_scores_without_thresholds_or_masks_have_a_report_of_what_there_is():
    nothing = dict.fromkeys(("flag_unhealthy", "flag_covid", "disease_fraction", "lung_rle"))
    report = hd.sr.srread(io.BytesIO(bytes_of("sr", radiograph(), **nothing)))
    (group,) = report.content.get_image_measurement_groups()
    assert len(group.get_measurements()) == 3 and flags(group) == {}


def test_a_secondary_capture_shows_contours_and_what_it_is_not_for():
    capture = made("sc", dicoms.make(dicoms.picture(900, 700)), rows=900, cols=700)
    rgb = capture.pixel_array
    assert rgb.shape == (900, 700, 3)
    assert (rgb == LUNGS).all(axis=2).any() and (rgb == DISEASE).all(axis=2).any()
    assert capture.BurnedInAnnotation == "YES" and capture.ImageType == ["DERIVED", "SECONDARY"]
    corner = rgb[-150:, :450]  # white letters on black, where nothing of the radiograph is white
    assert (corner == 255).all(axis=2).sum() > 300 and (corner == 0).all(axis=2).sum() > 20_000


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_belongs_to_patient_and_study_and_refers_to_the_radiograph(kind):
    ds = made(kind, radiograph(StudyDescription="Thorax"))
    assert (ds.PatientName, ds.PatientID) == ("Planted^Patient", "PLANTED-1")
    assert ds.StudyInstanceUID == "1.2.3" and ds.SeriesInstanceUID != "1.2.3.5"
    assert ds.SOPInstanceUID != "1.2.3.4"
    referred = {e.value for e in ds.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
    assert referred == {"1.2.3.4"}
    assert "RESEARCH USE ONLY" in ds.SeriesDescription


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_row_gives_the_same_bytes_and_another_row_other_uids(kind):
    data = radiograph()
    first, again = bytes_of(kind, data), bytes_of(kind, data)
    assert first == again
    others = [made(kind, data, score_unhealthy=0.75), made(kind, radiograph(PatientID="other"))]
    uids = [{e.value for e in ds.iterall() if e.keyword in DRAWN} for ds in others]
    uids.append({e.value for e in dcmread(io.BytesIO(first)).iterall() if e.keyword in DRAWN})
    if kind == "seg":  # which holds no score
        assert uids.pop(0) == uids[-1]
    assert not set.intersection(*uids)


def test_an_object_is_as_old_as_its_row_and_is_named_alike_in_its_file_meta():
    ds = made("seg", screened_at=datetime(2026, 11, 27, 18, 5, tzinfo=UTC))
    assert (ds.ContentDate, ds.ContentTime) == ("20261127", "180500.000000")
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    organization = ds.DimensionOrganizationSequence[0].DimensionOrganizationUID
    assert {d.DimensionOrganizationUID for d in ds.DimensionIndexSequence} == {organization}


@pytest.mark.parametrize("kind", KINDS)
def test_no_geometry_is_invented(kind):
    assert everything(made(kind)) & set(GEOMETRY) == set()
    assert not made(kind).get("PatientOrientation")
    told = made(kind, radiograph(PatientOrientation=["L", "F"]))
    assert told.get("PatientOrientation") in ({"sr": [None]}.get(kind, [["L", "F"]]))


WRONG = {
    "PatientBirthDate": "19571301",
    "PatientAge": "42",
    "PatientSex": "female",
    "PatientID": "x" * 65,
    "StudyDate": "2004.08.31",
    "PatientWeight": "-3",
    "PatientName": "Åsa^Ö",  # without a character set
    "AccessionNumber": "a\x1bb",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keyword", WRONG)
def test_a_value_that_its_type_does_not_allow_is_dropped(tmp_path, kind, keyword):
    data = _with_raw(keyword, WRONG[keyword])
    (tmp_path / "made.dcm").write_bytes(bytes_of(kind, data))
    assert not dcmread(tmp_path / "made.dcm").get(keyword)


def _with_raw(keyword: str, value: str) -> bytes:
    """A radiograph with these bytes in an element, which pydicom would not write."""
    marker = {"PatientBirthDate": "20001122", "StudyDate": "20001122", "PatientAge": "077Y"}.get(
        keyword, {"PatientSex": "O", "PatientWeight": "71"}.get(keyword, "MARKER")
    )
    data = radiograph(**{keyword: marker})
    old = marker.encode() + b" " * (len(marker) % 2)
    new = value.encode("latin-1") + b" " * (len(value) % 2)
    at = data.index(old, 132)
    header = len(old).to_bytes(2, "little")
    assert data[at - 2 : at] == header
    return data[: at - 2] + len(new).to_bytes(2, "little") + new + data[at + len(old) :]


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_in_a_declared_character_set_is_kept(kind):
    name = "Емельянов^Иван"
    ds = made(kind, radiograph(SpecificCharacterSet="ISO_IR 144", PatientName=name))
    assert str(ds.PatientName) == name and ds.SpecificCharacterSet == "ISO_IR 192"


@pytest.mark.parametrize("kind", KINDS)
def test_another_tool_finds_no_error(tmp_path, kind):
    for number, tags in enumerate(
        [{}, {"PatientOrientation": ["L", "F"], "StudyID": "7", "PatientSex": "F"}]
    ):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(bytes_of(kind, radiograph(**tags)))
        assert errors(path) == []


@pytest.mark.parametrize(
    "tags",
    [
        {"StudyInstanceUID": None},
        {"SeriesInstanceUID": "x"},
        {"SeriesInstanceUID": "1..2"},
        {"StudyInstanceUID": "1." + "2" * 63},
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI", "ignore:The value length")
def test_a_radiograph_that_its_header_does_not_identify_has_no_object(tags):
    with pytest.raises(ItemError, match="uid"):
        made("sr", radiograph(**tags))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("keyword", "uid"),
    [
        ("StudyInstanceUID", "1.2.840.0113619.2.11"),
        ("SOPInstanceUID", "1.2.00"),
        ("SeriesInstanceUID", "01.2"),
        ("StudyInstanceUID", "7"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_an_object_refers_to_the_uids_that_the_pacs_knows(kind, keyword, uid):
    ds = made(kind, radiograph(**{keyword: uid}))
    said = {e.keyword: e.value for e in ds.iterall()}
    name = {"SOPInstanceUID": "ReferencedSOPInstanceUID"}.get(keyword, keyword)
    if keyword != "SeriesInstanceUID" or kind != "sc":  # which names no series but its own
        assert uid in {e.value for e in ds.iterall() if e.keyword == name}, said


CLASSES = {
    "multi-frame secondary capture": "1.2.840.10008.5.1.4.1.1.7.3",
    "X-ray angiography": "1.2.840.10008.5.1.4.1.1.12.1",
    "CT, which has a frame of reference": "1.2.840.10008.5.1.4.1.1.2",
    "digital X-ray": "1.2.840.10008.5.1.4.1.1.1.1",
    "a retired one": "1.2.840.10008.5.1.1.29",
    "a private one": "1.2.392.200036.9125.1.1.2",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sop_class", CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize("frames", [{}, {"NumberOfFrames": 1}])
def test_one_frame_of_any_class_has_an_object(kind, sop_class, frames):
    ds = made(kind, radiograph(SOPClassUID=sop_class, **frames))
    referred = {e.value for e in ds.iterall() if e.keyword == "ReferencedSOPClassUID"}
    assert referred == {sop_class}


@pytest.mark.real
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "folder", ["leading-zero-uid-dicom", "seg-of-a-multi-frame-class-with-one-frame"]
)
def test_radiographs_of_the_field_have_objects(faults, tiny_model, tmp_path, folder, kind):
    results = tmp_path / "r.parquet"
    options = Options(model=tiny_model, workers=1, view_policy="all")
    screen(faults / folder, results, options, console=Console(quiet=True))
    found = export(results, None, tmp_path / "out", kind)
    assert len(found.files) == 3 and found.problems == []


def test_what_has_no_object_is_named_by_path_and_reason(tmp_path):
    (tmp_path / "a.dcm").write_bytes(radiograph(StudyInstanceUID=None))
    results = rf.write(tmp_path / "r.parquet", [row()])
    words = ["dicom", results, "--images", tmp_path, "--to", "sr", "--out", tmp_path / "out"]
    done = CliRunner().invoke(main, [str(w) for w in words])
    assert done.exit_code == 3 and "a.dcm: uid (its header lacks" in done.stderr
    assert "--images" not in done.stderr


def test_masks_are_never_put_on_another_radiograph(tmp_path):
    (tmp_path / "a.dcm").write_bytes(radiograph())
    for columns in ({"rows": 301}, {"sop_instance_uid": "1.2.3.9"}):
        results = rf.write(tmp_path / "r.parquet", [row(**columns)])
        found = export(results, tmp_path, tmp_path / "out", "seg")
        assert found.files == [] and found.problems == [("a.dcm", "changed")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_ok_dicom_row_has_an_object_and_others_none(tmp_path, kind):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.dcm").write_bytes(radiograph())
    (pictures / "gone.dcm").touch()
    rf.draw(pictures / "c.png")
    rows = [
        row(),
        rf.ok("gone", "gone.dcm"),
        rf.ok("c"),
        rf.unscored("d", "skipped", "anatomy", path="a.dcm"),
        row(row_id="bare", lung_rle=None, disease_rle=None),
    ]
    results = rf.write(tmp_path / "r.parquet", rows)
    found = export(results, pictures, tmp_path / "out", kind)
    assert len(found.files) == (2 if kind == "sr" else 1)
    assert found.problems == [] or [p[0] for p in found.problems] == ["gone.dcm"]
    assert found.without == (3 if kind == "sr" else 4) - len(found.problems)


def test_the_command_writes_and_counts(tmp_path):
    (tmp_path / "a.dcm").write_bytes(radiograph())
    results = rf.write(tmp_path / "r.parquet", [row()])
    words = ["dicom", results, "--images", tmp_path, "--to", "seg", "--out", tmp_path / "out"]
    done = CliRunner().invoke(main, [str(w) for w in words])
    assert done.exit_code == 0 and "1 SEG objects" in done.stderr
    (written,) = (tmp_path / "out").iterdir()
    assert dcmread(written).Modality == "SEG"


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    """Results of every DICOM file of the shared folder, and that folder."""
    results = tmp_path_factory.mktemp("real") / "r.parquet"
    screen(shared / "dicom", results, console=Console(quiet=True))
    return results, shared / "dicom"


@pytest.mark.real
@pytest.mark.parametrize("kind", KINDS)
def test_objects_of_real_radiographs_have_no_error(real, tmp_path, kind):
    found = export(*real, tmp_path, kind)
    assert len(found.files) == 5 and found.problems == []
    assert {path.name: errors(path) for path in found.files} == {p.name: [] for p in found.files}


@pytest.mark.real
def test_masks_of_real_radiographs_come_back_bit_for_bit(real, tmp_path):
    rows = [r for r in read(real[0]).to_pylist() if r["status"] == "ok"]
    for row, path in zip(rows, export(*real, tmp_path, "seg").files, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that the source spells in an old way
            seg = hd.seg.segread(path)
        (pixels,) = seg.get_pixels_by_source_instance(
            [row["sop_instance_uid"]], segment_numbers=[1, 2]
        )
        assert pixels.shape == (row["rows"], row["cols"], 2)
        for number, name in enumerate(("lung_rle", "disease_rle")):
            assert np.array_equal(on_grid(pixels[..., number]), decode_mask(row[name]))
