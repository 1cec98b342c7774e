"""What derived objects take over from a radiograph's header: patient and study, where valid.

A value that its VR does not allow (a malformed birth date or age) is dropped rather than copied.
The header is read where files are decoded, in a process that may be killed: what is taken over
comes from there as a data set of a few hundred bytes.
"""

from __future__ import annotations

import re
from datetime import datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any

from comit.results import LONGEST

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

IDENTIFIED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# What a derived object inherits: PS3.3 C.7.1.1 Patient, C.7.2.1 General Study, C.7.2.2 Patient
# Study. Sequences and free text beyond these stay behind.
INHERITED = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientSex",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
)
TYPE_2 = (  # present, and empty where unknown
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
PICTURED = ("Rows", "Columns", "Modality", "PatientOrientation")
PATTERNS = {  # by keyword or VR, beyond what pydicom checks; of UIDs in its place
    "PatientSex": "[MFO]",
    "PatientOrientation": "[ALRPHF]{1,3}",
    "UI": r"[0-9]+(\.[0-9]+)*",
}


def reference(data: bytes) -> Dataset:
    """Header of a radiograph: what derived objects need, valid values only.

    UIDs by which others know the radiograph are taken as they are: components may begin with 0,
    which PS3.5 9.1 forbids and PACS keep. Raises what pydicom does.
    """
    from pydicom import dcmread
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    raw = dcmread(BytesIO(data), force=True, stop_before_pixels=True)
    kept = Dataset()
    for keyword in (*IDENTIFIED, *INHERITED, *PICTURED):
        if keyword in raw and valid(raw, keyword):
            kept[keyword] = raw[keyword]
    for keyword in TYPE_2:
        if keyword not in kept:
            setattr(kept, keyword, None)
    kept.SpecificCharacterSet = "ISO_IR 192"  # texts are decoded by now, and written as UTF-8
    kept.file_meta = FileMetaDataset()
    kept.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian  # highdicom asks for it
    return kept


def pack(kept: Dataset) -> bytes:
    """What :func:`reference` gives, as the bytes of a DICOM file."""
    buffer = BytesIO()
    kept.save_as(buffer, enforce_file_format=False)
    return buffer.getvalue()


def unpack(content: bytes) -> Dataset:
    """The data set that was packed."""
    from pydicom import dcmread

    return dcmread(BytesIO(content), force=True)


def valid(ds: Dataset, keyword: str) -> bool:
    """Whether an element has its VR and multiplicity (PS3.6) and only values that they allow."""
    from pydicom.datadict import dictionary_VM, dictionary_VR

    declared = "SpecificCharacterSet" in ds
    try:
        element = ds[keyword]
        values = element.value if element.VM > 1 else [element.value]
        return (
            dictionary_VR(element.tag) == element.VR
            and (element.VM <= 1 or dictionary_VM(element.tag) != "1")
            and all(_allowed(keyword, element.VR, v, declared) for v in values)
        )
    except Exception:  # pydicom raises many kinds for values it cannot parse
        return False


def _allowed(keyword: str, vr: str, value: Any, declared: bool) -> bool:
    """PS3.5 6.2, and a date, size or sex that there is; may raise instead. Empty is allowed.

    Text is ASCII alone unless a character set is ``declared`` (PS3.5 6.1).
    """
    from pydicom.config import RAISE
    from pydicom.valuerep import validate_value

    if value is None or value == "":
        return True
    text = str(value)
    if vr == "US":
        return True
    if vr == "UI":
        return len(text) <= LONGEST and bool(re.fullmatch(PATTERNS[vr], text))
    validate_value(vr, text, RAISE)
    if vr == "DA":
        datetime.strptime(text, "%Y%m%d")
    if vr == "DS" and not float(text) > 0:
        return False
    # U+FFFD is what pydicom gives for bytes that are none of the character set.
    legible = text.isprintable() and "\ufffd" not in text and (declared or text.isascii())
    return legible and bool(re.fullmatch(PATTERNS.get(keyword) or PATTERNS.get(vr) or ".*", text))
