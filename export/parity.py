"""Does the exported file compute what the network computes? Nothing is published where not.

Scores alone do not tell: a mask can break while the scores agree (TensorRT#3893), so both are held.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from comit.demo import demo
from comit.engine.base import Inference
from comit.engine.onnxruntime import OnnxRuntimeEngine
from comit.errors import ItemError, ParityError, UsageError
from comit.masks import FOREGROUND
from comit.model.network import COMiTNet

SUFFIXES = {".png", ".jpg", ".jpeg", ".dcm"}
IMAGES = 16  # of a folder, spread over its sorted names


@dataclass(frozen=True)
class Tolerance:
    """What a file may differ by from PyTorch in float32."""

    score: float  # largest difference of any score
    iou: float  # least intersection over union of all images' masks together, at 0.5


TOLERANCES = {"fp32": Tolerance(1e-4, 0.999), "fp16": Tolerance(2e-3, 0.99)}


@dataclass(frozen=True)
class Parity:
    """How far a file is from the network it came from."""

    images: int
    source: str  # what the images are
    score: float  # largest difference of any score
    lung_iou: float  # pooled over the images, at probability 0.5
    disease_iou: float

    def within(self, allowed: Tolerance) -> bool:
        """Whether scores and both masks are as near as they must be; a NaN is not."""
        ious = (self.lung_iou, self.disease_iou)
        return self.score <= allowed.score and all(iou >= allowed.iou for iou in ious)

    def __str__(self) -> str:
        return (
            f"on {self.images} {self.source}: scores within {self.score:.1e}, "
            f"mask IoU {self.lung_iou:.4f} (lung) and {self.disease_iou:.4f} (disease)"
        )


def check(
    content: bytes,
    network: COMiTNet,
    precision: str,
    images: NDArray[np.float32] | None = None,
) -> Parity:
    """Compares the ONNX file ``content`` on ONNX Runtime's CPU with ``network`` in float32.

    ``images`` are (N, 1, 224, 224) in [0, 1]; without them, :func:`phantoms`. Raises
    ParityError beyond the precision's tolerance.
    """
    source = "X-rays" if images is not None else "synthetic phantoms (no X-rays were given)"
    images = phantoms() if images is None else images
    engine = OnnxRuntimeEngine(content, batch_size=4)
    theirs = engine.predict(images)
    ours_scores, ours_masks = [], []
    device = next(network.parameters()).device
    training = network.training
    with torch.inference_mode():
        network.eval()
        for i in range(0, len(images), 4):
            outputs = network(torch.from_numpy(images[i : i + 4]).to(device))
            ours_scores.append(outputs.scores().cpu().numpy())
            ours_masks.append(outputs.masks().cpu().numpy())
        network.train(training)
    parity = compare(np.concatenate(ours_scores), np.concatenate(ours_masks), theirs, source)
    allowed = TOLERANCES[precision]
    if not parity.within(allowed):
        raise ParityError(
            f"the exported {precision} model differs from PyTorch {parity}; allowed are "
            f"{allowed.score:.0e} and {allowed.iou}. Nothing was written"
        )
    return parity


def compare(
    scores: NDArray[np.float32], masks: NDArray[np.float32], theirs: Inference, source: str
) -> Parity:
    """How far an engine is from (N, 4) scores and (N, 2, 224, 224) probabilities of PyTorch."""
    lung, disease = (
        _pooled_iou(masks[:, i] >= 0.5, theirs.masks[:, i] >= FOREGROUND) for i in range(2)
    )
    # np.max keeps a NaN, and a NaN is not within the tolerance.
    score = float(np.max(np.abs(scores - theirs.scores)))
    return Parity(len(scores), source, score, lung, disease)


def _pooled_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def phantoms() -> NDArray[np.float32]:
    """(12, 1, 224, 224) in [0, 1]: ``comit demo``'s drawings, for where no X-ray is at hand."""
    with TemporaryDirectory() as folder:
        demo(Path(folder))
        return read_images(Path(folder))


def read_images(folder: Path) -> NDArray[np.float32]:
    """(N, 1, 224, 224): up to 16 X-rays of a folder, preprocessed.

    Files that cannot be screened are passed over: the check needs X-rays, not all of them.
    Raises UsageError where there is none.
    """
    from comit.image import open_image
    from comit.image.preprocess import preprocess

    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    found: list[NDArray[np.float32]] = []
    for path in paths[:: max(1, len(paths) // IMAGES)]:
        try:
            image = open_image(path.read_bytes())
            found.append(preprocess(image.samples(), image.presentation).pixels)
        except (OSError, ItemError):
            continue
        if len(found) == IMAGES:
            break
    if not found:
        raise UsageError(f"{folder} holds no X-ray that can be read (PNG, JPEG or DICOM)")
    return np.stack(found)[:, None]
