"""The X-ray of a row is found where it was screened, and a mask is laid over all of it."""

from __future__ import annotations

import os
import shutil
import zlib
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import resultfiles as rf
from click.testing import CliRunner

from comit.cli import main
from comit.console import Console
from comit.errors import ItemError, UsageError
from comit.look.picture import (
    DISEASE,
    LUNGS,
    RAMP,
    Masks,
    Pictures,
    draw,
    file_stem,
    masks,
    outline,
    to_picture,
)
from comit.options import Options
from comit.reasons import Fail
from comit.results import provenance, read
from comit.screening import screen

FOUND = Masks(rf.LUNGS, rf.DISEASE)


def shown(folder: Path | None, row, said=None) -> np.ndarray:
    with Pictures(folder, said or {}) as pictures:
        return pictures.shown(row)


def refused(folder: Path, row) -> Fail:
    with pytest.raises(ItemError) as caught:
        shown(folder, row)
    return caught.value.reason


def test_a_picture_is_found_by_the_path_of_its_row(tmp_path):
    (tmp_path / "ward").mkdir()
    rf.draw(tmp_path / "ward" / "a.png")
    assert shown(tmp_path, rf.ok("a", "ward/a.png")).shape == (300, 260)


def test_the_results_name_the_folder_where_nobody_else_does(tmp_path):
    rf.draw(tmp_path / "a.png")
    assert shown(None, rf.ok("a"), {"root": str(tmp_path)}).any()
    with pytest.raises(UsageError, match="give --images"):
        Pictures(None, {})
    with pytest.raises(UsageError, match="nowhere is not a folder"):
        Pictures(None, {"root": str(tmp_path / "nowhere")})
    with pytest.raises(UsageError, match="nowhere does not exist"):
        Pictures(tmp_path / "nowhere", {})


def test_a_manifest_stands_for_the_folder_in_which_its_paths_begin(tmp_path):
    rf.draw(tmp_path / "a.png")
    (tmp_path / "m.csv").write_text("id,path\n1,a.png\n")
    table = pa.table({"path": ["a.png"]})
    pq.write_table(table, tmp_path / "m.parquet")
    pq.write_table(table, tmp_path / "manifest")  # Parquet by its content
    for name in ("m.csv", "m.parquet", "manifest"):
        assert shown(tmp_path / name, rf.ok("a")).any()
    (tmp_path / "no.csv").write_text("id,file\n1,a.png\n")
    with pytest.raises(UsageError, match=r"no\.csv has no column 'path'"):
        Pictures(tmp_path / "no.csv", {})
    results = rf.write(tmp_path / "r.parquet", [rf.ok("a")], comit_run_id="0")
    with pytest.raises(UsageError, match=r"r\.parquet holds results of comit"):
        Pictures(results, {})


def elsewhere(tmp_path) -> tuple[Path, Path, int]:
    """An empty folder, a picture outside it and its CRC-32."""
    inside = tmp_path / "inside"
    inside.mkdir()
    rf.draw(tmp_path / "a.png")
    return inside, tmp_path / "a.png", zlib.crc32((tmp_path / "a.png").read_bytes())


def test_an_absolute_path_is_shown_if_the_row_has_the_files_checksum(tmp_path):
    inside, file, crc32 = elsewhere(tmp_path)
    assert shown(inside, rf.ok("a", str(file), file_crc32=crc32)).any()
    assert shown(Path("/"), rf.ok("a", str(file))).any()  # below a root as any other
    assert refused(inside, rf.ok("a", str(file), file_crc32=crc32 ^ 1)) is Fail.CHANGED
    assert refused(inside, rf.ok("a", str(file))) is Fail.VANISHED
    assert refused(inside, rf.ok("a", "/etc/passwd")) is Fail.VANISHED
    assert refused(inside, rf.ok("a", "/etc/passwd", file_crc32=0)) is Fail.CHANGED
    assert refused(inside, rf.ok("a", f"{file}.gone", file_crc32=crc32)) is Fail.VANISHED


def test_a_link_out_of_the_folder_is_followed_if_the_row_has_the_files_checksum(tmp_path):
    inside, file, crc32 = elsewhere(tmp_path)
    (inside / "link.png").symlink_to(file)
    (inside / "folder").symlink_to(tmp_path)
    for path in ("link.png", "folder/a.png"):
        assert shown(inside, rf.ok("a", path, file_crc32=crc32)).any()
        assert refused(inside, rf.ok("a", path, file_crc32=crc32 ^ 1)) is Fail.CHANGED
        assert refused(inside, rf.ok("a", path)) is Fail.VANISHED


def test_no_checksum_leads_up_from_the_folder(tmp_path):
    inside, _, crc32 = elsewhere(tmp_path)
    (inside / "b").mkdir()
    for path in ("../a.png", "b/../../a.png", "..\\a.png", "../inside/../a.png"):
        assert refused(inside, rf.ok("a", path, file_crc32=crc32)) is Fail.VANISHED


@pytest.mark.parametrize("way", ["folder", "csv", "parquet"])
@pytest.mark.parametrize("absolute", [False, True])
def test_what_was_screened_is_found_again(tmp_path, tiny_model, way, absolute):
    archive = tmp_path / os.fsdecode(b"\xfcber") / "\\xff"  # one byte, and four letters
    archive.mkdir(parents=True)
    rf.draw(archive / "a.png")
    (tmp_path / "lists").mkdir()
    source = archive
    if way != "folder":
        # Text of a table is UTF-8, which this folder's name is not: a link leads there.
        (tmp_path / "link").symlink_to(archive)
        path = str(tmp_path / "link" / "a.png") if absolute else "a.png"
        source = (tmp_path / "lists" if absolute else archive) / f"m.{way}"
        if way == "csv":
            source.write_text(f"path\n{path}\n")
        else:
            with source.open("wb") as file:  # Arrow opens names in UTF-8 alone
                pq.write_table(pa.table({"path": [path]}), file)
    results = tmp_path / "r.parquet"
    options = Options(model=tiny_model, workers=1, view_policy="all")
    screen(source, results, options, console=Console(quiet=True))
    said, (row,) = provenance(read(results)), read(results).to_pylist()
    assert row["status"] == "ok"
    for root in (None, source):
        assert shown(root, row, said).shape == (300, 260)


def test_the_commands_take_a_manifest_and_say_so(tmp_path):
    rf.draw(tmp_path / "a.png")
    (tmp_path / "m.csv").write_text("path\na.png\n")
    results = rf.write(tmp_path / "r.parquet", [rf.ok("a"), rf.ok("gone")])
    for command, out in (("report", "r.html"), ("overlay", "o")):
        words = [command, results, "--images", tmp_path / "m.csv", "--out", tmp_path / out]
        done = CliRunner().invoke(main, [str(w) for w in words])
        assert done.exit_code == 3 and "gone.png: vanished" in done.stderr
        assert "  a.png" not in done.stderr and "screened folder or manifest?" in done.stderr


def test_a_name_that_is_not_utf_8_is_found_as_it_is_listed(tmp_path):
    rf.draw(os.fsencode(tmp_path) + b"/a\xff.png")
    assert shown(tmp_path, rf.ok("a", "a\\xff.png")).any()


def test_a_name_that_looks_escaped_is_found_too(tmp_path):
    rf.draw(tmp_path / "a\\xff.png")
    assert shown(tmp_path, rf.ok("a", "a\\xff.png")).any()


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("ward\\a.png", b"ward/a.png"),
        ("S\u00fcd/M\u00fcller.png", "Su\u0308d/M\u00fcller.png".encode()),
        ("M\u00fcller.png", b"M\xfcller.png"),
    ],
)
def test_a_picture_is_found_under_the_spelling_that_screening_found(tmp_path, written, there):
    file = tmp_path / "in" / os.fsdecode(there)
    file.parent.mkdir(parents=True, exist_ok=True)
    rf.draw(tmp_path / "out.png")
    shutil.copy(tmp_path / "out.png", file)
    assert shown(tmp_path / "in", rf.ok("a", written)).any()
    assert refused(tmp_path / "in", rf.ok("a", "..\\out.png")) == Fail.VANISHED


def test_nothing_outside_the_folder_is_opened(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    rf.draw(tmp_path / "secret.png")
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    for path in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "a\0b", "", "."):
        assert refused(inside, rf.ok("a") | {"path": path}) is Fail.VANISHED
    assert refused(inside, rf.ok("a") | {"path": None}) is Fail.VANISHED


@pytest.mark.parametrize("mode", ["none 0f", "hashed 0f"])
def test_results_without_plain_paths_say_so(tmp_path, mode):
    with pytest.raises(UsageError, match="identifiers, so no picture can be found by its path"):
        Pictures(tmp_path, {"identifiers": mode})


def test_masks_are_never_laid_over_another_picture(tmp_path):
    rf.draw(tmp_path / "a.png", 301, 260)
    assert refused(tmp_path, rf.ok("a")) is Fail.CHANGED


def test_a_file_that_was_replaced_by_another_of_its_size_is_refused(tmp_path):
    rf.draw(tmp_path / "a.png")
    row = rf.ok("a", file_crc32=zlib.crc32((tmp_path / "a.png").read_bytes()))
    assert shown(tmp_path, row).any()
    cv2.imwrite(str(tmp_path / "a.png"), np.full((300, 260), 90, np.uint8))
    assert refused(tmp_path, row) is Fail.CHANGED


def test_a_mask_of_another_grid_is_refused():
    row = rf.ok("a")
    row["lung_rle"] = {"size": [10, 10], "counts": "T3"}
    with pytest.raises(ItemError, match="corrupt"):
        masks(row)


@pytest.mark.parametrize("shape", [(224, 224), (300, 260), (2128, 2000), (100, 513)])
def test_a_pixel_has_the_value_of_the_cell_that_holds_its_centre(shape):
    mask = np.random.default_rng(1).random((224, 224)) < 0.5
    large = to_picture(mask, *shape)
    for y in range(0, shape[0], 7):
        for x in range(0, shape[1], 11):
            cell = int((y + 0.5) * 224 / shape[0]), int((x + 0.5) * 224 / shape[1])
            assert large[y, x] == mask[cell]


def test_a_contour_lies_on_the_edge_and_leaves_the_x_ray_inside():
    grey = np.full((448, 448), 90, np.uint8)
    rgb = draw(grey, FOUND)
    edge = cv2.dilate(to_picture(rf.LUNGS, 448, 448).astype(np.uint8), np.ones((3, 3))) - cv2.erode(
        to_picture(rf.LUNGS, 448, 448).astype(np.uint8), np.ones((3, 3))
    )
    lungs = (rgb == LUNGS).all(axis=2)
    assert lungs.any() and edge[lungs].all()
    assert (rgb == DISEASE).all(axis=2).any()
    assert (rgb[220, 130] == 90).all() and (rgb[0, 0] == 90).all()


def test_a_fill_tints_exactly_the_mask():
    grey = np.full((300, 260), 90, np.uint8)
    tinted = (draw(grey, FOUND, fill=True) != 90).any(axis=2)
    assert np.array_equal(tinted, to_picture(rf.LUNGS | rf.DISEASE, 300, 260))


def test_a_label_is_burned_into_the_lower_left_corner():
    grey = np.full((600, 500), 90, np.uint8)
    plain, labelled = draw(grey, FOUND), draw(grey, FOUND, label="RESEARCH USE ONLY")
    changed = np.argwhere((plain != labelled).any(axis=2))
    assert changed[:, 0].min() > 300 and changed[:, 1].max() < 450
    assert (labelled == 255).all(axis=2).any()  # white letters


def test_an_outline_encloses_the_mask_and_its_holes():
    mask = rf.DISEASE | rf.disc(5, 5, 0)  # a ring, and a cell alone
    drawn = np.zeros((672, 672), np.uint8)
    contours = []
    for path in outline(mask).rstrip("z").split("z"):
        start, _, steps = path[1:].partition("l")
        numbers = [int(n) for n in (start + " " + steps).split()]
        contours.append(np.cumsum(np.reshape(numbers, (-1, 2)), axis=0))
    cv2.fillPoly(drawn, contours, 1)  # even-odd, as in the report
    centres = drawn[1::3, 1::3].astype(bool)
    assert np.array_equal(centres, mask)


def test_a_picture_is_shown_in_the_tones_in_which_it_was_screened(tmp_path):
    rf.draw(tmp_path / "a.png")
    grey = shown(tmp_path, rf.ok("a"))
    assert grey.shape == (300, 260) and grey.dtype == np.uint8
    assert grey.min() == 0 and grey.max() == 255


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "a b\n<script>.png", "=cmd().png", "", "x" * 300]
)
def test_a_file_name_is_harmless_and_unique(path):
    stems = {file_stem({"row_id": i, "path": path}) for i in ("1", "2")}
    assert len(stems) == 2
    for stem in stems:
        assert len(stem) <= 80 and not set(stem) & set("/\\.<>=() \n") and stem[0] not in "-_"


def test_a_heat_map_colours_where_it_is_high_and_leaves_the_rest():
    grey = np.full((448, 448), 90, np.uint8)
    heat = np.zeros((224, 224), np.float32)
    heat[:, 150:] = 1
    nothing = Masks(np.zeros_like(rf.LUNGS), np.zeros_like(rf.DISEASE))
    rgb = draw(grey, nothing, heat=heat)
    assert (rgb[:, :290] == 90).all()
    *colour, opacity = RAMP[-1]
    expected = [90 * (1 - opacity) + 255 * c * opacity for c in colour]
    assert np.abs(rgb[:, 310:] - expected).max() <= 1
