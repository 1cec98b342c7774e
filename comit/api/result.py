"""What screening found in one image."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comit.api.radiograph import Radiograph, read_image
from comit.errors import ItemError, MissingExtra, UsageError
from comit.image.preprocess import Presentation, picture
from comit.masks import decode_mask, rectangles
from comit.reasons import Fail
from comit.results import Facts, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Shown = str | os.PathLike[str] | bytes | Radiograph | NDArray[Any]


class Scores(NamedTuple):
    """Outputs of the network in [0, 1]; None where there are none."""

    unhealthy: float | None
    covid: float | None
    other: float | None
    chest: float | None  # that it is an upright frontal chest radiograph; None without a gate


class Flags(NamedTuple):
    """Whether a score is at or above the threshold of the operating point; None without one."""

    unhealthy: bool | None
    covid: bool | None


@dataclass(frozen=True, repr=False)
class Result:
    """One image: ``ok`` with scores, or the reason why it has none."""

    path: str | None  # as it was given; None of bytes and arrays
    row: Row  # the columns of docs/results.md

    def __repr__(self) -> str:
        of = "" if self.path is None else f"{self.path!r}: "
        if self.status != "ok":
            return f"<Result {of}{self.status}, {self.reason}>"
        scores = {k: v for k, v in self.scores._asdict().items() if v is not None}
        return f"<Result {of}ok, {', '.join(f'{k} {v:.3f}' for k, v in scores.items())}>"

    @property
    def status(self) -> str:
        """``ok``, ``skipped`` or ``failed``."""
        return self.row.status

    @property
    def reason(self) -> str | None:
        """Why it was skipped or failed: a code of docs/results.md."""
        return self.row.reason

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was found on the way: codes of docs/results.md."""
        return self.row.warnings

    @property
    def scores(self) -> Scores:
        """The four scores by name."""
        row = self.row
        return Scores(row.score_unhealthy, row.score_covid, row.score_other, row.score_chest)

    @property
    def flags(self) -> Flags:
        """The two flags by name."""
        return Flags(self.row.flag_unhealthy, self.row.flag_covid)

    @property
    def lungs(self) -> NDArray[np.bool_] | None:
        """(224, 224) over the whole picture, decoded anew each time; None where there is none."""
        return _mask(self.row.lung_rle)

    @property
    def disease(self) -> NDArray[np.bool_] | None:
        """(224, 224) as :attr:`lungs`."""
        return _mask(self.row.disease_rle)

    @property
    def lung_boxes(self) -> list[tuple[int, int, int, int]] | None:
        """A rectangle (x, y, w, h) around each lung, in pixels of the mask; None without masks."""
        lungs = self.lungs
        return None if lungs is None else rectangles(lungs)

    @property
    def lung_fraction(self) -> float | None:
        """Lung pixels / all pixels."""
        return self.row.lung_fraction

    @property
    def disease_fraction(self) -> float | None:
        """Disease pixels inside the lungs / lung pixels; None without lungs."""
        return self.row.disease_fraction

    @property
    def facts(self) -> Facts:
        """What the file says of itself: view, rows, cols, voi, UIDs, size, CRC-32."""
        return Facts(**{f.name: getattr(self.row, f.name) for f in fields(Facts)})

    def to_dict(self) -> dict[str, Any]:
        """``path`` and the columns of docs/results.md, for a data frame."""
        return {"path": self.path, **self.row.values()}

    def overlay(self, image: Shown | None = None, *, fill: bool = False) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB: the picture in its own size, outlines of lungs and disease over it.

        ``image`` is what was screened: a path, the bytes of a file, a :class:`Radiograph` or an
        array. It may be left out where a path was screened. ``fill`` fills the masks.

        Raises UsageError where there are no masks, or no picture; ItemError ``changed`` for
        another picture than the one that was screened, or what reading it finds.
        """
        from comit.look.picture import Masks, draw

        lungs, disease = self.lungs, self.disease
        if lungs is None or disease is None:
            why = self.status if self.reason is None else f"{self.status}, {self.reason}"
            raise UsageError(f"this result has no masks to draw ({why})")
        return draw(self._shown(image), Masks(lungs, disease), fill=fill)

    def plot(self, image: Shown | None = None, *, fill: bool = False) -> Figure:
        """A figure of matplotlib with :meth:`overlay` and the scores; pyplot does not know it.

        Raises as :meth:`overlay` does, and MissingExtra without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise MissingExtra("Result.plot", "plot") from None
        rgb = self.overlay(image, fill=fill)
        height, width = rgb.shape[:2]
        figure = Figure(figsize=(6, 6 * height / width + 0.6), layout="constrained")
        axes = figure.subplots()
        axes.imshow(rgb)
        axes.set_axis_off()
        scores = {k: v for k, v in self.scores._asdict().items() if v is not None}
        said = "  ".join(f"{name} {score:.2f}" for name, score in scores.items())
        axes.set_title(f"{said}\nresearch use only", fontsize=9)
        return figure

    def _shown(self, image: Shown | None) -> NDArray[np.uint8]:
        """The picture that was screened, (H, W)."""
        source = self.path if image is None else image
        if source is None:
            raise UsageError("this result has no path: give it the image that was screened")
        row = self.row
        if isinstance(source, str | os.PathLike | bytes):
            source = read_image(source, "all")
        if isinstance(source, Radiograph):
            found = source.facts
            same = (found.file_crc32, found.rows, found.cols)
            if same != (row.file_crc32, row.rows, row.cols):
                raise ItemError(Fail.CHANGED)
            return source.picture()
        samples = np.asarray(source)
        if samples.shape != (row.rows, row.cols):
            raise ItemError(Fail.CHANGED)
        return picture(samples, Presentation())


def _mask(rle: dict[str, Any] | None) -> NDArray[np.bool_] | None:
    return None if rle is None else decode_mask(rle)
