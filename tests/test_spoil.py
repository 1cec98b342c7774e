"""What the gate must reject is made as often as asked, and is no chest any more."""

import pytest

torch = pytest.importorskip("torch")

from comit.model.spoil import KINDS, draw, spoil  # noqa: E402


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n):
    """A bright square in the upper left corner of a dark ramp: no turn of it is itself."""
    images = torch.linspace(0, 0.5, 64).repeat(n, 1, 64, 1)
    images[:, :, 4:20, 4:20] = 1.0
    return images


def test_a_share_is_spoilt_the_rest_is_left_and_the_seed_decides():
    images, drawings = pictures(400), draw(0, 8)[:, ::4, ::4][:, :56, :56]
    drawings = torch.nn.functional.pad(drawings, (4, 4, 4, 4))
    made, spoilt = spoil(images, 0.25, drawings, seeded())
    assert 0.18 < spoilt.float().mean() < 0.32
    assert torch.equal(made[~spoilt], images[~spoilt])
    assert ((made[spoilt] - images[spoilt]).abs().amax(dim=(1, 2, 3)) > 0.1).all()
    assert made.min() >= 0 and made.max() <= 1
    again = spoil(images, 0.25, drawings, seeded())
    assert torch.equal(made, again[0]) and torch.equal(spoilt, again[1])
    assert not spoil(images, 0.0, drawings, seeded())[1].any()


def test_negatives_and_turns_are_among_them():
    images = pictures(600)
    made, spoilt = spoil(images, 1.0, draw(0, 2)[:, :64, :64], seeded())
    assert spoilt.all()
    one = images[0, 0]
    wanted = [1 - one, one.flip(0), *(torch.rot90(one, k, (0, 1)) for k in (1, 2, 3))]
    counts = [int((made[:, 0] == w).all(dim=(1, 2)).sum()) for w in wanted]
    assert min(counts) > 600 / len(KINDS) / 6


def test_drawings_differ_and_the_seed_decides():
    drawings = draw(3, 12)
    assert drawings.shape == (12, 224, 224) and drawings.min() >= 0 and drawings.max() <= 1
    assert torch.equal(drawings, draw(3, 12)) and not torch.equal(drawings, draw(4, 12))
    assert len({d.numpy().tobytes() for d in drawings}) == 12
