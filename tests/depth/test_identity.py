"""Silenced blocks and identity layers."""

import pytest
import torch
from torch import Tensor, nn

from secateur.depth.identity import carries_input, identity_layer, imitable, silencers, trains
from secateur.depth.streams import Call
from support.blocks import BasicBlock, Mixing, PostNorm


def call(block: nn.Module, x: Tensor) -> Call:
    return Call((x,), {}, x, block.eval()(x))


class Scaled(nn.Module):
    """A branch that ends in a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(8))
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.inner(x)


class TwoBranches(nn.Module):
    """As in a transformer: norms, then two branches one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(torch.relu(self.up(self.norm2(x))))


@pytest.mark.parametrize(
    ("block", "x", "names"),
    [
        (Mixing(), torch.randn(5, 8), ("outer.weight", "outer.bias")),
        (BasicBlock(), torch.rand(2, 8, 5, 5), ("bn2.weight", "bn2.bias")),
        (Scaled(), torch.randn(5, 8), ("gamma",)),
        (
            TwoBranches(),
            torch.randn(2, 4, 8),
            ("attention.out_proj.weight", "attention.out_proj.bias", "down.weight", "down.bias"),
        ),
        (PostNorm(), torch.randn(5, 8), ()),
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.rand(5, 8), ()),
        (BasicBlock(), torch.randn(2, 8, 5, 5), ()),  # its ReLU changes what is negative
    ],
)
def test_silencers(block: nn.Module, x: Tensor, names: tuple[str, ...]) -> None:
    before = {name: p.clone() for name, p in block.named_parameters()}
    assert silencers(block, call(block, x)) == names
    assert all(torch.equal(p, before[name]) for name, p in block.named_parameters())


def test_a_gain_that_happens_to_be_zero_hides_nothing() -> None:
    block = BasicBlock()
    nn.init.zeros_(block.bn2.weight)
    nn.init.zeros_(block.bn2.bias)
    assert silencers(block, call(block, torch.rand(2, 8, 5, 5))) == ("bn2.weight", "bn2.bias")


def test_whether_a_silenced_block_trains() -> None:
    block = Mixing()
    nn.init.zeros_(block.outer.weight)
    nn.init.zeros_(block.outer.bias)
    seen = call(block, torch.randn(5, 8))
    assert trains(block, ("outer.weight", "outer.bias"), seen)
    nn.init.zeros_(block.inner.weight)
    nn.init.zeros_(block.inner.bias)  # tanh(0) = 0: no gradient comes to outer.weight
    assert not trains(block, ("outer.weight", "outer.bias"), seen)


@pytest.mark.parametrize(
    ("block", "x", "residual"),
    [
        (Mixing(), torch.randn(5, 8), True),
        (PostNorm(), torch.randn(5, 8), True),
        (BasicBlock(), torch.rand(2, 8, 5, 5), True),
        (nn.Linear(8, 8), torch.randn(5, 8), False),
        (nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()), torch.randn(2, 8, 3, 3), False),
        (nn.BatchNorm1d(8), torch.randn(5, 8), False),
    ],
)
def test_whether_a_block_is_residual(block: nn.Module, x: Tensor, residual: bool) -> None:
    assert carries_input(block, call(block, x)) is residual


@pytest.mark.parametrize(
    ("like", "x"),
    [
        (nn.Linear(3, 8), torch.randn(5, 8)),
        (nn.Linear(3, 8, bias=False), torch.randn(5, 2, 8)),
        (nn.Conv2d(3, 8, 3, stride=2), torch.randn(2, 8, 5, 5)),
        (nn.Conv2d(8, 8, (1, 4), groups=8), torch.randn(2, 8, 5, 5)),
        (nn.Conv1d(3, 8, 5), torch.randn(2, 8, 9)),
        (nn.Conv3d(3, 8, 3, bias=False), torch.randn(2, 8, 3, 3, 3)),
    ],
)
def test_identity_layers(like: nn.Module, x: Tensor) -> None:
    layer = identity_layer(like)
    assert imitable(like)
    assert torch.equal(layer(x), x)
    assert (layer.bias is None) == (like.bias is None)


def test_transposed_convolutions_have_none() -> None:
    assert not imitable(nn.ConvTranspose2d(3, 8, 3))
