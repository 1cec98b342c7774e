"""Mixup across sources: who is mixed with whom, and what becomes of their labels."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from drawn_cohorts import cohort  # noqa: E402

from comit.errors import UsageError  # noqa: E402
from comit.model.loss import Targets, losses  # noqa: E402
from comit.model.mix import Partners, mixed  # noqa: E402
from comit.model.network import COMiTNet, NetworkConfig  # noqa: E402
from comit.model.recipe import TrainConfig  # noqa: E402


def test_partners_share_the_label_or_the_source_never_both() -> None:
    images = cohort([0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1], ["a", "b", "a", "b", "b", "b"])
    partners = Partners(images, 2.0)
    met: dict[int, set[int]] = {}
    for seed in range(100):
        for i, j in enumerate(partners.draw(np.arange(6), seed)[0].tolist()):
            met.setdefault(i, set()).add(j)
    assert met == {
        0: {1, 2},  # healthy in b; sick in a
        1: {0, 3, 4, 5},
        2: {3, 0},
        3: {2, 1, 4, 5},
        4: {1, 3},  # COVID-19 has one source: other labels in it
        5: {1, 3},
    }


def test_an_image_that_nothing_fits_stays_as_it_is() -> None:
    partners, _ = Partners(cohort([1, 1], [0, 0], ["a", "a"]), 2.0).draw(np.arange(2), 0)
    assert partners.tolist() == [0, 1]


def test_shares_follow_beta_and_the_seed() -> None:
    images = cohort([0, 1], [0, 0], ["a", "a"])
    many = np.zeros(20_000, np.int64)
    partners, shares = Partners(images, 2.0).draw(many, 3)
    again = Partners(images, 2.0).draw(many, 3)
    assert torch.equal(partners, again[0]) and torch.equal(shares, again[1])
    assert float(shares.mean()) == pytest.approx(1 / 2, abs=0.01)
    assert float(shares.var()) == pytest.approx(1 / 20, abs=0.002)  # of Beta(2, 2)


def targets(n: int, seed: int, switches: list[list[float]]) -> Targets:
    numbers = torch.Generator().manual_seed(seed)
    return Targets(
        lung=torch.rand(n, 32, 32, generator=numbers),
        disease=torch.rand(n, 32, 32, generator=numbers),
        unhealthy=torch.rand(n, generator=numbers),
        findings=torch.rand(n, 2, generator=numbers),
        chest=torch.rand(n, generator=numbers),
        switches=torch.tensor(switches),
        taught=torch.tensor([[True, False]] * n),
    )


def test_images_masks_and_labels_are_mixed_alike_and_unknown_stays_unknown() -> None:
    first, second = torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32)
    ours = targets(2, 0, [[1, 1, 2, 0, 1, 1], [1] * 6])
    theirs = targets(2, 1, [[1, 0, 1, 1, 1, 1], [1] * 6])._replace(
        taught=torch.tensor([[False, False], [True, True]])
    )
    share = torch.tensor([0.25, 1.0])
    images, both = mixed((first, second), (ours, theirs), share)
    assert torch.allclose(images[0], 0.25 * first[0] + 0.75 * second[0])
    assert torch.equal(images[1], first[1])
    for name in ("lung", "disease", "unhealthy", "findings", "chest"):
        a, b, c = (getattr(t, name) for t in (ours, theirs, both))
        assert torch.allclose(c[0], 0.25 * a[0] + 0.75 * b[0]) and torch.equal(c[1], a[1])
    assert both.switches.tolist() == [[1, 0, 1.25, 0, 1, 1], [1] * 6]
    assert both.taught is not None
    assert both.taught.tolist() == [[True, False], [True, True]]


def test_the_loss_of_mixed_labels_is_the_mixture_of_the_losses() -> None:
    # Cross entropy is linear in the label, so for equal weights the two ways agree.
    torch.manual_seed(0)
    outputs = COMiTNet(NetworkConfig(width=1 / 64)).eval()(torch.rand(1, 1, 32, 32))
    ours, theirs = targets(1, 0, [[1] * 6]), targets(1, 1, [[1] * 6])
    _, both = mixed((torch.zeros(1), torch.zeros(1)), (ours, theirs), torch.tensor([0.3]))
    expected = 0.3 * losses(outputs, ours) + 0.7 * losses(outputs, theirs)
    assert torch.allclose(losses(outputs, both), expected, atol=1e-6)


def test_mixing_beside_an_adversary_is_refused() -> None:
    with pytest.raises(UsageError, match="--mix or --adversary"):
        TrainConfig(mix=2.0, adversary=1.0)
