"""Code that whole lines of vision models share: each prunes, keeps its class where it can, and is proved."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc


class Halved(nn.Module):
    """Half of the width goes through a block, the other half around it; the attribute is the whole width."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 16
        self.enter, self.block, self.leave = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 2, 1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        around, through = self.enter(x).split(self.width // 2, dim=1)
        if self.training:  # so that no graph can take the place of the class
            through = self.drop(through)
        return self.leave(torch.cat([around, self.block(through).relu()], 1))


class Paths(nn.Module):
    """As many equal parts as there are paths: two attributes in one expression."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.count = 24, 2
        self.enter, self.leave = nn.Conv2d(3, 24, 1), nn.Conv2d(10, 2, 1)
        self.paths = nn.ModuleList([nn.Conv2d(12, 10, 1), nn.Conv2d(12, 10, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        parts = self.enter(x).split(self.width // self.count, 1)
        return self.leave(torch.stack([path(part) for path, part in zip(self.paths, parts, strict=True)], 1).sum(1))


class Part(nn.Module):
    """A part of the width, and what is left of it: the attributes are the part and the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.part = 24, 8
        self.enter, self.block, self.leave = nn.Conv2d(3, 24, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        part, rest = self.enter(x).split([self.part, self.width - self.part], dim=1)
        return self.leave(torch.cat([self.block(part).relu(), rest], 1))


class Threefold(nn.Module):
    """Queries, keys and values beside each other within each head, and the head size only within an expression."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size = 2, 8
        self.enter, self.qkv, self.leave = nn.Linear(5, 12), nn.Linear(12, 48), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(self.enter(x)).view(n, length, self.heads, self.size * 3).transpose(1, 2).chunk(3, dim=3)
        y = (q @ k.mT * 0.3).softmax(-1) @ v
        return self.leave(y.transpose(1, 2).flatten(2))


class Radix(nn.Module):
    """Groups that compete by a softmax where there are several; the code asks whether there are."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.enter, self.split = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=groups)
        self.leave = nn.Conv2d(12 // groups, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.split(self.enter(x))
        if self.groups > 1:
            x = x.unflatten(1, (self.groups, x.shape[1] // self.groups))
            return self.leave((x * x.mean((3, 4), keepdim=True).softmax(1)).sum(1))
        return self.leave(x * x.mean((2, 3), keepdim=True).sigmoid())


class TokenMixer(nn.Module):
    """A convolution of a single position along the channels mixes tokens: the channels pass."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.enter, self.mix = nn.Linear(5, 16), nn.Conv1d(7, 7, 1, stride=stride)
        self.leave = nn.Linear(16 // stride, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.gelu(self.mix(self.enter(x))))


class SharedPart(nn.Module):
    """One part under several names, in code that holds a literal: the graph keeps one of the names."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(8, 8, 1)
        self.enter, self.first, self.second = nn.Conv2d(3, 8, 1), nn.Sequential(self.shared), nn.Sequential(self.shared)
        self.hidden, self.leave = nn.Linear(8 * 16, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.enter(x)).relu())
        return self.leave(self.hidden(x.reshape(-1, 8 * 16)).relu())


@pytest.mark.parametrize(
    ("model", "width"),
    [(Halved(), 8), (Paths(), 12), (Part(), 12)],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_an_attribute_follows_the_parts_that_are_computed_from_it(model: Any, width: int) -> None:
    result = sc.prune(model, torch.randn(2, 3, 4, 4), keep=0.5)
    assert result.rewritten is None
    assert type(result.model) is type(model)
    assert result.model.width == width
    assert result.model.get_submodule("enter").out_channels == width
    assert result.graph.coverage == pytest.approx(1.0, abs=0.05)


def test_an_attribute_in_a_product_ties_what_must_stay_equal() -> None:
    result = sc.prune(Threefold(), torch.randn(2, 7, 5), keep=0.5)
    assert result.rewritten is None
    assert ("qkv.weight:0/head_dim1", "qkv.weight:0/head_dim2") in result.graph.ties
    assert (result.model.heads, result.model.size) == (1, 4)


def test_a_size_that_the_code_asks_about_keeps_the_answer() -> None:
    graph = sc.trace(Radix(2), torch.randn(2, 3, 4, 4))
    (asked,) = [a.asked for a in graph.axes.values() if a.kind == "groups"]
    assert asked[0] == 2
    assert __file__ in asked[1]
    result = sc.prune(Radix(2), torch.randn(2, 3, 4, 4), keep=0.1)
    (frozen,) = [a for a in result.graph.frozen.values() if a.kind == "groups"]
    assert frozen.frozen[0].startswith("with fewer units the code would go another way at ")
    wider = sc.prune(Radix(3), torch.randn(2, 3, 4, 4), keep=0.1)
    assert wider.model.groups == 2


def test_a_convolution_of_one_position_passes_its_dims() -> None:
    result = sc.prune(TokenMixer(), torch.randn(2, 7, 5), keep=0.5)
    assert result.plan.sizes["enter.weight:0"] == 8


def test_with_a_stride_it_keeps_them() -> None:
    graph = sc.trace(TokenMixer(stride=2), torch.randn(2, 7, 5))
    assert graph.frozen["enter.weight:0"].frozen == ("a spatial dim of a convolution",)


def test_a_part_with_several_names_survives_a_rewrite() -> None:
    result = sc.prune(SharedPart(), torch.randn(2, 3, 4, 4), keep=0.5)
    assert result.rewritten is not None
    assert result.model.get_submodule("shared").out_channels == 4


class OneKey(nn.Module):
    """Many queries share one key and one value, which attention broadcasts to them."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.query, self.pair = nn.Linear(5, 16), nn.Linear(16, 4 * 6), nn.Linear(16, 2 * 6)
        self.heads, self.leave = 4, nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.pair(x).unsqueeze(1).chunk(2, -1)
        y = F.scaled_dot_product_attention(query, key, value)
        return self.leave(y.transpose(1, 2).flatten(2))


def test_keys_that_all_heads_share_leave_the_heads_free() -> None:
    result = sc.prune(OneKey(), torch.randn(2, 7, 5), keep=0.5)
    assert result.rewritten is None
    assert {n: a.kind for n, a in result.graph.axes.items()}["query.weight:0/heads"] == "heads"
    assert result.model.heads == 2
    assert result.graph.coverage > 0.99
