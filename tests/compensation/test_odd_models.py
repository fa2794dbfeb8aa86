"""Compensation of models that do unusual things with their weights, biases, buffers and attributes."""

import copy
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.compensation.compensate import distance


class ReadsWeights(nn.Module):
    """The second layer's weight is read, so that a bias it got would not be added."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.a(x) + 1), self.b.weight)


class ScaledBias(ReadsWeights):
    """The bias is worked out anew in each run: what is added to it is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.a(x) + 1), self.b.weight, self.bias * 2)


class Stateful(ReadsWeights):
    """Each run counts itself, keeps a mean, and hands an activation on as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        h = torch.relu(self.a(x))
        self.runs += 1
        self.mean.mul_(0.9).add_(0.1 * h.mean(0))
        return self.b(h - self.mean + self.x.mean(1, keepdim=True))


class Blurred(nn.Module):
    """One small filter, expanded to all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)
        self.filter = nn.Parameter(torch.rand(1, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.c(F.conv2d(x, self.filter.expand(x.shape[1], 1, 3, 3), groups=x.shape[1])).mean((2, 3))


class Spectral(nn.Module):
    """A weight of complex numbers, between layers of real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 3)
        self.weight = nn.Parameter(torch.randn(12, 12, dtype=torch.cfloat) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fft.rfft(self.a(x)[:, None].repeat(1, 8, 1), dim=1) @ self.weight
        return self.b(torch.relu(torch.fft.irfft(x, n=8, dim=1)).mean(1))


class TwoIntoOne(nn.Module):
    """Two layers that share the batch norm, or the bias, that comes after them."""

    def __init__(self, shared: str) -> None:
        super().__init__()
        self.i, self.o, self.norm = nn.Linear(6, 16), nn.Linear(16, 3), nn.BatchNorm1d(16)
        self.a, self.b = nn.Linear(16, 16, bias=shared == "bias"), nn.Linear(16, 16, bias=shared == "bias")
        if shared == "bias":
            self.b.bias = self.a.bias
        self.between = (lambda x: x) if shared == "bias" else self.norm

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.i(x))
        x = torch.relu(self.between(self.a(x)))
        return self.o(torch.relu(self.between(self.b(x))))


def shrunk(model: nn.Module, how: str, *shape: int) -> tuple[sc.Result, float, float]:
    """What pruning gave, and the distances on other data before and after."""
    data = [torch.randn(32, *shape) for _ in range(4)]
    result = sc.prune(model, data[0], keep=0.5, data=data, compensate=how)
    bare = sc.prune(model, data[0], keep=0.5, data=data, compensate=None).model
    x = torch.randn(64, *shape)
    want, *got = (copy.deepcopy(m).eval()(x) for m in (model, bare, result.model))
    return result, distance(want, got[0]), distance(want, got[1])


@pytest.mark.parametrize("how", ["mean", "merge", "lstsq"])
@pytest.mark.parametrize("kind", [ReadsWeights, ScaledBias, Stateful, Blurred, Spectral])
def test_unusual_code_is_compensated_and_stays_as_it_was(kind: type[nn.Module], how: str) -> None:
    torch.manual_seed(0)
    model = kind()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result, before, after = shrunk(model, how, *((3, 9, 9) if kind is Blurred else (6,)))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not result.plan.biases or kind is not ReadsWeights
    assert before > 0.02
    if how == "lstsq":
        assert after < 0.8 * before
    else:
        assert after < 1.01 * before


@pytest.mark.parametrize("shared", ["norm", "bias"])
def test_what_two_layers_share_is_set_for_neither(shared: str) -> None:
    torch.manual_seed(0)
    model = TwoIntoOne(shared)
    result, _, _ = shrunk(model, "mean", 6)
    bare = result.plan.apply(model)
    name = "norm.running_mean" if shared == "norm" else "a.bias"
    assert torch.equal(result.model.state_dict()[name], bare.state_dict()[name])
    assert result.compensation is not None
    assert result.compensation.distance[1] < result.compensation.distance[0]


def test_an_interrupt_ends_all_runs() -> None:
    class Interrupted(ReadsWeights):
        def forward(self, x: Tensor) -> Tensor:
            if threading.current_thread() is not threading.main_thread():
                raise KeyboardInterrupt
            return super().forward(x)

    threads = threading.active_count()
    data = [torch.randn(8, 6) for _ in range(4)]
    with pytest.raises(KeyboardInterrupt):
        sc.prune(Interrupted(), data[0], keep=0.5, data=data)
    assert threading.active_count() == threads


def test_an_embedding_that_scales_its_rows_keeps_them() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(50, 16, max_norm=1.0)
    model = nn.Sequential(embedding, nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    rows = embedding.weight.detach().clone()
    data = [torch.randint(0, 50, (16, 4)) for _ in range(3)]
    result = sc.prune(model, data[0], keep=0.5, data=data)
    assert torch.equal(embedding.weight, rows)
    assert result.compensation is not None
    assert result.compensation.distance[1] < result.compensation.distance[0]


def test_the_strength_is_chosen_from_batches_of_single_rows_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 3))
    rows = torch.randn(60, 12)
    one, many = (
        sc.prune(model, rows[:1], keep=0.5, data=data, importance="l2").compensation
        for data in (list(rows.split(1)), [rows])
    )
    assert one is not None
    assert many is not None
    assert [r.ridge for r in one.refits] != [1e-2]
    assert one.refits[0].after == pytest.approx(many.refits[0].after, rel=0.3)


def test_layers_are_fitted_to_the_new_biases_before_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 24, bias=False), nn.ReLU(), nn.Linear(24, 24, bias=False), nn.ReLU(), nn.Linear(24, 3, bias=False)
    )
    data = [torch.randn(32, 6) for _ in range(3)]
    result = sc.prune(model, data[0], keep=0.5, data=data, compensate="mean")
    assert result.plan.biases == ("2.bias", "4.bias")
    x = torch.cat(data)
    torch.testing.assert_close(result.model(x).mean(0), model(x).mean(0), rtol=0, atol=1e-5)
