"""What words of headers say, in the languages of hospitals: one row a text."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.charset import python_encoding
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from comit.bench.faults.dicoms import SECONDARY, dataset, picture, write
from comit.image import open_image
from comit.image.header import Header, read_header
from comit.image.radiograph import find_chest, find_view
from comit.reasons import Caution, Skip

PIXELS = picture()
WORDS = {"BodyPartExamined": None, "ViewPosition": None}


def header(**tags: Any) -> Header:
    return read_header(write(dataset(PIXELS, **{**WORDS, **tags})))


# BodyPartExamined: True a chest, False another part, None unknown.
PARTS: dict[bool | None, str] = {
    True: """CHEST|Chest|CHEST PA|CHEST_AP|CHEST-2V|CHESTPA|CHEST2VIEWS|THORAX|Thorax|TORAX
        |TORÁX|TÓRAX
        |TORACE|TORAKS|LUNG|LUNGS|LUNGE|LUNGEN|RIB|RIBS|Rippen|PECHO|BRUST|BRUSTKORB|PULMONES|PULMÃO
        |POUMONS|POLMONI|PŁUCA|KLATKA PIERSIOWA|klatka piersiowa|KLP|THORACIC CAGE|CAGE THORACIQUE
        |CAJA TORACICA|Gabbia toracica|GRIL COSTAL|PARRILLA COSTAL|COSTILLAS|Costelas|BORSTKAS
        |RIBBEN
        |LONGEN|CHESTABDOMEN|CHEST/ABDOMEN|NECKCHEST|NECKCHESTABDPELV|THORAX ABDOMEN|HEMITHORAX
        |MEDIASTINUM|PLEURA|PORTCHEST|PORT CHEST|PCXR|CXR|XRCHEST|HEART|Herz|CHEST AND NECK""",
    False: """HAND|HANDS|Hand links|WRIST|ELBOW|FOREARM|SHOULDER|CLAVICLE|STERNUM|SCAPULA|SKULL|HEAD
        |NECK|FACE|JAW|MANDIBLE|SINUS|ORBIT|CSPINE|TSPINE|LSPINE|LSSPINE|T-SPINE|C SPINE
        |THORACIC SPINE
        |SPINE|PELVIS|HIP|FEMUR|KNEE|PATELLA|TIBIA FIBULA|LEG|ANKLE|FOOT|TOE|CALCANEUS|EXTREMITY
        |LOWER LIMB|ARM|ABDOMEN|KUB|ABDOMENPELVIS|BREAST|COLON|STOMACH|BLADDER|HANDGELENK|SCHÄDEL
        |SCHAEDEL|BECKEN|HÜFTE|KNIE|FUSS|HWS|BWS|LWS|WIRBELSÄULE|BAUCH|MAIN|POIGNET|GENOU|HANCHE
        |CHEVILLE|PIED|ÉPAULE|CRÂNE|RACHIS|BASSIN|MANO|MUÑECA|RODILLA|CADERA|TOBILLO|HOMBRO|CRÁNEO
        |COLUMNA TORACICA|MÃO|JOELHO|QUADRIL|TORNOZELO|OMBRO|BACIA|POLSO|GINOCCHIO|ANCA|CAVIGLIA
        |SPALLA|BACINO|ADDOME|RĘKA|NADGARSTEK|KOLANO|BIODRO|STOPA|KRĘGOSŁUP|MIEDNICA|JAMA BRZUSZNA
        |POLS|VOET|HEUP|SCHOUDER|BEKKEN|BUIK|ENKEL""",
    None: """|UNKNOWN|XRAY|X-RAY|BODY|WHOLEBODY|OTHER|NA|N/A|NONE|THORACIC|PORTABLE|AP|ROUTINE
        |DEFAULT
        |STANDARD|GRUDE|MANCHESTER|CHESTER|CHESTNUT|STELLUNG|BEHANDLUNG|KNEESWORTH|1|?
        |CHEST AND HAND
        |ALL|BILATERAL|ADULT|PEDIATRIC|Allgemein|Sonstige|DIVERS""",
}
# A description: SeriesDescription.
DESCRIPTIONS: dict[bool | None, str] = {
    True: """CHEST PA|Chest PA and Lateral|XR CHEST 2 VIEWS|XR Chest 1V Portable|CXR AP
        |PORTABLE CHEST
        |Thorax p.a.|Thorax ap liegend|Thorax in 2 Ebenen|Röntgen Thorax|Thoraxaufnahme|Lunge pa
        |Rö-Thorax Bettaufnahme|Hemithorax links|Radiographie thoracique|Thorax de face
        |RX THORAX FACE
        |Poumons face et profil|Radiografía de tórax PA|RX TORAX AP DE PIE|TORAX PA Y LATERAL
        |TELE DE TORAX|RX PULMONAR|Raio-X de tórax PA|RX TORAX EM PE|Tórax perfil|RX TORACE 2 PR
        |Rx torace in due proiezioni|TELETORACE|RTG klatki piersiowej|Klatka piersiowa PA|RTG KLP
        |RTG płuc|X-thorax|Thorax voorachterwaarts|Thorax staand|Hart en longen|Ribs left
        |CHEST AP PORTABLE HEAD OF BED 45|CHEST ARMS UP|CHEST PA 6 FOOT|LUNGS|Hjärta och lungor
        |CHEST (HAND HELD)|CHEST AND ABDOMEN|BABYGRAM CHEST ABDOMEN|Thorax und Abdomen""",
    False: """Left hand|XRAY RIGHT HAND|Stellungskontrolle Handgelenk|Behandlungskontrolle Knie
        |Manchester Royal Infirmary: Knee|Rochester General - Left hand|Winchester: hip AP
        |CHESTERFIELD ROYAL ANKLE|Dorchester County - Foot|Chestnut Hill: shoulder
        |Liverpool Heart and
        Chest Hospital - left wrist|Chest Clinic: Hand|ABDOMEN SUPINE|KUB|T-SPINE AP
        |Thoracic spine lat
        |BWS seitlich|Brustwirbelsäule ap|HWS in 2 Ebenen|Becken a.p.|Knie bds. stehend|Schädel
        |Hüfte links axial|OSG rechts|Vorfuß dp|Genou face et profil|Main droite|Rachis dorsal
        |Bassin de face|Cheville gauche|Épaule droite|Rodilla derecha AP|Mano izquierda
        |Columna lumbar
        |Pie derecho|Cadera AP|Joelho direito AP/P|Mão esquerda|Coluna torácica|Pé esquerdo
        |Ginocchio sinistro|Polso dx|Rachide dorsale|Bacino AP|RTG kolana lewego|RTG nadgarstka
        |Kręgosłup piersiowy AP|Miednica|Enkel links|Pols rechts|Bekken AP|Thoracolumbar spine
        |Cervical spine|Pelvis AP|Bone age|TIB FIB|AC joints shoulder|Sternum lateral""",
    None: """AP PORTABLE, HEAD OF BED 45|AP PORTABLE HEAD UP|PORTABLE ARMS UP|AP|PA|ROUTINE|view: PA
        |Manchester Royal Infirmary|Rochester General|Stellungskontrolle|Kontrolle|ICU bed 4|DE PIE
        |Paciente de pie|em pé|Main Campus|Main building AP|By hand|Feet first|Default|XRAY|X-RAY
        |R/O PE|Has been seen|Hemodynamics|Udo|Rak|Face|Chest and hand|Knee, chest|STAT|Chest Clinic
        |National Heart and Lung Institute|Sacred Heart|Hands up|stop|Pied du lit""",
}
# The view in words; None where they name none or several that differ.
VIEWS: dict[str | None, str] = {
    "PA": """PA|P.A.|p.a.|P-A|P/A|CHEST PA|Thorax p.a.|Thorax pa stehend|postero-anterior
        |posteroanterior
        |PA ERECT|PAERECT|CHESTPA|Postérieur antérieur|tylno-przednia|Torax PA|dorsoventral
        |achterwaarts PA""",
    "AP": """AP|A.P.|a.p.|a. p.|AP PORTABLE|AP SUPINE|APSUP|APPORTABLE|Thorax a.p. liegend
        |antero-posterior
        |ANTEROPOSTERIOR|Antéro-postérieur|przednio-tylna|voorachterwaarts|AP EN DECUBITO SUPINO
        |Thorax AP décubitus dorsal|AP bed""",
    "FRONTAL": "FRONTAL|face|Thorax de face|FACE DEBOUT|frente|Tórax de frente|frontale",
    "LATERAL": """LAT|LATERAL|lateral|CHEST LAT|CHESTLAT|LT LAT|seitlich|Thorax seitlich
        |Thorax seitl.
        |profil|Thorax de profil|profil gauche|perfil|Tórax perfil|Latero-laterale
        |proiezione laterale
        |profilo|boczne|RTG klatki boczna|zijdelings|dwars|Thorax dwarsopname|latéral
        |X-TABLE LATERAL""",
    "LL": "LL|TORACE LL",
    "OBLIQUE": "OBL|OBLIQUE|oblique|oblicua|schräg|Obliqua|skośna|schuin",
    "OTHER": "LORDOTIC|AXIAL|lordotic|DECUB|DECUBITUS",
    None: """|CHEST|AP AND LATERAL|PA/LAT|PA & LAT|face et profil|PA Y LATERAL|PA E PERFIL
        |2 VIEWS|in 2 Ebenen
        |BILATERAL|UNILATERAL|P.A.C.S.|PAT|APP|LATE|PALATE|Planted^Name|profile|face mask
        |decubito supino
        |PARTIAL|MAPPED""",
}


def rows(table: dict[Any, str]) -> list[tuple[str, Any]]:
    return [(" ".join(t.split()), said) for said, texts in table.items() for t in texts.split("|")]


def test_the_tables_are_large() -> None:
    assert sum(len(rows(table)) for table in (PARTS, DESCRIPTIONS, VIEWS)) > 400


@pytest.mark.parametrize(("text", "expected"), rows(PARTS))
def test_body_parts(text: str, expected: bool | None) -> None:
    found = find_chest(said_by("BodyPartExamined", text))
    assert (found.chest, found.contradicting) == (expected, False)


@pytest.mark.parametrize(("text", "expected"), rows(DESCRIPTIONS))
@pytest.mark.parametrize("keyword", ["SeriesDescription", "StudyDescription"])
def test_descriptions(keyword: str, text: str, expected: bool | None) -> None:
    found = find_chest(said_by(keyword, text))
    assert (found.chest, found.contradicting) == (expected, False)


@pytest.mark.parametrize(("text", "expected"), rows(VIEWS))
@pytest.mark.parametrize("keyword", ["ViewPosition", "SeriesDescription"])
def test_views(keyword: str, text: str, expected: str | None) -> None:
    found = find_view(said_by(keyword, text))
    assert (found.view, found.contradicting) == (expected, False)


def said_by(keyword: str, text: str) -> Header:
    ds = dataset(PIXELS, **WORDS)
    ds.SpecificCharacterSet = "ISO_IR 192"
    tag = tag_for_keyword(keyword)
    assert tag is not None
    ds[tag] = DataElement(tag, "LO", text)  # as written by devices that ignore the VR
    return read_header(write(ds))


@pytest.mark.parametrize(
    ("text", "charset", "codec"),
    [
        ("TORÁX", "ISO_IR 100", "latin-1"),
        ("TÓRAX", None, "latin-1"),
        ("Tórax", None, "utf-8"),
        ("Tórax", "ISO_IR 100", "utf-8"),  # declared wrongly
        ("płuca", "ISO_IR 101", "iso8859_2"),
        ("PŁUCA", "ISO_IR 192", "utf-8"),
        ("TOR?X", None, "ascii"),
        ("T?RAX", None, "ascii"),
    ],
)
def test_letters_are_read_in_their_character_set(
    text: str, charset: str | None, codec: str
) -> None:
    assert charset is None or charset in python_encoding
    ds = dataset(PIXELS, **WORDS)
    if charset is not None:
        ds.SpecificCharacterSet = charset
    data = text.encode(codec)
    data += b" " * (len(data) % 2)
    ds.SeriesDescription = "x" * len(data)
    found = find_chest(read_header(write(ds).replace(b"x" * len(data), data)))
    assert found.chest is True


def code(value: str, meaning: str) -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodeMeaning, item.CodingSchemeDesignator = value, meaning, "SCT"
    return Sequence([item])


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        (code("51185008", ""), True),
        (code("T-D3000", "x"), True),
        (code("999", "Thorax"), True),
        (code("72696002", ""), False),
        (code("T-15750", ""), False),
        (code("999", "Kniegelenk"), False),
        (code("999", "Frobnicate"), None),
        (code("38266002", "Entire body"), None),
    ],
)
def test_codes_of_anatomy(region: Sequence, expected: bool | None) -> None:
    assert find_chest(header(AnatomicRegionSequence=region)).chest is expected
    frame, group = Dataset(), Dataset()
    frame.AnatomicRegionSequence = region
    group.FrameAnatomySequence = Sequence([frame])
    groups = {"NumberOfFrames": 1, "SharedFunctionalGroupsSequence": Sequence([group])}
    assert find_chest(header(**groups)).chest is expected


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (code("399173006", ""), "LL"),
        (code("999", "Postero-anterior"), "PA"),
        (code("R-102C1", ""), "OBLIQUE"),
        (code("999", "something"), None),
    ],
)
def test_codes_of_views(view: Sequence, expected: str | None) -> None:
    assert find_view(header(ViewCodeSequence=view)).view == expected


UNVERIFIED, CONTRADICTING = Caution.UNVERIFIED_VIEW, Caution.CONTRADICTING_TAGS


@pytest.mark.parametrize(
    "tags",
    [
        {"BodyPartExamined": "CHEST", "SeriesDescription": "Left hand"},
        {"BodyPartExamined": "HAND", "SeriesDescription": "Chest PA"},
        {"BodyPartExamined": "CHEST", "StudyDescription": "XR KNEE LEFT"},
        {"BodyPartExamined": "CHEST", "AnatomicRegionSequence": code("72696002", "Knee")},
        {"BodyPartExamined": None, "SeriesDescription": "Thorax", "ProtocolName": "Abdomen"},
        {"ViewPosition": "PA", "SeriesDescription": "Thorax seitlich"},
        {"ViewPosition": "LL", "SeriesDescription": "Chest PA"},
        {"ViewPosition": "AP", "ViewCodeSequence": code("399173006", "left lateral")},
    ],
)
def test_tags_that_contradict_are_unknown_and_said(tags: dict[str, Any]) -> None:
    data = write(dataset(PIXELS, **tags))
    image = open_image(data)
    assert image.skip is None and image.warnings == [UNVERIFIED, CONTRADICTING]
    assert open_image(data, policy="strict").skip is Skip.UNVERIFIED_VIEW


@pytest.mark.parametrize(
    "tags",
    [
        {"BodyPartExamined": "CHEST", "StudyDescription": "Chest and hand"},
        {"ViewPosition": "PA", "SeriesDescription": "Chest PA and Lateral"},
        {"ViewPosition": "PA", "SeriesDescription": "CHEST AP"},  # both frontal
        {"ViewPosition": "PA", "StudyDescription": "Chest lateral"},  # of another image
    ],
)
def test_tags_that_agree_or_name_several_things_do_not_contradict(tags: dict[str, Any]) -> None:
    image = open_image(write(dataset(PIXELS, **tags)), policy="strict")
    assert image.skip is None and image.facts.view == "PA" and image.warnings == []


def test_contradicting_tags_do_not_take_a_secondary_capture_in() -> None:
    tags = {"Modality": "OT", "SOPClassUID": SECONDARY, "SeriesDescription": "Left hand"}
    assert open_image(write(dataset(PIXELS, **tags))).skip is Skip.MODALITY


# ---- what the pixels are for, and who is shown ---------------------------------------------

RAW = "1.2.840.10008.5.1.4.1.1.1.1.1"


@pytest.mark.parametrize(
    "tags",
    [
        {"SOPClassUID": RAW},
        {"SOPClassUID": RAW, "PresentationIntentType": "FOR PROCESSING"},
        {"PresentationIntentType": "FOR PROCESSING"},
        {"PresentationIntentType": "for processing "},
        {"SOPClassUID": RAW, "PresentationIntentType": "FOR PRESENTATION"},
    ],
)
def test_what_is_for_processing_is_skipped_or_said(tags: dict[str, Any]) -> None:
    data = write(dataset(PIXELS, **tags))
    assert open_image(data).skip is Skip.FOR_PROCESSING
    image = open_image(data, policy="all")
    assert image.skip is None and image.warnings == [Caution.FOR_PROCESSING]


def test_what_is_for_presentation_is_screened() -> None:
    image = open_image(write(dataset(PIXELS, PresentationIntentType="FOR PRESENTATION")))
    assert image.skip is None and image.warnings == []


@pytest.mark.real
def test_the_for_processing_object_met_in_the_field(faults: Any) -> None:
    data = (faults / "for-processing" / "52_for_processing.dcm").read_bytes()
    assert open_image(data).skip is Skip.FOR_PROCESSING
    assert Caution.FOR_PROCESSING in open_image(data, policy="all").warnings


@pytest.mark.parametrize(
    ("tags", "child"),
    [
        ({"PatientAge": "012Y"}, True),
        ({"PatientAge": "014Y"}, True),
        ({"PatientAge": "015Y"}, False),
        ({"PatientAge": "018M"}, True),
        ({"PatientAge": "200M"}, False),
        ({"PatientAge": "020D"}, True),
        ({"PatientAge": "100W"}, True),
        ({"PatientAge": "900W"}, False),
        ({"PatientAge": "062Y"}, False),
        ({"PatientAge": "62"}, False),
        ({"PatientAge": "7"}, True),
        ({"PatientAge": "7y"}, True),
        ({"PatientAge": ""}, False),
        ({"PatientAge": "old"}, False),
        ({"PatientBirthDate": "20150301", "StudyDate": "20240228"}, True),
        ({"PatientBirthDate": "20090301", "StudyDate": "20240302"}, False),
        ({"PatientBirthDate": "20090301", "StudyDate": "20240228"}, True),
        ({"PatientBirthDate": "1990.01.01", "StudyDate": "1994.11.05"}, True),
        ({"PatientBirthDate": "20240301", "StudyDate": "20200101"}, False),
        ({"PatientBirthDate": "20159999", "StudyDate": "20200101"}, False),
        ({"PatientBirthDate": "20150301"}, False),
        ({"PatientAge": "unread", "PatientBirthDate": "20150301", "StudyDate": "20200101"}, True),
        ({"PatientAge": "050Y", "PatientBirthDate": "20150301", "StudyDate": "20200101"}, False),
    ],
)
def test_children_are_said(tags: dict[str, Any], child: bool) -> None:
    image = open_image(write(dataset(PIXELS, **tags)))
    assert image.skip is None
    assert image.warnings == ([Caution.CHILD] if child else [])
