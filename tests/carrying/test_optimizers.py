"""Optimizers go on with the smaller model as if nothing had happened."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import RemapError
from support.networks import Attention, Cnn, LiteralNet, Mlp, Scaled, Tied, example

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw, fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "adamw, foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, centered=True, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "rprop": lambda p: torch.optim.Rprop(p, 0.001),
    "asgd": lambda p: torch.optim.ASGD(p, 0.01),
}
INPUTS = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
TARGETS = torch.randn(16, 2, generator=torch.Generator().manual_seed(2))


def with_dead_units() -> Mlp:
    """Every other hidden unit is dead: no weight leads to it or away from it, so that it never gets a gradient."""
    net = Mlp()
    with torch.no_grad():
        for tensor in (net[0].weight[::2], net[0].bias[::2], net[2].weight[:, ::2]):
            tensor.zero_()
    return net


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(INPUTS), TARGETS)
        loss.backward()
        return loss

    loss: Any = optimizer.step(closure)  # type: ignore[arg-type]
    return loss.item()


# ---------------------------------------------------------------------- the curve goes on


@pytest.mark.parametrize("maker", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_without_dead_units_training_goes_on_as_with_them(maker: Any) -> None:
    """Removing what has no part in anything may not change a single loss that follows."""
    net = with_dead_units()
    other = copy.deepcopy(net)
    optimizer, undisturbed = maker(net.parameters()), maker(other.parameters())
    for _ in range(5):
        assert step(net, optimizer) == step(other, undisturbed)
    result = sc.prune(net, INPUTS, keep=0.5)
    result.remap_(optimizer)
    losses = [step(result.model, optimizer) for _ in range(5)]
    assert result.model[0].weight.shape == (4, 4)
    assert losses == pytest.approx([step(other, undisturbed) for _ in range(5)], rel=1e-5)


def test_adam_by_hand() -> None:
    """One weight of gradients 1, then 0.1. Adam's first step is lr whatever the gradient; its second is
    lr (m / 0.19) / sqrt(v / 0.001999) with m = 0.9 * 0.1 + 0.1 * 0.1 = 0.1 and v = 0.999 * 0.001 + 0.001 * 0.01
    = 0.001009, which is 0.7408 lr. With fresh state it is lr again: the jump.
    """
    net = Mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    give(net, 1.0)
    optimizer.step()
    result = sc.prune(net, INPUTS, keep=0.5)
    plain, fresh = copy.deepcopy(result.model), torch.optim.Adam
    before = result.model[0].weight.detach().clone()
    assert result.remap_(optimizer) is optimizer
    for model, one in ((result.model, optimizer), (plain, fresh(plain.parameters(), lr=1e-3))):
        give(model, 0.1)
        one.step()
    torch.testing.assert_close(before - result.model[0].weight, torch.full((4, 4), 0.7408e-3), rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(before - plain[0].weight, torch.full((4, 4), 1e-3), rtol=1e-3, atol=1e-7)


def give(model: nn.Module, gradient: float) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)


def test_moments_are_those_of_the_units_that_stay_and_the_step_counts_on() -> None:
    net = Mlp()
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99))
    net[0].weight.grad = torch.arange(32.0).reshape(8, 4)
    net[2].weight.grad = torch.arange(16.0).reshape(2, 8)
    optimizer.step()
    result = sc.prune(net, INPUTS, keep=0.5)
    rows = result.plan.units["0.weight:0"]
    result.remap_(optimizer)
    first, second = optimizer.state[result.model[0].weight], optimizer.state[result.model[2].weight]
    torch.testing.assert_close(first["exp_avg"], 0.1 * torch.arange(32.0).reshape(8, 4)[rows])
    torch.testing.assert_close(first["exp_avg_sq"], 0.01 * torch.arange(32.0).reshape(8, 4)[rows] ** 2)
    torch.testing.assert_close(second["exp_avg"], 0.1 * torch.arange(16.0).reshape(2, 8)[:, rows])
    assert first["step"] == second["step"] == 1
    assert len(optimizer.state) == 2  # the biases had no gradient yet


# ---------------------------------------------------------------------- groups, schedules, scalers


def test_groups_settings_schedules_and_other_parameters_stay() -> None:
    net, other = Mlp(), nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(
        [
            {"params": [net[0].weight, *other.parameters()], "lr": 0.1, "weight_decay": 0.5},
            {"params": [net[2].weight, net[0].bias, net[2].bias], "lr": 0.01},
        ]
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(3):
        step(net, optimizer)
        schedule.step()
    groups, lists = list(optimizer.param_groups), [g["params"] for g in optimizer.param_groups]
    result = sc.prune(net, INPUTS, keep=0.5)
    result.remap_(optimizer)
    model = result.model
    assert [id(g) for g in optimizer.param_groups] == [id(g) for g in groups]
    assert [id(g["params"]) for g in optimizer.param_groups] == [id(given) for given in lists]
    expected = [[model[0].weight, *other.parameters()], [model[2].weight, model[0].bias, model[2].bias]]
    assert [list(map(id, g["params"])) for g in groups] == [list(map(id, some)) for some in expected]
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.05, 0.5), (0.005, 0.01)]
    scaler.scale(F.mse_loss(model(INPUTS), TARGETS)).backward()
    scaler.step(optimizer)
    schedule.step()
    assert schedule.last_epoch == 4
    assert schedule.get_last_lr() == [0.025, 0.0025]
    assert optimizer.state[model[0].weight]["step"] == 4


def test_names_of_parameters_stay_beside_them() -> None:
    net = Mlp()
    optimizer = torch.optim.SGD(net.named_parameters(), 0.1, momentum=0.9)
    step(net, optimizer)
    optimizer = sc.prune(net, INPUTS, keep=0.5).remap_(optimizer)
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("maker", [OPTIMIZERS["adam"], OPTIMIZERS["adagrad"]])
def test_a_bias_that_compensation_creates_joins_its_weight(maker: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2, bias=False))
    optimizer = maker([{"params": net[0].named_parameters(), "lr": 0.5}, {"params": net[2].named_parameters()}])
    step(net, optimizer)
    result = sc.prune(net, INPUTS, keep=0.5, data=[INPUTS], compensate="mean")
    assert result.plan.biases == ("2.bias",)
    result.remap_(optimizer)
    group = optimizer.param_groups[1]
    assert list(map(id, group["params"])) == [id(result.model[2].weight), id(result.model[2].bias)]
    assert group["param_names"] == ["weight", "bias"]
    step(result.model, optimizer)
    assert optimizer.state[result.model[2].bias]["step"] == 1
    assert optimizer.state[result.model[2].weight]["step"] == 2


@pytest.mark.parametrize("build", [Cnn, Attention, Tied, LiteralNet])
def test_other_networks_go_on_training(build: Callable[[], nn.Module]) -> None:
    """Tied weights, and a class that was replaced by its graph, included."""
    model = build()
    inputs = example(model)
    optimizer = torch.optim.Adam(model.parameters())
    model(inputs).square().mean().backward()
    optimizer.step()
    result = sc.prune(model, inputs, keep=0.5)
    optimizer = result.remap_(optimizer)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in result.model.parameters()}
    for parameter in result.model.parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
    result.model(inputs).square().mean().backward()
    optimizer.step()


def test_parameters_that_the_smaller_model_has_no_more_leave() -> None:
    """A graph has those only that its calls use."""
    model = LiteralNet()
    model.unused = nn.Linear(3, 3)
    inputs = example(model)
    optimizer = torch.optim.SGD(model.named_parameters(), 0.1)
    result = sc.prune(model, inputs, keep=0.5)
    assert result.rewritten
    result.remap_(optimizer)
    group = optimizer.param_groups[0]
    assert {id(p) for p in group["params"]} == {id(p) for p in result.model.parameters()}
    assert group["param_names"] == [name for name, _ in model.named_parameters() if not name.startswith("unused")]


def test_a_second_pruning_carries_on_from_the_first() -> None:
    net = Mlp()
    optimizer = torch.optim.Adam(net.parameters())
    step(net, optimizer)
    first = sc.prune(net, INPUTS, keep=0.5)
    first.remap_(optimizer)
    step(first.model, optimizer)
    second = sc.prune(first.model, INPUTS, keep=0.5)
    second.remap_(optimizer)
    step(second.model, optimizer)
    assert optimizer.state[second.model[0].weight]["exp_avg"].shape == (2, 4)
    assert optimizer.state[second.model[0].weight]["step"] == 3


def test_gradients_that_no_step_has_used_come_along() -> None:
    net = Mlp()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    F.mse_loss(net(INPUTS), TARGETS).backward()
    result = sc.prune(net, INPUTS, keep=0.5)
    result.remap_(optimizer)
    rows = result.plan.units["0.weight:0"]
    assert net[0].weight.grad is not None
    assert torch.equal(result.model[0].weight.grad, net[0].weight.grad[rows])


# ---------------------------------------------------------------------- in place


def test_in_place_by_the_plan_alone() -> None:
    net = with_dead_units()
    other = copy.deepcopy(net)
    optimizer, undisturbed = OPTIMIZERS["adam"](net.parameters()), OPTIMIZERS["adam"](other.parameters())
    for _ in range(3):
        assert step(net, optimizer) == step(other, undisturbed)
    graph = sc.trace(net, INPUTS)
    plan = sc.plan(graph, sc.score(net, graph), keep=0.5)
    old = dict(net.named_parameters())
    plan.apply_(net)
    assert plan.remap_(optimizer, old, net) is optimizer
    assert [step(net, optimizer) for _ in range(3)] == pytest.approx([step(other, undisturbed) for _ in range(3)])


def test_the_result_in_the_place_of_the_dense_model() -> None:
    net = Mlp()
    optimizer, average = torch.optim.Adam(net.parameters()), torch.optim.swa_utils.AveragedModel(net)
    step(net, optimizer)
    result = sc.prune(net, INPUTS, keep=0.5, data=[INPUTS])
    assert result.apply_(net, optimizer, average) is net
    assert torch.equal(net(INPUTS), result.model(INPUTS))  # compensated
    assert average.module[0].weight.shape == (4, 4)
    assert optimizer.param_groups[0]["params"][0] is net[0].weight
    step(net, optimizer)
    average.update_parameters(net)


def test_compiled_models_hold_the_same_parameters() -> None:
    net = Mlp()
    compiled: Any = torch.compile(net, backend="eager")
    optimizer = torch.optim.Adam(compiled.parameters())
    step(compiled, optimizer)
    old = dict(compiled.named_parameters())
    assert "_orig_mod.0.weight" in old
    graph = sc.trace(net, INPUTS)
    plan = sc.plan(graph, sc.score(net, graph), keep=0.5)
    plan.apply_(net)
    plan.remap_(optimizer, old, compiled)
    step(compiled, optimizer)
    assert optimizer.state[net[0].weight]["step"] == 2
    torch._dynamo.reset()


# ---------------------------------------------------------------------- what can't be re-indexed as it is


class Kept(torch.optim.SGD):
    """A user's own optimizer, which keeps what it is told to."""

    def keep(self, parameter: Tensor, **values: Any) -> None:
        self.state[parameter].update(values)


def test_state_of_another_shape_starts_anew_with_a_warning() -> None:
    net = Mlp()
    optimizer = Kept(net.parameters(), 0.1)
    optimizer.keep(net[0].weight, own=torch.ones(8, 4), history=torch.ones(8))
    optimizer.keep(net[0].bias, own=torch.arange(8.0), several=[torch.arange(8.0)], count=3, note="text")
    optimizer.keep(net[2].bias, history=torch.ones(7))  # keeps its size, so whatever it is stays
    result = sc.prune(net, INPUTS, keep=0.5)
    with pytest.warns(UserWarning, match=r"starts anew for 0.weight: .*'history' is \[8\], the parameter \[8, 4\]"):
        result.remap_(optimizer)
    rows = result.plan.units["0.weight:0"]
    assert result.model[0].weight not in optimizer.state
    state = optimizer.state[result.model[0].bias]
    assert torch.equal(state["own"], rows.float())
    assert torch.equal(state["several"][0], rows.float())
    assert (state["count"], state["note"]) == (3, "text")
    assert optimizer.state[result.model[2].bias]["history"].shape == (7,)


def test_factored_moments_lose_the_rows_and_columns_that_went() -> None:
    net = Mlp()
    optimizer = torch.optim.Adafactor(net.parameters())
    step(net, optimizer)
    old = {name: dict(optimizer.state[p]) for name, p in net.named_parameters()}
    result = sc.prune(net, INPUTS, keep=0.5)
    result.remap_(optimizer)
    rows = result.plan.units["0.weight:0"]
    first, second = optimizer.state[result.model[0].weight], optimizer.state[result.model[2].weight]
    assert torch.equal(first["row_var"], old["0.weight"]["row_var"][rows])
    assert torch.equal(first["col_var"], old["0.weight"]["col_var"])
    assert torch.equal(second["col_var"], old["2.weight"]["col_var"][:, rows])
    assert torch.equal(second["row_var"], old["2.weight"]["row_var"])
    step(result.model, optimizer)


def test_factored_moments_without_the_dim_that_they_are_means_over() -> None:
    """As transformers' Adafactor keeps them; on a square weight only the name tells rows from columns."""
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = Kept(net.parameters(), 0.1)
    optimizer.keep(net[0].weight, exp_avg_sq_row=torch.arange(8.0), exp_avg_sq_col=torch.arange(8.0))
    result = sc.prune(net, torch.randn(2, 8), keep=0.5)
    result.remap_(optimizer)
    state = optimizer.state[result.model[0].weight]
    assert torch.equal(state["exp_avg_sq_row"], result.plan.units["0.weight:0"].float())
    assert torch.equal(state["exp_avg_sq_col"], torch.arange(8.0))


def test_lbfgs_starts_anew() -> None:
    net = Mlp()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=3)
    step(net, optimizer)
    result = sc.prune(net, INPUTS, keep=0.5)
    with pytest.warns(UserWarning, match="LBFGS is of all parameters at once"):
        result.remap_(optimizer)
    assert step(result.model, optimizer) >= step(result.model, optimizer)


def test_moments_of_weights_that_were_multiplied_are_divided() -> None:
    """Of w' = f w, gradients are 1/f of those of w: first moments are divided by f, second ones by f squared."""
    net, x = Scaled(), torch.randn(2, 5, 8)
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.5, 0.5))
    net(x).square().mean().backward()
    optimizer.step()
    old = dict(optimizer.state[net.q.weight])
    result = sc.prune(net, x, keep=0.5, only=["head_dim"])
    (scale,) = {(s.before, s.after) for s in result.plan.scales}
    assert scale == (4, 2)
    rows = result.plan.kept["q.weight"][0]
    factor = 0.5**0.5
    torch.testing.assert_close(result.model.q.weight, net.q.weight[rows] * factor)
    result.remap_(optimizer)
    new = optimizer.state[result.model.q.weight]
    torch.testing.assert_close(new["exp_avg"], old["exp_avg"][rows] / factor)
    torch.testing.assert_close(new["exp_avg_sq"], old["exp_avg_sq"][rows] / factor**2)
    assert net.q.weight.grad is not None
    torch.testing.assert_close(result.model.q.weight.grad, net.q.weight.grad[rows] / factor)


def test_values_of_unknown_meaning_of_weights_that_were_multiplied_start_anew() -> None:
    net, x = Scaled(), torch.randn(2, 5, 8)
    optimizer = Kept(net.parameters(), 0.1)
    optimizer.keep(net.q.weight, own=torch.ones(8, 8))
    optimizer.keep(net.k.weight, own=torch.ones(8, 8))
    result = sc.prune(net, x, keep=0.5, only=["head_dim"])
    with pytest.warns(UserWarning, match="starts anew for q.weight: .*'own' belongs to weights that are multiplied"):
        result.remap_(optimizer)
    assert optimizer.state[result.model.k.weight]["own"].shape == (4, 8)


# ---------------------------------------------------------------------- whose parameters


def test_a_result_does_not_keep_the_dense_model_alive() -> None:
    net = Mlp()
    held = weakref.ref(net[0].weight)
    result = sc.prune(net, INPUTS, keep=0.5)
    assert len(result.ancestry.parameters) == len(result.ancestry) == 4
    del net
    gc.collect()
    assert held() is None
    assert copy.deepcopy(result).ancestry.parameters == {}
    with pytest.raises(RemapError, match="the parameters of that model are gone"):
        result.remap_(torch.optim.SGD(Mlp().parameters(), 0.1))


def test_an_optimizer_alone_keeps_its_parameters() -> None:
    net = Mlp()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    result = sc.prune(net, INPUTS, keep=0.5)
    del net
    gc.collect()
    result.remap_(optimizer)
    step(result.model, optimizer)


def test_optimizers_of_other_models_are_refused() -> None:
    net = Mlp()
    result = sc.prune(net, INPUTS, keep=0.5)
    with pytest.raises(RemapError, match="none of the 4 parameters .* is one of the Mlp .*: it was made for another"):
        result.remap_(torch.optim.SGD(copy.deepcopy(net).parameters(), 0.1))
    with pytest.raises(RemapError, match="holds the smaller model's parameters already"):
        result.remap_(result.remap_(torch.optim.SGD(net.parameters(), 0.1)))


def test_parameters_from_the_wrong_time_are_refused_and_nothing_changes() -> None:
    net = Mlp()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    before = list(optimizer.param_groups[0]["params"])
    graph = sc.trace(net, INPUTS)
    plan = sc.plan(graph, sc.score(net, graph), keep=0.5)
    with pytest.raises(RemapError, match=r"the new 0.weight is \[8, 4\], and should be \[4, 4\]"):
        plan.remap_(optimizer, net, net)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in before]


@pytest.mark.parametrize("thing", [None, [], "schedule"])
def test_other_things_are_refused(thing: Any) -> None:
    result = sc.prune(Mlp(), INPUTS, keep=0.5)
    if thing == "schedule":
        thing = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(Mlp().parameters(), 0.1), 1)
    with pytest.raises(RemapError, match="schedulers and gradient scalers need nothing"):
        result.remap_(thing)
