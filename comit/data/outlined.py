"""Readers of collections with outlines of the lungs, which they draw into PNG files of ours.

In ``masks`` beside the manifest, NAME.lung.png is the union of both lungs, and NAME.ignore.png the
place between them: these outlines leave out the lung behind heart and mediastinum, which others
include, so they say nothing there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comit.data.tables import Found, Row, as_number, with_pictures
from comit.errors import UsageError

Mask = NDArray[np.bool_]  # (H, W)

SIDE = 2048  # rows and columns of a JSRT picture
WHITE_IS_ZERO = 4095  # 12 bits: what JSRT calls 0 is white, and the largest value black
MM = 0.175  # of a pixel of JSRT, each way
SEX = {"m": "M", "f": "F"}


def nlm_tuberculosis(folder: Path, beside: Path) -> Found:
    """NLM's Shenzhen (``CXR_png/CHNCXR_0001_0.png``) and Montgomery sets (``MCUCXR_0001_0.png``),
    one of them or both, anywhere below ``folder`` (Jaeger et al. 2014).

    The name says normal (0) or tuberculosis (1); ``ClinicalReadings`` beside ``CXR_png`` has a
    text for each, with sex, age and the radiologist's words. Where words and name disagree on
    normal, the labels are unknown. Outlines: ``ManualMask/leftMask`` and ``rightMask``
    (Montgomery), and files ``CHNCXR_0001_0_mask.png`` (Stirenko et al., for 566 of Shenzhen's).
    Masks go to ``beside / "masks"``. Nobody has COVID-19: the pictures are older.
    """
    sets = sorted(p for p in [folder, *folder.rglob("CXR_png")] if p.name == "CXR_png")
    pictures = {p.stem: p for s in sets for p in sorted(s.glob("*.png")) if NLM_NAME.match(p.stem)}
    if not pictures:
        raise UsageError(f"{folder} has no CXR_png/CHNCXR_*.png and no CXR_png/MCUCXR_*.png")
    texts = {p.stem: p for s in sets for p in sorted((s.parent / "ClinicalReadings").glob("*.txt"))}
    drawn = {p.stem.removesuffix("_mask"): p for p in sorted(folder.rglob("CHNCXR_*_mask.png"))}
    rows: list[Row] = []
    for name in sorted(pictures.keys() | texts.keys()):
        if not (matched := NLM_NAME.match(name)):
            continue
        path = pictures.get(name)
        if path is None:
            rows.append({"path": None})
            continue
        shenzhen = matched[1] == "CHNCXR"
        sides = [path.parents[1] / "ManualMask" / f"{s}Mask" / path.name for s in ("left", "right")]
        if name in drawn:
            outlines = [drawn[name]]
        else:
            outlines = sides if all(s.is_file() for s in sides) else []
        rows.append(
            {
                "path": path,
                "source": "shenzhen" if shenzhen else "montgomery",
                "patient_id": f"{matched[1]}_{matched[2]}",
                "view": "PA",
                **_nlm_labels(matched[3] == "0", _nlm_reading(texts.get(name))),
                **_lungs(name, outlines, beside),
                "label_basis": "read by radiologists",
                "license": "NLM: research, with citation; Shenzhen's masks CC BY-NC-SA 4.0",
            }
        )
    return with_pictures(rows)


NLM_NAME = re.compile(r"(CHNCXR|MCUCXR)_(\d+)_([01])$")


class Reading(NamedTuple):
    """What a clinical reading says."""

    words: str = ""  # the radiologist's, on one line
    age: float | None = None  # years
    sex: str | None = None  # M or F


def _nlm_reading(path: Path | None) -> Reading:
    """Of "male 45yrs / normal" and of "Patient's Sex: F / Patient's Age: 027Y / normal"."""
    if path is None:
        return Reading()
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read") from error
    who = re.compile(r"\W*(patient'?s\s+(sex|age)|(fe)?mal)", re.IGNORECASE)
    head = " ".join(line for line in lines if who.match(line))
    words = " ".join(w for line in lines if not who.match(line) for w in line.split())
    age = re.search(r"(\d+)\s*([ymd]?)", head.lower())
    sex = re.search(r"\b(fe)?mal|sex\W*([fm])\b", head.lower())
    return Reading(
        words,
        int(age[1]) / {"m": 12, "d": 365.25}.get(age[2], 1) if age else None,
        None if sex is None else "F" if sex[1] or sex[2] == "f" else "M",
    )


def _nlm_labels(normal: bool, reading: Reading) -> Row:
    read_normal = bool(re.match(r"\W*normal\b", reading.words.lower()))
    agreed = not reading.words or read_normal == normal
    return {
        "finding": reading.words or ("Normal" if normal else "Tuberculosis"),
        "healthy": normal if agreed else None,
        "covid": False,
        "other": not normal if agreed else None,
        "disease_boxes": [] if normal and agreed else None,
        "age": reading.age,
        "sex": reading.sex,
    }


def jsrt(folder: Path, beside: Path) -> Found:
    """JSRT's pictures (``JPCLN001.IMG`` with a nodule, ``JPCNN001.IMG`` without) and SCR's
    outlines (``fold1/masks/left lung/JPCLN001.gif``), anywhere below ``folder``.

    A picture is 2048 x 2048 values of 16 bits, of which 12 are used, the high byte first, without
    a header; 0 is white. They are written to ``beside / "jsrt"`` as PNG of 16 bits with 0 black
    (MONOCHROME2) and the 12 bits on top, so that any viewer shows them; nothing else is changed.
    Masks go to ``beside / "masks"``. ``CLNDAT_EN.txt`` and ``CNNDAT_EN.txt`` give age and sex,
    and place and size of the nodule: it becomes a square box. Labels are by CT, or by follow-up.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    name = re.compile(r"JPC[LN]N\d{3}\.IMG", re.IGNORECASE)
    raw = {p.stem.upper(): p for p in files if name.fullmatch(p.name)}
    if not raw:
        raise UsageError(f"{folder} has no JPCLN*.IMG and no JPCNN*.IMG")
    lungs: dict[str, dict[str, Path]] = {"left lung": {}, "right lung": {}}
    for path in files:
        if path.parent.name in lungs and path.suffix.lower() in (".gif", ".png"):
            lungs[path.parent.name][path.stem.upper()] = path
    nodules, patients = {}, {}
    for path in files:
        if path.name.upper() == "CLNDAT_EN.TXT":
            nodules = _nodules(path)
        if path.name.upper() == "CNNDAT_EN.TXT":
            patients = _patients(path)
    rows: list[Row] = []
    for stem in sorted(raw.keys() | nodules.keys() | patients.keys()):
        if stem not in raw:
            rows.append({"path": None})
            continue
        outlined = all(stem in side for side in lungs.values())
        outlines = [side[stem] for side in lungs.values()] if outlined else []
        nodule = stem.startswith("JPCLN")
        rows.append(
            {
                "path": _converted(raw[stem], beside / "jsrt" / f"{stem}.png"),
                "source": "jsrt",
                "patient_id": f"jsrt:{stem}",
                "view": "PA",
                "finding": "Lung nodule" if nodule else "Non-nodule",
                "healthy": not nodule,
                "covid": False,
                "other": nodule,
                "disease_boxes": None if nodule else [],
                **(nodules if nodule else patients).get(stem, {}),
                **_lungs(stem, outlines, beside),
                "label_basis": "CT or follow-up",
                "license": "JSRT: free for research; SCR's masks: research use",
            }
        )
    return with_pictures(rows)


def _records(path: Path) -> list[tuple[str, list[str]]]:
    """Name and words of each record; some follow another without a line's end."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"{path} cannot be read") from error
    parts = re.split(r"(JPC[LN]N\d{3})\.IMG", text, flags=re.IGNORECASE)
    if len(parts) < 3:
        raise UsageError(f"{path} has no record of a picture JPC*.IMG")
    return [
        (name.upper(), re.split(r"[\s,]+", words.strip(" \t\r\n,")))
        for name, words in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _nodules(path: Path) -> dict[str, Row]:
    """Of "JPCLN001.IMG 5 15 53 male 1634 692 malignant ...".

    That is subtlety, millimetres, age, sex, and the centre's column and row.
    """
    found: dict[str, Row] = {}
    for name, words in _records(path):
        numbers = [v for v in map(as_number, words[1:2] + words[4:6]) if v is not None]
        if len(numbers) < 3:
            raise UsageError(f"{path}, {name}: no numbers for size, x and y of the nodule")
        size, x, y = numbers
        side = size / MM
        found[name] = {
            "disease_boxes": [[x - side / 2, y - side / 2, side, side]],
            "age": as_number(words[2]),
            "sex": SEX.get(words[3][:1].lower()),
        }
    return found


def _patients(path: Path) -> dict[str, Row]:
    """Of "JPCNN001.IMG 54 male non-nodule": age and sex."""
    return {
        name: {"age": as_number(words[0]), "sex": SEX.get(words[1][:1].lower())}
        for name, words in _records(path)
        if len(words) > 1
    }


def _converted(raw: Path, out: Path) -> Path:
    """Writes the raw picture of JSRT as a PNG of 16 bits, 0 black."""
    try:
        data = raw.read_bytes()
    except OSError as error:
        raise UsageError(f"{raw} cannot be read") from error
    if len(data) != 2 * SIDE * SIDE:
        raise UsageError(f"{raw} has {len(data):,} bytes; a picture of JSRT has {2 * SIDE**2:,}")
    values = np.frombuffer(data, ">u2").reshape(SIDE, SIDE)
    if values.max() > 2 * WHITE_IS_ZERO:
        raise UsageError(f"{raw} has values above 12 bits; JSRT's have the high byte first")
    shown = WHITE_IS_ZERO - np.minimum(values, WHITE_IS_ZERO).astype(np.uint16)
    draw(out, shown << 4)
    return out


def _mask(path: Path) -> Mask:
    """(H, W), true where a picture of any kind is not black."""
    import cv2
    import imagecodecs

    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gif":  # (H, W, 3), or several of them
            pixels: NDArray[Any] | None = np.asarray(imagecodecs.gif_decode(data))
        else:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, ValueError, RuntimeError, cv2.error) as error:
        raise UsageError(f"{path} cannot be read as a mask; get it again") from error
    if pixels is None:
        raise UsageError(f"{path} cannot be read as a mask; get it again")
    if pixels.ndim == 4:
        pixels = pixels[0]
    if pixels.ndim == 3:  # without alpha
        pixels = pixels[..., :3].max(axis=-1)
    return np.asarray(pixels > 0)


def _lungs(name: str, outlines: list[Path], beside: Path) -> Row:
    """Draws the union of outlines, and the place between the lungs; raises UsageError.

    ``outlines`` are the two lungs, one file with both, or none. No row of masks unless two lungs
    are apart in them.
    """
    drawn = [_mask(p) for p in outlines]
    sides = _parts(drawn[0]) if len(drawn) == 1 else drawn
    if len(sides) != 2 or not all(s.any() for s in sides):
        return {}
    if sides[0].shape != sides[1].shape:
        raise UsageError(f"{name}: the outlines of its lungs differ in size")
    masks = {"lung_mask": np.logical_or.reduce(drawn), "ignore_mask": between(*sides)}
    paths = {k: beside / "masks" / f"{name}.{k.removesuffix('_mask')}.png" for k in masks}
    for kind, mask in masks.items():
        draw(paths[kind], mask.astype(np.uint8) * 255)
    return dict(paths)


def _parts(mask: Mask) -> list[Mask]:
    """The two largest connected parts of a mask, or fewer."""
    import cv2

    count, numbers, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    order = 1 + np.argsort(-stats[1:count, cv2.CC_STAT_AREA])  # 0 is what is not in the mask
    return [numbers == n for n in order[:2]]


def between(first: Mask, second: Mask) -> Mask:
    """(H, W): in each row that has both lungs, what lies between the inner edges of the two."""
    left, right = sorted((first, second), key=lambda m: float(np.nonzero(m)[1].mean()))
    left_ended = ~np.logical_or.accumulate(left[:, ::-1], axis=1)[:, ::-1]
    right_to_come = ~np.logical_or.accumulate(right, axis=1)
    both = left.any(axis=1, keepdims=True) & right.any(axis=1, keepdims=True)
    place: Mask = left_ended & right_to_come & both
    return place


def draw(path: Path, pixels: NDArray[Any]) -> None:
    """Writes a PNG of (H, W) uint8 or uint16, and its folder; raises UsageError."""
    import cv2

    _, encoded = cv2.imencode(".png", pixels)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded.tobytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
