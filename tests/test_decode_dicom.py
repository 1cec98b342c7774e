"""What comit reads from DICOM files, and what it leaves out and why."""

from __future__ import annotations

import io
import logging
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outcomes import reason
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from comit.bench.faults import dicoms
from comit.bench.faults.dicoms import dataset, make, picture, write
from comit.errors import ItemError
from comit.image.base import Limits
from comit.image.dicom import DicomImage, is_dicom, open_dicom
from comit.image.preprocess import Lut, Presentation, Window, preprocess
from comit.reasons import Caution, Fail, Skip


def opened(data: bytes) -> DicomImage:
    return open_dicom(data, Limits())


# ---- the real files ------------------------------------------------------------------------

MODALITY, SOP_CLASS, ANATOMY = Skip.MODALITY, Skip.SOP_CLASS, Skip.ANATOMY
# name: (reason, view)
RADIOGRAPHS = {
    "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm": (None, "PA"),
    "966.dcm": (Fail.DECODE, "PA"),
    "966_fixed.dcm": (None, "PA"),
    "Fake_MONOHR1.dcm": (None, "PA"),
    "JPEG2KLossless_1s_1f_u_16_16.dcm": (None, None),
    "NM_Kakadu44_SOTmarkerincons.dcm": (ANATOMY, "PA"),
    "RG1_J2KI.dcm": (None, "PA"),
    "RG1_JLSN.dcm": (None, "PA"),
    "RG2_JLSL.dcm": (ANATOMY, None),
    "RG2_JLSN.dcm": (ANATOMY, None),
    "RG2_JPLL.dcm": (ANATOMY, None),
    "RG2_JPLY.dcm": (ANATOMY, None),
    "RG2_JPLY_fixed.dcm": (ANATOMY, None),
    "RG3_J2KI.dcm": (ANATOMY, "AP"),
    "RG3_J2KR.dcm": (ANATOMY, "AP"),
}
OTHERS = {
    "693_J2KR.dcm": MODALITY,  # CT
    "HTJ2K_08_RGB.dcm": MODALITY,  # secondary capture without Modality, in colour
    "JLSL_08_07_0_1F.dcm": MODALITY,  # likewise, grey, and nothing says chest
    "JLSL_16_15_1_1F.dcm": MODALITY,
    "JPEG-LL.dcm": MODALITY,  # NM
    "JPGLosslessP14SV1_1s_1f_8b.dcm": MODALITY,  # US
    "MR2_J2KI.dcm": MODALITY,
    "OBXXXX1A_rle.dcm": MODALITY,  # US
    "OBXXXX1A_rle_2frame.dcm": MODALITY,
    "SC_rgb.dcm": MODALITY,  # OT, in colour
    "SC_rgb_16bit.dcm": MODALITY,
    "SC_rgb_16bit_2frame.dcm": MODALITY,
    "SC_rgb_2frame.dcm": MODALITY,
    "SC_rgb_32bit.dcm": MODALITY,
    "SC_rgb_32bit_2frame.dcm": MODALITY,
    "SC_rgb_dcmtk_ebcr_dcmd.dcm": MODALITY,
    "SC_rgb_dcmtk_ebcyn1_dcmd.dcm": MODALITY,
    "SC_rgb_dcmtk_ebcyn2_dcmd.dcm": MODALITY,
    "SC_rgb_dcmtk_ebcynp_dcmd.dcm": MODALITY,
    "SC_rgb_dcmtk_ebcys2_dcmd.dcm": MODALITY,
    "SC_rgb_dcmtk_ebcys4_dcmd.dcm": MODALITY,
    "SC_rgb_expb.dcm": MODALITY,
    "SC_rgb_expb_16bit.dcm": MODALITY,
    "SC_rgb_expb_16bit_2frame.dcm": MODALITY,
    "SC_rgb_expb_2frame.dcm": MODALITY,
    "SC_rgb_expb_32bit.dcm": MODALITY,
    "SC_rgb_expb_32bit_2frame.dcm": MODALITY,
    "SC_rgb_gdcm2k_uncompressed.dcm": MODALITY,
    "SC_ybr_full_uncompressed.dcm": MODALITY,
    "US1_J2KI.dcm": MODALITY,
    "US1_J2KR.dcm": MODALITY,
    "bad_sequence.dcm": MODALITY,  # CT
    "color-pl.dcm": MODALITY,  # US
    "color-px.dcm": MODALITY,
    "emri_small.dcm": MODALITY,  # MR
    "emri_small_RLE.dcm": MODALITY,
    "emri_small_big_endian.dcm": MODALITY,
    "emri_small_jpeg_2k_lossless.dcm": MODALITY,
    "emri_small_jpeg_2k_lossless_too_short.dcm": MODALITY,
    "emri_small_jpeg_ls_lossless.dcm": MODALITY,
    "explicit_VR-UN.dcm": MODALITY,  # CT
    "liver.dcm": SOP_CLASS,  # segmentation
    "liver_deflate.dcm": SOP_CLASS,
    "liver_expb.dcm": SOP_CLASS,
    "liver_j2k.dcm": SOP_CLASS,
    "liver_nonbyte_aligned.dcm": SOP_CLASS,
    "liver_nonbyte_aligned_deflate.dcm": SOP_CLASS,
    "liver_nonbyte_aligned_j2k.dcm": SOP_CLASS,
    "liver_nonbyte_aligned_rle.dcm": SOP_CLASS,
    "liver_rle.dcm": SOP_CLASS,
    "parametric_map_double_float.dcm": SOP_CLASS,
    "parametric_map_float.dcm": SOP_CLASS,
    "vlut_04.dcm": MODALITY,  # OT
}
EXPECTED = {
    **{f"radiographs/{name}": expected for name, expected in RADIOGRAPHS.items()},
    **{f"others/{name}": (skip, None) for name, skip in OTHERS.items()},
}
# pydicom reads none of these here: two broken streams; 12-bit JPEG (pylibjpeg-libjpeg is GPL);
# one bit in RLE and deflated frames, compared with the uncompressed file below.
NO_REFERENCE = {
    "radiographs/966.dcm",
    "others/emri_small_jpeg_2k_lossless_too_short.dcm",
    "radiographs/RG2_JPLY.dcm",
    "radiographs/RG2_JPLY_fixed.dcm",
    "others/liver_deflate.dcm",
    "others/liver_nonbyte_aligned_deflate.dcm",
    "others/liver_rle.dcm",
    "others/liver_nonbyte_aligned_rle.dcm",
}


def real(shared: Path, name: str) -> DicomImage:
    return opened((shared / "dicom" / name).read_bytes())


@pytest.mark.real
def test_every_real_file_has_an_expectation(shared: Path) -> None:
    folder = shared / "dicom"
    assert {str(p.relative_to(folder)) for p in folder.rglob("*.dcm")} == set(EXPECTED)


@pytest.mark.real
@pytest.mark.parametrize("name", EXPECTED)
def test_real_files_are_ok_skipped_or_failed(shared: Path, name: str) -> None:
    data = (shared / "dicom" / name).read_bytes()
    assert (reason(data), opened(data).facts.view) == EXPECTED[name]


@pytest.mark.real
@pytest.mark.parametrize("name", sorted(set(EXPECTED) - NO_REFERENCE))
def test_stored_values_are_those_of_pydicom(shared: Path, name: str) -> None:
    """Exactly, lossy streams too: both sides' codecs are libjpeg, CharLS and OpenJPEG."""
    image = real(shared, name)
    logging.getLogger("pydicom").propagate = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pydicom.dcmread(shared / "dicom" / name).pixel_array
    frames = [image.frame(i) for i in range(image.frames)]
    np.testing.assert_array_equal(frames[0] if image.frames == 1 else np.stack(frames), expected)


@pytest.mark.real
@pytest.mark.parametrize("kind", ["rle", "deflate", "j2k", "expb"])
@pytest.mark.parametrize("size", ["", "_nonbyte_aligned"])
def test_one_bit_frames_agree_however_stored(shared: Path, kind: str, size: str) -> None:
    if (kind, size) == ("expb", "_nonbyte_aligned"):
        pytest.skip("no such file")
    plain = real(shared, f"others/liver{size}.dcm")
    other = real(shared, f"others/liver{size}_{kind}.dcm")
    for i in range(3):
        np.testing.assert_array_equal(other.frame(i), plain.frame(i))


@pytest.mark.real
def test_twelve_bit_jpeg_is_its_lossless_twin_within_quantisation(shared: Path) -> None:
    lossless = real(shared, "radiographs/RG2_JPLL.dcm").frame().astype(int)
    for name in ("RG2_JPLY.dcm", "RG2_JPLY_fixed.dcm"):
        difference = np.abs(real(shared, f"radiographs/{name}").frame() - lossless)
        assert difference.mean() < 5  # of 1,024


@pytest.mark.real
def test_a_broken_stream_is_refused(shared: Path) -> None:
    with pytest.raises(ItemError) as error:
        real(shared, "radiographs/966.dcm").frame()
    assert error.value.reason is Fail.DECODE


@pytest.mark.real
def test_frames_without_a_delimiter_behind_them_are_whole(shared: Path) -> None:
    cut = real(shared, "others/emri_small_jpeg_2k_lossless_too_short.dcm")
    whole = real(shared, "others/emri_small_jpeg_2k_lossless.dcm")
    for i in range(10):
        np.testing.assert_array_equal(cut.frame(i), whole.frame(i))
    assert (cut.warnings, whole.warnings) == ([Caution.END_MARKER], [])


@pytest.mark.real
def test_one_radiograph_in_two_syntaxes_becomes_the_same_pixels(shared: Path) -> None:
    """JPEG 2000 and near-lossless JPEG-LS of one X-ray."""
    images = [real(shared, f"radiographs/RG1_{s}.dcm") for s in ("J2KI", "JLSN")]
    a, b = (preprocess(i.samples(), i.presentation) for i in images)
    assert a.voi == b.voi == "window"
    assert np.abs(a.pixels - b.pixels).max() < 0.01


@pytest.mark.real
def test_the_file_relabelled_monochrome1_is_the_negative(shared: Path) -> None:
    plain = real(shared, "radiographs/" + next(n for n in RADIOGRAPHS if n.startswith("1.2.276")))
    fake = real(shared, "radiographs/Fake_MONOHR1.dcm")
    a, b = (preprocess(i.samples(), i.presentation).pixels for i in (plain, fake))
    np.testing.assert_allclose(b, 1 - a, atol=1e-6)


@pytest.mark.real
@pytest.mark.parametrize("name", ["RG1_J2KI.dcm", "RG2_JPLL.dcm", "RG2_JLSL.dcm", "RG2_JPLY.dcm"])
def test_mutated_real_files_give_pixels_or_a_reason(shared: Path, name: str) -> None:
    data = (shared / "dicom/radiographs" / name).read_bytes()
    random = np.random.default_rng(1)
    for _ in range(25):
        mutant = bytearray(data[: random.integers(100, len(data))])
        for place in random.integers(0, min(len(mutant), 4000), 4):
            mutant[place] = random.integers(256)
        reason(bytes(mutant))  # anything but another exception


# ---- transfer syntaxes ---------------------------------------------------------------------

PIXELS = picture()
EIGHT = picture(bits=8).astype(np.uint8)


def j2k(pixels: np.ndarray, **options: Any) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", **options))


def jpeg_lossless(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.ljpeg_encode(pixels))


@pytest.mark.parametrize(
    "syntax", [dicoms.IMPLICIT, dicoms.EXPLICIT, dicoms.DEFLATED, dicoms.BIG_ENDIAN]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int16, np.int32])
def test_native_values_survive(syntax: str, dtype: type) -> None:
    signed = np.dtype(dtype).kind == "i"
    pixels = (picture(bits=8).astype(dtype) - (100 if signed else 0)).astype(dtype)
    stored = pixels.astype(pixels.dtype.newbyteorder(">")) if "2.2" in syntax[-4:] else pixels
    image = opened(write(dataset(stored, bits=8 * pixels.itemsize), syntax))
    assert image.dtype == dtype and image.skip is None and image.warnings == []
    np.testing.assert_array_equal(image.samples(), pixels)


@pytest.mark.parametrize(
    ("syntax", "stream"),
    [
        (dicoms.J2K, j2k(PIXELS)),
        (dicoms.JPEG_LS, bytes(imagecodecs.jpegls_encode(PIXELS))),
        (dicoms.JPEG_LOSSLESS, jpeg_lossless(PIXELS)),
        (dicoms.HTJ2K, bytes(imagecodecs.htj2k_encode(PIXELS))),
    ],
)
def test_lossless_streams_give_the_stored_values(syntax: str, stream: bytes) -> None:
    image = opened(make(PIXELS, syntax, stream + b"\0" * (len(stream) % 2)))
    np.testing.assert_array_equal(image.samples(), PIXELS)
    assert image.warnings == []


def test_rle_gives_the_stored_values_grey_and_colour() -> None:
    for pixels in (PIXELS, np.dstack([EIGHT, EIGHT.T.reshape(96, 80), 255 - EIGHT])):
        ds = pydicom.dcmread(io.BytesIO(make(pixels, bits=8 * pixels.itemsize)))
        ds.compress(dicoms.RLE, generate_instance_uid=False)
        image = opened(write(ds, dicoms.RLE))
        np.testing.assert_array_equal(image.frame(), pixels)


@pytest.mark.parametrize(("bits", "syntax"), [(8, dicoms.JPEG), (12, dicoms.JPEG_12)])
def test_lossy_jpeg_is_near(bits: int, syntax: str) -> None:
    pixels = EIGHT if bits == 8 else PIXELS
    stream = bytes(imagecodecs.jpeg8_encode(pixels, level=98, bitspersample=bits))
    image = opened(make(pixels, syntax, stream, bits=bits))
    assert np.abs(image.samples().astype(int) - pixels).max() < (1 << bits) / 50


def test_signed_compressed_values_take_their_sign_from_the_header() -> None:
    pixels = PIXELS.astype(np.int16) - 2048
    unsigned = (pixels.view(np.uint16) & 0xFFF).astype(np.uint16)
    for syntax, stream in [
        (dicoms.JPEG_LS, bytes(imagecodecs.jpegls_encode(unsigned))),
        (dicoms.JPEG_LOSSLESS, jpeg_lossless(unsigned)),
        (dicoms.J2K, j2k(pixels)),
    ]:
        image = opened(make(pixels, syntax, stream))
        assert image.dtype == np.int16
        np.testing.assert_array_equal(image.samples(), pixels, err_msg=syntax)


def test_bits_outside_bits_stored_are_masked_and_said() -> None:
    dirty = PIXELS | 0x5000
    image = opened(make(dirty))
    np.testing.assert_array_equal(image.samples(), PIXELS)
    assert image.warnings == [Caution.TRAILING_BITS]


def test_overlays_in_high_bits_are_no_fault() -> None:
    ds = dataset(PIXELS | 0x5000)
    ds.add_new(0x60000100, "US", 16)
    ds.add_new(0x60000102, "US", 12)
    image = opened(write(ds))
    np.testing.assert_array_equal(image.samples(), PIXELS)
    assert image.warnings == []


def test_values_at_the_top_of_the_word_are_shifted_down() -> None:
    image = opened(make(PIXELS << 4, HighBit=15))
    np.testing.assert_array_equal(image.samples(), PIXELS)


def test_negative_values_of_twelve_bits_are_extended() -> None:
    pixels = PIXELS.astype(np.int16) - 2048
    clean = (pixels.view(np.uint16) & 0xFFF).view(np.int16)
    for stored in (pixels, clean):
        image = opened(make(stored))
        np.testing.assert_array_equal(image.samples(), pixels)
        assert image.warnings == []


def test_bytes_in_big_endian_words_are_swapped() -> None:
    swapped = np.ascontiguousarray(EIGHT.reshape(-1, 2)[:, ::-1]).reshape(EIGHT.shape)
    ds = dataset(swapped, bits=8)
    ds["PixelData"].VR = "OW"
    ds.PixelData = EIGHT.tobytes()  # pydicom writes OW words big-endian as they are
    data = bytearray(write(ds, dicoms.BIG_ENDIAN))
    image = opened(bytes(data))
    expected = EIGHT.reshape(-1, 2)[:, ::-1].reshape(EIGHT.shape)
    np.testing.assert_array_equal(image.samples(), expected)


def test_float_pixels() -> None:
    pixels = PIXELS.astype(np.float32) / 7
    ds = dataset(PIXELS, PixelData=None, BitsStored=None, HighBit=None)
    ds.BitsAllocated, ds.FloatPixelData = 32, pixels.tobytes()
    image = opened(write(ds))
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image.samples(), pixels)


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_becomes_luminance(planar: int) -> None:
    rgb = np.dstack([EIGHT, 255 - EIGHT, np.full_like(EIGHT, 9)])
    stored = np.moveaxis(rgb, -1, 0).copy() if planar else rgb
    ds = dataset(rgb, bits=8, PlanarConfiguration=planar, PixelData=stored.tobytes())
    image = opened(write(ds))
    expected = np.rint(rgb @ np.float32([0.299, 0.587, 0.114]))
    np.testing.assert_array_equal(image.frame(), rgb)
    np.testing.assert_allclose(image.samples(), expected, atol=1)
    assert image.warnings == [Caution.COLOUR]


def test_grey_saved_in_colour_is_that_grey() -> None:
    image = opened(make(np.dstack([EIGHT] * 3), bits=8))
    np.testing.assert_array_equal(image.samples(), EIGHT)
    assert image.warnings == []


@pytest.mark.parametrize("space", ["YCBCR", "RGB"])
def test_colour_jpeg_is_read_as_it_was_coded(space: str) -> None:
    rgb = np.dstack([EIGHT, 255 - EIGHT, EIGHT // 2])
    stream = bytes(imagecodecs.jpeg8_encode(rgb, level=99, colorspace="RGB", outcolorspace=space))
    photometric = "RGB" if space == "RGB" else "YBR_FULL"
    image = opened(make(rgb, dicoms.JPEG, stream, bits=8, PhotometricInterpretation=photometric))
    assert np.abs(image.frame().astype(int) - rgb).mean() < 12  # chroma is subsampled


def test_half_chroma_is_repeated() -> None:
    y, cb, cr = EIGHT, np.full((96, 40), 128, np.uint8), np.full((96, 40), 128, np.uint8)
    stored = np.stack([y[:, ::2], y[:, 1::2], cb, cr], axis=-1)
    ds = dataset(np.dstack([y] * 3), bits=8, PhotometricInterpretation="YBR_FULL_422")
    ds.PixelData = stored.tobytes()
    np.testing.assert_array_equal(opened(write(ds)).samples(), EIGHT)


def test_palette_becomes_luminance() -> None:
    ds = dataset(EIGHT, bits=8, PhotometricInterpretation="PALETTE COLOR")
    for colour, scale in (("Red", 257), ("Green", 128), ("Blue", 3)):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        table = (np.arange(256) * scale).astype("<u2").tobytes()
        setattr(ds, f"{colour}PaletteColorLookupTableData", table)
    image = opened(write(ds))
    values = EIGHT.astype(float)
    expected = 0.299 * 257 * values + 0.587 * 128 * values + 0.114 * 3 * values
    assert image.dtype == np.uint16
    np.testing.assert_allclose(image.samples(), expected, atol=1)
    assert image.warnings == [Caution.COLOUR]


@pytest.mark.parametrize("change", ["empty", "missing", "short", "shorter than the others"])
@pytest.mark.parametrize("colour", ["Red", "Green", "Blue"])
@pytest.mark.parametrize("alpha", [False, True])
def test_a_palette_without_one_of_its_tables_is_corrupt(change, colour, alpha) -> None:
    ds = dataset(EIGHT, bits=8, PhotometricInterpretation="PALETTE COLOR")
    table = (np.arange(256) * 257).astype("<u2").tobytes()
    for name in ("Red", "Green", "Blue", *["Alpha"] * alpha):
        if name != "Alpha":
            setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(ds, f"{name}PaletteColorLookupTableData", table)
    keyword = f"{colour}PaletteColorLookupTableData"
    if change == "missing":
        del ds[keyword]
    else:
        lengths = {"empty": 0, "short": 128, "shorter than the others": 510}
        setattr(ds, keyword, table[: lengths[change]])
    with pytest.raises(ItemError) as refused:
        opened(write(ds)).samples()
    assert refused.value.reason == Fail.CORRUPT


# ---- contradictions and damage -------------------------------------------------------------


def test_a_stream_of_another_codec_is_read_by_its_signature() -> None:
    stream = bytes(imagecodecs.jpegls_encode(PIXELS))
    for syntax in (dicoms.J2K, dicoms.JPEG_LOSSLESS, dicoms.RLE):
        image = opened(make(PIXELS, syntax, stream))
        np.testing.assert_array_equal(image.samples(), PIXELS)
        assert image.warnings == [Caution.SYNTAX_MISMATCH]


def test_native_pixels_under_a_compressed_syntax_are_read() -> None:
    data = make(PIXELS).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    image = opened(data)
    np.testing.assert_array_equal(image.samples(), PIXELS)
    assert image.warnings == [Caution.SYNTAX_MISMATCH]


def test_what_is_no_stream_is_not_decoded() -> None:
    for syntax in (dicoms.JPEG, dicoms.JPEG_LS, dicoms.J2K):
        assert reason(make(PIXELS, syntax, b"no such stream!!" * 100)) is Fail.DECODE


@pytest.mark.parametrize("syntax", [dicoms.MPEG4, "1.2.840.10008.1.2.4.110", "1.2.3.4.5"])
def test_video_jpeg_xl_and_unknown_syntaxes_are_unsupported(syntax: str) -> None:
    private = syntax == "1.2.3.4.5"
    data = make(PIXELS, syntax if private else dicoms.MPEG4, b"\xff\x0a" * 8)
    data = data.replace(dicoms.MPEG4.encode(), syntax.encode()[:23])
    assert reason(data) is Fail.UNSUPPORTED_TRANSFER_SYNTAX


@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
@pytest.mark.parametrize("kind", ["jpeg", "jpeg12", "lossless", "ls", "j2k", "rle"])
def test_cut_streams_are_refused(kind: str, end: bytes, share: float) -> None:
    """Also where an end marker was put behind the cut: libjpeg reads that without an error."""
    bits = 8 if kind == "jpeg" else 12
    pixels = EIGHT if bits == 8 else PIXELS
    ds = dataset(pixels, bits)
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = dicoms.EXPLICIT
    if kind == "rle":
        ds.compress(dicoms.RLE, generate_instance_uid=False)
        stream = pydicom.encaps.get_frame(ds.PixelData, 0, number_of_frames=1)
    else:
        stream = {
            "jpeg": lambda: imagecodecs.jpeg8_encode(pixels, level=90),
            "jpeg12": lambda: imagecodecs.jpeg8_encode(pixels, level=90, bitspersample=12),
            "lossless": lambda: imagecodecs.ljpeg_encode(pixels),
            "ls": lambda: imagecodecs.jpegls_encode(pixels),
            "j2k": lambda: j2k(pixels),
        }[kind]()
    syntaxes = {"jpeg": dicoms.JPEG, "jpeg12": dicoms.JPEG_12, "lossless": dicoms.JPEG_LOSSLESS}
    syntaxes |= {"ls": dicoms.JPEG_LS, "j2k": dicoms.J2K, "rle": dicoms.RLE}
    cut = bytes(stream)[: int(len(stream) * share)] + end
    data = make(pixels, syntaxes[kind], cut + b"\0" * (len(cut) % 2), bits=bits)
    assert reason(data) in (Fail.TRUNCATED, Fail.DECODE)


def test_a_file_cut_anywhere_is_truncated_or_not_dicom() -> None:
    data = make(PIXELS)
    start = data.index(PIXELS.tobytes())
    for length in [140, 200, *range(300, start, 37), start, start + 1000, len(data) - 1]:
        assert reason(data[:length]) in (
            Fail.TRUNCATED, Fail.NOT_DICOM, Fail.NO_PIXELS, Skip.MODALITY
        ), length  # fmt: skip


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"Rows": 0}, Fail.BAD_GEOMETRY),
        ({"Columns": None}, Fail.BAD_GEOMETRY),
        ({"Rows": 97}, Fail.BAD_GEOMETRY),
        ({"BitsAllocated": 12}, Fail.BAD_GEOMETRY),
        ({"BitsAllocated": 32}, Fail.BAD_GEOMETRY),
        ({"BitsAllocated": None}, Fail.BAD_GEOMETRY),
        ({"SamplesPerPixel": 4}, Fail.BAD_GEOMETRY),
        ({"PixelData": None}, Fail.NO_PIXELS),
        ({"PixelData": b""}, Fail.NO_PIXELS),
    ],
)
def test_geometry_that_does_not_fit(tags: dict[str, Any], expected: Fail) -> None:
    assert reason(make(PIXELS, **tags)) is expected


def test_sizes_out_of_limits() -> None:
    assert reason(make(picture(40, 400))) is Fail.TOO_SMALL
    assert reason(make(picture(64, 600))) is Fail.TOO_SMALL
    with pytest.raises(ItemError) as error:
        open_dicom(make(PIXELS), Limits(pixels=1000))
    assert error.value.reason is Fail.TOO_LARGE


def test_a_stream_larger_than_its_header_says_is_not_decoded() -> None:
    """A codec would take the memory that the stream asks for."""
    assert reason(make(PIXELS, dicoms.J2K, j2k(picture(200, 80)))) is Fail.BAD_GEOMETRY


def test_longer_pixel_data_is_read_with_a_warning() -> None:
    image = opened(make(PIXELS, PixelData=PIXELS.tobytes() + bytes(100)))
    np.testing.assert_array_equal(image.samples(), PIXELS)
    assert image.warnings == [Caution.LENGTH]


def test_skip_comes_before_faults() -> None:
    assert reason(make(picture(40, 40), Modality="MR")) is Skip.MODALITY
    assert reason(make(PIXELS, Modality="MR", Rows=0)) is Skip.MODALITY


# ---- is it DICOM, and hostile headers ------------------------------------------------------


def test_dicom_is_recognised_without_preamble_and_meta() -> None:
    ds = dataset(PIXELS)
    for implicit, little in [(True, True), (False, True), (False, False)]:
        out = pydicom.filebase.DicomBytesIO()
        out.is_implicit_VR, out.is_little_endian = implicit, little
        pydicom.filewriter.write_dataset(out, ds)
        data = out.getvalue()
        assert is_dicom(data)
        image = opened(data)
        assert Caution.NO_FILE_META in image.warnings
        if little:
            np.testing.assert_array_equal(image.samples(), PIXELS)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"DICM", b"hello, world, this is text" * 10, b"PK\x03\x04" + bytes(200),
        b"%PDF-1.7\n" + bytes(300), b"II*\0" + bytes(300), b"MM\0*" + bytes(300), bytes(300),
        b"\x08\x00", b"\x02\x00\x00\x00", b"\x08\x00\x00\x00\xff\xff\xff\x00" + bytes(300),
    ],
)  # fmt: skip
def test_what_is_not_dicom(data: bytes) -> None:
    assert not is_dicom(data)


def test_deep_nesting_is_too_complex() -> None:
    level = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    head = make(PIXELS)
    head = head[: head.index(b"\x08\x00\x16\x00UI")]
    assert reason(head + level * 5000) is Fail.TOO_COMPLEX


def test_a_deflate_bomb_is_too_complex_before_it_is_inflated() -> None:
    data = make(PIXELS, dicoms.DEFLATED)
    start = 132 + 12 + struct.unpack_from("<I", data, 140)[0]
    packer = zlib.compressobj(9, wbits=-15)
    bomb = b"".join([packer.compress(bytes(2**20)) for _ in range(300)] + [packer.flush()])
    assert reason(data[:start] + bomb) is Fail.TOO_COMPLEX


def test_very_many_elements_are_too_complex() -> None:
    element = b"\x09\x00\x10\x10LO\x02\x00ab"
    head = make(PIXELS)
    head = head[: head.index(b"\x08\x00\x16\x00UI")]
    assert reason(head + element * 30_000) is Fail.TOO_COMPLEX


MALFORMED = {
    "Rows": b"9", "Columns": b"abc", "BitsAllocated": b"", "PixelRepresentation": b"\xff",
    "WindowCenter": b"4\\bad\\", "WindowWidth": b"nan", "RescaleSlope": b"inf",
    "RescaleIntercept": b"1,5", "NumberOfFrames": b"many", "BodyPartExamined": b"\xff\xfe\\\\",
    "ViewPosition": b"\0\0", "PhotometricInterpretation": b"\\", "Modality": b"DX\\CT",
    "PixelPaddingValue": b"\x01", "PatientOrientation": b"\\\\\\", "SOPClassUID": b"name^name",
}  # fmt: skip


@pytest.mark.parametrize("keyword", MALFORMED)
def test_malformed_values_never_raise_anything_but_reasons(keyword: str) -> None:
    ds = dataset(PIXELS, NumberOfFrames=1, PixelPaddingValue=0, RescaleSlope=1,
                 RescaleIntercept=0, WindowCenter=1, WindowWidth=2,
                 PatientOrientation=["L", "F"])  # fmt: skip
    value = MALFORMED[keyword]
    ds[keyword] = pydicom.DataElement(ds[keyword].tag, "OB", value + b"\0" * (len(value) % 2))
    for syntax in (dicoms.EXPLICIT, dicoms.IMPLICIT):
        reason(write(ds, syntax))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_random_damage_gives_an_image_or_a_reason(data: st.DataObject) -> None:
    mutant = bytearray(make(PIXELS, dicoms.EXPLICIT))
    start = 128
    for _ in range(data.draw(st.integers(1, 12))):
        mutant[data.draw(st.integers(start, 700))] = data.draw(st.integers(0, 255))
    reason(bytes(mutant))


def test_nothing_of_a_header_reaches_a_log(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = make(PIXELS, PatientBirthDate="x" * 20, WindowCenter=1, WindowWidth=2)
    for length in range(200, 900, 50):
        reason(data[:length].replace(b"PLANTED-1", b"PLANTED\\\xff"))
    out, err = capfd.readouterr()
    assert "lanted" not in (out + err + caplog.text).lower()


# ---- what it shows -------------------------------------------------------------------------


def code(value: str, meaning: str) -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodeMeaning, item.CodingSchemeDesignator = value, meaning, "SCT"
    return Sequence([item])


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"Modality": "CT"}, Skip.MODALITY),
        ({"Modality": "MG"}, Skip.MODALITY),
        ({"Modality": "CR"}, None),
        ({"Modality": None}, None),  # the storage class says DX
        ({"Modality": "OT", "SOPClassUID": dicoms.SECONDARY}, None),  # says CHEST
        ({"Modality": "OT", "SOPClassUID": dicoms.SECONDARY, "BodyPartExamined": None},
         Skip.MODALITY),
        ({"Modality": "OT", "SOPClassUID": dicoms.SECONDARY, "BodyPartExamined": None,
          "SeriesDescription": "Thorax p.a."}, None),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.22"}, Skip.SOP_CLASS),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, Skip.SOP_CLASS),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1"}, Skip.SOP_CLASS),
        ({"SOPClassUID": "1.2.840.10008.1.3.10"}, Skip.SOP_CLASS),
        ({"BodyPartExamined": "HAND"}, Skip.ANATOMY),
        ({"BodyPartExamined": "ABDOMEN"}, Skip.ANATOMY),
        ({"BodyPartExamined": "TSPINE"}, Skip.ANATOMY),
        ({"BodyPartExamined": "PORT CHEST"}, None),
        ({"BodyPartExamined": "Thorax"}, None),
        ({"BodyPartExamined": "LUNG"}, None),
        ({"BodyPartExamined": "RIBS"}, None),
        ({"BodyPartExamined": "CHESTABDOMEN"}, None),
        ({"BodyPartExamined": "", "AnatomicRegionSequence": code("51185008", "Chest")}, None),
        ({"BodyPartExamined": "", "AnatomicRegionSequence": code("85562004", "Hand")},
         Skip.ANATOMY),
        ({"BodyPartExamined": None, "StudyDescription": "XRAY RIGHT HAND"}, Skip.ANATOMY),
        ({"BodyPartExamined": None, "StudyDescription": "CHEST AND HAND"}, None),
        ({"ViewPosition": "AP"}, None),
        ({"ViewPosition": "LL"}, Skip.VIEW),
        ({"ViewPosition": "LATERAL"}, Skip.VIEW),
        ({"ViewPosition": "LLO"}, Skip.VIEW),
        ({"ViewPosition": "RLD"}, Skip.VIEW),
        ({"ViewPosition": "", "ViewCodeSequence": code("399173006", "left lateral")}, Skip.VIEW),
        ({"ViewPosition": "", "ViewCodeSequence": code("R-10206", "antero-posterior")}, None),
        ({"ViewPosition": "", "SeriesDescription": "Chest Lat"}, Skip.VIEW),
        ({"ViewPosition": "", "StudyDescription": "Chest PA and Lat"}, None),
    ],
)  # fmt: skip
def test_what_is_screened_and_what_is_skipped(tags: dict[str, Any], expected: Skip | None) -> None:
    assert reason(make(PIXELS, **tags)) == expected


def test_several_frames_are_skipped_and_can_be_read() -> None:
    ds = dataset(PIXELS, NumberOfFrames=2, PixelData=PIXELS.tobytes() + (PIXELS // 2).tobytes())
    image = opened(write(ds))
    assert image.skip is Skip.MULTI_FRAME
    np.testing.assert_array_equal(image.frame(1), PIXELS // 2)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, []),
        ({"BodyPartExamined": None, "ViewPosition": None}, [Caution.UNVERIFIED_VIEW]),
        ({"BodyPartExamined": "UNKNOWN"}, [Caution.UNVERIFIED_VIEW]),
        ({"ViewPosition": "Planted^Name"}, [Caution.UNVERIFIED_VIEW]),
        ({"BurnedInAnnotation": "YES"}, [Caution.BURNED_IN]),
        ({"PatientOrientation": ["L", "F"]}, []),
        ({"PatientOrientation": ["R", "F"]}, []),
        ({"PatientOrientation": ["F", "L"]}, [Caution.ORIENTATION]),
        ({"PatientOrientation": ["H", "L"]}, [Caution.ORIENTATION]),
        ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}, []),
        ({"PresentationLUTShape": "INVERSE"}, [Caution.POLARITY]),
        ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"},
         [Caution.POLARITY]),
        ({"WindowCenter": [1, 2], "WindowWidth": [3, 4]}, [Caution.SEVERAL_WINDOWS]),
    ],
)  # fmt: skip
def test_cautions(tags: dict[str, Any], expected: list[Caution]) -> None:
    image = opened(make(PIXELS, **tags))
    assert image.warnings == expected
    assert image.facts.view in ("PA", None)


def test_identifiers() -> None:
    image = opened(make(PIXELS))
    facts = image.facts
    uids = (facts.sop_instance_uid, facts.series_instance_uid, facts.study_instance_uid)
    assert uids == ("1.2.3.4", "1.2.3.5", "1.2.3")


# ---- presentation --------------------------------------------------------------------------


def lut(first: int, values: list[int], bits: int = 16) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.LUTData = np.asarray(values, "<u2").tobytes()
    item["LUTData"].VR = "OW"
    return Sequence([item])


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, Presentation()),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, Presentation()),
        ({"RescaleSlope": 2, "RescaleIntercept": -5}, Presentation(2, -5)),
        ({"WindowCenter": 40, "WindowWidth": 100}, Presentation(voi=Window(40, 100))),
        ({"WindowCenter": [40, 9], "WindowWidth": [0, 100]}, Presentation(voi=Window(9, 100))),
        ({"WindowCenter": 40}, Presentation()),
        ({"WindowCenter": 40, "WindowWidth": 0.5},
         Presentation(voi=Window(40, 0.5, "LINEAR_EXACT"))),
        ({"WindowCenter": 40, "WindowWidth": 0.5, "VOILUTFunction": "SIGMOID"},
         Presentation(voi=Window(40, 0.5, "SIGMOID"))),
        ({"WindowCenter": 1, "WindowWidth": 9, "VOILUTFunction": "LINEAR_EXACT"},
         Presentation(voi=Window(1, 9, "LINEAR_EXACT"))),
        ({"VOILUTSequence": lut(3, [0, 5, 9])}, Presentation(voi=Lut(3, (0, 5, 9)))),
        ({"VOILUTSequence": lut(3, [0, 5]), "WindowCenter": 40, "WindowWidth": 100},
         Presentation(voi=Window(40, 100))),
        ({"ModalityLUTSequence": lut(0, [7, 8])}, Presentation(modality_lut=Lut(0, (7, 8)))),
        ({"PhotometricInterpretation": "MONOCHROME1"}, Presentation(inverted=True)),
        ({"PixelPaddingValue": 4000}, Presentation(padding=(4000, 4000))),
        ({"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 3000},
         Presentation(padding=(3000, 4000))),
    ],
)  # fmt: skip
@pytest.mark.parametrize("syntax", [dicoms.EXPLICIT, dicoms.IMPLICIT])
def test_presentation(tags: dict[str, Any], expected: Presentation, syntax: str) -> None:
    assert opened(make(PIXELS, syntax, **tags)).presentation == expected


def test_padding_is_signed_where_the_pixels_are() -> None:
    ds = dataset(PIXELS.astype(np.int16), bits=16)
    ds.add_new(0x00280120, "SS", -2000)
    assert opened(write(ds)).presentation.padding == (-2000, -2000)
    ds.add_new(0x00280120, "US", 65536 - 2000)  # the wrong type, met often
    assert opened(write(ds)).presentation.padding == (-2000, -2000)


def test_eight_bit_tables_packed_in_bytes() -> None:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4, 0, 8], bytes([1, 2, 3, 4])
    item["LUTData"].VR = "OW"
    image = opened(make(PIXELS, VOILUTSequence=Sequence([item])))
    assert image.presentation.voi == Lut(0, (1, 2, 3, 4))


def test_monochrome1_of_inverted_values_is_the_same_picture() -> None:
    pixels = picture(300, 260)
    a = opened(make(pixels))
    b = opened(make(4095 - pixels, PhotometricInterpretation="MONOCHROME1"))
    first, second = (preprocess(i.samples(), i.presentation).pixels for i in (a, b))
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_importing_decode_loads_neither_pydicom_nor_opencv() -> None:
    program = (
        "import sys, comit.image; "
        "print([m for m in ('pydicom', 'cv2', 'imagecodecs') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_very_many_items_are_too_complex() -> None:
    item = b"\xfe\xff\x00\xe0\0\0\0\0"
    sequence = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff" + item * 300_000
    head = make(PIXELS)
    start = head.index(b"\x08\x00\x16\x00UI")
    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    assert reason(head[:start] + sequence + end + head[start:]) is Fail.TOO_COMPLEX


@pytest.mark.parametrize("vr", [b"LK", b"ZZ", b"UN", b"SQ", b"FD"])
def test_a_type_that_is_none_or_another_is_read_around(vr: bytes) -> None:
    """pydicom raises NotImplementedError, which names the value, when such an element is asked."""
    data = make(PIXELS, SeriesDescription="Chest PA", ViewPosition=None)
    assert reason(data.replace(b"\x08\x00\x3e\x10LO", b"\x08\x00\x3e\x10" + vr)) in (
        None, Fail.TRUNCATED, Fail.NOT_DICOM
    )  # fmt: skip
