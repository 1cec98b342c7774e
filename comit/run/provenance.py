"""What the rows of a run depend on: said once, kept with them, compared and shown."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from typing import Any

from comit import __version__, preprocess_version
from comit.card import Card, OperatingPoint
from comit.identifiers import Identifiers
from comit.results import SCHEMA_VERSION

INTENDED_USE = "research use only; not for diagnosis"


@dataclass(frozen=True)
class Provenance:
    """Everything that a row depends on beside its file. Paths are as results may show them.

    :meth:`settings` are kept with an unfinished run and compared when it is resumed, under the
    names that a message shows; :meth:`metadata` are the key-value metadata of result files.
    """

    input: str
    root: str  # the folder, or address, that names are relative to
    pattern: str
    exclude: tuple[str, ...]
    include_hidden: bool
    model_name: str
    model: str  # sha256 of the file
    operating_point: OperatingPoint | None
    gate: float | None  # threshold of score_chest
    masks: str
    view_policy: str
    identifiers: str  # mode and key, as :meth:`comit.identifiers.Identifiers.described`
    engine: str = ""  # not known before it is loaded
    precision: str = ""

    @staticmethod
    def of(
        described: bytes,
        place: bytes,
        names: Identifiers,
        card: Card,
        point: OperatingPoint | None,
        **options: Any,
    ) -> Provenance:
        """Of an input (``described()`` and ``place()`` of it), a model and its options.

        ``options`` are fields by name: pattern, exclude, include_hidden, masks, view_policy.
        """
        options["exclude"] = tuple(names.text(os.fsencode(p)) for p in options["exclude"])
        return Provenance(
            input=names.text(described),
            root=names.text(place),
            model_name=card.name,
            model=card.sha256,
            operating_point=point,
            gate=card.gate.threshold if card.gate else None,
            identifiers=names.described(),
            **options,
        )

    def on(self, engine: str, precision: str) -> Provenance:
        """The same, computed by this engine."""
        return replace(self, engine=engine, precision=precision)

    def settings(self) -> dict[str, Any]:
        """By the names that messages use."""
        return {
            "input": self.input,
            "root": self.root,
            "pattern": self.pattern,
            "exclude": [*self.exclude],
            "include hidden": self.include_hidden,
            "model": self.model,
            "preprocessing": preprocess_version,
            "operating point": asdict(self.operating_point) if self.operating_point else None,
            "gate": self.gate,
            "masks": self.masks,
            "view policy": self.view_policy,
            "identifiers": self.identifiers,
            "schema": SCHEMA_VERSION,
            "engine": self.engine,
            "precision": self.precision,
        }

    def metadata(self) -> dict[str, str]:
        """Key-value metadata of a Parquet file: where its numbers come from."""
        thresholds: dict[str, Any] = asdict(self.operating_point) if self.operating_point else {}
        if self.gate is not None:
            thresholds["chest"] = self.gate
        return {
            "comit_version": __version__,
            "comit_schema": SCHEMA_VERSION,
            "comit_model": self.model_name,
            "comit_model_sha256": self.model,
            "comit_preprocessing": preprocess_version,
            "comit_engine": self.engine,
            "comit_precision": self.precision,
            "comit_thresholds": json.dumps(thresholds or None),
            "comit_view_policy": self.view_policy,
            "comit_identifiers": self.identifiers,
            "comit_root": self.root,
            "comit_exclude": json.dumps(self.exclude),
            "comit_include_hidden": json.dumps(self.include_hidden),
            "comit_intended_use": INTENDED_USE,
        }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of the settings in which an unfinished run differs from this one.

    The input of the run before is shown with its name where its identifiers are plain.
    """
    changed = [k for k, v in now.items() if before.get(k) != v]
    if "input" in changed and before.get("identifiers") == "plain":
        changed[changed.index("input")] += f" ({before.get('input')})"
    return changed
