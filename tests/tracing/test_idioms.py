"""Ways in which people write models, each in a small one: pruned to half of every axis, and proved."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from support.operations import IDS, SEQUENCES, Net, halved, trains, weight


def test_a_window_as_wide_as_a_dim_is_a_sum_over_it() -> None:
    """A sentence as an image, read through windows as wide as an embedding."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.windows(net.words(x).unsqueeze(1)).relu().squeeze(3)
        return net.last(F.max_pool1d(y, y.size(2)).squeeze(2))

    net = Net(forward, words=nn.Embedding(20, 12), windows=nn.Conv2d(1, 8, (3, 12)), last=nn.Linear(8, 3))
    small: Any = halved(net, IDS, "words.weight:1 hidden 12>6", "windows.weight:0 channels 8>4").model
    assert small.windows.kernel_size == (3, 6)


@pytest.mark.parametrize("window", [nn.Conv2d(1, 8, (3, 12), padding=(0, 1)), nn.Conv2d(1, 8, (3, 11))])
def test_a_window_that_moves_freezes_what_it_moves_along(window: nn.Conv2d) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.last(net.windows(net.words(x).unsqueeze(1)).relu().amax((2, 3)))

    net = Net(forward, words=nn.Embedding(20, 12), windows=window, last=nn.Linear(8, 3))
    result = halved(net, IDS, "windows.weight:0 channels 8>4")
    assert "a spatial dim of a convolution" in result.graph.frozen["words.weight:1"].frozen


# ---------------------------------------------------------------------- literals: the class becomes a graph


class Literal(nn.Module):
    """A literal size behind whatever else ``forward`` does."""

    def __init__(self, extra: Any, **parts: Any) -> None:
        super().__init__()
        self.__dict__["extra"] = extra
        self.first, self.last = nn.Linear(6, 12), nn.Linear(60, 3)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        extra: Any = self.extra
        return self.last(extra(self, self.first(x)).reshape(-1, 5 * 12))


def smallest(net: Any, x: Tensor) -> Tensor:
    """A number that depends on the type of a tensor."""
    return x.masked_fill(x < 0, torch.finfo(x.dtype).min / torch.finfo(x.dtype).max)


def without_gradients(net: Any, x: Tensor) -> Tensor:
    """A table that is computed where gradients are off, and holds no parameter."""
    with torch.no_grad():
        table = torch.arange(x.shape[1], dtype=x.dtype).cos() / np.log(100.0)
    return x + table[:, None]


def whole_shape(net: Any, x: Tensor) -> Tensor:
    """A literal put together with a part of a shape."""
    return x.view(x.shape[:-1] + (3, 4)).sin().flatten(-2)  # noqa: RUF005, people write so


def made_on_the_way(net: Any, x: Tensor) -> Tensor:
    """A layer without weights, made at each call; a matrix of any size."""
    return nn.Tanh()(x) @ torch.eye(12, dtype=x.dtype)


def tied(net: Any, x: Tensor) -> Tensor:
    """A weight under two names, of which the graph reads the second."""
    return F.linear(x, net.other.weight.T @ net.other.weight)


@pytest.mark.parametrize("extra", [smallest, without_gradients, whole_shape, made_on_the_way])
def test_what_a_graph_of_calls_can_hold(extra: Any) -> None:
    model = Literal(extra).eval()
    result = sc.prune(model, SEQUENCES, keep=0.5)
    assert {a["name"].split(":")[0]: a["after"] for a in result.axes}["first.weight"] in (2, 6)
    assert result.rewritten is not None
    assert "test_idioms.py" in result.rewritten
    trains(result.model, (SEQUENCES,))
    half = result.model.bfloat16()(SEQUENCES.bfloat16())
    assert half.dtype is torch.bfloat16


def test_a_tied_weight_has_one_name_in_the_class_and_another_in_the_graph() -> None:
    model: Any = Literal(tied, unused=nn.Linear(12, 8, bias=False), other=nn.Linear(12, 8, bias=False))
    model.other.weight = model.unused.weight
    result = sc.prune(model.eval(), SEQUENCES, keep=0.5)
    assert {a["name"]: a["after"] for a in result.axes} == {"first.weight:0": 6, "unused.weight:0": 4}
    assert result.rewritten is not None


def test_gradients_that_a_graph_would_not_stop_keep_the_class() -> None:
    def stopped(net: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x * 2

    graph = sc.trace(Literal(stopped), SEQUENCES)
    assert graph.captured is None
    assert "forward switches gradients on or off" in graph.frozen["first.weight:0"].frozen[0]


def test_random_numbers_are_drawn_in_each_call_of_the_graph() -> None:
    def noisy(net: Any, x: Tensor) -> Tensor:
        return x + torch.rand(5, 1)

    small = sc.prune(Literal(noisy).eval(), SEQUENCES, keep=0.5).model
    assert not torch.equal(small(SEQUENCES), small(SEQUENCES))


def test_attention_as_a_function_has_its_sizes_among_its_arguments() -> None:
    """In a graph it is one call: the count of heads and the width are set there."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.first(x).view(-1, 5, 12).transpose(0, 1)
        y, _ = F.multi_head_attention_forward(
            x, x, x, 12, 4, net.in_weight, None, None, None, False, 0.0, net.out_weight, None, training=net.training
        )
        return net.last(y.transpose(0, 1))

    parts = {"in_weight": weight(36, 12), "out_weight": weight(12, 12)}
    net = Net(forward, first=nn.Linear(6, 12), last=nn.Linear(12, 3), **parts).eval()
    result = sc.prune(net, SEQUENCES, keep=0.5)
    assert result.rewritten is not None
    small: Any = result.model
    assert small.in_weight.shape[0] == 3 * small.out_weight.shape[1]
    assert {"first.weight:0", "in_weight:1"} & {a["name"] for a in result.axes}


# ---------------------------------------------------------------------- attention as people write it


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions, (batch, heads, length, 2 * angles)."""
    half = x.shape[-1] // 2
    cos, sin = (torch.cat([t, t], -1) for t in (angles.cos(), angles.sin()))
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Rotary(nn.Module):
    """Fused projections, rotary positions from a buffer, attention without ``scale=``."""

    frequencies: Tensor

    def __init__(self, split: bool) -> None:
        super().__init__()
        self.heads, self.head, self.split = 4, 8, split
        self.words, self.leave = nn.Embedding(20, 32), nn.Linear(32, 3)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.register_buffer("frequencies", 100.0 ** -torch.arange(0, 1, 0.25))

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x)
        n, length, width = x.shape
        head = width // self.heads if self.split else self.head
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, head).permute(2, 0, 3, 1, 4).unbind(0)
        angles = torch.arange(length)[:, None] * self.frequencies
        y = F.scaled_dot_product_attention(turned(q, angles), turned(k, angles), v)
        return self.leave(x + self.out(y.transpose(1, 2).reshape(n, length, -1)))


def test_a_rotated_query_is_scaled_once() -> None:
    """Each of its weights reaches it twice: as it is, and turned."""
    model = Rotary(split=False).eval()
    result = sc.prune(model, IDS, keep=0.5, ignore=["words.*"])
    sizes = {a["kind"]: (a["before"], a["after"]) for a in result.axes if a["name"].startswith("qkv")}
    assert sizes["head_dim"] == (4, 2)
    assert result.proof.status == "proved"


def test_a_table_of_the_head_size_does_not_keep_the_heads_whole() -> None:
    """Where ``width // heads`` must hold, the head size stays, though a buffer has it alone."""
    result = sc.prune(Rotary(split=True).eval(), IDS, keep=0.5)
    assert result.rewritten is None
    assert result.model.heads == 2
    assert result.model.frequencies.shape == (4,)


class Biased(nn.Module):
    """The head size is an attribute, a number, and a dim of a table for each head."""

    def __init__(self, table: int) -> None:
        super().__init__()
        self.heads, self.head = 4, 8
        self.words, self.leave = nn.Embedding(20, 32), nn.Linear(32, 3)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.bias = nn.Parameter(torch.rand(4, 8))
        self.table = nn.Parameter(torch.rand(table, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x)
        n, length, _ = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, self.head).unbind(2)
        q = q + self.bias + self.table[0]
        weights = (torch.einsum("nihd,njhd->nhij", q, k) / self.head**0.5).softmax(-1)
        return self.leave(x + self.out(torch.einsum("nhij,njhd->nihd", weights, v).reshape(n, length, -1)))


def test_the_class_is_worth_a_head_size_and_few_parameters() -> None:
    """The table of five rows is on no prunable axis then; one of many rows is worth a rewritten graph."""
    few = sc.prune(Biased(5).eval(), IDS, keep=0.5)
    assert few.rewritten is None
    assert type(few.model) is Biased
    assert (few.model.heads, few.model.head) == (2, 8)
    assert 0.97 < few.graph.coverage < 1
    many = sc.prune(Biased(500).eval(), IDS, keep=0.5)
    assert many.rewritten is not None
    assert many.graph.coverage > 0.97
    small: Any = many.model
    assert small.table.shape == (500, 4)
