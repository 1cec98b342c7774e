"""Whether a DICOM header says that the file is a frontal chest radiograph.

What says so is closed vocabularies: PS3.3 (Modality, ViewPosition), and the codes and words of
:mod:`comit.image.vocabulary`. What they do not know is unknown, and so is what two tags contradict
each other about. No text of the header is handed on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from typing import NamedTuple

from comit.image.base import ViewPolicy
from comit.image.header import Header
from comit.image.vocabulary import (
    CHEST_CODES,
    FRONTAL,
    IN_PART,
    IN_WORDS,
    OTHER_CODES,
    VIEW_CODES,
    VIEWS,
    Part,
    find,
    words_of,
)
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
FRAME_ANATOMY = 0x00209071  # a functional group macro
INTENT, AGE, BIRTH_DATE, STUDY_DATE = 0x00080068, 0x00101010, 0x00100030, 0x00080020
ADULT = 15  # years; the age from which WHO's advice on computer-aided detection holds
# More exact ones come first; the others are all alike.
PRECEDENCE = {"PA": 1, "AP": 2, "FRONTAL": 3, "LATERAL": 4, "OBLIQUE": 5, "OTHER": 6}
CODE, MEANING = 0x00080100, 0x00080104

RADIOGRAPHS = frozenset({"CR", "DX", "DR", "RG", "XR"})
UNSPECIFIC = frozenset({"", "OT", "SC"})  # anything may be stored as other or secondary capture
# Storage classes of projection radiographs (PS3.4 B.5): these stand in for a missing Modality.
STORAGE = "1.2.840.10008.5.1.4.1.1."
RADIOGRAPH_CLASSES = frozenset(STORAGE + s for s in ("1", "1.1", "1.1.1"))
# Digital X-ray, mammography and intra-oral, each For Processing.
FOR_PROCESSING = frozenset(STORAGE + s for s in ("1.1.1", "1.2.1", "1.3.1"))
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


class Verdict(NamedTuple):
    """What the header says this is."""

    skip: Skip | None
    view: str | None  # PA, AP, FRONTAL, LL, ...: of the vocabularies above only
    warnings: tuple[Caution, ...]
    verified: bool = False  # tags say chest, and a frontal view of it


def judge(header: Header, frames: int, is_colour: bool, policy: ViewPolicy = "tagged") -> Verdict:
    """The first reason to leave the file out, in the order of the members of Skip."""
    said = find_view(header)
    view = said.view
    warnings: list[Caution] = []
    sop_class = header.uid(SOP_CLASS) or header.uid(0x00020002) or ""
    if any(sop_class == c or sop_class.startswith(c + ".") for c in NOT_IMAGES):
        return Verdict(Skip.SOP_CLASS, view, ())
    anatomy = find_chest(header)
    region = anatomy.chest
    modality = header.word(MODALITY)
    if modality in UNSPECIFIC and sop_class not in RADIOGRAPH_CLASSES:
        # Screen captures and scanned film: only grey ones, and only where a tag says chest.
        if is_colour or not region:
            return Verdict(Skip.MODALITY, view, ())
    elif modality not in RADIOGRAPHS | UNSPECIFIC:
        return Verdict(Skip.MODALITY, view, ())
    if is_for_processing(header, sop_class):
        if policy != "all":
            return Verdict(Skip.FOR_PROCESSING, view, ())
        warnings.append(Caution.FOR_PROCESSING)
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
    if anatomy.contradicting or said.contradicting:
        warnings.append(Caution.CONTRADICTING_TAGS)
    age = age_of(header)
    if age is not None and age < ADULT:
        warnings.append(Caution.CHILD)
    if header.word(0x00280301) == "YES":  # BurnedInAnnotation
        warnings.append(Caution.BURNED_IN)
    if not is_upright(header.words(0x00200020)):  # PatientOrientation
        warnings.append(Caution.ORIENTATION)
    return Verdict(None, view, tuple(warnings), bool(region) and view in FRONTAL)


class Said(NamedTuple):
    """What tags say about one question; None where none speaks, or two contradict each other."""

    chest: bool | None = None
    view: str | None = None
    contradicting: bool = False


def find_chest(header: Header) -> Said:
    """Whether tags say chest or another part: every tag is asked.

    BodyPartExamined, AnatomicRegionSequence (of the frame too), and the words of descriptions.
    """
    said = [_chest_in(header.text(BODY_PART), IN_PART)]
    regions = [*header.items(REGION), *header.of_frame(FRAME_ANATOMY, (REGION,)).items(REGION)]
    for item in regions:
        code = item.word(CODE)
        is_chest = True if code in CHEST_CODES else False if code in OTHER_CODES else None
        said.append(_chest_in(item.text(MEANING), IN_PART) if is_chest is None else is_chest)
    for tag in (SERIES, PROTOCOL, STEP, PROCESSING, STUDY):
        said.append(_chest_in(header.text(tag), IN_WORDS))
    spoken = {s for s in said if s is not None}
    return Said(chest=spoken.pop() if len(spoken) == 1 else None, contradicting=len(spoken) > 1)


def _chest_in(text: str, table: Mapping[str, Part]) -> bool | None:
    """Whether words name the chest, alone or with what one image shows beside it."""
    parts = set(find(words_of(text), table))
    if Part.CHEST in parts:
        return None if Part.ELSEWHERE in parts else True
    return False if parts & {Part.ELSEWHERE, Part.BESIDE} else None


def find_view(header: Header) -> Said:
    """PA, AP, FRONTAL or another view: the first that is said, if no tag contradicts it.

    ViewPosition, ViewCodeSequence, then the words of this series' descriptions (the study's name
    its other images too).
    """
    said = [_view_in(header.text(VIEW_POSITION))]
    for item in header.items(VIEW_CODE):
        said.append(VIEW_CODES.get(item.word(CODE)) or _view_in(item.text(MEANING)))
    said += [_view_in(header.text(tag)) for tag in (SERIES, PROTOCOL, STEP, PROCESSING)]
    spoken = [view for view in said if view]
    if len({view in FRONTAL for view in spoken}) > 1:
        return Said(contradicting=True)
    return Said(view=spoken[0] if spoken else None)


def _view_in(text: str) -> str | None:
    """The view in a few words; None where they name none, or both a frontal and another."""
    words = words_of(text)
    found = [view for view in find(words, VIEWS) if view]
    if not found and "".join(words) in VIEWS:  # L-L-D
        found = [VIEWS["".join(words)]]
    if len({view in FRONTAL for view in found}) > 1:
        return None
    # PA goes before AP, and a more exact view before a vaguer one.
    return min(found, key=lambda view: PRECEDENCE.get(view, 0), default=None) or None


def is_for_processing(header: Header, sop_class: str) -> bool:
    """Whether the values are a detector's, input to processing and not to be read (C.8.11.1).

    They are bright where much light fell, and have no window of their own.
    """
    return sop_class in FOR_PROCESSING or header.word(INTENT) == "FOR PROCESSING"


def age_of(header: Header) -> float | None:
    """Years, by PatientAge (VR AS, PS3.5 6.2) or from PatientBirthDate to StudyDate, or None."""
    match = re.fullmatch(r"(\d{1,3})([DWMY]?)", header.word(AGE))
    if match:  # without a unit: years, as writers mean it that leave the unit out
        return int(match[1]) * {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12}.get(match[2], 1.0)
    born, then = (_day(header.word(tag)) for tag in (BIRTH_DATE, STUDY_DATE))
    if born is None or then is None or then < born:
        return None
    return (then - born).days / 365.25


def _day(text: str) -> date | None:
    """VR DA, also with the dots of ACR-NEMA."""
    match = re.fullmatch(r"(\d{4})\.?(\d\d)\.?(\d\d)", text)
    with suppress(ValueError):
        return date(int(match[1]), int(match[2]), int(match[3])) if match else None
    return None


def is_upright(orientation: tuple[str, ...]) -> bool:
    """Whether rows run along left-right and columns head to foot (PS3.3 C.7.6.1.1.1), or unsaid."""
    if not any(orientation):
        return True
    return len(orientation) == 2 and orientation[0][:1] in ("L", "R") and orientation[1][:1] == "F"
