"""Real files of every format and transfer syntax, changed, through the whole of ``comit screen``.

Bytes are changed, cut out, put in and swapped; of DICOM files also the values, VRs and lengths of
header elements, of PNG files the content of chunks under checksums that fit. File ``i`` of a seed
is always the same, so what one of them found can be made again: ``mutant(seeds, seed, i)``.
"""

from __future__ import annotations

import random
import shutil
import struct
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from comit.bench.faults.process import COMIT, Ended, run
from comit.image.header import TAGS
from comit.results import RUN

LARGEST = 1_500_000  # bytes of a file to start from, where its kind has one so small
MOST = 60  # files of a kind to start from
BATCH = 1000  # files of a run
TIMEOUT = 120  # seconds a file may take: a busy machine is no finding
DECODER_BYTES = 3 * 2**30  # what a decoding process may take, the ring's 512 MiB included
PNG = b"\x89PNG\r\n\x1a\n"
PIXELS = b"\xe0\x7f\x10\x00"
CHEST = {
    0x00080016: "1.2.840.10008.5.1.4.1.1.1.1",  # SOP class: DX for presentation
    **{0x00080060: "DX", 0x00180015: "CHEST", 0x00185101: "PA", 0x00280008: "1"},
    **{0x00081030: "", 0x0008103E: "", 0x00181030: "", 0x00181400: "", 0x00400254: ""},
}
EXTREMES = (b"\x00" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\x01\x00\x00\x00")
LONG_VRS = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
VRS = ("US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "IS", "DS", "CS", "LO", "UI", "UN", "OW")
TEXTS = (
    *(
        "",
        "0",
        "1",
        "-1",
        "3",
        "8",
        "12",
        "16",
        "255",
        "65535",
        "65536",
        "4294967295",
        "-2147483649",
    ),
    *(
        "1e30",
        "-1e308",
        "1e-320",
        "nan",
        "inf",
        "0.5",
        "1,5",
        "1\\2\\3",
        "\\",
        "\\".join("9" * 999),
    ),
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT"),
    *(
        "CT",
        "DX",
        "CR",
        "SR",
        "CHEST",
        "HAND",
        "PA",
        "LATERAL",
        "SIGMOID",
        "LINEAR_EXACT",
        "INVERSE",
    ),
    *("1.2.840.10008.1.2", "1.2.840.10008.1.2.4.90", "1.2.840.10008.5.1.4.1.1.1.1", "1." * 40),
    *("9" * 5000, "\x1b[2J", "\xe9\xff\x80", "\0\0"),
)
NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    12,
    15,
    16,
    32,
    64,
    255,
    2**15 - 1,
    2**15,
    2**16 - 1,
    2**31,
    2**32 - 1,
)


@dataclass
class Fuzzed:
    """What screening mutated files gave."""

    files: int = 0
    rows: int = 0  # of the files that were put in, each with its own
    aborts: int = 0  # runs that did not end with 0 or 3, or said anything
    differing: list[int] = field(default_factory=list)  # files whose rows are not those of before
    crashed: list[int] = field(default_factory=list)  # files on which a decoder died or raised
    reasons: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    peak_bytes: int = 0  # of a run, all its processes
    decoder_bytes: int = 0  # of a decoding process

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, nothing came out otherwise and no decoder grew too large."""
        bad = self.aborts or self.differing or self.crashed or self.rows != self.files
        return not bad and self.decoder_bytes <= DECODER_BYTES


Seeds = dict[str, list[bytes]]


def seeds(folders: Iterable[Path]) -> Seeds:
    """The files to start from by their kind: png, jpeg or a transfer syntax."""
    paths: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(p for folder in folders for p in folder.rglob("*") if p.is_file()):
        if path.stat().st_size:
            paths[kind_of(path.read_bytes())].append(path)
    found: Seeds = {}
    for kind, files in paths.items():
        small = [p for p in files if p.stat().st_size <= LARGEST]
        small = small or [min(files, key=lambda p: p.stat().st_size)]
        found[kind] = [p.read_bytes() for p in small[:: max(1, len(small) // MOST)]]
    native = found.get(ExplicitVRLittleEndian, [])
    for syntax in (ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):  # rare in collections
        if native and syntax not in found:
            found[syntax] = [_rewritten(data, syntax) for data in native]
    for kind, start in found.items():  # else most would be skipped before a codec sees them
        if kind not in ("png", "jpeg", "other"):
            start += [_as_chest(data) for data in start]
    return found


def kind_of(data: bytes) -> str:
    """The kind of file, by its content."""
    if data.startswith(PNG):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[128:132] == b"DICM":
        return str(_parsed(data).file_meta.get("TransferSyntaxUID", "other"))
    return "other"


def _rewritten(data: bytes, syntax: UID) -> bytes:
    """A native DICOM file in another native syntax."""
    out = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd values, which stay as they are
        ds = pydicom.dcmread(BytesIO(data))
        ds.file_meta.TransferSyntaxUID = syntax
        ds.save_as(out, implicit_vr=syntax.is_implicit_VR, little_endian=True)
    return out.getvalue()


def _as_chest(data: bytes) -> bytes:
    """A DICOM file that says of itself what a frontal chest radiograph says."""
    for tag, text in CHEST.items():
        found = _elements(data)[2]
        place = next((e for e in found if e.tag == tag), None) or _gap(tag, found)
        data = _spliced(data, place, place.vr, text.encode(), None)
    return data


def mutant(start: Seeds, seed: int, number: int) -> tuple[str, bytes]:
    """File ``number`` of a seed, and the kind of file that it was: one to three changes."""
    chance = random.Random(f"{seed}/{number}")  # noqa: S311
    kind = chance.choice(sorted(start))
    data = chance.choice(start[kind])
    for _ in range(chance.randint(1, 3)):
        if kind == "png" and chance.random() < 0.5:
            data = _chunk(data, chance)
        elif kind not in ("png", "jpeg") and chance.random() < 0.6:
            data = _header(data, chance)
        else:
            data = _bytes(data, chance)
    return kind, data


# -- bytes -----------------------------------------------------------------------------------


def _bytes(data: bytes, chance: random.Random) -> bytes:
    return chance.choice(CHANGES)(data, _place(data, chance), chance)


def _place(data: bytes, chance: random.Random) -> int:
    """Half of them in the first two thousand bytes, a quarter where DICOM pixels begin."""
    begin, share = 0, chance.random()
    if share > 0.75:
        begin = max(0, data.find(PIXELS))
    end = len(data) if 0.5 < share <= 0.75 else min(len(data), begin + 2000)
    return chance.randrange(begin, max(begin + 1, end))


def _flip(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]


def _extreme(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at] + chance.choice(EXTREMES) + data[at + 4 :]


def _cut(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at] + data[at + chance.randint(1, 64) :]


def _insert(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at] + chance.randbytes(chance.randint(1, 64)) + data[at:]


def _repeat(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at] + data[at : at + chance.randint(1, 256)] * chance.randint(2, 9) + data[at:]


def _end(data: bytes, at: int, chance: random.Random) -> bytes:
    return data[:at]


CHANGES: tuple[Callable[[bytes, int, random.Random], bytes], ...] = (
    _flip,
    _flip,
    _extreme,
    _cut,
    _insert,
    _repeat,
    _end,
)


# -- PNG -------------------------------------------------------------------------------------


def _chunk(data: bytes, chance: random.Random) -> bytes:
    """Changes the content of a chunk, or what it inflates to, and makes its checksum fit."""
    chunks, at = [], len(PNG)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((at, at + 12 + length))
        at += 12 + length
    if not chunks:
        return _bytes(data, chance)
    begin, end = chance.choice(chunks)
    name, content = data[begin + 4 : begin + 8], data[begin + 8 : end - 4]
    if name == b"IDAT" and chance.random() < 0.5:
        try:
            content = zlib.compress(_bytes(zlib.decompressobj().decompress(content), chance), 1)
        except zlib.error:
            content = _bytes(content, chance)
    else:
        content = _bytes(content, chance)
    crc = zlib.crc32(name + content)
    whole = struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)
    return data[:begin] + whole + data[end:]


# -- DICOM -----------------------------------------------------------------------------------


class Place(NamedTuple):
    """An element of the top level that stands in a data set, or could."""

    tag: int
    vr: str
    begin: int  # of its tag, in the data set
    value: int  # of its value
    end: int


def _header(data: bytes, chance: random.Random) -> bytes:
    """Changes value, VR or length of an element, puts one in or takes one away."""
    try:
        _, little, found = _elements(data)
    except Exception:  # changes before this one have made it something that pydicom rejects
        return _bytes(data, chance)
    if not found:
        return _bytes(data, chance)
    read = [e for e in found if e.tag in TAGS]
    place = chance.choice(read if read and chance.random() < 0.8 else found)
    what = chance.random()
    if what < 0.08:
        return _spliced(data, place, None, b"", chance)
    if what < 0.25:  # one that is not there
        absent = sorted({t for t in TAGS if t >> 16 > 2} - {e.tag for e in found})
        place = _gap(chance.choice(absent), found)
    vr = place.vr if chance.random() < 0.8 else chance.choice(VRS)
    return _spliced(data, place, vr, _value(vr, little, chance), chance)


def _gap(tag: int, found: list[Place]) -> Place:
    """Where an element that is not there would stand."""
    at = next((e.begin for e in found if e.tag > tag), found[-1].end)
    return Place(tag, dictionary_VR(tag).split(" ")[0], at, at, at)


def _spliced(
    data: bytes, place: Place, vr: str | None, value: bytes, chance: random.Random | None
) -> bytes:
    """A file with another element in a place, or with none; its length may be a lie by chance."""
    before, body = _inflated(data)
    implicit, little, _ = _elements(data)
    new = b"" if vr is None else _encoded(place.tag, vr, value, implicit, little, chance)
    body = body[: place.begin] + new + body[place.end :]
    if before is None:
        return body
    packed = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    return before + packed.compress(body) + packed.flush()


def _inflated(data: bytes) -> tuple[bytes | None, bytes]:
    """The file meta and the data set behind it where that is deflated; else None and the file."""
    if DeflatedExplicitVRLittleEndian.encode() not in data[:1000]:
        return None, data
    start = 144 + int.from_bytes(data[140:144], "little")  # PS3.10 7.1: the group's length
    try:
        return data[:start], zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:], 2**26)
    except zlib.error:
        return None, data


def _elements(data: bytes) -> tuple[bool, bool, list[Place]]:
    """Whether VRs are implicit, numbers little-endian; and the elements as they lie."""
    ds = _parsed(data)
    implicit, little = ds.original_encoding
    found: list[Place] = []
    for tag in [*ds.keys()]:
        raw: Any = ds.get_item(tag)
        if isinstance(raw, RawDataElement) and raw.length != 0xFFFFFFFF:
            head = 12 if not implicit and raw.VR in LONG_VRS else 8
            end = raw.value_tell + raw.length
            vr = raw.VR or _known_vr(tag)
            found.append(Place(int(tag), vr, raw.value_tell - head, raw.value_tell, end))
    return bool(implicit), bool(little), sorted(found)


def _parsed(data: bytes) -> Dataset:
    """The data set before its pixels, elements as read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd values
        return pydicom.dcmread(BytesIO(data), stop_before_pixels=True, force=True)


def _known_vr(tag: BaseTag) -> str:
    try:
        return dictionary_VR(tag).split(" ")[0]
    except KeyError:
        return "UN"


def _value(vr: str, little: bool, chance: random.Random) -> bytes:
    order = "<" if little else ">"
    widths = {"US": "H", "SS": "H", "OW": "H", "UL": "I", "SL": "I", "UV": "Q", "SV": "Q"}
    if vr in ("FL", "FD"):
        numbers = (0.0, -1.0, 1e30, float("nan"), float("inf"), 0.5)
        return struct.pack(order + {"FL": "f", "FD": "d"}[vr], chance.choice(numbers))
    if vr in widths:
        count = chance.choice((1, 1, 1, 0, 2, 3, 300))
        width = widths[vr]
        top = 256 ** struct.calcsize(width)
        return struct.pack(
            f"{order}{count}{width}", *(chance.choice(NUMBERS) % top for _ in range(count))
        )
    if vr in ("SQ", "UN", "OB"):
        return chance.randbytes(chance.choice((0, 1, 2, 4, 8, 100)))
    return chance.choice(TEXTS).encode("latin-1")


def _encoded(
    tag: int, vr: str, value: bytes, implicit: bool, little: bool, chance: random.Random | None
) -> bytes:
    """An element as PS3.5 7.1 has it."""
    order = "<" if little else ">"
    value += b"\0" * (len(value) % 2)
    length = len(value)
    if chance and chance.random() < 0.08:
        length = chance.choice((0, 1, length + 2, length * 1000, 0xFFFE, 0xFFFFFFFE, 0xFFFFFFFF))
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return head + struct.pack(order + "I", length & 0xFFFFFFFF) + value
    if vr in LONG_VRS:
        return head + vr.encode() + struct.pack(order + "xxI", length & 0xFFFFFFFF) + value
    value = value[:0xFFFE]
    return head + vr.encode() + struct.pack(order + "H", min(length, 0xFFFE)) + value


# -- the runs --------------------------------------------------------------------------------


def fuzz(work: Path, folders: list[Path], files: int, first: int = 0, seed: int = 0) -> Fuzzed:
    """Screens files ``first`` to ``first + files`` of a seed in batches, each batch twice."""
    total, start = Fuzzed(), seeds(folders)
    for begin in range(first, first + files, BATCH):
        folder = work / "mutated"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        numbers = range(begin, min(begin + BATCH, first + files))
        for number in numbers:
            kind, data = mutant(start, seed, number)
            (folder / str(number)).write_bytes(data)
            total.kinds[kind] += 1
        total.files += len(numbers)
        once, again = (_screened(folder, work / f"{n}.parquet", n, total) for n in (1, 3))
        for number in numbers:
            row = once.get(str(number), {})
            total.rows += row.get("status") in ("ok", "skipped", "failed")
            reason = str(row.get("reason") or "ok")
            total.reasons[reason] += 1
            if reason == "crash":
                total.crashed.append(number)
            if row != again.get(str(number), {}):
                total.differing.append(number)
    return total


Rows = dict[str, dict[str, object]]


def _screened(folder: Path, out: Path, workers: int, total: Fuzzed) -> Rows:
    """The rows of one run by their paths, without what names the run."""
    arguments = ["screen", folder, "--out", out, "--quiet", "--timeout", TIMEOUT]
    ended: Ended = run([*arguments, "--workers", workers], COMIT)
    total.peak_bytes = max(total.peak_bytes, ended.peak_bytes)
    total.decoder_bytes = max(total.decoder_bytes, ended.child_bytes)
    if ended.exit_code not in (0, 3) or ended.said:
        total.aborts += 1
    if ended.exit_code not in (0, 3):
        return {}
    rows = pq.read_table(out).drop_columns(list(RUN)).to_pylist()
    found = {row["path"]: row for row in rows}
    return found if len(found) == len(rows) else {}
