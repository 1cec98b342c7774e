"""COMiT-Net to one ONNX file that holds all there is to it, and back.

The weights keep their names of the state dict and batch norm stays unfused (engines fuse it), so
the network can be rebuilt from the file alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comit import preprocess_version
from comit.card import OUTPUTS, Card, card_path, sha256
from comit.errors import UsageError
from comit.export.parity import Parity, check
from comit.model.network import COMiTNet
from comit.model.stored import to_bytes


def export_onnx(
    network: COMiTNet,
    card: Card,
    out: Path,
    precision: str = "fp32",
    images: NDArray[np.float32] | None = None,
) -> tuple[Card, Parity]:
    """Writes ``network`` to ``out`` and its card beside it, if the file computes what it should.

    ``card`` gives what the weights do not: name, training, figures, operating points. ``images``
    (N, 1, 224, 224) in [0, 1] are what the file is compared on; see :func:`.parity.check`. The
    same weights give the same bytes with the same versions of torch and onnxscript.
    Raises ParityError, with nothing written, and UsageError.
    """
    content = to_bytes(network, precision, card.name)
    parity = check(content, network, precision, images)
    card = replace(
        card,
        sha256=sha256(content),
        precision=precision,
        width=network.config.width,
        mean=network.config.mean,
        std=network.config.std,
        preprocessing=preprocess_version,
        outputs=OUTPUTS,
    )
    temporary = out.with_name(out.name + ".new")
    try:
        temporary.write_bytes(content)
        temporary.replace(out)
        card.write(card_path(out))
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"{out} cannot be written: {error.strerror}") from error
    return card, parity
