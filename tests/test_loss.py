"""The losses against the paper's equations, written out in NumPy."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from comit.model.loss import LossConfig, Targets, losses  # noqa: E402
from comit.model.network import Outputs  # noqa: E402

PAPER = LossConfig(mean=False, disease_weight=1.0)
N, H, W = 3, 4, 5


def sample(switches=1.0):
    torch.manual_seed(0)
    outputs = Outputs(
        *(torch.randn(N, 2, H, W) for _ in range(2)), *(torch.randn(N, 2) for _ in range(3))
    )
    for tensor in outputs:
        tensor.requires_grad_()
    targets = Targets(
        lung=torch.randint(0, 2, (N, H, W)).float(),
        disease=torch.randint(0, 2, (N, H, W)).float(),
        unhealthy=torch.randint(0, 2, (N,)),
        findings=torch.randint(0, 2, (N, 2)).float(),
        chest=torch.randint(0, 2, (N,)).float(),
        switches=torch.full((N, 6), switches),
    )
    return outputs, targets


def foreground(logits):
    """Equations 1 and 4: softmax over two channels."""
    e = np.exp(logits.detach().double().numpy())
    return e[:, 1] / e.sum(axis=1)


def cross_entropy(p, y):
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


def by_hand(outputs, targets):
    """Per image, (N, 6): equations 2, 3, 5, the two terms of 7, and the gate's."""
    t = [x.double().numpy() for x in targets[:5]]
    sigmoid = 1 / (1 + np.exp(-outputs.findings.detach().double().numpy()))  # eq. 6
    return np.stack(
        [
            cross_entropy(foreground(outputs.lung), t[0]).sum(axis=(1, 2)),
            cross_entropy(foreground(outputs.disease), t[1]).sum(axis=(1, 2)),
            cross_entropy(foreground(outputs.health), t[2]),
            *cross_entropy(sigmoid, t[3]).T,
            cross_entropy(foreground(outputs.gate), t[4]),
        ],
        axis=1,
    )


def five(terms):
    """(6,) to (5,): equation 7 is the sum of COVID and other disease."""
    lung, disease, health, covid, other, gate = terms
    return [lung, disease, health, covid + other, gate]


def test_the_terms_are_the_papers_equations():
    outputs, targets = sample()
    expected = five(by_hand(outputs, targets).sum(axis=0))
    assert np.allclose(losses(outputs, targets, PAPER).detach(), expected, rtol=1e-5)


def test_equation_8_counts_only_images_whose_label_is_known():
    outputs, targets = sample()
    switches = torch.tensor([[1.0, 0, 1, 0, 1, 0], [0, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 1]])
    expected = five((by_hand(outputs, targets) * switches.numpy()).sum(axis=0))
    got = losses(outputs, targets._replace(switches=switches), PAPER)
    assert np.allclose(got.detach(), expected, rtol=1e-5)


def test_the_default_averages_over_pixels_and_over_labelled_images_and_weights_disease():
    outputs, targets = sample()
    switches = torch.tensor([[1.0, 1, 1, 1, 1, 1], [0, 1, 0, 1, 0, 1], [1, 0, 0, 1, 1, 0]])
    expected = by_hand(outputs, targets)
    weight = np.where(targets.disease.numpy() > 0, 4.0, 1.0)
    pixels = cross_entropy(foreground(outputs.disease), targets.disease.double().numpy())
    expected[:, 1] = (weight * pixels).sum(axis=(1, 2))
    expected[:, :2] /= H * W
    expected = five((expected * switches.numpy()).sum(axis=0) / switches.numpy().sum(axis=0))
    got = losses(outputs, targets._replace(switches=switches))
    assert np.allclose(got.detach(), expected, rtol=1e-5)


def test_a_switch_above_zero_is_the_weight_of_its_term():
    outputs, targets = sample()
    switches = torch.tensor([[1.0, 1, 0.5, 0, 0, 1], [1, 1, 2, 3, 3, 1], [1, 1, 1, 0.25, 1, 1]])
    expected = (by_hand(outputs, targets) * switches.numpy()).sum(axis=0) / [3, 3, 3, 2, 2, 3]
    expected = five(expected)[2:]
    got = losses(outputs, targets._replace(switches=switches))[2:]
    assert np.allclose(got.detach(), expected, rtol=1e-5)


def test_masks_may_weigh_more_than_classes():
    outputs, targets = sample()
    plain, heavy = losses(outputs, targets), losses(outputs, targets, LossConfig(mask_weight=10))
    assert torch.allclose(heavy / plain, torch.tensor([10.0, 10, 1, 1, 1]))


@pytest.mark.parametrize("config", [PAPER, LossConfig()])
@pytest.mark.parametrize("task", range(5))
def test_a_task_switched_off_has_no_gradient(task, config):
    outputs, targets = sample()
    targets.switches[:, [[0], [1], [2], [3, 4], [5]][task]] = 0
    losses(outputs, targets, config).sum().backward()
    reached = [bool(x.grad.abs().sum() > 0) for x in outputs]
    assert reached == [i != task for i in range(5)]


def test_filler_of_an_unknown_label_does_not_leak():
    outputs, targets = sample()
    targets.switches[0] = 0
    expected = losses(outputs, targets)
    for label in (targets.lung, targets.disease, targets.findings):
        label[0] = float("nan")
    targets.unhealthy[0] = targets.chest[0] = -1
    total = losses(outputs, targets)
    total.sum().backward()
    assert torch.equal(total, expected)
    for tensor in outputs:
        assert torch.equal(tensor.grad[0], torch.zeros_like(tensor.grad[0]))
        assert tensor.grad[1:].abs().sum() > 0


def test_no_labels_at_all_is_zero():
    outputs, targets = sample(switches=0.0)
    assert losses(outputs, targets).tolist() == [0, 0, 0, 0, 0]


def test_covid_may_be_known_where_other_disease_is_not():
    outputs, targets = sample()
    targets.switches[:, 4] = 0
    losses(outputs, targets).sum().backward()
    assert (outputs.findings.grad[:, 0] != 0).all() and not outputs.findings.grad[:, 1].any()


def test_where_an_outline_says_nothing_the_lungs_learn_nothing():
    outputs, targets = sample()
    ignore = torch.zeros(N, H, W)
    ignore[:, 1:3] = 1
    losses(outputs, targets._replace(ignore=ignore), LossConfig(overlap=1.0)).sum().backward()
    assert not outputs.lung.grad[:, :, 1:3].any()
    assert (outputs.lung.grad[:, :, [0, 3]] != 0).all() and (outputs.disease.grad != 0).all()


def test_overlap_adds_one_minus_the_soft_dice_of_masks_that_are_not_empty():
    outputs, targets = sample()
    targets.disease[0] = 0
    plain, with_overlap = (losses(outputs, targets, LossConfig(overlap=w)) for w in (0.0, 0.5))
    p, d = foreground(outputs.disease)[1:], targets.disease.double().numpy()[1:]
    hit = 2 * (p * d).sum(axis=(1, 2)) / (p.sum(axis=(1, 2)) + d.sum(axis=(1, 2)))
    added = float((with_overlap - plain)[1].detach())
    assert added == pytest.approx(0.5 * (1 - hit).sum() / N, rel=1e-4)
