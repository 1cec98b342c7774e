"""``comit overlay``: a PNG for each row with masks, in the size of its X-ray."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import resultfiles as rf
from click.testing import CliRunner

from comit.cli import main
from comit.image import open_image
from comit.image.preprocess import picture
from comit.look.overlay import overlay
from comit.look.picture import Masks, draw


@pytest.fixture
def results(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in "abc":
        rf.draw(tmp_path / "pictures" / f"{name}.png")
    rows = [
        rf.ok("a", unhealthy=0.9),
        rf.ok("b", unhealthy=0.1),
        rf.ok("c") | {"lung_rle": None, "disease_rle": None},
        rf.unscored("d", "skipped", "view"),
    ]
    return rf.write(tmp_path / "r.parquet", rows)


@pytest.mark.parametrize("fill", [False, True])
def test_masks_lie_over_the_x_ray_in_its_own_size(tmp_path, results, fill):
    made = overlay(results, tmp_path / "pictures", tmp_path / "out", fill=fill)
    assert sorted(p.name[:2] for p in made.files) == ["a-", "b-"]
    assert made.without == 2 and made.problems == []
    drawn = cv2.cvtColor(cv2.imread(str(made.files[0])), cv2.COLOR_BGR2RGB)
    image = open_image((tmp_path / "pictures" / "a.png").read_bytes())
    grey = picture(image.samples(), image.presentation)
    assert np.array_equal(drawn, draw(grey, Masks(rf.LUNGS, rf.DISEASE), fill=fill))


def test_flagged_rows_alone(tmp_path, results):
    made = overlay(results, tmp_path / "pictures", tmp_path / "out", flagged=True)
    assert [p.name[:2] for p in made.files] == ["a-"] and made.without == 3


def test_a_picture_that_is_gone_costs_its_own_overlay_and_exit_code_3(tmp_path, results):
    (tmp_path / "pictures" / "a.png").unlink()
    words = ["overlay", results, "--images", tmp_path / "pictures", "--out", tmp_path / "out"]
    done = CliRunner().invoke(main, [str(w) for w in words])
    assert done.exit_code == 3
    assert "1 pictures in" in done.stderr and "a.png: vanished" in done.stderr
    assert [p.name[:2] for p in (tmp_path / "out").iterdir()] == ["b-"]


def test_an_output_that_is_a_file_is_refused(tmp_path, results):
    words = ["overlay", results, "--images", tmp_path / "pictures", "--out", results]
    done = CliRunner().invoke(main, [str(w) for w in words])
    assert done.exit_code == 2 and "cannot be made a folder" in done.stderr
