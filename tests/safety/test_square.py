"""The square attack: schedule, moves and results."""

import pytest
import torch
from torch import nn

from secateur.safety.square import repaint, share, side, square, stripes
from secateur.safety.square_l2 import move_energy, pyramids, tiles
from secateur.safety.threat import Threat, lengths


def test_schedule_by_hand() -> None:
    halvings = {1: 0, 10: 0, 11: 1, 51: 2, 201: 3, 501: 4, 1001: 5, 2001: 6, 4001: 7, 6001: 8, 8001: 9}
    for query, times in halvings.items():
        assert share(query, 10_000) == 0.8 / 2**times
    assert share(2, 1000) == 0.4  # query 2 of 1,000 is where query 20 of 10,000 is
    assert side(0.8, 32, 32) == 29  # sqrt(0.8 * 1024) = 28.6
    assert side(0.8, 4, 32) == 4


def test_stripes_and_squares_lie_on_faces_of_the_ball() -> None:
    threat, pixels = Threat(eps=0.1), torch.full((5, 3, 8, 8), 0.5)
    begun = stripes(pixels, threat, torch.Generator().manual_seed(0))
    torch.testing.assert_close((begun - pixels).abs(), torch.full_like(pixels, 0.1))
    assert torch.equal(begun[:, :, :1].expand_as(begun), begun)  # whole columns
    assert len(begun[0, 0, 0].unique()) == 2
    moved = repaint(begun, pixels, threat, 0.25, torch.Generator().manual_seed(3))
    torch.testing.assert_close((moved - pixels).abs(), torch.full_like(pixels, 0.1))
    changed = (moved != begun).any(1).any(0)
    rows, columns = changed.any(1).sum(), changed.any(0).sum()
    assert rows <= 4
    assert columns <= 4
    assert changed.any()


def test_pyramids_by_hand() -> None:
    # the upper half of 2 rows: a bump about row 1, column 1; the lower one its like, turned down
    shape = pyramids(3)
    assert shape.norm().item() == pytest.approx(1)
    assert (shape[0] > 0).all()
    assert (shape[1:] < 0).all()
    upper = torch.tensor([0.25, 1.25, 0.25])
    torch.testing.assert_close(shape[0] / shape[0, 1], upper / 1.25)


def test_l2_moves_keep_the_length() -> None:
    threat, pixels = Threat(eps=0.5, norm="l2"), torch.full((4, 3, 10, 10), 0.5)
    generator = torch.Generator().manual_seed(0)
    points = tiles(pixels, threat, generator)
    for _ in range(5):
        torch.testing.assert_close(lengths(points - pixels).flatten(), torch.full((4,), 0.5))
        before, points = points, move_energy(points, pixels, threat, 0.1, generator)
        assert not torch.equal(before, points)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 2, 5), (1, 28, 28)])
def test_stays_in_the_ball_and_the_bounds(norm: str, shape: tuple[int, ...]) -> None:
    pixels = torch.rand(4, *shape)
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels[0].numel(), 3))
    labels = model(pixels).argmax(1)
    threat = Threat(eps=0.2, norm=norm)  # pyright: ignore
    found = square(model, pixels, labels, threat, queries=20)
    moved = found - pixels
    assert (moved.abs().amax() if norm == "linf" else lengths(moved).amax()) <= 0.2 + 1e-5
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_breaks_a_linear_network_without_a_gradient(norm: str) -> None:
    """The network's scores are cut from the graph; the best change is known."""
    weight = torch.randn(3 * 8 * 8, generator=torch.Generator().manual_seed(1))

    def scores(inputs: torch.Tensor) -> torch.Tensor:
        assert not inputs.requires_grad
        height = (inputs - 0.5).flatten(1) @ weight
        return torch.stack([0 * height + reach * share_of_it, height], 1)

    eps = 0.05
    share_of_it = 0.5 if norm == "linf" else 0.4
    reach = eps * (weight.abs().sum() if norm == "linf" else weight.norm())  # the most that any change can do
    pixels, labels = torch.full((6, 3, 8, 8), 0.5), torch.zeros(6, dtype=torch.long)
    threat = Threat(eps=eps, norm=norm)  # pyright: ignore
    assert (scores(pixels).argmax(1) == labels).all()
    found = square(scores, pixels, labels, threat, queries=1500, generator=torch.Generator().manual_seed(0))
    assert (scores(found).argmax(1) != labels).float().mean() >= 0.8
    few = square(scores, pixels, labels, threat, queries=3, generator=torch.Generator().manual_seed(0))
    assert (scores(few).argmax(1) == labels).all()
