"""Numbers of the whole picture, and what can be said from them alone."""

from dataclasses import replace

import numpy as np
import pytest
from drawn_cohorts import cohort

pytest.importorskip("sklearn")

from comit.model.metrics import area_under_roc
from comit.model.statistics import NAMES, from_statistics, picture_statistics


def pictures(n, source="a", seed=0):
    """Every second one unhealthy and brighter by a little; noise, no anatomy."""
    rng = np.random.default_rng(seed)
    sick = np.arange(n) % 2
    labels = cohort(sick.tolist(), [0] * n, [source] * n)
    base = rng.uniform(0.3, 0.5, n) + 0.2 * sick
    images = base[:, None, None] + rng.normal(0, 0.05, (n, 224, 224))
    return replace(labels, images=images.clip(0, 1).astype(np.float16))


def test_the_numbers_are_what_their_names_say():
    one = pictures(1)
    one.images[0] = 0
    one.images[0, :, :112] = 1  # the left half is white
    said = dict(zip(NAMES, picture_statistics(one)[0], strict=True))
    assert said["mean"] == 0.5 and said["left minus right"] == 1 and said["top minus bottom"] == 0
    assert (said["rows"], said["columns"]) == (512, 512)
    assert said["sharpness"] == pytest.approx(1 / 223)


def test_brightness_alone_tells_what_it_tells():
    train, asked = pictures(60), pictures(40, seed=1)
    said = from_statistics(train, asked)
    assert area_under_roc(asked.unhealthy, said[:, 0]) > 0.9
    assert (said[:, 1] == 0.5).all()  # nobody has COVID: nothing to fit


def test_a_source_without_both_answers_is_judged_by_all():
    train = pictures(60)
    said = from_statistics(train, pictures(40, "elsewhere", seed=1))
    assert area_under_roc(np.arange(40) % 2, said[:, 0]) > 0.9
