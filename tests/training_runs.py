"""A drawn cohort and the smallest training run, for tests that need a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from comit.console import Console
from comit.model.recipe import TrainConfig

TINY = TrainConfig(width=1 / 64, epochs=2, batch_size=4)  # 8 channels throughout
QUIET = Console(quiet=True)


def rows(folder: Path) -> list[dict[str, Any]]:
    """16 noisy images, the sick with a bright patch; one in two boxed, one without any label."""
    random = np.random.default_rng(0)
    made: list[dict[str, Any]] = []
    for i in range(16):
        sick = i % 2 == 1
        picture = random.integers(0, 120, (100, 80), dtype=np.uint8)
        if sick:
            picture[40:70, 10:40] += 100
        cv2.imwrite(str(folder / f"{i}.png"), picture)
        made.append(
            {
                "path": f"{i}.png",
                "split": ["train", "val", "test"][0 if i < 8 else i // 4 - 1],
                "healthy": not sick,
                "covid": sick and i % 4 == 1,
                "other": sick and i % 4 == 3,
                "lung_boxes": [[5.0, 10.0, 30.0, 80.0], [45.0, 10.0, 30.0, 80.0]],
                "disease_boxes": [[10.0, 40.0, 30.0, 30.0]] if sick else None,
            }
        )
    made[0] |= {"healthy": None, "covid": None, "other": None, "lung_boxes": None}
    return made


def write(path: Path, made: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(made), path)
    return path
