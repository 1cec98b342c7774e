"""Grad-CAM against its definition, with gradients taken through the whole network by a hook."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from comit.model.gradcam import gradcam  # noqa: E402
from comit.model.network import COMiTNet, NetworkConfig  # noqa: E402


@pytest.fixture(scope="module")
def network() -> COMiTNet:
    torch.manual_seed(1)
    made = COMiTNet(NetworkConfig(width=1 / 64, mean=0.5, std=0.3)).train()
    with torch.no_grad():
        for _ in range(3):
            made(torch.rand(4, 1, 224, 224))  # batch norm's statistics
        for branch in (made.health_branch, made.findings_branch):
            for parameter in branch.parameters():
                parameter.normal_(0.1, 0.5)
    return made.eval()


def by_definition(network, image, score):
    held = {}
    handle = network.encoder[-1].register_forward_hook(lambda m, i, o: held.update(a=o))
    value = score(network(image))
    handle.remove()
    gradient = torch.autograd.grad(value, held["a"])[0][0]  # (C, 14, 14)
    alpha = gradient.sum(dim=(1, 2)) / gradient[0].numel()  # equation 1, Z = 196
    cam = sum(a * plane for a, plane in zip(alpha, held["a"][0], strict=True)).clamp(min=0)
    large = torch.nn.functional.interpolate(cam[None, None], (224, 224), mode="bilinear")[0, 0]
    return (large / large.max() if large.max() > 0 else large).detach().numpy()


@pytest.mark.parametrize(
    ("task", "score"),
    [
        ("unhealthy", lambda out: out.health[0, 1] - out.health[0, 0]),
        ("covid", lambda out: out.findings[0, 0]),
    ],
)
def test_maps_are_those_of_the_definition(network, task, score):
    images = torch.rand(3, 1, 224, 224)
    maps = gradcam(network, images, task)
    assert maps.shape == (3, 224, 224) and maps.dtype == np.float32
    assert maps.min() >= 0 and maps.max() <= 1
    for i in range(3):
        expected = by_definition(network, images[i : i + 1], score)
        assert np.allclose(maps[i], expected, atol=1e-4)


def test_the_two_tasks_look_at_different_places(network):
    images = torch.rand(2, 1, 224, 224)
    assert not np.allclose(gradcam(network, images, "unhealthy"), gradcam(network, images, "covid"))


def test_a_score_that_nothing_raises_has_an_empty_map(network):
    last = network.findings_branch[-1]
    before = last.weight.detach().clone()
    with torch.no_grad():
        last.weight.zero_()
    assert not gradcam(network, torch.rand(1, 1, 224, 224), "covid").any()
    with torch.no_grad():
        last.weight.copy_(before)


def test_the_mode_and_the_gradients_of_the_network_stay_as_they_were(network):
    network.train()
    statistics = network.encoder[0][0][1].running_mean.clone()
    gradcam(network, torch.rand(2, 1, 224, 224), "covid")
    assert network.training
    assert torch.equal(network.encoder[0][0][1].running_mean, statistics)
    assert all(p.grad is None for p in network.parameters())
    network.eval()


def test_no_images_give_no_maps_and_unknown_tasks_are_refused(network):
    assert gradcam(network, torch.zeros(0, 1, 224, 224), "covid").shape == (0, 224, 224)
    with pytest.raises(ValueError, match="unhealthy or covid"):
        gradcam(network, torch.zeros(1, 1, 224, 224), "other")
