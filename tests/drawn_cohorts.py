"""Cohorts of labels alone, for tests of figures."""

import numpy as np

from comit.model.data import Cohort


def cohort(unhealthy: list[int], covid: list[int], source: list[str]) -> Cohort:
    """Labels only: black images, no annotations. ``other`` is what is unhealthy without COVID."""
    n = len(unhealthy)
    other = [int(u == 1 and c == 0) for u, c in zip(unhealthy, covid, strict=True)]
    empty = np.zeros((n, 224, 224), np.uint8)
    return Cohort(
        images=empty.astype(np.float16),
        lung=empty,
        disease=empty.copy(),
        ignore=empty.copy(),
        has_lung=np.zeros(n, bool),
        has_disease=np.zeros(n, bool),
        unhealthy=np.array(unhealthy, np.int8),
        findings=np.stack([covid, other], axis=1).astype(np.int8),
        chest=np.ones(n, np.int8),
        shape=np.full((n, 2), 512, np.int32),
        basis=np.array([""] * n),
        source=np.array(source),
        patient=np.arange(n).astype(str),
        view=np.array(["PA"] * n),
    )
