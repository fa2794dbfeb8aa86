"""Protected data weigh as they should: numbers by hand of statistics, scores and refits."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.calibration.found import Moments, Statistics
from secateur.calibration.mixing import mixed
from secateur.calibration.statistics import LABELLED, collect
from secateur.compensation import compensate_
from secateur.compensation.least_squares import Sums
from secateur.importance.protocols import needs
from secateur.importance.scoring import NAMED
from secateur.protecting import Protect, settled
from support.networks import Mlp


class Adding(nn.Module):
    """y = h1 + h2 with h = (x1, x2), without biases: axis ``first.weight:0`` of two units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(2))
            self.last.weight.copy_(torch.ones(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def seen(rows: list[list[float]], needs: str = "gram") -> Statistics:
    net = Adding()
    return collect(net, sc.trace(net, torch.zeros(1, 2)), [torch.tensor(rows)], [needs])


def test_statistics_by_hand() -> None:
    """Three general rows weigh 3, one protected row 9 then, three quarters of all."""
    both = mixed(seen([[1.0, 0.0]] * 3), seen([[0.0, 2.0]]), 0.75)
    inputs = both.inputs["last.weight", 0]
    assert inputs.rows == pytest.approx(12)
    assert inputs.total.tolist() == pytest.approx([3.0, 18.0])
    assert inputs.square.tolist() == pytest.approx([3.0, 36.0])
    assert both.grams["last.weight", 0][0].diagonal().tolist() == pytest.approx([0.25, 3.0])
    assert (both.samples, both.batches) == (4, 2)


def test_what_only_one_of_them_came_to() -> None:
    """A mean over samples counts as nothing where it is missing, one over rows is that of the other data."""
    empty = Statistics(sites={})
    gates = Statistics(sites={}, gate_square={"a": torch.tensor([4.0])}, grams={("w", 0): torch.ones(1, 1, 1)})
    assert mixed(empty, gates, 0.25).gate_square["a"].tolist() == [1.0]
    assert mixed(gates, empty, 0.25).gate_square["a"].tolist() == [3.0]
    assert mixed(gates, empty, 0.25).grams["w", 0].tolist() == [[[1.0]]]


def test_the_variance_of_a_stream_is_that_of_both_together() -> None:
    """0 and 0 beside 4 and 4, half each: mean 2, variance 4, although neither varies."""
    a, b = Moments(), Moments()
    a.add(torch.zeros(2, 1), 1)
    b.add(torch.full((2, 1), 4.0), 1)
    both = mixed(Statistics(sites={}, streams={("w", 0): a}), Statistics(sites={}, streams={("w", 0): b}), 0.5)
    assert both.streams["w", 0].variance.tolist() == [4.0]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_scores_by_hand(share: float) -> None:
    """Wanda is |w| times the root of the mean square: 1 in general of unit 1, 2 where protected of unit 2."""
    net = Adding()
    graph = sc.trace(net, torch.zeros(1, 2))
    guard = Protect(torch.tensor([[0.0, 2.0]]), share=share)
    found = sc.score(net, graph, "wanda", [torch.tensor([[1.0, 0.0]])], protect=guard)
    assert found["first.weight:0"].tolist() == pytest.approx([(1 - share) ** 0.5, 2 * share**0.5])
    if share:
        assert found.general is not None
        assert found.general["first.weight:0"].tolist() == [1.0, 0.0]
    else:
        assert found.general is None


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75])
@pytest.mark.parametrize("special", [1, 4])
def test_a_refit_by_hand(share: float, special: int) -> None:
    """Without unit 2, unit 1 has to give x1 + x2. That is x1 in general and 3 x1 where protected, so that the weight is
    (1 - share) + 3 share, however many samples either has.
    """
    net, general = Adding(), torch.tensor([[1.0, 0.0], [-1.0, 0.0]] * 8)
    guard = settled(Protect([torch.tensor([[1.0, 2.0], [-1.0, -2.0]] * special)], share=share), net, None)
    graph = sc.trace(net, torch.zeros(1, 2))
    plan = sc.plan(graph, {"first.weight:0": torch.tensor([2.0, 1.0])}, keep=0.5)
    small = plan.apply(net)
    done = compensate_(net, small, graph, plan, [general[:8], general[8:]], protect=guard)
    assert small.last.weight.item() == pytest.approx((1 - share) + 3 * share, abs=1e-3)
    assert done.samples == 16 + (2 * special if share else 0)


@pytest.mark.parametrize("share", [0.0, 0.75])
def test_a_constant_is_made_up_for_by_weight(share: float) -> None:
    """compensate="mean": the removed unit gives 0 in general and 4 where protected, so that the bias is 4 share."""
    net = Adding()
    guard = settled(Protect([torch.tensor([[1.0, 4.0]] * 6)], share=share), net, None)
    graph = sc.trace(net, torch.zeros(1, 2))
    plan = sc.plan(graph, {"first.weight:0": torch.tensor([2.0, 1.0])}, keep=0.5)
    small = plan.apply(net)
    compensate_(net, small, graph, plan, [torch.tensor([[1.0, 0.0]] * 4)], how="mean", protect=guard)
    bias = 0.0 if small.last.bias is None else small.last.bias.item()
    assert bias == pytest.approx(4 * share, abs=1e-4)


def test_sums_with_another_weight() -> None:
    sums = Sums()
    sums.add(torch.ones(4, 1, 1), torch.ones(4, 1, 1))
    assert sums.weighing(6.0).rows == 6
    assert sums.weighing(6.0).parts["xx"].tolist() == [[[6.0]]]
    assert Sums().weighing(6.0).rows == 0


@pytest.mark.parametrize("name", [name for name, make in NAMED.items() if needs(make(0))])
def test_every_criterion_on_data_hears_of_protected_data(name: str) -> None:
    torch.manual_seed(0)
    net = Mlp()
    graph = sc.trace(net, torch.zeros(1, 4))
    labelled = bool(needs(NAMED[name](0)) & LABELLED)

    def batch(seed: int) -> Any:
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(16, 4, generator=draw)
        return (x, torch.randint(2, (16,), generator=draw)) if labelled else x

    plain, some, other = (
        sc.score(net, graph, name, [batch(0)], protect=given)["0.weight:0"]
        for given in (None, Protect([batch(1)]), Protect([batch(2)]))
    )
    assert not torch.allclose(plain, some)
    assert not torch.allclose(some, other)
    same = sc.score(net, graph, name, [batch(0)], protect=Protect([batch(1)], share=0.0))["0.weight:0"]
    assert torch.equal(plain, same)
