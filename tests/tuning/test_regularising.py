import copy
import math

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import PlanError, TrainingError
from secateur.tuning.regularising import GroupProximal
from secateur.tuning.units import planner, slices
from support.networks import Attention, Cnn, Grouped, Mlp, Residual, Tied, example
from support.runs import Running, still


def two_units() -> nn.Sequential:
    """Units of 3 weights: (3, 0, 4) and (0, 0, 1), whose root mean squares are 5 / sqrt(3) and 1 / sqrt(3)."""
    model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 2, bias=False))
    model[1] = nn.Linear(2, 1)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0], [0.0]])), model[0].bias.copy_(torch.tensor([0.0, 0.0]))
        model[1].weight.copy_(torch.tensor([[4.0, 1.0]])), model[1].bias.fill_(7)
    return model


def graph_of(model: nn.Module) -> sc.Graph:
    return sc.trace(model, example(model) if type(model).__name__ != "Sequential" else torch.zeros(1, 1))


def sgd(model: nn.Module, lr: float = 0.1, **settings) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, **settings)


# by hand


def test_the_lasso_step_by_hand():
    """Factors 1 - lr strength / rms: 1 - 0.1 * 10 * sqrt(3) / 5, and less than 0 for the second unit."""
    model = two_units()
    Running(model, sgd(model), 1).go([GroupProximal(graph_of(model), strength=10)], still)
    left = 1 - math.sqrt(3) / 5
    assert model[0].weight.flatten().tolist() == pytest.approx([3 * left, 0])
    assert model[1].weight.flatten().tolist() == pytest.approx([4 * left, 0])
    assert model[1].bias.item() == 7


def test_the_l2_step_by_hand_with_momentum():
    """1 / (1 + lr / (1 - 0.9) * strength) = 1 / 3."""
    model = two_units()
    Running(model, sgd(model, momentum=0.9), 1).go([GroupProximal(graph_of(model), strength=2, penalty="l2")], still)
    assert model[0].weight.flatten().tolist() == pytest.approx([1, 0])
    assert model[1].weight.flatten().tolist() == pytest.approx([4 / 3, 1 / 3])


def test_the_strength_grows_and_meets_units_that_go_alone():
    """Wang et al.: 0, 0, 1, 1 and a ceiling of 1.5; the rate is that of the step, whatever a schedule does after it."""
    model = two_units()
    graph = graph_of(model)
    plan = sc.plan(graph, {"0.weight:0": torch.tensor([1.0, 2.0])}, keep=0.5)  # the first unit goes
    growing = GroupProximal(graph, strength=0, growth=1, every=2, ceiling=1.5, penalty="l2", going=plan)
    assert [growing.strength_at(k) for k in range(6)] == [0, 0, 1, 1, 1.5, 1.5]
    Running(model, sgd(model), 4).go([growing], still, decay=0.5)
    left = 1 / (1 + 0.025) / (1 + 0.0125)
    assert model[0].weight.flatten().tolist() == pytest.approx([3 * left, 0])
    assert model[1].weight.flatten().tolist() == pytest.approx([4 * left, 1])


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_the_minimum_is_that_of_the_group_lasso(settings):
    """min |w - t|^2 / 2 + strength sqrt(3) |w|: t (1 - strength sqrt(3) / |t|), zero below; momentum or not."""
    model = two_units()
    target = {n: p.detach().clone() for n, p in model.named_parameters()}

    def loss(net: nn.Module) -> torch.Tensor:
        return sum((p - target[n]).square().sum() / 2 for n, p in net.named_parameters())

    for p in model.parameters():
        p.data.add_(torch.randn_like(p))
    prox = GroupProximal(graph_of(model), strength=0.6)
    Running(model, sgd(model, lr=0.02, **settings), 1500).go([prox], loss)
    left = 1 - 0.6 * math.sqrt(3) / 5
    assert model[0].weight.flatten().tolist() == pytest.approx([3 * left, 0], abs=1e-3)
    assert model[1].weight.flatten().tolist() == pytest.approx([4 * left, 0], abs=1e-3)
    assert prox.rms()["0.weight:0"][1] == 0


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD])
def test_units_become_zero_and_surgery_takes_them(kind):
    """Half of the hidden units are of no use to the targets: they go first, and exactly."""
    model = Mlp()
    x = torch.randn(64, 4)
    with torch.no_grad():
        wanted = copy.deepcopy(model)
        wanted[2].weight[:, 4:] = 0
        y = 5 * wanted(x)
    graph = graph_of(model)
    prox = GroupProximal(graph, strength=0.005 if kind is torch.optim.SGD else 0.3)
    lr = 0.1 if kind is torch.optim.SGD else 0.01
    Running(model, kind(model.parameters(), lr=lr), 1200).go([prox], lambda m: (m(x) - y).square().mean())
    rms = prox.rms()
    empty = int((rms["0.weight:0"] == 0).sum())
    assert 1 <= empty < 8
    small = sc.plan(graph, rms, keep=(8 - empty) / 8).apply(model)
    assert torch.allclose(small(x), model(x), atol=1e-6)


# what a unit's weights are


@pytest.mark.parametrize("kind", [Mlp, Cnn, Residual, Grouped, Attention, Tied], ids=lambda k: k.__name__)
def test_slices_agree_with_the_members_that_criteria_see(kind):
    from secateur.importance.members import members

    model = kind()
    graph = graph_of(model)
    for axis, own in slices(model, graph, graph.axes).items():
        seen = list(members(model, graph, axis))
        wanted = sum(m.weight.double().square().sum(1) for m in seen)
        assert torch.allclose(sum(s.squares().double() for s in own), wanted, rtol=1e-5)
        assert sum(s.numbers for s in own) == sum(m.weight.shape[1] for m in seen)


@pytest.mark.parametrize("kind", [Cnn, Residual, Grouped, Attention, Tied], ids=lambda k: k.__name__)
def test_scaling_a_unit_by_zero_is_silencing_it(kind):
    model = kind()
    graph = graph_of(model)
    axis = next(iter(graph.axes))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    factors = torch.ones(graph.axes[axis].size)
    factors[1] = 0
    for member in slices(model, graph, [axis])[axis]:
        member.scale_(factors)
    squares = sum(s.squares() for s in slices(model, graph, [axis])[axis])
    assert squares[1] == 0
    assert (squares[[0, 2]] > 0).all()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed <= {n for n, _ in graph.axes[axis].members}


# settings


def test_only_and_ignore_and_frozen_parameters():
    model = Residual()
    graph = graph_of(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.blocks[0][1].requires_grad_(False)
    prox = GroupProximal(graph, strength=0.1, only=["blocks.0.0.weight:0"])
    Running(model, sgd(model), 1).go([prox], still)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert "blocks.0.0.weight" in changed
    assert not any(n.startswith(("blocks.0.1", "blocks.1.0", "blocks.1.1")) for n in changed)


def test_a_planner_chooses_once_and_checkpoints_keep_its_choice():
    model = Cnn()
    graph = graph_of(model)
    prox = GroupProximal(graph, growth=1e-3, penalty="l2", going=planner(graph, "l2", budget=sc.Budget(params=0.5)))
    Running(model, sgd(model), 1).go([prox], still)
    assert prox.plan is not None
    again = GroupProximal(graph, penalty="l2", going=planner(graph, "random", keep=0.25))
    again.load_state_dict(prox.state_dict())
    again.on_start(Running(model, sgd(model), 1))
    assert again.plan == prox.plan


def test_errors_say_what_to_do():
    graph = graph_of(Cnn())
    with pytest.raises(TrainingError, match="strength=-1 must be at least 0; every=0 must be at least 1; penalty='l1'"):
        GroupProximal(graph, strength=-1, every=0, penalty="l1")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="name no axis"):
        GroupProximal(graph, only=["nothing"])
    model = Mlp()
    with pytest.raises(TrainingError, match="are no plain parameters of this Mlp"):
        GroupProximal(graph).on_start(Running(model, sgd(model), 1))
