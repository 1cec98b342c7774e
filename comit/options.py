"""How to screen: what may be chosen, and what is said of a choice that cannot be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comit.card import BUNDLED
from comit.errors import UsageError
from comit.identifiers import Mode

if TYPE_CHECKING:
    from comit.image.base import ViewPolicy
    from comit.pipeline.lanes import Masks
    from comit.run.run import Upgrade


# What options may say; the command line offers the same.
CHOICES = {
    "engine": ("auto", "openvino", "onnxruntime", "torch", "tensorrt"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "masks": ("all", "flagged", "none"),
    "operating_point": ("90", "99"),
    "view_policy": ("strict", "tagged", "all"),
    "identifiers": ("none", "hashed", "plain"),
    "upgrade": ("refuse", "keep", "rescreen"),
}


MOST_WORKERS = 512


def _is_whole(value: Any, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


# Options, what holds of their values, and what to say where it does not.
RULES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("model",), lambda v: isinstance(v, Path), "is not a path"),
    (("root", "key", "metrics_file"), lambda v: v is None or isinstance(v, Path), "is not a path"),
    (("batch_size",), lambda v: v is None or _is_whole(v), "is not a whole number above 0"),
    (("ring_bytes",), _is_whole, "is not a whole number above 0"),
    (
        ("workers",),
        lambda v: v is None or _is_whole(v, MOST_WORKERS),
        f"is not a whole number from 1 to {MOST_WORKERS}",
    ),
    (("timeout",), lambda v: isinstance(v, int | float) and v > 0, "is not a number above 0"),
    (
        ("endpoint",),
        lambda v: v is None or (isinstance(v, str) and v.startswith(("http://", "https://"))),
        "is not an address that begins with https:// or http://",
    ),
    (("device", "pattern"), lambda v: isinstance(v, str) and v != "", "is not a text"),
    (
        ("exclude", "keep"),
        lambda v: isinstance(v, tuple) and all(isinstance(text, str) for text in v),
        "is not a tuple of texts",
    ),
    (
        ("include_hidden", "retry_failed", "restart"),
        lambda v: isinstance(v, bool),
        "is neither True nor False",
    ),
)


@dataclass(frozen=True)
class Options:
    """How to screen; the defaults are for a nightly run.

    Raises UsageError for values that there are not and for options that would have no effect, in
    the words of the command line.
    """

    model: Path = BUNDLED  # an .onnx file that comit exported, its card beside it
    engine: str = "auto"  # tensorrt, openvino, onnxruntime, torch; auto is the fastest
    device: str = "auto"  # cpu, cuda:0, cuda:0,cuda:1
    precision: str = "auto"  # fp32, bf16, fp16; auto is the fastest the device computes well
    batch_size: int | None = None  # images; None is the engine's own choice
    workers: int | None = None  # decoding processes; None: as cores and memory allow, 32 at most
    pattern: str = "*"  # file names to take from a folder
    exclude: tuple[str, ...] = ()  # patterns of files and folders to leave out, as in .gitignore
    include_hidden: bool = False  # screen also what machines make: comit.source.leave_out
    root: Path | None = None  # where a manifest's paths begin, and what they may not leave
    endpoint: str | None = None  # address of a server that speaks S3, if not Amazon's
    masks: Masks = "all"  # which rows get masks: all, flagged or none
    operating_point: str = "90"  # specificity in % that the flags' thresholds have: 90 or 99
    timeout: float = 60.0  # seconds that reading and decoding one file may take
    view_policy: ViewPolicy = "tagged"  # what is taken for frontal chest: strict, tagged or all
    identifiers: Mode = "plain"  # paths and UIDs in the results: none, hashed or plain
    key: Path | None = None  # file with the key of hashed identifiers
    keep: tuple[str, ...] = ()  # manifest columns to pass through unless identifiers are plain
    retry_failed: bool = False  # screen again what failed in the results that are there
    ring_bytes: int = 512 * 2**20  # for decoded pixels; a quarter of the usable memory at most
    # what becomes of rows that another model or version made in the same folder
    upgrade: Upgrade = "refuse"
    restart: bool = False  # forget an unfinished run
    metrics_file: Path | None = None  # how the run goes, in Prometheus' text format

    def __post_init__(self) -> None:
        for name in ("model", "root", "key", "metrics_file"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))
        for name in ("exclude", "keep"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        for names, holds, why in RULES:
            for name in names:
                if not holds(value := getattr(self, name)):
                    raise invalid(name, value, why)
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise invalid(name, value, f"is not one of {', '.join(map(repr, choices))}")
        if self.keep and self.identifiers == "plain":
            raise UsageError(
                "--keep is for hidden identifiers: with --identifiers plain every column of a "
                "manifest is passed through"
            )
        if self.key is not None and self.identifiers != "hashed":
            raise UsageError(
                "a key is for hashed identifiers: add --identifiers hashed, or no --key"
            )
        if self.identifiers == "hashed" and self.key is None:
            raise UsageError(
                "hashed identifiers need a key that you hold: --identifiers hashed --key FILE; "
                "make one: (umask 077; openssl rand -hex 32 > comit.key)"
            )


def invalid(name: str, value: object, why: str) -> UsageError:
    """What to say of an option's value."""
    return UsageError(f"invalid value for '--{name.replace('_', '-')}': {value!r} {why}")
