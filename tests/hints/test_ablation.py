"""Silencing units in place: the same as the proof does, and undone bit by bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import secateur as sc
from secateur.hints.ablation import Ablation, OnBatch, Removal, silencing
from secateur.modules import named_tensors
from secateur.proof import silenced
from support.networks import Cnn, Grouped, Mlp, Residual


class Normed(nn.Module):
    """A residual stream that a LayerNorm runs over."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm, self.out = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.into(x)))


class Attending(nn.Module):
    """One layer of attention with its norms: heads, head size, hidden units and a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.into, self.out = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.into(x)))


class Parametrised(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(weight_norm(nn.Linear(4, 8)), nn.ReLU(), weight_norm(nn.Linear(8, 2)))


def output(ablation: Ablation, removal: Removal, x: Tensor) -> Tensor:
    (batch,) = ablation.batches([x])
    return ablation.output(removal, batch)


def rise(ablation: Ablation, removal: Removal, batch: Any) -> tuple[float, float, int]:
    """The dense cost, what the removal adds, and the samples."""
    (given,) = ablation.batches([batch])
    on = OnBatch(ablation, given)
    return on.dense, on.rise(removal), on.samples


def images(size: int) -> Tensor:
    return torch.randn(5, 3, size, size)


CASES: list[tuple[type[nn.Module], Any]] = [
    (Mlp, torch.randn(5, 4)),
    (Cnn, images(8)),
    (Residual, images(8)),
    (Grouped, images(8)),
    (Normed, torch.randn(5, 4)),
    (Parametrised, torch.randn(5, 4)),
    (Attending, torch.randn(2, 5, 4)),
]


def trained(build: type[nn.Module], x: Tensor) -> nn.Module:
    """A model whose batch norms are no identity."""
    model = build()
    model.train()
    for _ in range(3):
        model(x)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model.eval()


@pytest.mark.parametrize(("build", "x"), CASES)
def test_it_is_what_the_proof_compares_with(build: type[nn.Module], x: Tensor) -> None:
    model = trained(build, x)
    graph = sc.trace(model, x)
    ablation = Ablation(model, graph, truth="output")
    for axis, info in graph.axes.items():
        for removal in (Removal(axis, (1,)), Removal(axis, tuple(range(0, info.size, 2)))):
            (want,), _ = silenced(model, graph, silencing(graph, removal), (x,), {}, dtype=torch.float32)
            torch.testing.assert_close(output(ablation, removal, x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("build", "x"), CASES[:-3])
def test_it_is_what_the_smaller_model_computes(build: type[nn.Module], x: Tensor) -> None:
    model = trained(build, x)
    graph = sc.trace(model, x)
    scores = {axis: torch.rand(info.size) for axis, info in graph.axes.items()}
    axis = next(axis for axis in graph.axes if not any(axis in tie for tie in graph.ties))
    plan = sc.plan(graph, scores, keep=0.5, only=[axis])
    gone = tuple(sorted(set(range(graph.axes[axis].size)) - set(plan.axes[axis].kept)))
    got = output(Ablation(model, graph, truth="output"), Removal(axis, gone), x)
    with torch.no_grad():
        torch.testing.assert_close(got, plan.apply(model)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("build", "x"), CASES)
def test_everything_is_put_back_bit_by_bit(build: type[nn.Module], x: Tensor) -> None:
    model = trained(build, x)
    before = {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}
    graph = sc.trace(model, x)
    ablation = Ablation(model, graph, truth="output")
    for axis, info in graph.axes.items():
        output(ablation, Removal(axis, tuple(range(0, info.size, 3))), x)
        with pytest.raises(RuntimeError, match="stopped"), ablation.silenced(Removal(axis, (0,))):
            raise RuntimeError("stopped")
    for tensors in (named_tensors(model), ablation.tensors):
        assert all(torch.equal(tensors[name], value) for name, value in before.items())


def test_layer_norms_are_over_the_units_that_stay() -> None:
    model, x = trained(Normed, torch.randn(5, 4)), torch.randn(5, 4)
    graph = sc.trace(model, x)
    (axis,) = graph.axes
    ablation = Ablation(model, graph, truth="output")
    assert ablation.special == {axis}
    plan = sc.plan(graph, {axis: torch.arange(8.0)}, keep=0.75)
    with torch.no_grad():
        want = plan.apply(model)(x)
    torch.testing.assert_close(output(ablation, Removal(axis, (0, 1)), x), want)


def test_the_cost_by_hand() -> None:
    model = Mlp()
    with torch.no_grad():
        model[0].weight.fill_(1.0), model[0].bias.fill_(0.0), model[2].weight.fill_(1.0), model[2].bias.fill_(0.0)
    x = torch.ones(2, 4)
    graph = sc.trace(model, x)
    removal = Removal("0.weight:0", (3,))  # outputs are 8 x 4 = 32 each, and 28 without it
    assert rise(Ablation(model, graph, truth="output"), removal, x) == (0, pytest.approx((4 / 32) ** 2), 2)
    by_loss = Ablation(model, graph, truth="loss", loss=lambda output, target: output.mean() - target)
    assert rise(by_loss, removal, (x, torch.tensor(2.0))) == (pytest.approx(30), pytest.approx(-4), 2)


def test_a_removal_that_gives_no_number_costs_infinity() -> None:
    model, x = Mlp(), torch.ones(2, 4)
    dense = model(x).detach()

    def fragile(output: Tensor, target: Any) -> Tensor:
        return output.mean() if torch.allclose(output, dense) else output.mean() * float("nan")

    ablation = Ablation(model, sc.trace(model, x), truth="loss", loss=fragile)
    assert rise(ablation, Removal("0.weight:0", tuple(range(7))), (x, None))[1] == float("inf")
