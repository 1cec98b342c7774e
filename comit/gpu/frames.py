"""Compressed frames of a batch to samples in their places, by a decoder that is trusted for them.

A decoder is trusted for a format when it decodes drawings of it as the CPU's decoder does, and
where streams may be cut, when that is seen. What it rejects later, the CPU decodes.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comit.decode.compressed import FORMATS, LOSSLESS, Compressed, plain_jpeg, plain_jpeg2000
from comit.decode.jpeg import EOI, read_frame
from comit.gpu.batch import Frame, Layout, Pictures, lay_out
from comit.gpu.device import Borrowed, Decoder, Device, Memory, Room
from comit.preprocess import Presentation

TAIL = 4  # last samples, which tell a JPEG that may be cut: comit.decode.jpeg.is_cut
# What lossy formats may differ by, of the range: a sample by a level of 8 bits, the mean by one
# sample in twenty, the mean of 8 x 8 samples by a quarter. Decoders round their transforms in
# other ways; what that does to scores stands in docs/gpu.md.
LARGEST, MEAN, BLOCK = 1 / 250, 0.05 / 250, 0.25 / 250
COPIES = 8  # of a drawing at once: nvJPEG deals a batch out to decoders of several kinds
SIZE = (331, 277)  # rows and columns of drawings: whole blocks at no edge


class Frames:
    """One stream's work for a batch at a time; one for each thread that uses it."""

    def __init__(self, device: Device, decoder: Decoder) -> None:
        self._device, self._decoder, self._room = device, decoder, Room(device)
        self._rejected: set[int] = set()
        self._tails: dict[int, tuple[NDArray[Any], int]] = {}  # last samples, and the fill
        self._decoded: list[Memory | None] = []

    def start(self, given: Pictures, layout: Layout, samples: Memory, stream: Any) -> None:
        """Decodes the frames of ``given`` into ``samples``; both stay until the stream is done."""
        device = self._device
        pictures = [given.images[i] for i, _ in layout.frames]
        # The last batch's memory is let go here, on the thread and in the context it was made in.
        self._decoded = self._decoder.decode([given.frame(p) for p in pictures], stream)
        self._rejected, self._tails = set(), {}
        tails = self._room.on_host("tails", 2 * TAIL * len(pictures)).reshape(-1, 2 * TAIL)
        places = zip(layout.frames, pictures, self._decoded, tails, strict=True)
        for (i, offset), picture, memory, tail in places:
            if memory is None:
                self._rejected.add(i)
                continue
            place = Borrowed(samples, samples.address + offset, picture.nbytes)
            device.copy(place, memory, picture.nbytes, stream)
            if picture.fill is not None:
                last = tail.view(picture.dtype)[:TAIL]
                end = place.address + picture.nbytes - last.nbytes
                device.download(last, Borrowed(samples, end, last.nbytes), stream)
                self._tails[i] = last, picture.fill

    def rejected(self) -> set[int]:
        """The images of the last batch whose samples are not to be used, once it is done."""
        cut = {i for i, (tail, fill) in self._tails.items() if (tail == fill).all()}
        return self._rejected | cut

    def trusted(self, stream: Any) -> tuple[frozenset[str], str]:
        """The formats that are decoded as on the CPU, and a note on the others, or nothing."""
        doubts = self.doubts(stream)
        wrong = ", ".join(f"{name} ({doubt})" for name, doubt in doubts.items() if doubt)
        note = f"{self._decoder.by} is not used for {wrong}; the CPU decodes those" if wrong else ""
        return frozenset(name for name, doubt in doubts.items() if not doubt), note

    def doubts(self, stream: Any) -> dict[str, str]:
        """Why not to trust the decoder with each format; empty where there is no reason."""
        return {name: self._doubt(name, stream) for name in FORMATS}

    def _doubt(self, name: str, stream: Any) -> str:
        try:
            drawings = draw(name)
        except Exception:  # an imagecodecs without that encoder
            return "the CPU has no encoder to compare it by"
        for compressed, expected in drawings:
            found = self._decode(compressed, expected, stream)
            if any(samples is None for samples in found):
                return "no result"
            if not all(agree(name, samples, expected) for samples in found if samples is not None):
                return "other values"
            if compressed.fill is not None:
                kept = compressed.data[: int(0.6 * len(compressed.data))].rstrip(b"\xff")
                cut = self._decode(compressed._replace(data=kept + EOI), expected, stream)
                if any(samples is not None for samples in cut):
                    return "a cut is not seen"
        return ""

    def _decode(
        self, given: Compressed, like: NDArray[Any], stream: Any
    ) -> list[NDArray[Any] | None]:
        """Copies of a frame, decoded as :meth:`start` does it; None for what is rejected."""
        device = self._device
        data = np.frombuffer(given.data, np.uint8)
        frame = Frame(data, (like.shape[0], like.shape[1]), like.dtype, given.fill)
        pictures = device.pictures([(frame, Presentation())] * COPIES)
        layout = lay_out(pictures)
        samples = device.empty(layout.size)
        found = device.pinned(COPIES * like.nbytes).view(like.dtype).reshape(-1, *like.shape)
        self.start(pictures, layout, samples, stream)
        for (_, offset), copy in zip(layout.frames, found, strict=True):
            device.download(copy, Borrowed(samples, samples.address + offset, copy.nbytes), stream)
        device.wait(stream)
        rejected = self.rejected()
        return [None if i in rejected else copy for i, copy in enumerate(found)]


def agree(name: str, found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Whether samples are the CPU's: to the bit, or within the tolerance of a lossy format."""
    if name in LOSSLESS:
        return np.array_equal(found, expected)
    away = (found.astype(np.float64) - expected) / max(int(expected.max()), 1)
    rows, columns = (side // 8 for side in away.shape)
    blocks = away[: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8).mean((1, 3))
    worst = [(away, LARGEST), (blocks, BLOCK)]
    return all(np.abs(a).max() <= most for a, most in worst) and bool(np.abs(away).mean() <= MEAN)


def draw(name: str) -> list[tuple[Compressed, NDArray[Any]]]:
    """Drawings in a format, and what the CPU decodes them to.

    Raises whatever an imagecodecs raises that does not write it, ValueError for what it writes
    otherwise.
    """
    codecs: Any = import_module("imagecodecs")
    lossless, found = name in LOSSLESS, []
    random = np.random.default_rng(0)
    for bits in (8,) if name.startswith("8") else (12, 16):
        waves = np.add.outer(np.sin(np.arange(SIZE[0]) / 30), np.cos(np.arange(SIZE[1]) / 20))
        picture = 0.45 + waves / 5 + random.normal(0, 0.01, SIZE)
        picture[40:90, 30:120:7] = 1.0  # sharp edges, as of letters
        values = np.clip(picture, 0, 1) * (2**bits - 1)
        samples = values.astype(np.uint8 if bits == 8 else np.uint16)
        stored: dict[str, Any] = {"bitspersample": bits}
        if name.endswith("HTJ2K"):
            data = codecs.htj2k_encode(samples, reversible=lossless)
        elif name.endswith("2000"):
            level = 0 if lossless else 45  # dB
            stored |= {"codecformat": "j2k", "reversible": lossless}
            data = codecs.jpeg2k_encode(samples, level=level, **stored)
        elif lossless:
            data = codecs.jpeg8_encode(samples, lossless=True, predictor=1, **stored)
        else:
            data = codecs.jpeg8_encode(samples, level=90)
        is_jpeg = name.endswith("JPEG")
        plain = plain_jpeg(data, read_frame(data)) if is_jpeg else plain_jpeg2000(data)
        if plain is None or plain.format != name:
            raise ValueError(name)
        decode = codecs.jpeg8_decode if is_jpeg else codecs.jpeg2k_decode
        found.append((plain, decode(data)))
    return found
