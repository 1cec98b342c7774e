"""The network against the paper and against PyTorch's own operators."""

import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from comit.model.network import (  # noqa: E402
    BLOCKS,
    COMiTNet,
    NetworkConfig,
    load_vgg16,
    pool_positions,
    unpool,
)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return COMiTNet(NetworkConfig(width=0.125)).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("levels", [1, 3, 1000])  # 1: all values tie
def test_unpooling_is_bit_equal_to_max_unpool2d(dtype, levels):
    torch.manual_seed(levels)
    x = torch.relu(torch.randint(-levels, levels, (2, 3, 8, 12)).to(dtype))
    pooled, indices = F.max_pool2d(x.float(), 2, return_indices=True)
    values = torch.randn(pooled.shape).to(dtype)
    ours = unpool(values, pool_positions(x, pooled.to(dtype)))
    assert torch.equal(ours, F.max_unpool2d(values.float(), indices, 2).to(dtype))


def test_every_window_has_exactly_one_position():
    x = torch.relu(torch.randn(1, 2, 8, 8))
    positions = pool_positions(x, F.max_pool2d(x, 2))
    assert torch.equal(F.avg_pool2d(positions, 2), torch.full((1, 2, 4, 4), 0.25))


def test_both_unpoolings_give_the_same_outputs(small):
    x = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        one = small(x)
        small.portable_unpooling = True
        for a, b in zip(one, small(x), strict=True):
            assert torch.equal(a, b)


def test_the_papers_network_has_44_million_parameters():
    with torch.device("meta"):
        network = COMiTNet()
    count = sum(p.numel() for p in network.parameters())
    count -= sum(p.numel() for p in network.gate_branch.parameters())  # which is ours
    assert 44.4e6 < count < 44.5e6
    convolutions = [m for m in network.encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 13
    assert [c.out_channels for c in convolutions] == [c for block in BLOCKS for c in block]


def test_shapes_and_ranges(small):
    outputs = small(torch.rand(3, 1, 96, 64))
    assert outputs.lung.shape == outputs.disease.shape == (3, 2, 96, 64)
    assert outputs.health.shape == outputs.findings.shape == (3, 2)
    for probabilities in (outputs.scores(), outputs.masks()):
        assert probabilities.min() >= 0
        assert probabilities.max() <= 1
    assert outputs.scores().shape == (3, 4)
    assert outputs.masks().shape == (3, 2, 96, 64)


def test_one_channel_is_three_equal_channels_with_summed_weights():
    torch.manual_seed(0)
    weight, x = torch.randn(64, 3, 3, 3), torch.rand(2, 1, 32, 32)
    three = F.conv2d(x.expand(2, 3, 32, 32), weight, padding=1)
    one = F.conv2d(x, weight.sum(dim=1, keepdim=True), padding=1)
    assert torch.allclose(three, one, atol=1e-5)


def vgg16_bn():
    """A state dict with the names and shapes of torchvision's vgg16_bn, features alone."""
    weights, index, channels = {}, 0, 3
    for block in BLOCKS:
        for out in block:
            weights[f"features.{index}.weight"] = torch.randn(out, channels, 3, 3)
            weights[f"features.{index}.bias"] = torch.randn(out)
            for name in ("weight", "bias", "running_mean", "running_var"):
                weights[f"features.{index + 1}.{name}"] = torch.rand(out)
            index, channels = index + 3, out  # convolution, batch norm, ReLU
        index += 1  # pooling
    return weights


def test_imagenet_weights_start_the_encoder(tmp_path):
    torch.manual_seed(0)
    weights = vgg16_bn()
    save_file(weights, tmp_path / "vgg16_bn.safetensors")
    network = COMiTNet()
    load_vgg16(network, tmp_path / "vgg16_bn.safetensors")
    ours = network.state_dict()
    first = weights["features.0.weight"].sum(dim=1, keepdim=True)
    assert torch.equal(ours["encoder.0.0.0.weight"], first)
    assert torch.equal(ours["encoder.0.1.0.bias"], weights["features.3.bias"])
    assert torch.equal(ours["encoder.1.0.0.weight"], weights["features.7.weight"])
    assert torch.equal(ours["encoder.4.2.0.weight"], weights["features.40.weight"])
    assert torch.equal(ours["encoder.4.2.1.running_var"], weights["features.41.running_var"])


def test_imagenet_weights_that_do_not_fit_are_refused(tmp_path, small):
    weights = vgg16_bn()
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"width 1\.0"):
        load_vgg16(small, tmp_path / "a.pth")
    del weights["features.0.weight"]
    torch.save(weights, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="holds 12 convolutions"):
        load_vgg16(small, tmp_path / "b.pth")
