"""A trained network with its card, from wherever it lies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from comit.card import BUNDLED, Card, card_path, open_model
from comit.errors import UsageError
from comit.model.network import COMiTNet
from comit.model.runs import load_run, read_description, replace_file, run_card, write_description
from comit.model.stored import load_network


@dataclass(frozen=True)
class Opened:
    """A network in evaluation mode, float32, and what is said about it."""

    network: COMiTNet
    card: Card
    path: Path  # a run's folder or a model file

    def write(self, card: Card) -> Path:
        """Replaces operating points and calibration by those of ``card``; returns the file.

        That file is the card beside a model, or ``run.json``, from which an export takes them.
        """
        if self.path.is_dir():
            fields = asdict(card)
            changed = {k: fields[k] for k in ("operating_points", "calibration")}
            write_description(self.path, read_description(self.path) | changed)
            return self.path / "run.json"
        target = card_path(self.path)
        try:
            replace_file(target, card.write)
        except OSError as error:
            raise UsageError(f"{target} cannot be written: {error.strerror}") from error
        return target


def open_network(model: str) -> Opened:
    """``model`` is a training run's folder, an .onnx file of comit's, or "bundled".

    A file in fp16 gives its rounded weights in float32, one from before there was a gate an
    untrained one. Raises UsageError and ModelError.
    """
    path = BUNDLED if model == "bundled" else Path(model)
    if path.is_dir():
        return Opened(load_run(path), run_card(path), path)
    card, content = open_model(path, gateless=True)
    return Opened(load_network(content), card, path)


def network_of(model: Path) -> COMiTNet:
    """The network of :func:`open_network` alone, also of a run that is not finished."""
    return load_run(model) if model.is_dir() else open_network(str(model)).network
