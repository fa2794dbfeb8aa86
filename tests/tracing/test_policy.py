"""The policy on sizes in the code: set, tie, keep a spare axis whole, rewrite, freeze, in this order."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import secateur as sc


class Heads(nn.Module):
    """Attention whose head size is computed: width // heads."""

    def __init__(self, scale: Callable[[int], float] = lambda d: 0.5) -> None:
        super().__init__()
        self.heads, self.scale = 4, scale
        self.enter, self.leave = nn.Linear(5, 32), nn.Linear(32, 3)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        n, length, width = x.shape
        head = width // self.heads
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, head).permute(2, 0, 3, 1, 4)
        y = (q @ k.mT * self.scale(head)).softmax(-1) @ v
        return self.leave(x + self.out(y.transpose(1, 2).reshape(n, length, width)))


class Grouped(nn.Module):
    """A channel shuffle with literal groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 1), nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        n, c, h, w = x.shape
        return self.c(x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w))


class Flat(nn.Module):
    """A literal that no attribute stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(1, 8, 3), nn.Linear(8 * 16, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc(self.conv(x).view(-1, 8 * 16)).relu())


class Numbered(nn.Module):
    """``width`` is a size in one place and a number in another."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.a, self.b = 8, nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).reshape(-1, self.width)) * self.width


def test_width_by_heads_ties_the_two_and_keeps_the_head_size_and_the_class() -> None:
    model = Heads()
    result = sc.prune(model, torch.randn(2, 6, 5), keep=0.5)
    assert result.rewritten is None
    assert type(result.model) is Heads
    assert (result.model.heads, result.model.enter.out_features, result.model.qkv.out_features) == (2, 16, 48)
    (tie,) = result.graph.ties
    assert {result.graph.axes[n].kind for n in tie} == {"heads", "residual"}
    (whole,) = (a for a in result.graph.frozen.values() if a.kind == "head_dim")
    assert whole.frozen[0].startswith("stays whole so that")
    assert __file__ in whole.frozen[0]


def test_a_number_computed_from_the_tied_sizes_keeps_its_value() -> None:
    result = sc.prune(Heads(lambda d: d**-0.5), torch.randn(2, 6, 5), keep=0.5)
    assert result.rewritten is None
    assert result.plan.sizes
    assert result.model.heads == 2


def test_a_number_computed_from_a_size_alone_freezes_it() -> None:
    class Scaled(Heads):
        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            return self.leave(x + self.out(x * x.shape[-1] ** -0.5).relu())

    graph = sc.trace(Scaled(), torch.randn(2, 6, 5))
    assert graph.frozen["enter.weight:0"].frozen[0].startswith("its size is used as a number: float(size of enter")


def test_literal_groups_stay_whole() -> None:
    result = sc.prune(Grouped(), torch.randn(2, 3, 4, 4), keep=0.5)
    assert result.rewritten is None
    assert type(result.model) is Grouped
    assert result.model.b.out_channels == 12
    (whole,) = (a for a in result.graph.frozen.values() if a.size == 4)
    assert "stays whole so that view(4)" in whole.frozen[0]


def test_a_literal_is_rewritten_unless_the_class_is_to_be_kept() -> None:
    x = torch.randn(2, 1, 6, 6)
    result = sc.prune(Flat(), x, keep=0.5)
    assert result.plan.sizes == {"conv.weight:0": 4, "fc.weight:0": 6}
    assert "view(128)" in (result.rewritten or "")
    assert __file__ in (result.rewritten or "")
    kept = sc.prune(Flat(), x, keep=0.5, keep_class=True)
    assert kept.plan.sizes == {"fc.weight:0": 6}
    assert type(kept.model) is Flat


def test_a_size_that_is_a_number_elsewhere_is_rewritten() -> None:
    """The attribute can't be both 4 and 8; in a graph the two places are two."""
    model, x = Numbered(), torch.randn(3, 4)
    result = sc.prune(model, x, keep=0.5)
    assert result.rewritten
    assert result.plan.sizes == {"a.weight:0": 4}
    kept = sc.trace(model, x)
    assert kept.axes["a.weight:0"].rewrite


def test_one_literal_for_several_parts_keeps_them_equal() -> None:
    class Thirds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 12), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            first, second, third = self.a(x).split(4, 1)
            return self.b(first + second.relu() - third.sin())

    result = sc.prune(Thirds(), torch.randn(3, 4), keep=0.5)
    assert list(result.plan.sizes.values()) == [2]
    assert result.rewritten
    assert result.model.get_parameter("a.weight").shape == (6, 4)
