"""Weights in half precision: values that it holds, kernels that keep their sums."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from comit.engine.rounding import round_kernels, to_bfloat16, to_float16  # noqa: E402

WEIGHT = np.random.default_rng(0).normal(0, 0.1, (8, 5, 3, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("nearest", "dtype"), [(to_float16, torch.float16), (to_bfloat16, torch.bfloat16)]
)
def test_nearest_values_are_pytorchs(nearest, dtype) -> None:
    values = np.concatenate([WEIGHT.ravel(), [0, -0.0, 1, 257, 65504, -3e-5]]).astype(np.float32)
    expected = torch.from_numpy(values).to(dtype).float().numpy()
    assert np.array_equal(nearest(values), expected)


@pytest.mark.parametrize(("nearest", "bits"), [(to_float16, 11), (to_bfloat16, 8)])
def test_kernels_keep_their_sums(nearest, bits) -> None:
    rounded = round_kernels(WEIGHT, nearest)
    assert rounded.shape == WEIGHT.shape and np.array_equal(nearest(rounded), rounded)
    kept, plain = (
        np.abs((w - WEIGHT).astype(np.float64).sum(axis=(2, 3))).max()
        for w in (rounded, nearest(WEIGHT))
    )
    assert kept < plain / 4
    assert np.abs(rounded - WEIGHT).max() < np.abs(WEIGHT).max() * 2.0 ** (1 - bits)
