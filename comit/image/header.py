"""The header of a DICOM file (PS3.10, PS3.5 7), read without trusting it.

pydicom parses; only the elements that decoding needs are kept, so no patient's name is in memory.
Every value may be missing, empty, of another type or count: a reader below returns None or an
empty tuple then, and never raises.
"""

from __future__ import annotations

import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.valuerep import VR

from comit.errors import ItemError
from comit.reasons import Fail

# pydicom's messages quote values, which name patients.
_log = logging.getLogger("pydicom")
_log.addHandler(logging.NullHandler())
_log.propagate = False

DEFLATED = b"1.2.840.10008.1.2.1.99"
UNDEFINED = 0xFFFFFFFF
FLOAT, DOUBLE, PIXELS = 0x7FE00008, 0x7FE00009, 0x7FE00010  # the elements that hold samples
SHARED, PER_FRAME = 0x52009229, 0x52009230  # functional groups
# The types of binary values by VR.
BINARY = {
    **{"US": "u2", "SS": "i2", "UL": "u4", "SL": "i4", "UV": "u8", "SV": "i8"},
    **{"FL": "f4", "FD": "f8"},
}
TEXT = frozenset({"DS", "IS", "LO", "SH", "CS", "LT", "ST", "UT", "UC", "PN", "AS", "DA", "UI"})
SHORT = TEXT - {"UT", "UC"} | set(BINARY) - {"UV", "SV"}  # with lengths of two bytes, PS3.5 7.1.2
BLANK_VRS = frozenset({b"  ", b"\0\0", b"??", b" \0", b"--"})  # written for one that is unknown
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(E[+-]?\d+)?", re.ASCII)
HUGE = 1e30  # no unit has such values, and products of two would not fit in float32
INFLATED_BYTES = 256 * 2**20  # a radiograph has 10 to 30 MB; asked before inflating
HEAD_BYTES = 16 * 2**20  # of them up to the pixels, all that is inflated to look for those
ELEMENTS = 20_000  # at the top level; radiographs have 100 to 300
ITEMS = 200_000  # of sequences of defined length; the largest enhanced CT have fewer
READS = 500_000  # of pydicom, which makes an object at every third; large enhanced CT need 100,000
TAGS = (
    [0x00020002, 0x00020010]
    + [0x00080005, 0x00080016, 0x00080018, 0x00080060, 0x00081030, 0x0008103E, 0x00082218]
    + [0x00180015, 0x00181030, 0x00181400, 0x00185101, 0x0020000D, 0x0020000E, 0x00200020]
    + [0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011, 0x00280100]
    + [0x00280101, 0x00280102, 0x00280103, 0x00280120, 0x00280121, 0x00280301]
    + [0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281056]
    + [0x00281101, 0x00281102, 0x00281103, 0x00281201, 0x00281202, 0x00281203]
    + [0x00281221, 0x00281222, 0x00281223, 0x00282110, 0x00283000, 0x00283010]
    + [0x00400254, 0x00540220, 0x20500020, SHARED, PER_FRAME]
    + [0x00080020, 0x00080068, 0x00100030, 0x00101010]  # the date of birth for the age alone
    + [0x60000102 + (group << 17) for group in range(16)]  # OverlayBitPosition
)


def is_dicom(data: bytes) -> bool:
    """Whether these bytes are a DICOM file (PS3.10 7.1), or a bare data set of groups 2 or 8."""
    if data[128:132] == b"DICM":
        return True
    head, kind = data[:8], data[4:6]
    if len(head) < 8:
        return False
    group = int.from_bytes(head[:2], "little")
    element = int.from_bytes(head[2:4], "little")
    if group in (0x0200, 0x0800):  # big-endian, which is always explicit
        group, element = group >> 8, int.from_bytes(head[2:4], "big")
        return group in (2, 8) and element <= 0x0100 and _is_vr(kind)
    if group not in (2, 8) or element > 0x0100:
        return False
    length = int.from_bytes(head[4:8], "little")
    return _is_vr(kind) or (length <= 64 and length % 2 == 0 and 8 + length < len(data))


def _is_vr(kind: bytes) -> bool:
    return kind.isalpha() and kind.decode("ascii") in set(VR)


@dataclass
class Header:
    """The elements of one file up to its pixels, and where those are."""

    elements: Dataset
    meta: Dataset  # file meta information, group 0002
    body: bytes  # the file, or what its data set inflates to
    pixels_tag: int | None  # FLOAT, DOUBLE or PIXELS; None where the data set ends without
    pixels_vr: str | None
    pixels_start: int  # of the value, in body
    pixels_length: int  # as declared, or UNDEFINED
    big_endian: bool
    has_meta: bool
    has_blank_vr: bool = False  # an element had, and got one

    def value(self, tag: int) -> Any:
        """The value as pydicom understands it; None where it cannot."""
        source = self.meta if tag >> 16 == 2 else self.elements
        with suppress(Exception):  # whatever pydicom raises
            return source[tag].value if tag in source else None
        return None

    def _raw(self, tag: int) -> RawDataElement | None:
        """An element that is still as read."""
        if tag >> 16 == 2:
            return None
        with suppress(Exception):  # whatever pydicom raises
            element: Any = self.elements.get_item(tag) if tag in self.elements else None
            if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
                return element
        return None

    def words(self, tag: int) -> tuple[str, ...]:
        """Values of a string element in ASCII capitals; other letters become spaces."""
        raw = self._raw(tag)
        if raw is None:
            value = self.value(tag)
            if value is None:
                return ()
            several = (
                value if isinstance(value, (list, tuple, pydicom.multival.MultiValue)) else [value]
            )
            text = "\\".join(str(v) for v in several)
        else:
            text = (raw.value or b"").decode("latin-1")
        text = "".join(c if " " <= c <= "~" else " " for c in text).upper()
        return tuple(part.strip() for part in text.split("\\")) if text.strip() else ()

    def word(self, tag: int) -> str:
        """The first value of a string element in ASCII capitals, or an empty string."""
        return next(iter(self.words(tag)), "")

    def text(self, tag: int) -> str:
        """A text element in its own letters: UTF-8 if it is that, else as SpecificCharacterSet says
        (PS3.3 C.12.1.1.2), else Latin-1."""
        raw = self._raw(tag)
        if raw is None:
            return " ".join(self.words(tag))
        data = raw.value or b""
        named = pydicom.charset.python_encoding.get(self.word(0x00080005), "")
        for encoding in ("utf-8", named or "latin-1"):
            with suppress(UnicodeDecodeError, LookupError):
                return data.decode(encoding).replace("\0", " ")
        return data.decode("latin-1").replace("\0", " ")

    def uid(self, tag: int) -> str | None:
        """A UID (PS3.5 9.1); None where it is not one."""
        text = self.word(tag).rstrip()
        ok = 0 < len(text) <= 64 and all(c in "0123456789." for c in text)
        return text if ok else None

    def has(self, tag: int) -> bool:
        """Whether an element is there and not empty, whatever its value."""
        with suppress(Exception):  # whatever pydicom raises
            if tag not in self.elements:
                return False
            element: Any = self.elements.get_item(tag)
            value = element.value
            if isinstance(element, RawDataElement):
                is_text = self._binary(element) is None and _known_vr(element) != "SQ"
                return bool(self.words(tag) if is_text else value)
            return value is not None and not (hasattr(value, "__len__") and len(value) == 0)
        return True

    def _binary(self, raw: RawDataElement) -> str | None:
        """NumPy's type of a binary value; None for text and sequences."""
        return BINARY.get(_known_vr(raw))

    def values(self, tag: int) -> tuple[float | None, ...]:
        """The numbers of an element, text or binary, by position.

        None stands for what is empty, no number, or beyond any unit.
        """
        with suppress(Exception):  # whatever pydicom raises
            return tuple(_finite(v) for v in self._numbers(tag))
        return ()

    def _numbers(self, tag: int) -> list[float | None]:
        raw = self._raw(tag)
        if raw is not None:
            kind = self._binary(raw)
            if kind is None:
                return [number_of(word) for word in self.words(tag)]
            found: list[float | None] = self._array(raw, kind).tolist()
            return found
        value = self.value(tag)
        if value is None or isinstance(value, (bytes, pydicom.sequence.Sequence)):
            return []
        several = isinstance(value, (list, tuple, pydicom.multival.MultiValue))
        return [number_of(str(v).upper()) for v in (value if several else [value])]

    def _array(self, raw: RawDataElement, kind: str) -> NDArray[Any]:
        dtype = np.dtype(kind).newbyteorder(">" if self.big_endian else "<")
        return np.frombuffer(raw.value or b"", dtype, len(raw.value or b"") // dtype.itemsize)

    def has_comma(self, tag: int) -> bool:
        """Whether a number of a text element was written with a decimal comma."""
        raw = self._raw(tag)
        if raw is not None and self._binary(raw) is not None:
            return False
        return any("," in word and number_of(word) is not None for word in self.words(tag))

    def words_of_16_bits(self, tag: int) -> NDArray[np.int64]:
        """The values of an element of 16-bit words, whatever its VR says, without their sign."""
        raw = self._raw(tag)
        if raw is not None and self._binary(raw) is not None:
            return self._array(raw, "u2").astype(np.int64)
        values = [v for v in self.values(tag) if v is not None]
        return np.asarray(values, np.float64).astype(np.int64) & 0xFFFF

    def packed_bytes(self, tag: int, count: int) -> NDArray[np.uint8] | None:
        """An element's value as bytes where it has ``count`` of them, padded to an even length."""
        raw = self._raw(tag)
        data = raw.value if raw is not None else None
        if not data or len(data) not in (count, count + count % 2):
            return None
        return np.frombuffer(data, np.uint8)

    def numbers(self, tag: int) -> tuple[float, ...]:
        """The finite numbers of an element, text or binary; what is not one is left out."""
        return tuple(v for v in self.values(tag) if v is not None)

    def number(self, tag: int) -> float | None:
        """The first value of an element if it is a number, or None."""
        return next(iter(self.values(tag)), None)

    def integer(self, tag: int, default: int = 0) -> int:
        """The first number of an element if it is whole, or ``default``."""
        number = self.number(tag)
        return int(number) if number is not None and number == int(number) else default

    def stored(self, tag: int, signed: bool) -> int | None:
        """A 16-bit element in the sense of the stored values: VR "US or SS" (PS3.6)."""
        number = self.number(tag)
        if number is None or number != int(number):
            return None
        value = int(number)
        if not -0x8000 <= value <= 0xFFFF:
            return value
        value &= 0xFFFF
        return value - 0x10000 if signed and value > 0x7FFF else value

    def of_frame(self, macro: int, tags: tuple[int, ...]) -> Header:
        """Where the only frame's values of these elements stand (PS3.3 C.7.6.16.1).

        In a macro of its own functional groups, else of the shared ones, else in this data set;
        there too for several frames, which are not screened.
        """
        if self.integer(0x00280008, 1) > 1:
            return self
        for groups in (PER_FRAME, SHARED):
            for group in self.items(groups)[:1]:
                for item in group.items(macro)[:1]:
                    if any(item.has(tag) for tag in tags):
                        return item
        return self

    def items(self, tag: int) -> tuple[Header, ...]:
        """The items of a sequence, or none."""
        value = self.value(tag)
        if not isinstance(value, pydicom.sequence.Sequence):
            return ()
        return tuple(
            Header(item, Dataset(), b"", None, None, 0, 0, self.big_endian, False) for item in value
        )


def number_of(text: str) -> float | None:
    """A number of VR DS or IS (PS3.5 6.2) in capitals, or with a comma for its point; or None."""
    return float(text.replace(",", ".")) if NUMBER.fullmatch(text) else None


def _known_vr(raw: RawDataElement) -> str:
    """The type of a value: as written, or where that says nothing the dictionary's (PS3.6)."""
    known = raw.VR in TEXT or raw.VR in BINARY or raw.VR == "SQ"
    return str(raw.VR) if known else pydicom.datadict.dictionary_VR(raw.tag)[:2]


def _finite(number: float | None) -> float | None:
    return number if number is not None and abs(number) < HUGE else None


@contextmanager
def quiet() -> Iterator[None]:
    """Silences pydicom's warnings, which quote values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_header(data: bytes) -> Header:
    """Reads a file up to its pixels.

    Raises ItemError: ``too_complex`` for headers deeper, longer or more compressed than any real
    one, ``truncated`` where the file ends inside an element, ``not_dicom`` for anything else.
    """
    try:
        with quiet():
            return _read(data)
    except ItemError:
        raise
    except RecursionError:
        raise ItemError(Fail.TOO_COMPLEX) from None
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except Exception:
        raise ItemError(Fail.NOT_DICOM) from None


def _read(data: bytes) -> Header:
    preamble = data[128:132] == b"DICM"
    if preamble and len(data) < 132 + 12:
        raise ItemError(Fail.TRUNCATED)
    meta: Dataset
    elements: Dataset
    inflated, body, rest = None, data, None
    if DEFLATED in data[:4096]:
        inflated, body, rest = _inflate(data, 132 if preamble else 0)
    tags: Any = TAGS
    found: list[tuple[int, str | None, int, int]] = []
    count, is_explicit, blank, mended = 0, False, 0, False

    def stop(tag: int, vr: str | None, length: int) -> bool:
        """Called by pydicom for each element of the top level, at the start of its value."""
        nonlocal count, is_explicit, blank
        count += 1
        if count > ELEMENTS:
            raise ItemError(Fail.TOO_COMPLEX)
        is_explicit = is_explicit or vr is not None
        if vr is None and is_explicit and _is_blank(body, stream.tell() - 8):
            blank = stream.tell() - 8
            return True
        if tag in (FLOAT, DOUBLE, PIXELS):
            found.append((int(tag), vr, stream.tell(), length))
            return True
        if length != UNDEFINED and stream.tell() + length > len(body):
            raise ItemError(Fail.TRUNCATED if rest is None else Fail.TOO_COMPLEX)
        return False

    while True:
        stream = _Counted(body)
        try:
            if inflated is not None:
                elements = read_dataset(stream, False, True, stop_when=stop, specific_tags=tags)
                meta, is_little = inflated, True
            else:
                elements = read_partial(stream, stop, force=True, specific_tags=tags)
                meta = elements.file_meta
                is_little = elements.original_encoding[1] is not False
        except OSError as error:  # pydicom's word for whatever a read within a sequence raises
            raise error.__context__ or error from None
        if not blank:
            break
        body, blank, mended = _with_vr(body, blank), 0, True  # and once more: few files have one
    if any(_item_count(elements.get_item(tag)) > ITEMS for tag in elements.keys()):  # noqa: SIM118
        raise ItemError(Fail.TOO_COMPLEX)
    has_meta = preamble and "TransferSyntaxUID" in meta
    if not found and not len(elements) and not has_meta:
        raise ItemError(Fail.NOT_DICOM)
    if not found and (stream.is_cut or not count):  # else a whole data set that has no pixels
        raise ItemError(Fail.TRUNCATED)
    tag, vr, start, length = found[0] if found else (None, None, len(body), 0)
    if rest is not None:
        if tag is None or length == UNDEFINED or start + length > INFLATED_BYTES:
            raise ItemError(Fail.TOO_COMPLEX)
        body += rest(start + length - len(body))
    return Header(elements, meta, body, tag, vr, start, length, not is_little, has_meta, mended)


def _item_count(element: Any) -> int:
    """Items in a sequence that pydicom parses when it is asked for; it makes an object of each."""
    value = element.value if isinstance(element, RawDataElement) else None
    if not isinstance(value, bytes):
        return 0
    return max(value.count(item) for item in (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00"))


def _is_blank(body: bytes, offset: int) -> bool:
    """Whether an element has a blank for its VR, and a length of two bytes as most have.

    pydicom takes it for an implicit one, with a length of four. The next element decides.
    """
    if body[offset + 4 : offset + 6] not in BLANK_VRS:
        return False
    for order in "<>":
        group, element, length = struct.unpack_from(f"{order}HH2xH", body, offset)
        after = offset + 8 + length
        if after + 8 > len(body):
            continue
        following = body[after + 4 : after + 6]
        is_element = _is_vr(following) or following in BLANK_VRS
        if is_element and struct.unpack_from(f"{order}HH", body, after) > (group, element):
            return True
    return False


def _with_vr(body: bytes, offset: int) -> bytes:
    """The same data set with a VR in the place of a blank: the dictionary's, or any string's."""
    little, big = (struct.unpack_from(f"{order}HH", body, offset) for order in "<>")
    vr = "LO"
    for group, element in (big, little):
        with suppress(KeyError):  # a private element, or the other byte order
            known = pydicom.datadict.dictionary_VR((group, element))[:2]
            vr = known if known in SHORT else vr
    return body[: offset + 4] + vr.encode() + body[offset + 6 :]


class _Counted(io.BytesIO):
    """Bytes that are read a limited number of times: what a parser makes of them is bounded."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.left = READS
        self.is_cut = False  # within the head of an element

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file; raises ItemError ``too_complex``."""
        self.left -= 1
        if self.left < 0:
            raise ItemError(Fail.TOO_COMPLEX)
        found = super().read(size)
        self.is_cut = bool(found) and size is not None and len(found) < size
        return found


def _inflate(
    data: bytes, start: int
) -> tuple[Dataset | None, bytes, Callable[[int], bytes] | None]:
    """File meta and inflated data set, if the transfer syntax is the deflated one (PS3.5 A.5).

    Of a data set beyond HEAD_BYTES that much alone, and what inflates up to so many bytes more.
    """
    stream = io.BytesIO(data)
    stream.seek(start)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, _vr, _n: tag >> 16 != 2)
    if str(meta.get("TransferSyntaxUID", "")).encode() != DEFLATED:
        return None, data, None
    # The first element after group 2 may not look like one: it is deflated.
    length = meta.get("FileMetaInformationGroupLength")
    if isinstance(length, int):
        stream.seek(start + 12 + length)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)

    def inflate(packed: bytes, length: int) -> bytes:
        try:
            return inflater.decompress(packed, length)
        except zlib.error:
            raise ItemError(Fail.CORRUPT) from None

    def rest(length: int) -> bytes:
        found = inflate(inflater.unconsumed_tail, length) if length > 0 else b""
        if len(found) < length:
            raise ItemError(Fail.TRUNCATED)
        return found

    body = inflate(data[stream.tell() :], HEAD_BYTES)
    if inflater.eof:
        return meta, body, None
    if len(body) < HEAD_BYTES:
        raise ItemError(Fail.TRUNCATED)
    return meta, body, rest
