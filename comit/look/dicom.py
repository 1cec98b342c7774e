"""Results as DICOM objects that reference the radiograph they come from.

seg  Segmentation (PS3.3 A.51): lungs and disease at Rows x Columns of the radiograph
sr   Enhanced SR of TID 1500 (PS3.16): scores, flags, disease fraction, which algorithm
sc   Secondary Capture (PS3.3 A.8): contours and "RESEARCH USE ONLY" burned in

Patient and study are the radiograph's, as far as valid (:mod:`comit.look.reference`); geometry that
it lacks stays absent.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from comit import __version__
from comit.console import Console
from comit.errors import ItemError, MissingExtra
from comit.look.output import Made, make_folder, write
from comit.look.picture import (
    RESEARCH,
    Grey,
    Masks,
    Pictures,
    Rgb,
    draw,
    file_stem,
    masks,
    to_picture,
)
from comit.look.reference import IDENTIFIED
from comit.reasons import Unmade
from comit.results import COLUMNS, provenance, read

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Kind = Literal["seg", "sr", "sc"]
SERIES = {"seg": 9701, "sr": 9702, "sc": 9703}  # SeriesNumber; far from a scanner's own
MADE_AT = {
    "InstanceCreationDate",
    "InstanceCreationTime",
    "ContentDate",
    "ContentTime",
    "ContributionDateTime",
    "DateOfSecondaryCapture",
    "TimeOfSecondaryCapture",
}
TIMES = {"DA": "%Y%m%d", "TM": "%H%M%S.%f", "DT": "%Y%m%d%H%M%S.%f"}  # UTC, as results have it
NEVER = datetime(1970, 1, 1, tzinfo=UTC)  # of results that do not say when: a date must be there
SCHEME = "99COMIT"  # of codes that no standard has: what this network's outputs mean


def export(
    results: Path,
    images: Path | None,
    out: Path,
    kind: Kind,
    console: Console | None = None,
    also: Callable[[Path, bytes, str], None] = lambda to, content, row_id: None,
) -> Made:
    """Writes one object into ``out`` for every ok row of ``results`` whose file is DICOM.

    ``images`` is the folder that was screened; None is the one that the results name. SEG and SC
    need masks. ``also`` is told of each object: its file, its bytes and its row_id. Raises
    UsageError, MissingExtra where highdicom is not installed; the trouble of one radiograph is
    noted and the others are made.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise MissingExtra("writing DICOM", "dicom") from error
    table = read(results, COLUMNS)
    said = provenance(table)
    found = Pictures(images, said)
    make_folder(out)
    made = Made()
    progress = (console or Console(quiet=True)).progress("writing", len(table))
    with found as pictures, progress as step:
        for row in (r for b in table.to_batches(max_chunksize=256) for r in b.to_pylist()):
            step()
            if row["status"] != "ok" or (kind != "sr" and row["lung_rle"] is None):
                made.without += 1
                continue
            try:
                source = pictures.header(row)
                if source is None:
                    made.without += 1
                    continue
                content = make(kind, source, row, said, partial(pictures.shown, row))
            except ItemError as error:
                made.failed(row, error)
                continue
            to = out / f"{file_stem(row)}.{kind}.dcm"
            write(to, content)
            also(to, content, row["row_id"])
            made.files.append(to)
    return made


def make(
    kind: Kind,
    source: Dataset,
    row: dict[str, Any],
    said: dict[str, Any],
    shown: Callable[[], Grey],
) -> bytes:
    """The bytes of one object of ``kind`` for the radiograph with the header ``source``.

    The same row, model, radiograph and versions give the same bytes; other bytes have other UIDs.
    ``said`` is the results' provenance, ``shown`` gives the radiograph for SC, (H, W). SEG and SC
    need a row with masks. Raises ItemError: ``uid`` where the header does not identify the
    radiograph, ``object`` where no object can be made of it, ``corrupt`` where the row's masks are
    none, and what ``shown`` does.
    """
    with warnings.catch_warnings():  # pydicom's quote header values, which name patients
        warnings.simplefilter("ignore")
        try:
            if not all(source.get(keyword) for keyword in IDENTIFIED):
                raise ItemError(Unmade.UID)
            single = _single(source)
            if kind == "sr":
                made = _report(single, row, said)
            elif kind == "seg":
                made = _segmentation(single, masks(row), said)
            else:
                rgb = draw(shown(), masks(row), label=_label(row, said))
                made = _capture(single, rgb, said)
            _refer(made, source)
            made.SpecificCharacterSet = source.SpecificCharacterSet
            content = _fixed(made, source, row)
        except ItemError:
            raise
        except Exception as error:  # its text may hold header values
            raise ItemError(Unmade.OBJECT) from error
    return content


def _fixed(made: Dataset, source: Dataset, row: dict[str, Any]) -> bytes:
    """The bytes of an object whose times are its row's and whose UIDs follow from its content.

    A PACS knows an object by its UID: sent again, it must be the same object bit for bit.
    """
    from pydicom.uid import generate_uid

    when = row.get("screened_at") or NEVER
    for element in made.iterall():
        if element.keyword in MADE_AT:
            element.value = when.strftime(TIMES[element.VR])
    theirs = {e.value for e in source.iterall() if e.VR == "UI"}
    own = [e for e in made.iterall() if e.VR == "UI" and _drawn(e.value) and e.value not in theirs]
    numbers = {uid: n for n, uid in enumerate(dict.fromkeys(e.value for e in own))}
    which = [numbers[e.value] for e in own]

    def written(uids: list[str]) -> bytes:
        for element, number in zip(own, which, strict=True):
            element.value = uids[number]
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        buffer = BytesIO()
        made.save_as(buffer)
        return buffer.getvalue()

    content = sha256(written([f"2.25.{n}" for n in range(len(numbers))])).hexdigest()
    return written(
        [generate_uid(entropy_srcs=["comit", content, str(n)]) for n in numbers.values()]
    )


def _drawn(uid: str) -> bool:
    """Whether highdicom drew a UID at random."""
    return str(uid).startswith("1.2.826.0.1.3680043.10.511.3.")


def _single(source: Dataset) -> Dataset:
    """The header as that of a Secondary Capture, which highdicom takes for what comit screens.

    It goes by the SOP class: of a multi-frame one it wants functional groups, of others a Frame of
    Reference, and it knows no private or retired ones. What was screened is one frame, and nothing
    but patient, study and size is taken of it.
    """
    from pydicom.uid import SecondaryCaptureImageStorage

    single = deepcopy(source)
    single.SOPClassUID = SecondaryCaptureImageStorage
    return single


def _refer(made: Dataset, source: Dataset) -> None:
    """Gives every reference to the radiograph its own SOP class."""
    for element in made.iterall():
        for item in element.value if element.VR == "SQ" else ():
            if item.get("ReferencedSOPInstanceUID") == source.SOPInstanceUID:
                item.ReferencedSOPClassUID = source.SOPClassUID


def _segmentation(source: Dataset, found: Masks, said: dict[str, Any]) -> Dataset:
    from highdicom import UID, AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(
        name=_model(said),
        family=codes.DCM.ArtificialIntelligence,
        version=_text(said.get("model_sha256"), 64),
        source="comit",
    )
    segments = [
        SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=category,
            segmented_property_type=kind,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            tracking_uid=UID(),
            tracking_id=f"comit {label.lower()}",
            anatomic_regions=regions,
        )
        for number, label, category, kind, regions in (
            (1, "Lungs", codes.SCT.AnatomicalStructure, codes.SCT.Lung, None),
            (
                2,
                "Disease",
                codes.SCT.MorphologicallyAbnormalStructure,
                codes.SCT.Lesion,
                [codes.SCT.Lung],
            ),
        )
    ]
    large = [to_picture(m, source.Rows, source.Columns) for m in found]
    made = Segmentation(
        source_images=[source],
        pixel_array=np.stack(large, axis=-1)[None].astype(np.uint8),  # (1, Rows, Columns, 2)
        segmentation_type="BINARY",
        segment_descriptions=segments,
        omit_empty_frames=False,  # an empty mask says that nothing was found
        content_label="COMIT",
        content_description="Research use only, not for diagnosis",
        series_description="comit masks, RESEARCH USE ONLY",
        **_instance("seg"),
        **_equipment(said),
    )
    made.SegmentsOverlap = "YES"
    made.PatientOrientation = source.get("PatientOrientation")  # type 2C: empty where unknown
    return made


def _report(source: Dataset, row: dict[str, Any], said: dict[str, Any]) -> Dataset:
    from highdicom import UID, sr
    from pydicom.sr.codedict import codes

    parameters = {k: said.get(k) for k in ("model_sha256", "preprocessing")}
    thresholds = said.get("thresholds") or {}
    parameters |= {f"threshold {k}": thresholds.get(k) for k in ("unhealthy", "covid", "chest")}
    algorithm = sr.AlgorithmIdentification(
        name=_model(said),
        version=f"comit {__version__}",
        family=codes.DCM.ArtificialIntelligence,
        manufacturer="comit",
        parameters=[f"{k}: {v}" for k, v in parameters.items() if v is not None],
    )

    def own(value: str, meaning: str) -> sr.CodedConcept:
        return sr.CodedConcept(value, SCHEME, meaning)

    measured = [
        sr.Measurement(name=own(name, meaning), value=float(row[name]), unit=codes.UCUM.NoUnits)
        for name, meaning in (
            ("score_unhealthy", "Network score, any disease, 0 to 1"),
            ("score_covid", "Network score, COVID-19, 0 to 1"),
            ("score_other", "Network score, other disease, 0 to 1"),
            ("score_chest", "Network score, frontal chest radiograph, 0 to 1"),
            ("disease_fraction", "Disease area / lung area in the image"),
        )
        if row[name] is not None
    ]
    answers = {True: codes.SCT.Yes, False: codes.SCT.No}
    flags = [
        sr.QualitativeEvaluation(name=own(name, meaning), value=answers[row[name]])
        for name, meaning in (
            ("flag_unhealthy", "Any disease: at or above threshold"),
            ("flag_covid", "COVID-19: at or above threshold"),
        )
        if row[name] is not None
    ]
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=_uid("device", said), name="comit", manufacturer_name="comit", model_name=_model(said)
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(codes.DCM.Device, device)
        ),
        procedure_reported=sr.CodedConcept("399208008", "SCT", "Plain chest X-ray"),
        imaging_measurements=[
            sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(UID(), "comit, RESEARCH USE ONLY"),
                finding_sites=[sr.FindingSite(codes.SCT.Lung)],
                algorithm_id=algorithm,
                measurements=measured,
                qualitative_evaluations=flags,
                source_images=[
                    sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID)
                ],
            )
        ],
        title=codes.DCM.ImagingMeasurementReport,
    )
    made = sr.EnhancedSR(
        evidence=[source],
        content=content[0],
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description="comit scores, RESEARCH USE ONLY",
        **_instance("sr"),
    )
    equipment = _equipment(said)
    made.ManufacturerModelName = equipment["manufacturer_model_name"]
    made.SoftwareVersions = equipment["software_versions"]
    made.DeviceSerialNumber = equipment["device_serial_number"]
    return made


def _label(row: dict[str, Any], said: dict[str, Any]) -> str:
    """What is burned into a secondary capture."""
    return f"{RESEARCH}\ncomit {__version__} {_model(said)}: unhealthy {row['score_unhealthy']:.2f}"


def _capture(source: Dataset, rgb: Rgb, said: dict[str, Any]) -> Dataset:
    from highdicom.sc import SCImage

    orientation = tuple(source.get("PatientOrientation") or ())
    known = len(orientation) == 2
    made = SCImage.from_ref_dataset(
        source,
        pixel_array=rgb,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=orientation if known else ("L", "F"),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_description="comit contours, RESEARCH USE ONLY",
        **_instance("sc"),
    )
    if not known:  # highdicom asks for one; type 2C: empty where unknown
        made["PatientOrientation"].clear()
    made.add_new("Laterality", "CS", None)  # likewise: what the picture shows is not verified
    made.BurnedInAnnotation = "YES"
    made.ConversionType = "WSD"  # made on a workstation
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.DerivationDescription = "Outlines of lungs and disease by a network; research use only"
    made.SecondaryCaptureDeviceManufacturer = "comit"
    equipment = _equipment(said)
    made.SecondaryCaptureDeviceManufacturerModelName = equipment["manufacturer_model_name"]
    made.SecondaryCaptureDeviceSoftwareVersions = equipment["software_versions"]
    made.SourceImageSequence = [_referenced(source)]
    return made


def _referenced(source: Dataset) -> Dataset:
    """An item of SourceImageSequence (PS3.3 C.7.6.1)."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    return item


def _instance(kind: Kind) -> dict[str, Any]:
    """What identifies an object; :func:`_fixed` replaces its UIDs."""
    from highdicom import UID

    return {
        "series_instance_uid": UID(),
        "series_number": SERIES[kind],
        "sop_instance_uid": UID(),
        "instance_number": 1,
        "manufacturer": "comit",
    }


def _equipment(said: dict[str, Any]) -> dict[str, Any]:
    """What made an object, as PS3.3 C.7.5.2 Enhanced General Equipment names it."""
    return {
        "manufacturer_model_name": _model(said),
        "software_versions": f"comit {__version__}",
        "device_serial_number": _text(said.get("model_sha256"), 64),
    }


def _model(said: dict[str, Any]) -> str:
    return _text(said.get("model"), 64)


def _text(value: str | None, length: int) -> str:
    """A value that an LO can hold, never empty."""
    return re.sub(r"[^ -\[\]-~]", "", value or "")[:length].strip() or "unknown"


def _uid(what: str, said: dict[str, Any]) -> str:
    """The same UID for the same model: it names the device, not the object."""
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=[f"comit {what}", said.get("model_sha256", "")]))
