"""One integer for two things: whatever the code does with it besides sizes, the smaller model is right.

Each result is compared, by hand and not only by the proof, with the original whose removed units are zero.
"""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.errors import NothingToPrune


class Net(nn.Module):
    """4 -> n -> 12 -> 3, where n is also whatever ``use`` makes of it. The second axis is always free."""

    def __init__(self, n: int = 8) -> None:
        super().__init__()
        self.n = n
        self.a, self.b, self.c = nn.Linear(4, n), nn.Linear(n, 12), nn.Linear(12, 3)

    def use(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.use(self.a(x).relu())).relu())


def silenced(model: nn.Module, kept: Mapping[str, Mapping[int, Tensor]]) -> nn.Module:
    """The original with the removed positions of every tensor at zero."""
    quiet = copy.deepcopy(model)
    tensors = dict(quiet.named_parameters())
    with torch.no_grad():
        for name, dims in kept.items():
            for dim, positions in dims.items():
                gone = torch.ones(tensors[name].shape[dim], dtype=torch.bool)
                gone[positions] = False
                tensors[name].index_fill_(dim, gone.nonzero().flatten(), 0.0)
    return quiet


def prune_and_compare(model: nn.Module, x: Tensor, **settings: Any) -> Any:
    result = sc.prune(model, x, keep=0.5, **settings)
    expected = silenced(model, result.plan.kept)(x)
    torch.testing.assert_close(result.model(x), expected, rtol=1e-4, atol=1e-5)
    assert result.plan.axes, "nothing was pruned, so nothing was compared"
    return result


class Loop(Net):
    def use(self, h: Tensor) -> Tensor:
        h = h.view(-1, self.n)
        for _ in range(self.n):
            h = h + 0.1 * torch.tanh(h)
        return h


class Compared(Net):
    def use(self, h: Tensor) -> Tensor:
        h = h.view(-1, self.n)
        return 2 * h if self.n > 6 else h


class ComparedShape(Net):
    def use(self, h: Tensor) -> Tensor:
        return 2 * h if h.shape[1] > 6 else h


class Divisor(Net):
    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.n) / self.n


class Summand(Net):
    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.n) + self.n


class Mean(Net):
    def use(self, h: Tensor) -> Tensor:
        return h + h.sum(1, keepdim=True) / h.shape[1]


class Reciprocal(Net):
    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.n) * (1.0 / self.n)


class Root(Net):
    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.n) * self.n**-0.5


class Counted(Net):
    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.n) + torch.arange(self.n)


class Best(Net):
    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.n) + h.topk(self.n - 6, 1).values.sum(1, keepdim=True)


class Key(Net):
    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.n) * {8: 2.0, 4: 3.0}.get(self.n, 1.0)


class Place(Net):
    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.n) * [0.5, 1, 2, 3, 4, 5, 6, 7, 8][self.n]


class Name(Net):
    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.n) * float(f"{self.n}.5")


class Twins(Net):
    """Two attributes that were equal by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.m = 8

    def use(self, h: Tensor) -> Tensor:
        return 2 * h.view(-1, self.m) if self.m == self.n else 3 * h


class Truth(Net):
    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.n) * (2.0 if self.n % 8 == 0 else 1.0)


NUMBERS = [
    Loop, Divisor, Summand, Mean, Reciprocal, Root, Counted, Best, Key, Place, Name, Twins,
    Truth,
]  # fmt: skip


@pytest.mark.parametrize("net", NUMBERS)
@pytest.mark.parametrize("keep_class", [False, True])
def test_a_width_that_is_also_a_number(net: type[Net], keep_class: bool) -> None:
    result = prune_and_compare(net(), torch.randn(5, 4), keep_class=keep_class)
    assert result.model.b.out_features == 6
    kept = result.plan.sizes.get("a.weight:0", 8)
    assert kept == result.model.a.out_features
    axis = {**result.graph.axes, **result.graph.frozen}["a.weight:0"]
    if kept == 8:  # then it says why
        assert axis.frozen or (keep_class and axis.rewrite)
    else:  # then the number is still the one that it was
        assert result.rewritten is not None


@pytest.mark.parametrize("net", [Compared, ComparedShape])
@pytest.mark.parametrize("keep_class", [False, True])
def test_a_width_that_the_code_compares_keeps_the_answer(net: type[Net], keep_class: bool) -> None:
    result = prune_and_compare(net(), torch.randn(5, 4), keep_class=keep_class)
    assert result.rewritten is None
    assert result.plan.sizes["a.weight:0"] == result.graph.axes["a.weight:0"].least == 7


def test_a_width_that_is_also_the_number_of_classes() -> None:
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = 8
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).view(-1, self.n).relu()).view(-1, self.n)

    result = prune_and_compare(Classes(), torch.randn(5, 4))
    assert result.model.a.out_features == 4
    assert result.model(torch.randn(2, 4)).shape == (2, 8)
    with pytest.raises(NothingToPrune):
        sc.prune(Classes(), torch.randn(5, 4), keep=0.5, keep_class=True)


def test_two_widths_in_one_attribute_shrink_together_or_apart() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = 8
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).view(-1, self.n).relu()
            return self.c(self.b(h).view(-1, self.n).relu())

    result = prune_and_compare(Both(), torch.randn(5, 4), keep_class=True)
    assert (result.model.a.out_features, result.model.b.out_features, result.model.n) == (4, 4, 4)


@pytest.mark.parametrize("what", ["window", "stride", "batch"])
def test_a_width_that_is_also_another_size(what: str) -> None:
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = 4
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            if what == "window":
                h = F.avg_pool2d(h.view(-1, self.n, 8, 8), self.n)
            elif what == "stride":
                count, _, height, width = h.shape
                h = h.view(count, self.n, height // self.n, self.n, width // self.n, self.n).mean((3, 5))
            else:
                h = h.view(self.n, self.n, 8, 8)
            return self.c(self.b(h).relu())

    model = Images()
    result = prune_and_compare(model, torch.randn(4, 3, 8, 8))
    assert result.model.b.out_channels == 3
    small, full = result.model(torch.randn(4, 3, 8, 8)), model(torch.randn(4, 3, 8, 8))
    assert small.shape == full.shape
