"""Synthetic chest phantoms, so that the first command works with no data at hand.

They are drawings: tissue is added up along imagined rays, noise and a few opacities on top. What
a model says of them means nothing, and everything about them says that they are synthetic: file
name, picture, DICOM tags, and the README in their folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from comit.errors import UsageError

Picture = NDArray[np.float32]  # (H, W) in [0, 1], air dark
Stored = NDArray[np.uint16]

README = """\
SYNTHETIC PHANTOMS - NOT PATIENTS

comit demo drew these pictures (seed {seed}). They are drawings of no person, made to try comit
without data. They are not fit to judge a model: its scores on them mean nothing.

    comit screen {name} --out results.parquet

gives one row for every file here. The lateral view and the hand are skipped, each with its
reason, and so is this README.
"""


@dataclass(frozen=True)
class Kind:
    """One way to store a picture."""

    suffix: str  # png, jpg or dcm
    bits: int = 8
    subject: str = "chest"  # chest, opacity (chest with one), lateral, hand
    modality: str = "DX"
    inverted: bool = False  # MONOCHROME1
    codec: str = "raw"  # raw, rle, jpeg2000, jpegls, jpeg (lossless)


KINDS = (  # in the order in which they are drawn, over again after the last
    Kind("png"),
    Kind("png", 16, "opacity"),
    Kind("jpg"),
    Kind("dcm", 12),
    Kind("dcm", 10, "opacity", "CR", inverted=True),
    Kind("dcm", 12, codec="jpeg2000"),
    Kind("dcm", 12, "lateral"),
    Kind("dcm", 12, "hand"),
    Kind("dcm", 12, "opacity", codec="rle"),
    Kind("png", 8, "opacity"),
    Kind("dcm", 14, "chest", "CR", inverted=True, codec="jpegls"),
    Kind("jpg", 8, "opacity"),
)


def demo(directory: Path, count: int = 12, seed: int = 0) -> list[Path]:
    """Draws ``count`` pictures and a README into ``directory``; returns the pictures' paths.

    The same seed draws the same. Twelve of them hold each of :data:`KINDS` once. Raises
    UsageError where ``directory`` holds anything already or cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UsageError(f"{directory} is not empty; name a new folder for the phantoms")
        readme = README.format(seed=seed, name=directory.name or directory)
        (directory / "README.txt").write_bytes(os.fsencode(readme))  # it holds a folder's name
        return [_write(directory, number, seed) for number in range(1, count + 1)]
    except OSError as error:
        raise UsageError(f"{directory} cannot be written: {error.strerror}") from error


def _write(directory: Path, number: int, seed: int) -> Path:
    """Draws and stores picture ``number``, counted from 1."""
    kind = KINDS[(number - 1) % len(KINDS)]
    picture = draw(kind.subject, np.random.default_rng((seed % 2**32, number)))
    return store(directory, picture, kind, seed, number)


def store(directory: Path, picture: Picture, kind: Kind, seed: int, number: int) -> Path:
    """Writes (H, W) in [0, 1] as ``kind`` says; its name and UIDs come from the numbers."""
    name = f"synthetic-{number:02d}-{kind.subject}"
    path = directory / f"{name}-{kind.codec}.dcm" if kind.suffix == "dcm" else None
    path = path or directory / f"{name}-{kind.bits}bit.{kind.suffix}"
    stored = np.round(picture * (2**kind.bits - 1)).astype(np.uint16)
    if kind.suffix == "dcm":
        write_dicom(path, stored, kind, seed, number)
        return path
    pixels = stored.astype(np.uint8) if kind.bits == 8 else stored
    done, data = cv2.imencode(f".{kind.suffix}", pixels)
    if not done:
        raise UsageError(f"OpenCV cannot write {path}")
    path.write_bytes(data.tobytes())
    return path


def draw(subject: str, random: np.random.Generator) -> Picture:
    """A picture of ``subject`` (chest, opacity, lateral, hand), about 640 x 700 pixels."""
    height, width = (int(v) for v in random.integers((640, 600), (760, 700)))
    canvas = _Canvas(height, width, random)
    {"hand": _hand, "lateral": _lateral}.get(subject, _chest)(canvas)
    if subject == "opacity":
        _opacity(canvas)
    return canvas.expose()


class _Canvas:
    """Attenuation summed along the rays; positions are shares of width (x) and height (y)."""

    def __init__(self, height: int, width: int, random: np.random.Generator) -> None:
        self.shape, self.random = (height, width), random
        self.y, self.x = np.mgrid[0:height, 0:width].astype(np.float32)
        self.x, self.y = self.x / width, self.y / height
        self.tissue = np.zeros(self.shape, np.float32)

    def jitter(self, share: float = 0.03) -> float:
        """A factor near 1, so that no two phantoms have the same build."""
        return float(1 + self.random.uniform(-share, share))

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> Picture:
        """How thick an ellipsoid is at each pixel: 1 in its middle, 0 outside."""
        inside = 1 - ((self.x - x) / rx) ** 2 - ((self.y - y) / ry) ** 2
        return np.asarray(np.sqrt(np.clip(inside, 0, None)), np.float32)

    def shape_of(self, points: list[tuple[float, float]], soft: float) -> Picture:
        """A filled outline through ``points``, its edge blurred over ``soft`` of the width."""
        mask = np.zeros(self.shape, np.float32)
        cv2.fillPoly(mask, [self._pixels(_smooth(points, closed=True))], 1.0, cv2.LINE_AA)
        return self.blur(mask, soft)

    def line(self, points: list[tuple[float, float]], thick: float, soft: float) -> Picture:
        """A curve through ``points``, ``thick`` of the width across."""
        mask = np.zeros(self.shape, np.float32)
        pixels = max(1, round(thick * self.shape[1]))
        cv2.polylines(mask, [self._pixels(_smooth(points))], False, 1.0, pixels, cv2.LINE_AA)
        return self.blur(mask, soft)

    def blur(self, image: Picture, soft: float) -> Picture:
        """Gaussian blur with a standard deviation of ``soft`` of the width."""
        return np.asarray(cv2.GaussianBlur(image, (0, 0), soft * self.shape[1]), np.float32)

    def texture(self, soft: float) -> Picture:
        """Smooth random relief, mean 0 and deviation 1."""
        relief = self.blur(self.random.standard_normal(self.shape, np.float32), soft)
        return np.asarray((relief - relief.mean()) / relief.std(), np.float32)

    def expose(self) -> Picture:
        """Beer's law, film curve, grain, and the words that say what this is."""
        reached = np.exp(-2.6 * np.clip(self.tissue, 0, None))
        scattered = 0.93 * reached + 0.07 * self.blur(reached, 0.06)
        picture = np.log1p(30 * (1 - scattered)) / np.log1p(30)
        low, high = np.percentile(picture, [1, 99.7])
        picture = np.clip((picture - low) / (high - low), 0, 1) ** 2.2
        grain = self.random.standard_normal(self.shape, np.float32)
        picture = 0.03 + 0.9 * picture + 0.012 * grain
        words = np.zeros(self.shape, np.uint8)  # OpenCV 5 writes on 8 bits alone
        for text, size, y in (("SYNTHETIC", 0.9, 0.05), ("not a patient", 0.5, 0.08)):
            at = int(0.03 * self.shape[1]), int(y * self.shape[0])
            cv2.putText(words, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, 255, 2, cv2.LINE_AA)
        picture = np.clip(np.maximum(picture, words / np.float32(255)), 0, 1)
        return np.asarray(picture, np.float32)

    def _pixels(self, points: NDArray[np.float64]) -> NDArray[np.int32]:
        return np.round(points * (self.shape[1], self.shape[0])).astype(np.int32)


def _chest(c: _Canvas) -> None:
    """A frontal chest: the patient's right is on the left of the picture."""
    build, tall = c.jitter(0.06), c.jitter()
    trunk = [(0.40, -0.1), (0.39, 0.06), (0.30, 0.12), (0.10, 0.18), (0.02, 0.34), (0.05, 0.6)]
    trunk += [(0.07, 0.85), (0.06, 1.1)]
    outline = [(0.5 + (x - 0.5) * build, y) for x, y in trunk]
    body = c.shape_of(outline + [(1 - x, y) for x, y in reversed(outline)], 0.012)
    c.tissue += 0.42 * body * (0.65 + 0.35 * c.ellipse(0.5, 0.5, 0.56, 0.9))
    lungs = np.zeros(c.shape, np.float32)
    for side in (-1, 1):  # right lung, left lung: the left is narrower beside the heart
        inner = 0.065 if side < 0 else 0.075
        waist = 0.085 if side < 0 else 0.165
        points = [(0.13, 0.125), (inner + 0.005, 0.19), (inner, 0.36), (waist, 0.58)]
        points += [(waist + 0.01, 0.70), (0.20, 0.685), (0.30, 0.72), (0.375, 0.79)]
        points += [(0.375, 0.62), (0.345, 0.42), (0.285, 0.24), (0.20, 0.135)]
        drop = 0.0 if side < 0 else 0.02  # the right dome of the diaphragm is higher
        lungs = np.maximum(
            lungs,
            c.shape_of(
                [(0.5 + side * build * x, tall * (y + drop * (y > 0.6))) for x, y in points], 0.006
            ),
        )
        _vessels(c, side, lungs)
    c.tissue -= 0.30 * lungs * (0.85 + 0.15 * c.ellipse(0.5, 0.5, 0.5, 0.5))
    abdomen = np.clip((c.y - 0.70) / 0.12, 0, 1) * (1 - lungs) * body
    c.tissue += 0.16 * abdomen
    c.tissue -= 0.10 * c.blur(c.ellipse(0.66, 0.86, 0.07, 0.045), 0.008)  # air in the stomach
    heart = np.maximum(
        c.ellipse(0.565, 0.60, 0.155 * build, 0.145), c.ellipse(0.47, 0.60, 0.1, 0.12)
    )
    c.tissue += 0.26 * c.blur(heart, 0.006) * (1 - 0.6 * abdomen)
    c.tissue += 0.14 * c.shape_of(
        [(0.455, 0.10), (0.445, 0.30), (0.44, 0.48), (0.58, 0.48), (0.575, 0.33), (0.55, 0.10)],
        0.01,
    )
    c.tissue += 0.10 * c.blur(c.ellipse(0.575, 0.335, 0.045, 0.05), 0.006)  # aortic knob
    c.tissue -= 0.07 * c.line([(0.5, 0.02), (0.5, 0.2), (0.497, 0.36)], 0.03, 0.004)  # trachea
    _spine(c)
    _ribs(c, build, tall)
    for side in (-1, 1):
        clavicle = [(0.04, 0.175), (0.14, 0.155), (0.27, 0.165), (0.40, 0.135)]
        c.tissue += 0.10 * c.line([(0.5 + side * build * x, y) for x, y in clavicle], 0.026, 0.004)
        blade = [(0.38, 0.16), (0.47, 0.20), (0.44, 0.42), (0.37, 0.33)]
        c.tissue += 0.05 * c.shape_of([(0.5 + side * build * x, y) for x, y in blade], 0.006)
    c.tissue += 0.006 * c.texture(0.02) * body


def _vessels(c: _Canvas, side: int, lungs: Picture) -> None:
    """Branches that leave the hilum and thin out."""
    hilum = np.array([0.5 + side * 0.085, 0.43])
    vessels = 0.07 * c.blur(c.ellipse(hilum[0], hilum[1], 0.045, 0.07), 0.012)
    for angle in c.random.uniform(-1.25, 1.35, 16):
        reach = c.random.uniform(0.12, 0.27)
        end = hilum + reach * np.array([side * np.cos(angle), np.sin(angle)])
        bend = (hilum + end) / 2 + c.random.uniform(-0.02, 0.02, 2)
        thick = c.random.uniform(0.004, 0.011)
        vessels += 0.028 * c.line([tuple(hilum), tuple(bend), tuple(end)], thick, 0.003)
    c.tissue += vessels * lungs


def _spine(c: _Canvas) -> None:
    """A column of vertebrae with the gaps between them."""
    column = c.line([(0.5, -0.1), (0.503, 0.5), (0.5, 1.1)], 0.075, 0.004)
    gaps = 0.5 + 0.5 * np.cos(2 * np.pi * c.y / 0.062)
    c.tissue += column * (0.13 - 0.05 * gaps**6)
    for side in (-1, 1):  # pedicles
        rows = np.exp(-(((c.y % 0.062) - 0.031) ** 2) / (2 * 0.009**2))
        there = np.exp(-((c.x - 0.5 - side * 0.024) ** 2) / (2 * 0.006**2))
        c.tissue += 0.035 * rows * there


def _ribs(c: _Canvas, build: float, tall: float) -> None:
    """Nine pairs: the back arches out and down, the front, fainter, falls to the breastbone."""
    for side in (-1, 1):
        for i in range(9):
            top = 0.155 + 0.062 * i
            wide = 0.5 - 0.5 * np.exp(-(i + 1.6) / 2.2)
            wide = min(0.40, 0.18 + 0.34 * wide + 0.012 * i)
            back = [(0.035, top + 0.012), (0.12, top - 0.022), (0.24, top - 0.008)]
            back += [(wide * 0.86, top + 0.045), (wide, top + 0.115)]
            front = [(wide, top + 0.115), (wide * 0.93, top + 0.175), (wide * 0.66, top + 0.225)]
            front += [(wide * 0.42, top + 0.255)]
            for points, weight in ((back, 0.062), (front[: 4 if i < 6 else 2], 0.034)):
                curve = [(0.5 + side * build * x, tall * y) for x, y in points]
                bone = c.line(curve, 0.024, 0.003) - 0.45 * c.line(curve, 0.012, 0.003)
                c.tissue += weight * bone


def _opacity(c: _Canvas) -> None:
    """One or two patchy densities within the lungs."""
    for _ in range(int(c.random.integers(1, 3))):
        side = c.random.choice([-1, 1])
        x, y = 0.5 + side * c.random.uniform(0.19, 0.27), c.random.uniform(0.45, 0.63)
        patch = c.ellipse(x, y, c.random.uniform(0.07, 0.11), c.random.uniform(0.07, 0.12))
        patchy = np.clip(1 + 0.5 * c.texture(0.012), 0.2, 2)
        c.tissue += 0.17 * c.blur(patch * patchy, 0.012)


def _lateral(c: _Canvas) -> None:
    """A chest from the side: spine behind (right), heart in front."""
    trunk = [(0.30, -0.1), (0.30, 0.08), (0.20, 0.18), (0.13, 0.4), (0.14, 0.7), (0.2, 1.1)]
    trunk += [(0.86, 1.1), (0.90, 0.7), (0.93, 0.4), (0.86, 0.15), (0.68, 0.04), (0.66, -0.1)]
    body = c.shape_of(trunk, 0.012)
    c.tissue += 0.6 * body
    lung = [(0.46, 0.14), (0.28, 0.26), (0.21, 0.45), (0.22, 0.62), (0.40, 0.66), (0.58, 0.70)]
    lung += [(0.74, 0.84), (0.80, 0.72), (0.80, 0.40), (0.70, 0.17)]
    c.tissue -= 0.36 * c.shape_of(lung, 0.008)
    c.tissue += 0.20 * c.blur(c.ellipse(0.36, 0.55, 0.15, 0.14), 0.008)
    column = c.line(
        [(0.62, -0.1), (0.76, 0.25), (0.81, 0.5), (0.76, 0.85), (0.72, 1.1)], 0.1, 0.005
    )
    c.tissue += column * (0.17 - 0.07 * (0.5 + 0.5 * np.cos(2 * np.pi * c.y / 0.066)) ** 6)
    for i in range(8):
        y = 0.2 + 0.07 * i
        rib = [(0.80, y), (0.62, y + 0.05), (0.42, y + 0.13), (0.24, y + 0.17)]
        c.tissue += 0.05 * c.line(rib, 0.02, 0.004) * body


def _hand(c: _Canvas) -> None:
    """A hand: what a folder of radiographs also holds, and comit leaves out."""
    palm = [(0.32, 0.56), (0.36, 0.50), (0.62, 0.50), (0.68, 0.60), (0.62, 0.80), (0.60, 1.1)]
    c.tissue += 0.22 * c.shape_of([*palm, (0.42, 1.1), (0.38, 0.82)], 0.012)
    wrist = (0.51, 0.86)
    for x, y, knuckle in (
        (0.20, 0.42, (0.36, 0.68)),  # thumb
        (0.33, 0.17, (0.39, 0.52)),
        (0.47, 0.10, (0.48, 0.50)),
        (0.60, 0.15, (0.56, 0.51)),
        (0.74, 0.27, (0.63, 0.55)),
    ):
        tip, base = np.array([x, y]), np.array(knuckle)
        c.tissue += 0.16 * c.line([tuple(tip), tuple(base)], 0.085, 0.01)
        joints = [np.array(wrist) * 0.75 + base * 0.25, base]
        joints += [base + share * (tip - base) for share in (0.45, 0.75, 1.0)]
        for a, b in pairwise(joints):
            start, end = a + 0.08 * (b - a), b - 0.08 * (b - a)
            c.tissue += 0.22 * c.line([tuple(start), tuple(end)], 0.028, 0.003)
    for x, y in ((0.44, 0.83), (0.50, 0.81), (0.56, 0.83), (0.46, 0.88), (0.53, 0.88)):
        c.tissue += 0.24 * c.blur(c.ellipse(x, y, 0.03, 0.024), 0.003)
    for x in (0.455, 0.56):
        c.tissue += 0.24 * c.line([(x, 0.93), (x, 1.1)], 0.05, 0.004)


def _smooth(points: list[tuple[float, float]], closed: bool = False) -> NDArray[np.float64]:
    """(N, 2) points of the Catmull-Rom curve through ``points``."""
    p = np.asarray(points, np.float64)
    p = np.vstack([p[-1:], p, p[:2]]) if closed else np.vstack([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, 16, endpoint=False)[:, None]
    a, b, c, d = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
    curve = b + t * (c - a) / 2 + t**2 * (a - 2.5 * b + 2 * c - d / 2)
    curve = curve + t**3 * (1.5 * (b - c) + (d - a) / 2)  # (segments, 16, 2)
    return np.vstack([curve.reshape(-1, 2), p[-2:-1]])


def write_dicom(path: Path, stored: Stored, kind: Kind, seed: int, number: int) -> None:
    """Writes ``stored`` (H, W), ``kind.bits`` deep, as a CR or DX object (PS3.3 A.2, A.26)."""
    import imagecodecs
    from pydicom import uid
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    def own_uid(what: str) -> str:
        return uid.generate_uid(entropy_srcs=["comit demo", what, str(seed), str(number)])

    ds = Dataset()
    dx = kind.modality == "DX"
    ds.SOPClassUID = (
        uid.DigitalXRayImageStorageForPresentation if dx else uid.ComputedRadiographyImageStorage
    )
    ds.SOPInstanceUID, ds.SeriesInstanceUID = own_uid("instance"), own_uid("series")
    ds.StudyInstanceUID = own_uid("study")
    ds.PatientName, ds.PatientID = "SYNTHETIC^PHANTOM", f"SYNTHETIC-{number:02d}"
    ds.PatientBirthDate = ds.PatientSex = ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "SYNTHETIC", 1, number
    ds.StudyDate, ds.StudyTime = "20000101", "000000"
    ds.Manufacturer, ds.InstitutionName = "comit demo", "SYNTHETIC"
    ds.StudyDescription = "SYNTHETIC PHANTOM"
    ds.ImageComments = "Synthetic phantom drawn by comit demo; not a patient"
    ds.ImageType = ["DERIVED", "PRIMARY"]
    ds.BurnedInAnnotation = "NO"  # the words in the picture identify nobody
    ds.Modality = kind.modality
    ds.BodyPartExamined = "HAND" if kind.subject == "hand" else "CHEST"
    ds.ViewPosition = "LL" if kind.subject == "lateral" else "PA"
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PixelRepresentation = 1, 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, kind.bits, kind.bits - 1
    ds.PhotometricInterpretation = "MONOCHROME1" if kind.inverted else "MONOCHROME2"
    ds.WindowCenter, ds.WindowWidth = 2 ** (kind.bits - 1), 2**kind.bits
    if dx:
        ds.PresentationIntentType = "FOR PRESENTATION"
        ds.PresentationLUTShape = "INVERSE" if kind.inverted else "IDENTITY"
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, 0, "US"
    values = (2**kind.bits - 1 - stored).astype(np.uint16) if kind.inverted else stored
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.PixelData = values.astype("<u2").tobytes()
    if kind.codec == "rle":
        ds.compress(uid.RLELossless, generate_instance_uid=False)
    elif kind.codec != "raw":
        if kind.codec == "jpeg2000":
            ds.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
            stream = imagecodecs.jpeg2k_encode(
                values, level=0, codecformat="j2k", bitspersample=kind.bits, reversible=True
            )
        elif kind.codec == "jpeg":
            ds.file_meta.TransferSyntaxUID = uid.JPEGLosslessSV1
            stream = imagecodecs.jpeg8_encode(
                values, lossless=True, predictor=1, bitspersample=kind.bits
            )
        else:
            ds.file_meta.TransferSyntaxUID = uid.JPEGLSLossless
            stream = imagecodecs.jpegls_encode(values)
        ds.PixelData = encapsulate([bytes(stream)])
        ds["PixelData"].VR = "OB"
    ds.save_as(path, enforce_file_format=True)
