"""What whole-picture numbers say of a label: a baseline that looks at no anatomy.

A network that does no better than these has learned how pictures of the sick are made.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from comit.model.data import UNKNOWN, Cohort

NAMES = (
    "mean",
    "deviation",
    "5th percentile",
    "median",
    "95th percentile",
    "mean of the rim",  # a tenth of a side
    "mean of the middle",  # half of a side
    "left minus right",
    "top minus bottom",
    "sharpness",  # mean difference of neighbours
    "rows",
    "columns",
)


def picture_statistics(cohort: Cohort) -> NDArray[np.float64]:
    """(N, 12): the numbers of :data:`NAMES`, of the preprocessed pixels and the picture's size."""
    images = cohort.images.astype(np.float32)
    _, height, width = images.shape
    rim = np.ones((height, width), np.bool_)
    rim[height // 10 : -(height // 10), width // 10 : -(width // 10)] = False
    middle = images[:, height // 4 : -(height // 4), width // 4 : -(width // 4)]
    means = [
        images.mean(axis=(1, 2)),
        images.std(axis=(1, 2)),
        *np.quantile(images, [0.05, 0.5, 0.95], axis=(1, 2)),
        images[:, rim].mean(axis=1),
        middle.mean(axis=(1, 2)),
        images[:, :, : width // 2].mean(axis=(1, 2)) - images[:, :, width // 2 :].mean(axis=(1, 2)),
        images[:, : height // 2].mean(axis=(1, 2)) - images[:, height // 2 :].mean(axis=(1, 2)),
        np.abs(np.diff(images, axis=1)).mean(axis=(1, 2))
        + np.abs(np.diff(images, axis=2)).mean(axis=(1, 2)),
        *cohort.shape.T,
    ]
    return np.stack(means, axis=1).astype(np.float64)


def from_statistics(train: Cohort, cohort: Cohort) -> NDArray[np.float64]:
    """(N, 3) shares: unhealthy, COVID and other disease by a logistic regression on the numbers.

    It is fitted on the training images of the image's own source where they have both answers,
    else on those of all sources: the strongest such answer that one could give.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = np.column_stack([train.unhealthy, train.findings])
    learned, asked = picture_statistics(train), picture_statistics(cohort)
    found = np.full((len(cohort), 3), 0.5)
    for task in range(3):
        known = labels[:, task] != UNKNOWN
        for source in sorted(set(cohort.source.tolist())):
            own = known & (train.source == source)
            chosen = own if len(np.unique(labels[own, task])) == 2 else known
            if len(np.unique(labels[chosen, task])) < 2:
                continue
            fit = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
            fit.fit(learned[chosen], labels[chosen, task])
            here = cohort.source == source
            found[here, task] = fit.predict_proba(asked[here])[:, 1]
    return found
