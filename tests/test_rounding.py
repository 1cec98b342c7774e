"""Weights in half precision: values that it holds, kernels that keep their sums."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from comit.rounding import round_kernels, to_bfloat16, to_float16  # noqa: E402

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


def test_openvinos_convolutions_are_rounded_with_the_norm_behind_them():
    """Other operations read a convolution's result too, in an order that no process shares."""
    pytest.importorskip("openvino")
    from comit.card import BUNDLED, open_model
    from comit.engine.openvino import _round_weights, import_openvino

    network = import_openvino().Core().read_model(model=open_model(BUNDLED)[1], weights=b"")
    _round_weights(network)
    norms = [n for n in network.get_ops() if n.get_type_name() == "BatchNormInference"]
    assert len(norms) > 30
    for norm in norms:
        conv = norm.input_value(0).get_node().input_value(0).get_node()
        gamma, variance = (norm.input_value(i).get_node().data for i in (1, 4))
        weight = conv.input_value(1).get_node().data.reshape(len(gamma), -1)
        folded = weight * (gamma / np.sqrt(variance + norm.get_attributes()["epsilon"]))[:, None]
        assert np.allclose(folded, to_bfloat16(folded), rtol=1e-6, atol=0), conv.get_friendly_name()
