"""Windows, tables and rescales that are odd, broken, or not where one looks first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from comit.bench.faults import dicoms
from comit.bench.faults.dicoms import dataset, make, picture, write
from comit.image import open_image
from comit.image.preprocess import Lut, Presentation, Window, preprocess
from comit.reasons import Caution, Skip

PIXELS = picture()
WINDOW, RESCALE = Caution.WINDOW_UNUSABLE, Caution.RESCALE_UNUSABLE
COMMA, ODD, UNREADABLE = (
    Caution.DECIMAL_COMMA, Caution.NONSTANDARD_VALUE, Caution.UNREADABLE_VALUE
)  # fmt: skip


def raw(ds: Dataset, keyword: str, value: bytes, vr: str = "OB") -> None:
    """A value as a careless writer puts it, which pydicom refuses to: as bytes of no type."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    ds[tag] = DataElement(tag, vr, value + b" " * (len(value) % 2))


def written(syntax: str = dicoms.IMPLICIT, **values: bytes) -> bytes:
    """A chest X-ray whose elements have these bytes, whatever they say."""
    ds = dataset(PIXELS)
    for keyword, value in values.items():
        raw(ds, keyword, value)
    return write(ds, syntax)


def shown(data: bytes) -> tuple[Presentation, list[Caution]]:
    image = open_image(data)
    return image.presentation, image.warnings


@pytest.mark.parametrize("syntax", [dicoms.IMPLICIT, dicoms.EXPLICIT])
@pytest.mark.parametrize(
    ("values", "expected", "warnings"),
    [
        # decimal commas are points
        ((b"1200,5", b"800,0", None, None), Presentation(voi=Window(1200.5, 800)), [COMMA]),
        ((b"1600", b"1400", b"2,0", b"-1000"),
         Presentation(2, -1000, voi=Window(1600, 1400)), [COMMA]),
        ((b"3,2E3", b"+,8e3", b"1", b"-,5"),
         Presentation(1, -0.5, voi=Window(3200, 800)), [COMMA]),
        ((b"1200", b"1,200.5", None, None), Presentation(), [WINDOW]),
        ((b"1.200,5", b"800", None, None), Presentation(), [WINDOW]),
        # pairs by position
        ((b"\\1200", b"4096\\800", None, None), Presentation(voi=Window(1200, 800)), [WINDOW]),
        ((b"1200,5\\3000", b"800\\2000", None, None), Presentation(voi=Window(1200.5, 800)),
         [COMMA, Caution.SEVERAL_WINDOWS]),
        ((b"bad\\3000", b"800\\2000", None, None), Presentation(voi=Window(3000, 2000)),
         [WINDOW]),
        ((b"40\\1200", b"\\800", None, None), Presentation(voi=Window(1200, 800)), [WINDOW]),
        ((b"1200\\40", b"800", None, None), Presentation(voi=Window(1200, 800)), []),
        ((b"\\\\7", b"1\\2", None, None), Presentation(), [WINDOW]),
        # widths
        ((b"40", b"0", None, None), Presentation(), [WINDOW]),
        ((b"40", b"-300", None, None), Presentation(), [WINDOW]),
        ((b"40", b"0\\100", None, None), Presentation(), [WINDOW]),
        ((b"0.012", b"0.008", b"1e-5", b"0"),
         Presentation(1e-5, voi=Window(0.012, 0.008, "LINEAR_EXACT")), [ODD]),
        ((b".5", b".9", b"2.4e-4", b"0"),
         Presentation(2.4e-4, voi=Window(0.5, 0.9, "LINEAR_EXACT")), [ODD]),
        # one of two is missing, empty is absent
        ((b"40", None, None, None), Presentation(), [WINDOW]),
        ((None, b"400", None, None), Presentation(), [WINDOW]),
        ((b"40", b"", None, None), Presentation(), [WINDOW]),
        ((b"", b"", b"", b""), Presentation(), []),
        ((b" ", b"  ", b"\0\0", b" "), Presentation(), []),
        # no numbers
        ((b"4_0", b"400", None, None), Presentation(), [WINDOW]),
        ((b"1e40", b"400", None, None), Presentation(), [WINDOW]),
        ((b"nan", b"inf", None, None), Presentation(), [WINDOW]),
        ((b"40", b"4 00", None, None), Presentation(), [WINDOW]),
        ((None, None, b"two", b"0"), Presentation(), [RESCALE]),
        ((None, None, b"0", b"-5"), Presentation(1, -5), [RESCALE]),
        ((None, None, b"2", b"1,0,0"), Presentation(2), [RESCALE]),
        ((None, None, b"2", b""), Presentation(2), []),
        ((None, None, b"\\2", b"0"), Presentation(), [RESCALE]),
    ],
)  # fmt: skip
def test_what_is_there_is_used_or_said(
    values: tuple[bytes | None, ...], expected: Presentation, warnings: list[Caution], syntax: str
) -> None:
    keywords = ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept")
    given = {k: v for k, v in zip(keywords, values, strict=True) if v is not None}
    assert shown(written(syntax, **given)) == (expected, warnings)


@pytest.mark.parametrize("vr", ["OB", "OW", "UN"])
def test_text_in_an_element_of_bytes_is_read_by_the_dictionary(vr: str) -> None:
    ds = dataset(PIXELS)
    raw(ds, "WindowCenter", b"1200", vr)
    raw(ds, "WindowWidth", b"800 ", vr)
    assert shown(write(ds)) == (Presentation(voi=Window(1200, 800)), [])


def test_an_unknown_function_is_linear_and_said() -> None:
    data = make(PIXELS, WindowCenter=40, WindowWidth=400, VOILUTFunction="SIGMOIDAL")
    assert shown(data) == (Presentation(voi=Window(40, 400)), [ODD])


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"PhotometricInterpretation": "MONOCHROME"}, [UNREADABLE]),
        ({"PixelRepresentation": 7}, [UNREADABLE]),
        ({"BitsStored": 99}, [UNREADABLE]),
        ({"HighBit": 3}, [UNREADABLE]),
        ({"HighBit": None, "BitsStored": None}, []),
    ],
)
def test_defaults_that_stand_in_for_other_values_are_said(
    tags: dict[str, Any], expected: list[Caution]
) -> None:
    assert shown(make(PIXELS, **tags))[1] == expected


@pytest.mark.parametrize("keyword", ["PixelPaddingValue", "PixelPaddingRangeLimit"])
def test_padding_that_cannot_be_read_is_said(keyword: str) -> None:
    ds = dataset(PIXELS)
    ds.PixelPaddingValue = ds.PixelPaddingRangeLimit = 17
    tag = ds[keyword].tag
    element = ds[tag].tag.element.to_bytes(2, "little")
    data = write(ds).replace(b"\x28\0" + element + b"US\x02\0\x11\0",
                             b"\x28\0" + element + b"DS\x02\0x ")  # fmt: skip
    presentation, warnings = shown(data)
    assert warnings == [UNREADABLE]
    assert presentation.padding == (None if keyword == "PixelPaddingValue" else (17, 17))


# ---- tables --------------------------------------------------------------------------------


def lut(
    first: int,
    values: list[int],
    count: int | None = None,
    bits: int = 16,
    descriptor: str = "US",
    data: bytes | None = None,
) -> Sequence:
    """A LUT item; ``count`` as declared, ``descriptor`` the VR of the descriptor."""
    item = Dataset()
    three = [len(values) if count is None else count, first, bits]
    if descriptor == "OW":
        packed = np.asarray([v % 65536 for v in three], "<u2").tobytes()
        item.add_new(0x00283002, "OW", packed)
    else:
        item.add_new(0x00283002, descriptor, three)
    words = np.asarray(values, "<u2").tobytes()
    item.add_new(0x00283006, "OW", words if data is None else data)
    return Sequence([item])


RAMP = list(range(0, 2000, 2))


@pytest.mark.parametrize("syntax", [dicoms.IMPLICIT, dicoms.EXPLICIT])
@pytest.mark.parametrize(
    ("items", "expected", "warnings"),
    [
        (lut(3, RAMP), Lut(3, tuple(RAMP)), []),
        (lut(3, RAMP, descriptor="OW"), Lut(3, tuple(RAMP)), []),
        (lut(3, RAMP, count=1001), Lut(3, (*RAMP, 1998)), [ODD]),
        (lut(3, RAMP, count=1010), Lut(3, (*RAMP, *[1998] * 10)), [ODD]),
        (lut(3, RAMP, count=2000), None, [WINDOW]),
        (lut(3, RAMP, count=900), Lut(3, tuple(RAMP[:900])), []),
        (lut(3, [5, 9], count=3), Lut(3, (5, 9, 9)), [ODD]),
        (lut(3, [5], count=1), None, [WINDOW]),
        (lut(3, [], count=0), None, [WINDOW]),
        # 256 entries of 8 bits, one to a word and one of them missing, are not packed bytes
        (lut(0, list(range(255)), count=256, bits=8), Lut(0, (*range(255), 254)), [ODD]),
        (lut(0, [], count=4, bits=8, data=b"\1\2\3\4"), Lut(0, (1, 2, 3, 4)), []),
        (lut(0, [], count=5, bits=8, data=b"\1\2\3\4\5\0"), Lut(0, (1, 2, 3, 4, 5)), []),
        (Sequence([lut(0, [5], count=1)[0], lut(0, [5, 6])[0]]), Lut(0, (5, 6)), [WINDOW]),
        (Sequence([lut(0, [5, 6])[0], lut(0, [7, 8])[0]]), Lut(0, (5, 6)),
         [Caution.SEVERAL_WINDOWS]),
        (Sequence([Dataset()]), None, [WINDOW]),
        (Sequence([]), None, []),
    ],
)  # fmt: skip
def test_tables(
    items: Sequence, expected: Lut | None, warnings: list[Caution], syntax: str
) -> None:
    data = make(PIXELS, syntax, VOILUTSequence=items)
    assert shown(data) == (Presentation(voi=expected), warnings)
    data = make(PIXELS, syntax, ModalityLUTSequence=items)
    table, said = shown(data)
    assert table == Presentation(modality_lut=expected)
    found = {WINDOW: RESCALE}
    assert said == [found.get(w, w) for w in warnings if w is not Caution.SEVERAL_WINDOWS]


def test_a_table_of_65536_entries_says_0() -> None:
    values = list(range(65535))
    data = make(PIXELS, VOILUTSequence=lut(0, values, count=0))
    assert shown(data) == (Presentation(voi=Lut(0, (*map(float, values), 65534.0))), [ODD])


@pytest.mark.parametrize("syntax", [dicoms.IMPLICIT, dicoms.EXPLICIT])
@pytest.mark.parametrize("vr", ["US", "SS", "OW"])
@pytest.mark.parametrize(
    ("signed", "tags", "first", "expected"),
    [
        # after a Modality LUT values are unsigned, whatever the stored ones are
        (True, {"ModalityLUTSequence": lut(-2048, RAMP, descriptor="SS")}, 40000, 40000),
        (False, {"ModalityLUTSequence": lut(0, RAMP)}, 40000, 40000),
        # the range after the rescale decides
        (False, {"RescaleSlope": -1, "RescaleIntercept": 0}, 65536 - 4095, -4095),
        (False, {"RescaleSlope": -1, "RescaleIntercept": 4095}, 40000, 40000),
        (False, {"RescaleSlope": 1, "RescaleIntercept": -1024}, 65536 - 1024, -1024),
        (True, {"RescaleSlope": 1, "RescaleIntercept": 2048}, 40000, 40000),
        (True, {"RescaleSlope": 1, "RescaleIntercept": 0}, 65536 - 7, -7),
        (True, {}, 65536 - 7, -7),
        (False, {}, 40000, 40000),
    ],
)  # fmt: skip
def test_the_sign_of_the_first_value_follows_from_the_values_before_it(
    signed: bool, tags: dict[str, Any], first: int, expected: int, vr: str, syntax: str
) -> None:
    """PS3.3 C.11.2.1.1, whatever VR was written."""
    pixels = PIXELS.astype(np.int16) - 2048 if signed else PIXELS
    written_first = first - 65536 if vr == "SS" else first
    table = lut(written_first, RAMP, descriptor=vr)
    found = open_image(make(pixels, syntax, VOILUTSequence=table, **tags)).presentation.voi
    assert found == Lut(expected, tuple(RAMP))


# ---- functional groups ---------------------------------------------------------------------


def group(window: dict[str, Any] | None, rescale: dict[str, Any] | None = None) -> Sequence:
    item = Dataset()
    for keyword, values in (
        ("FrameVOILUTSequence", window),
        ("PixelValueTransformationSequence", rescale),
    ):
        if values is not None:
            macro = Dataset()
            for name, value in values.items():
                setattr(macro, name, value)
            setattr(item, keyword, Sequence([macro]))
    return Sequence([item])


A = {"WindowCenter": 1200, "WindowWidth": 800}
B = {"WindowCenter": 300, "WindowWidth": 200, "VOILUTFunction": "SIGMOID"}
TOP = {"WindowCenter": 5, "WindowWidth": 6}
TWICE = {"RescaleSlope": 2, "RescaleIntercept": -1000, "RescaleType": "US"}


@pytest.mark.parametrize("syntax", [dicoms.IMPLICIT, dicoms.EXPLICIT, dicoms.BIG_ENDIAN])
@pytest.mark.parametrize(
    ("shared", "own", "top", "expected"),
    [
        ((A, TWICE), None, {}, Presentation(2, -1000, voi=Window(1200, 800))),
        (None, (B, None), {}, Presentation(voi=Window(300, 200, "SIGMOID"))),
        ((A, TWICE), (B, None), {}, Presentation(2, -1000, voi=Window(300, 200, "SIGMOID"))),
        ((A, None), None, TOP, Presentation(voi=Window(1200, 800))),
        (({}, {}), None, TOP, Presentation(voi=Window(5, 6))),
        ((None, None), (None, None), {"RescaleSlope": 3, "RescaleIntercept": 0}, Presentation(3)),
    ],
)  # fmt: skip
def test_functional_groups_of_the_only_frame_are_read(
    shared: Any, own: Any, top: dict[str, Any], expected: Presentation, syntax: str
) -> None:
    ds = dataset(PIXELS, NumberOfFrames=1, **top)
    if shared is not None:
        ds.SharedFunctionalGroupsSequence = group(*shared)
    if own is not None:
        ds.PerFrameFunctionalGroupsSequence = group(*own)
    assert open_image(write(ds, syntax)).presentation == expected


def test_functional_groups_of_several_frames_are_left_alone() -> None:
    ds = dataset(PIXELS, NumberOfFrames=2, PixelData=2 * PIXELS.tobytes())
    ds.SharedFunctionalGroupsSequence = group(A)
    image = open_image(write(ds))
    assert (image.presentation, image.skip) == (Presentation(), Skip.MULTI_FRAME)


def test_a_broken_window_of_a_functional_group_is_said() -> None:
    ds = dataset(PIXELS, SharedFunctionalGroupsSequence=group({"WindowCenter": 3}))
    assert shown(write(ds)) == (Presentation(), [WINDOW])


# ---- the files that were met ---------------------------------------------------------------

FOUND: dict[str, tuple[Any, list[Caution]]] = {
    "decimal-comma/07d_decimal_comma.dcm": (Window(1200.5, 800), [COMMA]),
    "decimal-comma/89b_slope_comma_window.dcm": (Window(1400, 1600), [COMMA]),
    "decimal-comma/07_win_plain.dcm": (Window(1200, 800), []),
    "window-pairs-shift/07c_first_center_empty.dcm": (Window(1200, 800), [WINDOW]),
    "header-window-or-lut-dropped-in-silence/08a_width0.dcm": (None, [WINDOW]),
    "header-window-or-lut-dropped-in-silence/08c_narrow_window_small_slope.dcm": (
        Window(0.012, 0.008, "LINEAR_EXACT"), [ODD]),
    "frame-voi-in-functional-groups/38_shared_frame_voi.dcm": (Window(1200, 800), []),
}  # fmt: skip


@pytest.mark.real
@pytest.mark.parametrize("name", FOUND)
def test_windows_met_in_the_field(faults: Path, name: str) -> None:
    image = open_image((faults / name).read_bytes())
    assert (image.presentation.voi, image.skip) == (FOUND[name][0], None)
    assert set(FOUND[name][1]) == set(image.warnings) - {Caution.UNVERIFIED_VIEW}
    found = preprocess(image.samples(), image.presentation)
    assert found.voi == ("window" if FOUND[name][0] else "none")


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "first", "entries", "warnings"),
    [
        ("lut-first-value-sign/01_voilut_after_modlut_us.dcm", 40000, None, []),
        ("lut-first-value-sign/01b_voilut_after_modlut_ss.dcm", 40000, None, []),
        ("header-window-or-lut-dropped-in-silence/04_lut_one_short.dcm", 0, 4096, [ODD]),
    ],
)
def test_tables_met_in_the_field(
    faults: Path, name: str, first: int, entries: int | None, warnings: list[Caution]
) -> None:
    image = open_image((faults / name).read_bytes())
    voi = image.presentation.voi
    assert isinstance(voi, Lut) and voi.first == first
    assert entries is None or len(voi.values) == entries
    assert image.warnings == warnings
    assert preprocess(image.samples(), image.presentation).voi == "lut"
