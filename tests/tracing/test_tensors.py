"""Parameters and buffers that ``forward`` uses directly: tables, tokens, masks, scales; attention and scans by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from support.operations import IDS, IMAGES, ROWS, SEQUENCES, Case, Net, halved, weight


def class_token(net: Net, x: Tensor) -> Tensor:
    tokens = torch.cat([net.token.expand(x.shape[0], -1, -1), net.inp(x)], 1)
    return net.out((tokens + net.places).relu()[:, 0])


def biased(net: Net, x: Tensor) -> Tensor:
    n, length, _ = x.shape
    q, k, v = net.qkv(x).view(n, length, 3, net.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    bias = net.table[net.index.view(-1)].view(length, length, -1).permute(2, 0, 1)
    return net.out(((q @ k.mT * 0.3 + bias).softmax(-1) @ v).transpose(1, 2).reshape(n, length, -1))


DIRECT: dict[str, Case] = {
    "layer scale": (
        Net(lambda net, x: net.out((y := net.inp(x)) + net.scale[:, None, None] * net.mid(y)),
            inp=nn.Conv2d(2, 8, 1), scale=weight(8), mid=nn.Conv2d(8, 8, 1), out=nn.Conv2d(8, 3, 1)),
        IMAGES, ("scale:0 residual 8>4",),
    ),
    "position table": (
        Net(lambda net, x: net.out((net.inp(x) + net.places[:, : x.shape[1]]).relu()),
            inp=nn.Linear(6, 8), places=weight(1, 16, 8), out=nn.Linear(8, 3)),
        SEQUENCES, ("places:2 hidden 8>4",),
    ),
    "class token": (
        Net(class_token, inp=nn.Linear(6, 8), token=weight(1, 1, 8), places=weight(1, 6, 8), out=nn.Linear(8, 3)),
        SEQUENCES, ("token:2 hidden 8>4",),
    ),
    "relative bias": (
        Net(biased, qkv=nn.Linear(6, 96), table=weight(9, 4), heads=4, out=nn.Linear(32, 3),
            index=torch.arange(5)[:, None] - torch.arange(5)[None] + 4),
        SEQUENCES, ("table:1 heads 4>2", "qkv.weight:0/head_dim head_dim 8>4"),
    ),
    "buffers": (
        Net(lambda net, x: net.out((net.inp(x) * net.scale).masked_fill(net.mask, 0) * net.count),
            inp=nn.Linear(4, 8), scale=torch.rand(8), mask=torch.rand(8) > 0.5, count=torch.arange(1, 9),
            out=nn.Linear(8, 3)),
        ROWS, ("inp.weight:0 hidden 8>4",),
    ),
    "a causal mask in a buffer": (
        Net(lambda net, x: net.v((net.q(x) @ net.k(x).mT).masked_fill(
                net.mask[: x.shape[1], : x.shape[1]] == 0, -1e9).softmax(-1) @ x),
            q=nn.Linear(6, 8), k=nn.Linear(6, 8), v=nn.Linear(6, 3), mask=torch.tril(torch.ones(16, 16))),
        SEQUENCES, ("q.weight:0 head_dim 8>4",),
    ),
    "a causal mask made on the way": (
        Net(lambda net, x: net.v((net.q(x) @ net.k(x).mT + torch.triu(
                torch.full((x.shape[1], x.shape[1]), -math.inf), 1)).softmax(-1) @ x),
            q=nn.Linear(6, 8), k=nn.Linear(6, 8), v=nn.Linear(6, 3)),
        SEQUENCES, ("q.weight:0 head_dim 8>4",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIRECT)
def test_parameters_and_buffers_used_directly(name: str) -> None:
    net, inputs, axes = DIRECT[name]
    halved(net, inputs, *axes)


def test_a_buffer_that_state_dict_leaves_out_is_pruned_too() -> None:
    net = Net(lambda net, x: net.out(net.inp(x) * net.scale), inp=nn.Linear(4, 8), out=nn.Linear(8, 3))
    net.register_buffer("scale", torch.rand(8), persistent=False)
    small = halved(net, ROWS, "inp.weight:0 hidden 8>4").model
    assert small.scale.shape == (4,)
    assert "scale" not in small.state_dict()


def test_tied_weights_stay_tied() -> None:
    net = Net(lambda net, x: net.head(net.table(x) + net.down(net.up(net.table(x)).relu())), table=nn.Embedding(20, 8),
              up=nn.Linear(8, 12), down=nn.Linear(12, 8), head=nn.Linear(8, 20, bias=False))  # fmt: skip
    net.head.weight = net.table.weight
    small = halved(net, IDS, "table.weight:1 residual 8>4", "up.weight:0 hidden 12>6").model
    assert small.head.weight is small.table.weight
    assert small.head.in_features == 4


# ---------------------------------------------------------------------- attention by position, state-space scans


class Attention(nn.Module):
    """Attention by hand with a table that knows positions; input (N, L, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 8
        self.q, self.k, self.v, self.o = nn.Linear(6, 32), nn.Linear(6, 32), nn.Linear(6, 32), nn.Linear(32, 3)

    def turn(self, x: Tensor) -> Tensor:
        return x

    def bias(self, length: int) -> Tensor | float:
        return 0.0

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (f(x).view(n, length, self.heads, self.width).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = self.turn(q) @ self.turn(k).mT * 0.3 + self.bias(length)
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, self.heads * self.width))


class Alibi(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor([2.0 ** (-2 * h) for h in range(1, 5)]))

    def bias(self, length: int) -> Tensor:
        return self.slopes[:, None, None] * (torch.arange(length)[None, :] - torch.arange(length)[:, None])


class Rotary(Attention):
    """Rotary embeddings of halves."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", 100.0 ** -(torch.arange(0, 8, 2) / 8))

    def turn(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.shape[-2]).float(), self.frequencies).repeat(1, 2)
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


class Interleaved(Rotary):
    """Rotary embeddings of neighbours."""

    def turn(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.shape[-2]).float(), self.frequencies)
        first, second = x[..., ::2], x[..., 1::2]
        turned = first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()
        return torch.stack(turned, -1).flatten(-2)


class ComplexRotary(Rotary):
    """The same with complex numbers."""

    def turn(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.shape[-2]).float(), self.frequencies)
        turns = torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)


@pytest.mark.parametrize("kind", [Alibi, Rotary, Interleaved, ComplexRotary])
def test_attention_that_knows_positions(kind: type[Attention]) -> None:
    pairs = 8 if kind is Alibi else 4
    result = halved(
        kind(), SEQUENCES, "q.weight:0/heads heads 4>2", f"q.weight:0/head_dim head_dim {pairs}>{pairs // 2}",
        "v.weight:0/head_dim head_dim 8>4",
    )  # fmt: skip
    assert (result.model.heads, result.model.width) == (2, 4)


class Scan(nn.Module):
    """A selective state-space model as people write it without kernels; input (N, L, 6)."""

    def __init__(self, *, loop: bool) -> None:
        super().__init__()
        self.states, self.rank, self.inner, self.loop = 4, 2, 16, loop
        self.inp, self.expand, self.head = nn.Linear(6, 8), nn.Linear(8, 32), nn.Linear(8, 3)
        self.conv = nn.Conv1d(16, 16, 3, groups=16, padding=2)
        self.select, self.step, self.out = nn.Linear(16, 10, bias=False), nn.Linear(2, 16), nn.Linear(16, 8)
        self.decay = nn.Parameter(torch.arange(1.0, 5.0).log().repeat(16, 1))
        self.skip = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.expand(self.inp(x)).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        step, b, c = self.select(u).split([self.rank, self.states, self.states], -1)
        step = F.softplus(self.step(step))
        rate = torch.einsum("nld,ds->nlds", step, -self.decay.exp())
        y = self.by_step(rate.exp(), step * u, b, c) if self.loop else self.at_once(rate.cumsum(1), step * u, b, c)
        return self.head(self.out((y + u * self.skip) * F.silu(gate)))

    def by_step(self, decay: Tensor, u: Tensor, b: Tensor, c: Tensor) -> Tensor:
        state, out = torch.zeros(u.shape[0], self.inner, self.states), []
        for t in range(u.shape[1]):
            state = decay[:, t] * state + torch.einsum("nd,ns->nds", u[:, t], b[:, t])
            out.append(torch.einsum("nds,ns->nd", state, c[:, t]))
        return torch.stack(out, 1)

    def at_once(self, total: Tensor, u: Tensor, b: Tensor, c: Tensor) -> Tensor:
        states = total.exp() * (u[..., None] * b[:, :, None] * (-total).exp()).cumsum(1)
        return (states * c[:, :, None]).sum(-1)


@pytest.mark.parametrize("loop", [False, True])
def test_a_selective_scan(loop: bool) -> None:
    net = Scan(loop=loop)
    graph = sc.trace(net, SEQUENCES)
    assert {n: a.size for n, a in graph.axes.items()} == {
        "decay:0": 16, "decay:1": 4, "inp.weight:0": 8, "head.weight:1": 8,
        next(n for n in graph.axes if n.startswith("select.weight:0/")): 2,
    }  # fmt: skip
    small = sc.prune(net, SEQUENCES, keep=0.5).model
    assert (small.inner if loop else 8, small.states, small.rank) == (8, 2, 1)
    assert (small.conv.in_channels, small.conv.groups, small.select.out_features) == (8, 8, 5)
