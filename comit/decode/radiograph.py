"""Whether a DICOM header says that the file is a frontal chest radiograph.

What says so is closed vocabularies: PS3.3 (Modality, ViewPosition), PS3.16 CID 4010 and 4031
(codes), and for free text the words below. No text of the header is handed on.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from comit.decode import ViewPolicy
from comit.decode.header import Header
from comit.reasons import Caution, Skip

SOP_CLASS, MODALITY = 0x00080016, 0x00080060
BODY_PART, REGION = 0x00180015, 0x00082218
VIEW_POSITION, VIEW_CODE = 0x00185101, 0x00540220
STUDY, SERIES, PROTOCOL, STEP, PROCESSING = (
    0x00081030,
    0x0008103E,
    0x00181030,
    0x00400254,
    0x00181400,
)
CODE, MEANING = 0x00080100, 0x00080104

RADIOGRAPHS = frozenset({"CR", "DX", "DR", "RG", "XR"})
UNSPECIFIC = frozenset({"", "OT", "SC"})  # anything may be stored as other or secondary capture
# Storage classes of projection radiographs (PS3.4 B.5): these stand in for a missing Modality.
STORAGE = "1.2.840.10008.5.1.4.1.1."
RADIOGRAPH_CLASSES = frozenset(STORAGE + s for s in ("1", "1.1", "1.1.1"))
# Storage classes whose objects are not images, with all below them (PS3.4 B.5, B.6):
# DICOMDIR; overlays, curves and LUTs; presentation states; waveforms; parametric maps, raw
# data, registrations, segmentations; real-world mappings; refractions and such; reports;
# documents; assessments, displays, radiotherapy plans; protocols.
NOT_IMAGES = (
    "1.2.840.10008.1.3.10",
    "1.2.840.10008.5.1.4.38",
    "1.2.840.10008.5.1.4.39",
    *(STORAGE + str(n) for n in (8, 9, 10, 11, 30, 66, 67, 68, 88, 90, 104, 131, 200, 201)),
    *(f"{STORAGE}{n}.1" for n in (78, 79, 80)),
    *(f"{STORAGE}78.{n}" for n in range(2, 9)),
    *(f"{STORAGE}481.{n}" for n in range(3, 11)),
)

# Words of BodyPartExamined and descriptions, in the languages met most; matched as beginnings.
CHEST = re.compile(
    r"CHEST|CXR|THORAX|TORAX|TORACE|T RAX|LUNG|PULMO|POUMON|BRUSTKORB|\bRIBS?\b|HEMITHORA"
    r"|PLEURA|MEDIASTIN|\bPORT(ABLE)?CH"
)
NOT_SAID = frozenset(
    {"", "UNKNOWN", "UNDEFINED", "UNSPECIFIED", "NONE", "NA", "N A", "OTHER", "OT", "NULL", "BODY"}
)
ELSEWHERE = re.compile(
    r"\b(HANDS?|WRISTS?|FINGERS?|THUMB|ELBOWS?|FOREARM|HUMERUS|SHOULDERS?|SKULL|NECK|HEAD"
    r"|SPINE|[CTL] ?SPINE|PELVIS|HIPS?|FEMUR|KNEES?|PATELLA|TIBIA|LEGS?|ANKLES?|FOOT|FEET|TOES?"
    r"|ABDOMEN|KUB|EXTREMITY|BREAST|DENTAL|JAW|SINUS(ES)?|CALCANEUS)\b"
)
CHEST_CODES = frozenset(
    {
        *("T-D3000", "51185008", "816094009"),  # thorax, chest
        *("T-28000", "39607008", "T-280A0", "86598002"),  # lung, its apex
        *("T-11300", "113197003"),  # rib
        # regions of the trunk that include the chest
        *("R-FAB52", "417437006", "R-FAB53", "416152001", "R-FAB54", "416319003"),
        *("R-FAB55", "416550000", "R-FAB56", "416775004"),
    }
)
VIEW_CODES = {
    **dict.fromkeys(("R-10206", "399348003"), "AP"),
    **dict.fromkeys(("R-40888", "R-10214", "272479007"), "PA"),
    **dict.fromkeys(("R-10202", "399033003"), "FRONTAL"),
    **dict.fromkeys(("R-10236", "399173006"), "LL"),
    **dict.fromkeys(("R-10232", "399198007"), "RL"),
    **dict.fromkeys(("R-102CD", "399067008"), "LATERAL"),
}
FRONTAL = frozenset({"PA", "AP", "FRONTAL"})
# Defined terms of ViewPosition (PS3.3 C.8.1.1, C.8.11.5) and what stands there instead.
OTHER_VIEWS = {
    **{v: v for v in ("LL", "RL", "LLD", "RLD", "LLO", "RLO", "LPO", "RPO", "LAO", "RAO")},
    **dict.fromkeys(("LAT", "LATERAL", "LLAT", "RLAT", "LATL", "LATR"), "LATERAL"),
    **dict.fromkeys(("OBL", "OBLIQUE"), "OBLIQUE"),
    **dict.fromkeys(("DECUB", "DECUBITUS", "LORDOTIC", "AXIAL", "TANGENTIAL"), "OTHER"),
}


class Verdict(NamedTuple):
    """What the header says this is."""

    skip: Skip | None
    view: str | None  # PA, AP, FRONTAL, LL, ...: of the vocabularies above only
    warnings: tuple[Caution, ...]


def judge(header: Header, frames: int, is_colour: bool, policy: ViewPolicy = "tagged") -> Verdict:
    """The first reason to leave the file out, in the order of the members of Skip."""
    view = find_view(header)
    warnings: list[Caution] = []
    sop_class = header.uid(SOP_CLASS) or header.uid(0x00020002) or ""
    if any(sop_class == c or sop_class.startswith(c + ".") for c in NOT_IMAGES):
        return Verdict(Skip.SOP_CLASS, view, ())
    region = find_chest(header)
    modality = header.word(MODALITY)
    if modality in UNSPECIFIC and sop_class not in RADIOGRAPH_CLASSES:
        # Screen captures and scanned film: only grey ones, and only where a tag says chest.
        if is_colour or not region:
            return Verdict(Skip.MODALITY, view, ())
    elif modality not in RADIOGRAPHS | UNSPECIFIC:
        return Verdict(Skip.MODALITY, view, ())
    if region is False:
        if policy != "all":
            return Verdict(Skip.ANATOMY, view, ())
        warnings.append(Caution.OTHER_ANATOMY)
    if view is not None and view not in FRONTAL:
        if policy != "all":
            return Verdict(Skip.VIEW, view, ())
        warnings.append(Caution.OTHER_VIEW)
    if frames > 1:
        return Verdict(Skip.MULTI_FRAME, view, ())
    if region is None or view is None:
        if policy == "strict":
            return Verdict(Skip.UNVERIFIED_VIEW, view, ())
        warnings.append(Caution.UNVERIFIED_VIEW)
    if header.word(0x00280301) == "YES":  # BurnedInAnnotation
        warnings.append(Caution.BURNED_IN)
    if not is_upright(header.words(0x00200020)):  # PatientOrientation
        warnings.append(Caution.ORIENTATION)
    return Verdict(None, view, tuple(warnings))


def find_chest(header: Header) -> bool | None:
    """True where a tag says chest, False where one says another part, None where none speaks.

    BodyPartExamined decides, then AnatomicRegionSequence, then the words of the descriptions.
    """
    part = _plain(header.word(BODY_PART))
    if part not in NOT_SAID:
        return bool(CHEST.search(part))
    for item in header.items(REGION):
        code, meaning = item.word(CODE), _plain(item.word(MEANING))
        if code in CHEST_CODES or CHEST.search(meaning):
            return True
        if code or meaning:
            return False
    text = " ".join(_plain(header.word(t)) for t in (SERIES, PROTOCOL, STEP, PROCESSING, STUDY))
    if CHEST.search(text):
        return True
    return False if ELSEWHERE.search(text) else None


def find_view(header: Header) -> str | None:
    """PA, AP, FRONTAL or another view; None where no tag says.

    ViewPosition decides, then ViewCodeSequence, then the words of this series' descriptions (the
    study's name its other images too).
    """
    position = _plain(header.word(VIEW_POSITION))
    if position:
        return _view_of(position)
    for item in header.items(VIEW_CODE):
        code, meaning = item.word(CODE), _plain(item.word(MEANING))
        if code or meaning:
            return VIEW_CODES.get(code) or _view_of(meaning) or "OTHER"
    for tag in (SERIES, PROTOCOL, STEP, PROCESSING):
        found = {v for word in _plain(header.word(tag)).split() if (v := _view_of(word))}
        if len(found) == 1:
            return found.pop()
    return None


def _view_of(text: str) -> str | None:
    """The view in a few words; None where they name none, or both a frontal and another."""
    joined = text.replace(" ", "")
    if joined in FRONTAL or joined in OTHER_VIEWS:
        return OTHER_VIEWS.get(joined, joined)
    if re.search(r"OBLIQ", joined):
        return "OBLIQUE"
    if re.match(r"ANTEROPOST|APSUP|APERECT|APPORT", joined):
        return "AP"
    if re.match(r"POSTEROANT|PAERECT", joined):
        return "PA"
    words = set(text.split())
    other = [OTHER_VIEWS[w] for w in OTHER_VIEWS if w in words]
    frontal = [v for v in ("PA", "AP", "FRONTAL") if v in words]
    if other and frontal:
        return None
    return next(iter(other or frontal), None)


def is_upright(orientation: tuple[str, ...]) -> bool:
    """Whether rows run along left-right and columns head to foot (PS3.3 C.7.6.1.1.1), or unsaid."""
    if not any(orientation):
        return True
    return len(orientation) == 2 and orientation[0][:1] in ("L", "R") and orientation[1][:1] == "F"


def _plain(text: str) -> str:
    """Letters and digits with single spaces: CHEST_PA, CHEST/PA and CHEST-PA are one."""
    return " ".join(re.sub(r"[^A-Z0-9]+", " ", text).split())
