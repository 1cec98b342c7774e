"""The definition of preprocessing, against the Standard's formulas and the slow obvious way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comit.errors import ItemError
from comit.image import open_image
from comit.image.preprocess import (
    CLIPPED,
    SIZE,
    Lut,
    Presentation,
    Window,
    area_average,
    coverage,
    picture,
    preprocess,
    present,
)
from comit.reasons import Caution, Fail

RAMP = np.linspace(0, 4095, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)


def stretched(values: np.ndarray) -> np.ndarray:
    """Step 4 as its docstring says it."""
    low, high = np.sort(values, axis=None)[[CLIPPED, -1 - CLIPPED]]
    return np.clip((values - low) / (high - low), 0, 1)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_area_average_is_the_mean_over_each_cell(height: int, width: int, seed: int) -> None:
    samples = np.random.default_rng(seed).integers(0, 65536, (height, width)).astype(np.uint16)
    slow = coverage(height).astype(float) @ samples @ coverage(width).T.astype(float)
    np.testing.assert_allclose(area_average(samples), slow, rtol=1e-4, atol=0.5)


@pytest.mark.parametrize("n", [1, 3, 64, 223, 224, 225, 447, 448, 5000])
def test_coverage_weighs_every_sample_alike(n: int) -> None:
    shares = coverage(n)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(shares.sum(axis=0), SIZE / n, rtol=1e-4)


def test_padding_weighs_nothing() -> None:
    samples = np.random.default_rng(0).integers(1000, 3000, (448, 448)).astype(np.int16)
    samples[:, :100] = -2000
    samples[::3, 101] = -2000
    grid = area_average(samples, (-2000, -2000))
    assert np.isnan(grid[:, :50]).all() and not np.isnan(grid[:, 50:]).any()
    blocks = samples.reshape(SIZE, 2, SIZE, 2).transpose(0, 2, 1, 3).reshape(SIZE, SIZE, 4)
    kept = np.where(blocks == -2000, np.nan, blocks.astype(float))
    np.testing.assert_allclose(grid[:, 50:], np.nanmean(kept[:, 50:], axis=-1), rtol=1e-4)


def test_padding_is_background_and_out_of_the_statistics() -> None:
    samples = np.tile(np.arange(448, dtype=np.uint16), (448, 1)) + 100
    plain = preprocess(samples[:, 224:], Presentation())
    framed = samples.copy()
    framed[:, :224] = 60000
    found = preprocess(framed, Presentation(padding=(60000, 60000), inverted=True))
    assert found.warnings == (Caution.PADDING,)
    assert (found.pixels[:, :112] == 0).all()
    assert plain.warnings == ()
    assert found.pixels[:, 112:].min() == 0 and found.pixels[:, 112:].max() == 1


def test_all_padding_is_blank() -> None:
    with pytest.raises(ItemError) as error:
        preprocess(np.full((300, 300), 7, np.uint8), Presentation(padding=(7, 7)))
    assert error.value.reason is Fail.BLANK


def linear(x: np.ndarray, c: float, w: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, for an output from 0 to 1."""
    y = (x - (c - 0.5)) / (w - 1) + 0.5
    return np.where(x <= c - 0.5 - (w - 1) / 2, 0, np.where(x > c - 0.5 + (w - 1) / 2, 1, y))


def linear_exact(x: np.ndarray, c: float, w: float) -> np.ndarray:
    """PS3.3 C.11.2.1.3.2."""
    return np.where(x <= c - w / 2, 0, np.where(x > c + w / 2, 1, (x - c) / w + 0.5))


def sigmoid(x: np.ndarray, c: float, w: float) -> np.ndarray:
    """PS3.3 C.11.2.1.3.1."""
    return 1 / (1 + np.exp(-4 * (x - c) / w))


@pytest.mark.parametrize(
    ("function", "formula"),
    [("LINEAR", linear), ("LINEAR_EXACT", linear_exact), ("SIGMOID", sigmoid)],
)
@pytest.mark.parametrize(("center", "width"), [(2048, 4096), (2000, 300), (100, 900), (50.5, 77.7)])
def test_windows_are_those_of_the_standard(
    function: str, formula: object, center: float, width: float
) -> None:
    found = present(RAMP, Presentation(voi=Window(center, width, function)))
    assert found.voi == "window"
    expected = stretched(formula(RAMP.astype(float), center, width))  # type: ignore[operator]
    np.testing.assert_allclose(found.pixels, expected, atol=1e-4)


def test_a_width_of_one_is_a_threshold() -> None:
    found = present(RAMP, Presentation(voi=Window(2048, 1)))
    assert set(np.unique(found.pixels)) <= {0.0, 1.0}
    assert ((RAMP > 2047.5) == (found.pixels == 1)).mean() > 0.9999


def test_the_window_applies_after_the_rescale() -> None:
    a = present(RAMP, Presentation(slope=2, intercept=-1000, voi=Window(3000, 2000)))
    b = present(RAMP * 2 - 1000, Presentation(voi=Window(3000, 2000)))
    np.testing.assert_allclose(a.pixels, b.pixels, atol=1e-6)


def test_lookup_tables_interpolate_and_hold_their_ends() -> None:
    """First input value 1000; below and above it the end entries (PS3.3 C.11.1.1.1)."""
    lut = Lut(1000, tuple(float(v * v) for v in range(2000)))
    found = present(RAMP, Presentation(voi=lut))
    assert found.voi == "lut"
    position = np.clip(RAMP.astype(float) - 1000, 0, 1999)
    np.testing.assert_allclose(found.pixels, stretched(position**2), atol=1e-3)
    as_modality = present(RAMP, Presentation(modality_lut=lut, slope=99))
    np.testing.assert_allclose(as_modality.pixels, found.pixels, atol=1e-6)
    assert as_modality.voi == "none"


def test_a_window_that_shows_nothing_is_left_out() -> None:
    found = present(RAMP, Presentation(voi=Window(-9000, 100)))
    assert found.voi == "none" and found.warnings == (Caution.WINDOW_UNUSABLE,)
    np.testing.assert_array_equal(found.pixels, present(RAMP, Presentation()).pixels)


@pytest.mark.parametrize(
    ("voi", "clips"),
    [
        (Window(127, 255), True),  # of 8 bits, on values of 12
        (Window(4000, 190), True),  # the other end
        (Window(2048, 4096), False),
        (Window(1000, 1500), False),  # 57 % white
        (Window(800, 1000), True),  # 68 %
        (Window(1, 2000, "SIGMOID"), False),  # compressed, and stretched again
        (Lut(0, (*range(500), 500)), True),
        (Lut(0, tuple(range(4096))), False),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_window_that_leaves_most_of_the_picture_one_shade_is_said(
    voi: Window | Lut, clips: bool, turned: bool
) -> None:
    found = present(RAMP, Presentation(voi=voi, inverted=turned))
    assert found.voi != "none"
    assert found.warnings == ((Caution.WINDOW_CLIPS,) if clips else ())


def test_a_window_is_not_blamed_for_a_background_that_is_one_shade_anyway() -> None:
    framed = RAMP.copy()
    framed[:, : SIZE * 3 // 4] = 0
    assert present(framed, Presentation(voi=Window(3000, 1000))).warnings == ()
    half = np.where(RAMP < 2048, 0, RAMP)
    assert present(half, Presentation(voi=Window(3800, 300))).warnings == (Caution.WINDOW_CLIPS,)


def test_padding_is_no_part_of_what_a_window_clips() -> None:
    framed = RAMP.copy()
    framed[:, : SIZE * 3 // 4] = np.nan
    found = present(framed, Presentation(voi=Window(2048, 4096)))
    assert found.warnings == (Caution.PADDING,)
    found = present(framed, Presentation(voi=Window(127, 255)))
    assert found.warnings == (Caution.PADDING, Caution.WINDOW_CLIPS)


@pytest.mark.real
def test_the_8_bit_window_on_12_bit_values_met_in_the_field(faults: Path) -> None:
    path = faults / "window-beside-the-values" / "09b_8bit_window_12bit_data.dcm"
    image = open_image(path.read_bytes())
    found = preprocess(image.samples(), image.presentation)
    assert (found.voi, found.warnings) == ("window", (Caution.WINDOW_CLIPS,))


def test_inverted_is_one_minus() -> None:
    a, b = (present(RAMP, Presentation(inverted=i)).pixels for i in (False, True))
    np.testing.assert_allclose(a, 1 - b, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.float64])
def test_every_type_gives_the_same_picture(dtype: type) -> None:
    samples = np.random.default_rng(3).integers(0, 100, (300, 280)).astype(dtype)
    found = preprocess(samples, Presentation()).pixels
    assert found.dtype == np.float32 and found.shape == (SIZE, SIZE)
    assert found.min() == 0 and found.max() == 1
    np.testing.assert_array_equal(
        found, preprocess(samples.astype(np.float32), Presentation()).pixels
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [(np.nan, Fail.NONFINITE), (np.inf, Fail.NONFINITE), (1e38, Fail.NONFINITE),
     (1e300, Fail.NONFINITE)],
)  # fmt: skip
def test_floats_that_are_no_numbers(value: float, expected: Fail) -> None:
    samples = np.random.default_rng(0).random((300, 300))
    samples[5, 5] = value
    with pytest.raises(ItemError) as error:
        preprocess(samples, Presentation())
    assert error.value.reason is expected


@pytest.mark.parametrize("value", [0, 255, 12345])
def test_constant_images_are_blank(value: int) -> None:
    with pytest.raises(ItemError) as error:
        preprocess(np.full((300, 200), value, np.uint16), Presentation(voi=Window(100, 50)))
    assert error.value.reason is Fail.BLANK


def test_a_rescale_beyond_any_number_is_refused_not_shown() -> None:
    with pytest.raises(ItemError) as error:
        present(RAMP, Presentation(slope=1e38))
    assert error.value.reason is Fail.NONFINITE


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
    st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
@settings(max_examples=60, deadline=None)
def test_pixels_are_always_between_zero_and_one(center: float, width: float, name: str) -> None:
    pixels = present(RAMP, Presentation(voi=Window(center, max(width, 1), name))).pixels
    assert pixels.min() >= 0 and pixels.max() <= 1


FULL_SIZE = [
    Presentation(),
    Presentation(inverted=True),
    Presentation(slope=2.0, intercept=-1024.0, voi=Window(3000, 4000)),
    Presentation(voi=Window(2000, 900, "SIGMOID"), inverted=True),
    Presentation(voi=Window(90000, 5)),  # shows nothing, so it is left out
    Presentation(voi=Lut(0, tuple(np.linspace(0, 1, 4096) ** 2))),
    Presentation(padding=(0, 200)),
]


@pytest.mark.parametrize("presentation", FULL_SIZE)
def test_the_picture_at_full_size_has_the_tones_that_were_screened(presentation):
    """On samples of the grid's own size both are the same, bit for bit."""
    samples = np.rint(RAMP).astype(np.uint16)
    shown = picture(samples, presentation)
    assert np.array_equal(shown, np.rint(preprocess(samples, presentation).pixels * 255))


@pytest.mark.parametrize("presentation", FULL_SIZE)
def test_a_larger_picture_shows_each_cell_as_it_was_screened(presentation):
    samples = np.rint(RAMP).astype(np.uint16).repeat(3, axis=0).repeat(2, axis=1)
    shown = picture(samples, presentation)
    assert shown.shape == samples.shape
    screened = preprocess(samples, presentation).pixels
    assert np.abs(shown[1::3, ::2] - np.rint(screened * 255)).max() <= 1


@pytest.mark.parametrize("presentation", FULL_SIZE)
def test_a_picture_does_not_depend_on_the_rows_taken_at_once(presentation, monkeypatch):
    samples = np.rint(RAMP).astype(np.uint16).repeat(3, axis=0)
    whole = picture(samples, presentation)
    for strip in (1, 5 * 224 + 1):
        monkeypatch.setattr("comit.image.preprocess.STRIP", strip)
        assert np.array_equal(picture(samples, presentation), whole)
