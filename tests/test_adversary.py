"""The head that names the source: who it judges, and what its gradient does to the encoder."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from drawn_cohorts import cohort  # noqa: E402

from comit.model.adversary import Adversary, origins  # noqa: E402
from comit.model.network import COMiTNet, NetworkConfig  # noqa: E402


def test_images_of_other_diseases_alone_are_judged() -> None:
    images = cohort([0, 1, 1, 1], [0, 1, 0, 0], ["a", "b", "b", "a"])
    assert origins(images).tolist() == [-1, -1, 1, 0]


def test_the_head_learns_what_the_encoder_unlearns() -> None:
    torch.manual_seed(0)
    network = COMiTNet(NetworkConfig(width=1 / 64)).eval()
    here = torch.tensor([0, 1, -1])
    gradients = {}
    for strength in (-1.0, 2.0):  # -1: both learn, as without a reversal
        torch.manual_seed(1)
        network.health_branch._forward_pre_hooks.clear()
        adversary = Adversary(network, here.numpy(), strength)
        network.zero_grad()
        network(torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
        loss = adversary.loss(here)
        loss.backward()
        encoder = torch.cat([p.grad.flatten() for p in network.encoder.parameters()])
        head = torch.cat([p.grad.flatten() for p in adversary.parameters()])
        gradients[strength] = loss.item(), encoder, head
    (loss, towards, learned), (same, away, also) = gradients.values()
    assert loss == pytest.approx(same) and towards.abs().sum() > 0
    assert torch.allclose(learned, also, atol=1e-6)
    assert torch.allclose(away, -2 * towards, atol=1e-6)


def test_a_batch_without_judged_images_adds_nothing() -> None:
    network = COMiTNet(NetworkConfig(width=1 / 64)).eval()
    adversary = Adversary(network, np.array([0, 1]), 1.0)
    network(torch.rand(2, 1, 32, 32))
    assert adversary.loss(torch.tensor([-1, -1])).item() == 0
