"""Every kind of bad input, one of each, with the row that it must get.

:func:`build` fills a folder; :func:`run` screens it and compares. What each class is about is in
its name; the codes are those of :mod:`comit.reasons`.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from comit.bench.faults import dicoms
from comit.bench.faults.dicoms import dataset, make, picture, write

TIMEOUT = 4.0  # seconds: what the class that hangs may cost
MPEG2, JPEG_XL = "1.2.840.10008.1.2.4.101", "1.2.840.10008.1.2.4.110"
STORAGE = "1.2.840.10008.5.1.4.1.1."
# Root reads what nobody may: it gives that up.
UNPRIVILEGED = (
    [shutil.which("setpriv") or "setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if os.geteuid() == 0 and shutil.which("setpriv")
    else []
)
NAMES = (
    *("new\nline.png", "quo'te\".png", "<script>alert(1)<-script>.png"),
    *("=cmd()|' '!A1.png", "\x1b[31mred.png"),
)
Content = bytes | Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One file and the row that it must get."""

    name: str
    content: Content
    status: str
    reason: str | None = None
    warnings: tuple[str, ...] = ()


def failed(name: str, content: Content, reason: str, *warnings: str) -> Case:
    """A case whose row is failed."""
    return Case(name, content, "failed", reason, warnings)


def skipped(name: str, content: Content, reason: str) -> Case:
    """A case whose row is skipped."""
    return Case(name, content, "skipped", reason)


def fine(name: str, content: Content, *warnings: str) -> Case:
    """A case whose row is ok."""
    return Case(name, content, "ok", None, warnings)


def png(pixels: NDArray[Any]) -> bytes:
    """A PNG file."""
    return cv2.imencode(".png", pixels)[1].tobytes()


def jpg(pixels: NDArray[Any], *options: int) -> bytes:
    """A JPEG file."""
    return cv2.imencode(".jpg", pixels, options)[1].tobytes()


def grey(top: int = 255, shape: tuple[int, int] = (96, 80)) -> NDArray[Any]:
    """A smooth grey picture."""
    kind = np.uint8 if top < 256 else np.uint16
    return (picture(*shape, bits=12).astype(float) / 4095 * top).astype(kind)


def colour() -> NDArray[np.uint8]:
    """A picture of three unlike channels, (96, 80, 3)."""
    return np.dstack([grey(), grey()[::-1], grey()[:, ::-1]])


def chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def huge_png(width: int, height: int) -> bytes:
    """A header that promises many pixels, and a few bytes of them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def animated_png() -> bytes:
    """A PNG with an acTL chunk of two frames (APNG)."""
    whole = png(grey())
    return whole[:33] + chunk(b"acTL", struct.pack(">II", 2, 0)) + whole[33:]


def nested(depth: int) -> bytes:
    """A DICOM header of sequences in sequences, (0008,1115), of undefined length."""
    level = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    head = make()
    return head[: head.index(b"\x08\x00\x16\x00UI")] + level * depth


def deflate_bomb() -> bytes:
    """A deflated data set that would inflate to a gigabyte."""
    header = write(dataset(), dicoms.DEFLATED)
    meta = header[: 132 + 12 + struct.unpack("<I", header[140:144])[0]]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return meta + b"".join(packer.compress(bytes(2**20)) for _ in range(1024)) + packer.flush()


def slow_jpeg() -> bytes:
    """A progressive JPEG whose last scan comes again and again: minutes of work in few bytes."""
    whole = jpg(np.zeros((6000, 6000), np.uint8), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    scan = whole[whole.rfind(b"\xff\xda") : -2]
    return whole[:-2] + scan * 1500 + whole[-2:]


def native(**tags: Any) -> bytes:
    """A DICOM file whose tags are set to these values."""
    return make(**tags)


def other(sop_class: str, modality: str, **tags: Any) -> bytes:
    """An object that is no radiograph."""
    return make(SOPClassUID=sop_class, Modality=modality, **tags)


def without_pixels(sop_class: str, modality: str) -> bytes:
    """An object that is not an image."""
    ds = dataset(SOPClassUID=sop_class, Modality=modality, PixelData=None)
    return write(ds)


def lut(first: int, values: list[int]) -> Sequence:
    """A modality or VOI LUT sequence of 16 bits."""
    item = Dataset()
    item.add_new(0x00283002, "US", [len(values), first, 16])
    item.add_new(0x00283006, "US", values)
    return Sequence([item])


def palette() -> bytes:
    """PALETTE COLOR, 8 bits."""
    ds = dataset(grey(), bits=8, PhotometricInterpretation="PALETTE COLOR")
    for i, name in enumerate(("Red", "Green", "Blue")):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        table = np.roll(np.arange(256, dtype=np.uint16) * 256, 40 * i)
        setattr(ds, f"{name}PaletteColorLookupTableData", table.tobytes())
    return write(ds)


def float_pixels(value: float) -> bytes:
    """Float Pixel Data with one odd value."""
    samples = picture().astype(np.float32)
    samples[5, 5] = value
    ds = dataset(samples, PixelData=None, BitsAllocated=32)
    del ds.BitsStored, ds.HighBit, ds.PixelRepresentation
    ds.FloatPixelData = samples.tobytes()
    return write(ds)


def odd_high_bit() -> bytes:
    """12 bits at the upper end of their words."""
    return make(picture() << 4, BitsStored=12, HighBit=15)


def trailing_bits() -> bytes:
    """Bits above BitsStored that are set."""
    return make(picture() | 0xF000)


def padded() -> bytes:
    """A border of PixelPaddingValue."""
    pixels = picture().astype(np.int16)
    pixels[:10] = -2000
    ds = dataset(pixels, bits=16)
    ds.add_new(0x00280120, "SS", -2000)
    return write(ds)


def no_preamble() -> bytes:
    """A bare data set in implicit little-endian."""
    whole = write(dataset(), dicoms.IMPLICIT)
    return whole[132 + 12 + struct.unpack("<I", whole[140:144])[0] :]


def cases() -> list[Case]:
    """Every class of a single file; those of names, links and races are made by :func:`build`."""
    good, eight = make(), make(grey(), bits=8)
    cut = b"\xff\x4f\xff\x51" + bytes(range(200))
    view = "unverified_view"
    return [
        # not read to the end
        failed("empty.dcm", b"", "empty"),
        failed("empty.png", b"", "empty"),
        failed("truncated.dcm", good[:-1000], "truncated"),
        failed("truncated-header.dcm", good[:300], "truncated"),
        failed("truncated.png", png(grey())[:-900], "truncated", view),
        failed("truncated.jpg", jpg(grey())[:-900], "truncated", view),
        fine("no-iend.png", png(grey(192))[:-12], "end_marker", view),
        fine("no-eoi.jpg", jpg(grey(192))[:-2], "end_marker", view),
        failed("corrupt.png", flipped(png(grey()), 300), "corrupt"),
        failed("no-pixels.dcm", write(dataset(PixelData=None)), "no_pixels"),
        failed("rows-0.dcm", native(Rows=0), "bad_geometry"),
        failed("columns-0.dcm", native(Columns=0), "bad_geometry"),
        failed("length.dcm", native(Rows=960), "bad_geometry"),
        fine("longer.dcm", native(Rows=90), "length"),
        failed("not-dicom.dcm", bytes(128) + b"DICM" + b"\xff" * 400, "not_dicom"),
        fine("no-preamble.dcm", no_preamble(), "no_file_meta"),
        fine("other-stream.dcm", make(syntax=dicoms.JPEG_LS, stream=j2k()), "syntax_mismatch"),
        failed("no-stream.dcm", make(syntax=dicoms.RLE, stream=bytes(range(64))), "corrupt"),
        failed(
            "broken-stream.dcm",
            make(syntax=dicoms.J2K, stream=j2k()[:120] + b"\xff" * 300),
            "decode",
        ),
        failed(
            "video.dcm", make(syntax=dicoms.MPEG4, stream=bytes(64)), "unsupported_transfer_syntax"
        ),
        failed(
            "jpeg-xl.dcm",
            # pydicom does not write a syntax that it does not know
            make(syntax=MPEG2, stream=bytes(64)).replace(MPEG2.encode(), JPEG_XL.encode()),
            "unsupported_transfer_syntax",
        ),
        # tones and samples
        fine("monochrome1.dcm", native(PhotometricInterpretation="MONOCHROME1")),
        fine("polarity.dcm", native(PresentationLUTShape="INVERSE"), "polarity"),
        fine("palette.dcm", palette(), "colour"),
        fine("rgb.dcm", make(colour(), bits=8), "colour"),
        fine("ybr.dcm", make(colour(), bits=8, PhotometricInterpretation="YBR_FULL"), "colour"),
        fine("cmyk.jpg", cmyk(), view, "colour"),
        fine("alpha.png", png(np.dstack([colour(), grey()])), view, "colour"),
        fine("signed.dcm", make(picture().astype(np.int16) - 2000, bits=16)),
        fine("12-of-16.png", png(grey(4095)), view),
        fine("high-bit.dcm", odd_high_bit()),
        fine("trailing.dcm", trailing_bits(), "trailing_bits"),
        fine("slope-0.dcm", native(RescaleSlope="0", RescaleIntercept="0"), "rescale_unusable"),
        fine("modality-lut.dcm", native(ModalityLUTSequence=lut(0, [*range(0, 8192, 2)]))),
        fine("voi-lut.dcm", native(VOILUTSequence=lut(0, [*range(4096)]))),
        fine(
            "windows.dcm",
            native(WindowCenter=["2000", "1000"], WindowWidth=["3000", "500"]),
            "several_windows",
        ),
        fine("window.dcm", native(WindowCenter="90000", WindowWidth="10"), "window_unusable"),
        fine("width-0.dcm", native(WindowCenter="40", WindowWidth="0"), "window_unusable"),
        fine("8-bit-window.dcm", native(WindowCenter="127", WindowWidth="255"), "window_clips"),
        fine("padding.dcm", padded(), "padding"),
        # what it shows
        skipped("lateral.dcm", native(ViewPosition="LL"), "view"),
        skipped("hand.dcm", native(BodyPartExamined="HAND"), "anatomy"),
        skipped("hip.dcm", native(BodyPartExamined="HIP"), "anatomy"),
        skipped("leg.dcm", native(BodyPartExamined="LEG"), "anatomy"),
        skipped("raw.dcm", native(PresentationIntentType="FOR PROCESSING"), "for_processing"),
        skipped("ct.dcm", other(STORAGE + "2", "CT"), "modality"),
        skipped("mr.dcm", other(STORAGE + "4", "MR"), "modality"),
        skipped("report.dcm", without_pixels(STORAGE + "88.33", "SR"), "sop_class"),
        skipped("pdf.dcm", without_pixels(STORAGE + "104.1", "DOC"), "sop_class"),
        skipped("presentation.dcm", without_pixels(STORAGE + "11.1", "PR"), "sop_class"),
        skipped("DICOMDIR", without_pixels("1.2.840.10008.1.3.10", "OT"), "sop_class"),
        skipped("notes.txt", b"To whom it may concern", "unsupported_format"),
        fine("no-view.dcm", native(ViewPosition=None), view),
        fine("no-part.dcm", native(BodyPartExamined=None), view),
        fine("other-word.dcm", native(BodyPartExamined="XRAY"), view),
        fine("two-parts.dcm", native(SeriesDescription="Left hand"), view, "contradicting_tags"),
        fine("child.dcm", native(PatientAge="007Y"), "child"),
        fine("plain.png", png(grey()), view),
        fine("plain.jpg", jpg(grey()), view),
        fine("burned-in.dcm", native(BurnedInAnnotation="YES"), "burned_in"),
        fine("orientation.dcm", native(PatientOrientation=["A", "F"]), "orientation"),
        skipped(
            "frames.dcm", native(NumberOfFrames=2, PixelData=picture().tobytes() * 2), "multi_frame"
        ),
        Case("animated.png", animated_png(), "skipped", "multi_frame", (view,)),
        # bombs
        failed("nested.dcm", nested(5000), "too_complex"),
        failed("deflate-bomb.dcm", deflate_bomb(), "too_complex"),
        failed("large.png", huge_png(60_000, 60_000), "too_large"),
        failed(
            "large.dcm", make(syntax=dicoms.J2K, stream=cut, Rows=60000, Columns=60000), "too_large"
        ),
        failed("1x1.png", png(np.zeros((1, 1), np.uint8)), "too_small"),
        failed("thin.png", png(grey(shape=(70, 2000))), "too_small"),
        failed("slow.jpg", slow_jpeg(), "timeout"),
        # values
        failed("black.png", png(np.zeros((96, 80), np.uint8)), "blank", view),
        failed("black.dcm", make(np.zeros((96, 80), np.uint16)), "blank"),
        failed("nan.dcm", float_pixels(np.nan), "nonfinite"),
        failed("infinite.dcm", float_pixels(np.inf), "nonfinite"),
        # names
        *(fine(name, png(grey(200 + i)), view) for i, name in enumerate(NAMES)),
        # identity
        fine("same-uid-1.dcm", native(SOPInstanceUID="1.2.9"), "duplicate_uid"),
        fine("same-uid-2.dcm", make(picture()[::-1], SOPInstanceUID="1.2.9"), "duplicate_uid"),
        fine("copy-1.dcm", native(SOPInstanceUID="1.2.10"), "identical_copy"),
        fine("copy-2.dcm", native(SOPInstanceUID="1.2.10"), "identical_copy"),
        fine("8-bit.dcm", eight),
        # files that are not files
        skipped("fifo", os.mkfifo, "not_a_file"),
        skipped("socket", bind, "not_a_file"),
        skipped("outside.png", lambda p: p.symlink_to("/etc/passwd"), "outside_root"),
        failed("dangling.png", lambda p: p.symlink_to("gone.png"), "vanished"),
        failed("to-itself.png", lambda p: p.symlink_to(p), "vanished"),
        failed("locked.png", locked, "permission"),
    ]


def is_bound() -> bool:
    """Whether a locked file cannot be read: by root it can, unless setpriv takes that away."""
    if not UNPRIVILEGED:
        return os.geteuid() != 0
    return subprocess.run([*UNPRIVILEGED, "true"], capture_output=True).returncode == 0


def flipped(data: bytes, at: int) -> bytes:
    """One byte changed."""
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def j2k() -> bytes:
    """A JPEG 2000 code stream."""
    return bytes(imagecodecs.jpeg2k_encode(picture(), codecformat="J2K", level=0, reversible=True))


def cmyk() -> bytes:
    """A JPEG of four components."""
    four = np.dstack([colour(), grey()])
    return bytes(imagecodecs.jpeg8_encode(four, colorspace="CMYK", outcolorspace="CMYK"))


def bind(path: Path) -> None:
    """A Unix socket of this name."""
    with socket.socket(socket.AF_UNIX) as unix:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path may have 107 bytes
        try:
            unix.bind(path.name)
        finally:
            os.chdir(here)


def locked(path: Path) -> None:
    """A file that nobody may read."""
    path.write_bytes(png(grey()))
    path.chmod(0)


def build(folder: Path) -> list[Case]:
    """Makes the zoo; returns what is in it."""
    made = [c for c in cases() if c.content is not locked or is_bound()]
    folder.mkdir()
    for i, case in enumerate(made):
        path = folder / case.name
        if callable(case.content):
            case.content(path)
        else:  # every object is another, but where that is the class
            path.write_bytes(case.content.replace(b"1.2.3.4\0", b"1.2.%04d" % (1000 + i)))
    raw = os.fsencode(folder) + b"/\xff\xfe.png"
    with open(raw, "wb") as file:  # noqa: PTH123 (bytes)
        file.write(png(grey(190)))
    made.append(fine("\\xff\\xfe.png", b"", "unverified_view"))
    (folder / "loop").symlink_to(folder)  # no row: what it leads to is visited by itself
    (folder / "again.png").symlink_to("plain.png")
    return made


@dataclass(frozen=True)
class Visit:
    """What screening the zoo gave."""

    classes: int
    rows: int
    exit_code: int
    wrong: dict[str, str]  # file -> what its row says and should not
    disturbed: int  # ok rows that differ from those of a run without the bad ones


def run(work: Path) -> Visit:
    """Screens the zoo, and its good files alone; every row is compared."""
    import pyarrow.parquet as pq

    expected = {case.name: case for case in build(work / "zoo")}
    alone = work / "good"
    alone.mkdir()
    for case in expected.values():
        if case.status == "ok" and case.content:
            shutil.copy2(work / "zoo" / case.name, alone / case.name)
    out, beside = work / "zoo.parquet", work / "good.parquet"
    code = _screen(work / "zoo", out)
    _screen(alone, beside)
    rows = {row["path"]: row for row in pq.read_table(out).to_pylist()}
    wrong = dict.fromkeys(rows.keys() - expected.keys(), "no such class")
    for name, case in expected.items():
        row = rows.get(name)
        if row is None:
            wrong[name] = "no row"
            continue
        found = (row["status"], row["reason"], tuple(sorted(row["warnings"] or ())))
        if found != (case.status, case.reason, tuple(sorted(case.warnings))):
            wrong[name] = str(found)
    undisturbed = {row["path"]: row for row in pq.read_table(beside).to_pylist()}
    named = ("run_id", "screened_at")
    disturbed = sum(
        {k: v for k, v in row.items() if k not in named}
        != {k: v for k, v in rows.get(name, {}).items() if k not in named}
        for name, row in undisturbed.items()
    )
    return Visit(len(expected), len(rows), code, wrong, disturbed)


def _screen(source: Path, out: Path) -> int:
    command = [sys.executable, "-m", "comit.bench.null", "screen", str(source), "--out", str(out)]
    command += ["--timeout", str(TIMEOUT), "--workers", "2", "--quiet"]
    command = [*UNPRIVILEGED, *command] if is_bound() else command
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.stderr:
        raise RuntimeError(done.stderr)
    return done.returncode
