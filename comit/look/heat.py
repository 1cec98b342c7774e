"""Where the network sees disease, between the yes and no of a mask: the model is run once more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comit.card import read_card
from comit.engine import load_engine
from comit.errors import UsageError

DISEASE = 1  # of the two masks


class Heat:
    """The model that results are of; ``said`` is their provenance.

    Raises UsageError where ``model`` is another one, ModelError, MissingExtra.
    """

    def __init__(self, model: Path, said: Mapping[str, Any]) -> None:
        if read_card(model).sha256 != said.get("model_sha256"):
            raise UsageError(f"the results are of {said.get('model')}, which {model} is not")
        self._engine = load_engine(model, batch_size=1)

    def disease(self, pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
        """(224, 224) probability of disease times 255, of (224, 224) as the network gets them."""
        found: NDArray[np.uint8] = self._engine.infer(pixels[None, None]).masks[0, DISEASE]
        return found
