"""Which images go through the whole network, and that every one gets its row."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from comit.card import OperatingPoint
from comit.engine.base import Engine, Inference
from comit.pipeline.lanes import Lanes
from comit.pipeline.worker import Done

POINT = OperatingPoint(unhealthy=0.5, covid=2.0)


class Counting(Engine):
    """Scores are the first pixel; masks the images; counts what it was asked for."""

    name, precision, device, batch_size, lanes, two_stage = "counting", "fp32", "cpu", 4, 2, True

    def __init__(self):
        self.asked = Counter()

    def infer(self, images):
        self.asked["infer"] += len(images)
        scores = np.repeat(images[:, :, 0, 0], 4, axis=1)
        masks = np.repeat((images * 255).astype(np.uint8), 2, axis=1)
        return Inference(scores, masks)

    def scores(self, images):
        self.asked["scores"] += len(images)
        return np.repeat(images[:, :, 0, 0], 4, axis=1)


class Rows:
    """Stands for the sink."""

    def __init__(self):
        self.rows = {}

    def add(self, index, row):
        assert index not in self.rows
        self.rows[index] = row


def run(masks, flags, engine=None, gate=None):
    engine, sink = engine or Counting(), Rows()
    with Lanes(engine, sink.add, POINT, gate, masks) as lanes:
        for i, flag in enumerate(flags):
            pixels = np.full((224, 224), i % 2, np.float32)
            pixels[0, 0] = 0.9 if flag else 0.1
            lanes.add(Done(i, None), pixels)
        lanes.flush()
    assert sorted(sink.rows) == list(range(len(flags)))
    assert lanes.screened == len(flags)
    return engine.asked, sink.rows


@pytest.mark.parametrize("share", [0, 0.05, 0.3, 1])
def test_masks_are_computed_for_flagged_images_alone(share):
    flags = [bool(f) for f in np.random.default_rng(1).random(203) < share]
    asked, rows = run("flagged", flags)
    _, everything = run("all", flags)
    for i, flag in enumerate(flags):
        if flag:
            assert rows[i] == everything[i] and rows[i].lung_rle
        else:
            assert rows[i].lung_rle is None
            assert rows[i].score_covid == everything[i].score_covid
    if share < 0.5:
        assert asked == Counter(scores=203, infer=sum(flags))
    else:  # scores first would be in vain
        assert asked["scores"] < 203 and asked["scores"] + 2 * 203 > sum(asked.values())


def test_no_masks_need_no_decoders():
    asked, rows = run("none", [True, False] * 9)
    assert asked == Counter(scores=18)
    assert all(row.lung_rle is None for row in rows.values())


@pytest.mark.parametrize("masks", ["all", "flagged"])
def test_what_has_waited_long_enough_is_run_without_company(masks):
    """Each call may settle what the last one found out: a flagged image waits for masks, too."""
    sink, pixels = Rows(), np.full((224, 224), 0.9, np.float32)
    with Lanes(Counting(), sink.add, POINT, None, masks) as lanes:
        lanes.add(Done(0, None), pixels)
        lanes.hurry(60.0)
        assert not sink.rows and not lanes._running
        for i in range(20):  # more than there are buffers
            end = time.monotonic() + 60
            while i not in sink.rows and time.monotonic() < end:
                lanes.hurry(0.0)
            assert sink.rows[i].lung_rle
            lanes.add(Done(i + 1, None), pixels)
        lanes.flush()
        assert sorted(sink.rows) == list(range(21))
        lanes.flush()  # nothing is run twice


def test_an_engine_of_one_stage_runs_whole():
    engine = Counting()
    engine.two_stage = False
    asked, rows = run("flagged", [True, False] * 9, engine)
    assert asked == Counter(infer=18)
    assert [bool(rows[i].lung_rle) for i in range(18)] == [True, False] * 9


def test_an_error_of_the_engine_is_raised():
    class Broken(Counting):
        def infer(self, images):
            raise MemoryError

    with pytest.raises(MemoryError):
        run("flagged", [True] * 9, Broken())
