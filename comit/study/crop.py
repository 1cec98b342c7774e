"""Images cut to the lungs that a model sees in them: no border, no text, no arms, fewer cues."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from comit.masks import FOREGROUND
from comit.model.data import Cohort
from comit.model.inference import predict
from comit.model.network import COMiTNet

Pixel = TypeVar("Pixel", bound=np.generic)
MARGIN = 0.05  # of the box's sides, added all around


def crop_to_lungs(cohort: Cohort, network: COMiTNet, device: torch.device) -> Cohort:
    """Each image's box of predicted lungs, grown to the full size again; masks move with it.

    The box holds all pixels of a lung probability of one half or more. An image without lungs
    stays whole.
    """
    lungs = predict(network, cohort.images, device).masks[:, 0] >= FOREGROUND
    boxes = [box(mask) for mask in lungs]

    def cut(arrays: NDArray[Pixel], method: int) -> NDArray[Pixel]:
        made = np.empty_like(arrays)
        for i, (rows, columns) in enumerate(boxes):
            part = np.ascontiguousarray(arrays[i, rows, columns], np.float32)
            made[i] = cv2.resize(part, arrays.shape[:0:-1], interpolation=method)
        return made

    return replace(
        cohort,
        images=cut(cohort.images, cv2.INTER_LINEAR),
        lung=cut(cohort.lung, cv2.INTER_NEAREST),
        disease=cut(cohort.disease, cv2.INTER_NEAREST),
    )


def box(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns of what is true in (H, W), with a margin; all where nothing is."""
    if not mask.any():
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    found = []
    for axis in (1, 0):
        inside = np.flatnonzero(mask.any(axis=axis))
        margin = round(MARGIN * (inside[-1] - inside[0] + 1))
        found.append(slice(max(0, int(inside[0]) - margin), int(inside[-1]) + 1 + margin))
    return found[0], found[1]
