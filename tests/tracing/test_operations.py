"""Every family of operations: half of every axis goes, and these are the axes. A freeze would fail a test here."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from support.operations import (
    CHANNELS,
    IDS,
    IMAGES,
    LINES,
    ROWS,
    VOLUMES,
    Case,
    Net,
    chain,
    halved,
    images,
    rows,
    weight,
)


def write_halves(x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    out = x.new_zeros(x.shape[0], x.shape[1])
    out[:, :half] = x[:, half:]
    out[:, half:] = x[:, :half]
    return out


def add_to_half(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, x.shape[1] // 2 :].add_(1.0)
    return x


def write_rows(x: Tensor) -> Tensor:
    x = x.clone()
    x[0] = 0
    x[torch.tensor([1])] = 2 * x[:1]
    return x


def write_masked(x: Tensor) -> Tensor:
    x = x.clone()
    x[x.detach().sum(1) > 100] = 0.0  # none is
    return x


def shift_in_time(x: Tensor) -> Tensor:
    """A quarter of the channels comes from the next frame, a quarter from the one before."""
    fold, out = x.shape[1] // 4, torch.zeros_like(x)
    out[:-1, :fold] = x[1:, :fold]
    out[1:, fold : 2 * fold] = x[:-1, fold : 2 * fold]
    out[:, 2 * fold :] = x[:, 2 * fold :]
    return out


def shuffle_by_view(net: Net, x: Tensor) -> Tensor:
    x = net.first(x)
    n, c, h, w = x.shape
    return net.last(x.view(n, net.groups, c // net.groups, h, w).transpose(1, 2).reshape(n, -1, h, w))


THIRDS = ("first.weight:0/channels1 channels 3>2", "first.weight:0/channels2 channels 4>2")
WINDOWS = ("first.weight:0/channels1 channels 3>2",)
HALVES = ("first.weight:0/hidden1 hidden 6>3", "first.weight:0/hidden2 hidden 6>3")

MOVEMENT: dict[str, Case] = {
    "glu": rows(lambda x: F.glu(x, 1), "first.weight:0/hidden hidden 6>3", out=6),
    "layer glu": chain(
        IMAGES, nn.Conv2d(2, 16, 3), nn.GLU(1), nn.Conv2d(8, 3, 1), axes=("a.weight:0/channels channels 8>4",)
    ),
    "pad by a literal": images(lambda x: F.pad(x, (0, 0, 0, 0, 2, 3)), out=17),
    "pad by a size": images(
        lambda x: F.pad(x, (0, 0, 0, 0, 0, x.shape[1])), CHANNELS, "last.weight:1/channels2 channels 12>6", out=24
    ),
    "shortcut of a wider stage": images(
        lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, x.shape[1] // 2, x.shape[1] // 2)),
        CHANNELS, "last.weight:1/channels1 channels 6>3", "last.weight:1/channels3 channels 6>3", out=24,
    ),
    "unfold and fold": images(lambda x: F.fold(F.unfold(x, 3, padding=1), (6, 6), 3, padding=1)),
    "unfold to patches": images(lambda x: F.unfold(x, 2, stride=2)[..., None], out=48),
    "windows in space": images(lambda x: x.unfold(2, 2, 2).unfold(3, 3, 1).flatten(4).mean(-1)),
    "windows over units": rows(lambda x: x.unfold(1, 4, 4).sum(2), "first.weight:0/hidden1 hidden 3>2", out=3),
    "every other unit": rows(lambda x: x[:, ::2] * x[:, 1::2], "first.weight:0/hidden1 hidden 6>3", out=6),
    "pixel shuffle": images(lambda x: F.pixel_shuffle(x, 2), *WINDOWS, out=3),
    "pixel shuffle by view": images(
        lambda x: x.view(x.shape[0], -1, 2, 2, 6, 6).permute(0, 1, 4, 2, 5, 3).reshape(x.shape[0], -1, 12, 12),
        *WINDOWS, out=3,
    ),
    "pixel unshuffle": images(lambda x: F.pixel_unshuffle(x, 2), out=48),
    "layer pixel shuffle": chain(
        IMAGES, nn.Conv2d(2, 12, 1), nn.PixelShuffle(2), nn.Conv2d(3, 3, 1), axes=("a.weight:0/channels1 channels 3>2",)
    ),
    "channel shuffle": chain(
        IMAGES, nn.Conv2d(2, 12, 1), nn.ChannelShuffle(3), nn.Conv2d(12, 3, 1),
        axes=("a.weight:0/channels1 channels 3>2", "a.weight:0/channels2 channels 4>2"),
    ),
    "channel shuffle by view": (
        Net(shuffle_by_view, first=nn.Conv2d(2, 12, 1), last=nn.Conv2d(12, 3, 1), groups=3), IMAGES, THIRDS,
    ),
    "repeat_interleave of units": images(lambda x: x.repeat_interleave(2, 1), out=24),
    "repeat_interleave in space": images(lambda x: x.repeat_interleave(2, 2)),
    "repeat_interleave of samples": rows(lambda x: x.repeat_interleave(3, 0)),
    "writes into halves": rows(write_halves, *HALVES),
    "adds to a half": rows(add_to_half, *HALVES),
    "tile": rows(lambda x: torch.tile(x, (2,)), out=24),
    "tensors beside and above each other": rows(
        lambda x: torch.vstack([torch.hstack([x, 2 * x]), torch.column_stack([x, x])]), out=24
    ),
    "dims moved": images(lambda x: x.movedim(1, -1).relu().swapaxes(1, 3)),
    "turned in space": images(lambda x: torch.rot90(x, 1, (2, 3)).roll(1, 2).flip(3)),
    "diagonals": rows(lambda x: (torch.diag_embed(x) @ torch.eye(x.shape[1])).diagonal(dim1=1, dim2=2)),
    "circular pad": images(lambda x: F.pad(x, (1, 1, 1, 1), mode="circular")),
    "crop": images(lambda x: F.pad(x, (-1, -1, 0, 0))),
    "blocks on a diagonal": rows(
        lambda x: x @ torch.block_diag(torch.eye(x.shape[1] // 2), 2 * torch.eye(x.shape[1] // 2)), *HALVES
    ),
    "unpool": images(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)),
    "space to depth": images(
        lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1), out=48
    ),
    "maximum of pairs": images(
        lambda x: x.unflatten(1, (-1, 2)).amax(2), "first.weight:0/channels1 channels 6>3", out=6
    ),
    "temporal shift": images(
        shift_in_time, "first.weight:0/channels1 channels 3>2", "first.weight:0/channels2 channels 3>2",
        "first.weight:0/channels3 channels 6>4",
    ),
}  # fmt: skip

NUMBERED: dict[str, Case] = {
    "index_select": images(lambda x: x.index_select(2, torch.tensor([0, 2]))),
    "gather": images(lambda x: x.gather(3, torch.zeros(1, 1, 1, 2).long().expand(*x.shape[:3], 2))),
    "gather at a made index": images(lambda x: x.gather(3, torch.zeros(*x.shape[:3], 2, dtype=torch.long))),
    "take_along_dim": images(lambda x: torch.take_along_dim(x, x.argsort(3)[..., :2], 3)),
    "scatter": images(lambda x: torch.zeros_like(x).scatter(3, torch.zeros_like(x).long(), x)),
    "scatter_add": images(lambda x: torch.zeros_like(x).scatter_add_(3, torch.zeros_like(x).long(), x)),
    "index_add": images(lambda x: torch.zeros_like(x).index_add_(2, torch.tensor([0, 1, 2, 3, 4, 4]), x)),
    "index_copy": images(lambda x: torch.zeros_like(x).index_copy_(2, torch.tensor([5, 4, 3, 2, 1, 0]), x)),
    "index_fill": images(lambda x: x.index_fill(2, torch.tensor([1]), 0.5)),
    "index_put": images(lambda x: x.index_put((torch.tensor([0]),), x[1:2].detach() * 0)),
    "rows written": rows(write_rows),
    "rows masked": rows(write_masked),
    "bucketize": images(lambda x: x * torch.bucketize(x.detach(), torch.tensor([-0.5, 0.5]))),
    "isin": images(lambda x: x * ~torch.isin(x.detach(), torch.tensor([0.5]))),
    "searchsorted": images(lambda x: x * torch.searchsorted(torch.tensor([-0.5, 0.5]), x.detach())),
    "embedding bag, mean": chain(
        IDS, nn.EmbeddingBag(20, 8), nn.Linear(8, 3), axes=("a.weight:1 hidden 8>4",)
    ),
    "embedding bag, max": chain(
        IDS, nn.EmbeddingBag(20, 8, mode="max"), nn.Linear(8, 3), axes=("a.weight:1 hidden 8>4",)
    ),
    "embedding with a largest norm": chain(
        IDS, nn.Embedding(20, 8, max_norm=1.0), nn.Linear(8, 3), axes=("a.weight:1 hidden 8>4",)
    ),
}  # fmt: skip

CONTRACTION: dict[str, Case] = {
    "einsum with itself": rows(
        lambda x: torch.einsum("nc,nc->n", x, x)[:, None] * x, "first.weight:0 head_dim 12>6"
    ),
    "einsum with a weight": (
        Net(lambda net, x: net.last(torch.einsum("ni,io->no", net.first(x), net.w)),
            first=nn.Linear(4, 12), w=weight(12, 10), last=nn.Linear(10, 3)),
        ROWS, ("w:0 hidden 12>6", "w:1 hidden 10>5"),
    ),
    "einsum of three": (
        Net(lambda net, x: net.last(torch.einsum("ni,nj,ijo->no", net.a(x), net.b(x), net.w)),
            a=nn.Linear(4, 6), b=nn.Linear(4, 8), w=weight(6, 8, 10), last=nn.Linear(10, 3)),
        ROWS, ("w:0 hidden 6>3", "w:1 hidden 8>4", "w:2 hidden 10>5"),
    ),
    "bilinear": (
        Net(lambda net, x: net.last(net.form(net.a(x), net.b(x)).relu()),
            a=nn.Linear(4, 6), b=nn.Linear(4, 8), form=nn.Bilinear(6, 8, 10), last=nn.Linear(10, 3)),
        ROWS, ("a.weight:0 hidden 6>3", "b.weight:0 hidden 8>4", "form.weight:0 hidden 10>5"),
    ),
    "log of a sum of exponentials": rows(lambda x: x - x.logsumexp(1, keepdim=True)),
    "log softmax": rows(lambda x: x.log_softmax(1)),
    "product of units": rows(lambda x: x * x.prod(1, keepdim=True)),
    "log sigmoid": rows(F.logsigmoid),
    "largest norms": rows(lambda x: x.renorm(2, 0, 1.0)),
    "cross products": rows(
        lambda x: torch.cross(x.unflatten(1, (-1, 3)), x.unflatten(1, (-1, 3)).relu(), dim=2).flatten(1),
        "first.weight:0/hidden1 hidden 4>2",
    ),
    "inverses of many matrices": rows(
        lambda x: torch.linalg.inv(x.unflatten(1, (-1, 2, 2)) + 3 * torch.eye(2)).flatten(1),
        "first.weight:0/hidden1 hidden 3>2",
    ),
    "tensordot": rows(lambda x: torch.tensordot(x, x, dims=([1], [1])) @ x),
    "a convolution with a made kernel": images(
        lambda x: F.conv2d(x, torch.ones(1, 1, 2, 2).repeat(x.shape[1], 1, 1, 1) / 4, groups=x.shape[1]),
        "first.weight:0 groups 12>6",
    ),
    "a convolution of its own for each sample": (
        Net(lambda net, x: net.last(F.conv2d(
                (y := net.first(x)).reshape(1, -1, 6, 6), net.kernel(y.mean((2, 3))).reshape(-1, 1, 1, 1),
                groups=y.shape[0] * y.shape[1]).view_as(y)),
            first=nn.Conv2d(2, 12, 1), kernel=nn.Linear(12, 12), last=nn.Conv2d(12, 3, 1)),
        IMAGES, ("first.weight:0 groups 12>6",),
    ),
    "modulated weights": (
        Net(lambda net, x: net.last(torch.einsum(
                "nio,ni->no", net.w * (1 + net.style(x)[:, :, None]).sigmoid(), net.first(x))),
            first=nn.Linear(4, 12), style=nn.Linear(4, 12), w=weight(12, 10), last=nn.Linear(10, 3)),
        ROWS, ("w:0 head_dim 12>6", "w:1 hidden 10>5"),
    ),
    "distances": rows(lambda x: torch.cdist(x, x.relu()) @ x),
    "a shared layer": (
        Net(lambda net, x: net.out(net.mid(net.mid(net.inp(x)).relu()).relu()),
            inp=nn.Linear(4, 8), mid=nn.Linear(8, 8), out=nn.Linear(8, 3)),
        ROWS, ("inp.weight:0 hidden 8>4",),
    ),
    "checkpointing": (
        Net(lambda net, x: net.out(checkpoint(lambda y: net.mid(y).relu(), net.inp(x), use_reentrant=False)),
            inp=nn.Linear(4, 8), mid=nn.Linear(8, 8), out=nn.Linear(8, 3)),
        ROWS, ("inp.weight:0 hidden 8>4", "mid.weight:0 hidden 8>4"),
    ),
}  # fmt: skip

TABLE = {**MOVEMENT, **NUMBERED, **CONTRACTION}


@pytest.mark.parametrize("name", TABLE)
def test_half_of_every_axis_goes(name: str) -> None:
    net, inputs, axes = TABLE[name]
    halved(net, inputs, *axes)


def test_bags_with_offsets() -> None:
    net = Net(lambda net, x, at: net.out(net.bag(x, at)), bag=nn.EmbeddingBag(20, 8, mode="sum"), out=nn.Linear(8, 3))
    bags = torch.arange(8), torch.tensor([0, 3])
    halved(net, bags, "bag.weight:1 hidden 8>4", other=(torch.arange(9), torch.tensor([0, 3, 3])))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 12])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions(rank: int, groups: int, transposed: bool) -> None:
    conv = getattr(nn, f"Conv{'Transpose' * transposed}{rank}d")
    middle = conv(12, 24, 3, padding=1, groups=groups)
    before = {
        1: ("a.weight:0 channels 12>6",),
        2: ("a.weight:0/groups groups 2>1", "a.weight:0/channels channels 6>3"),
        12: ("a.weight:0 groups 12>6",),
    }[groups]
    own = "b.weight:1" if transposed else "b.weight:0" if groups == 1 else "b.weight:0/channels"
    units = 24 // groups
    plain = getattr(nn, f"Conv{rank}d")
    inputs = (LINES, IMAGES, VOLUMES)[rank - 1]
    net, inputs, axes = chain(inputs, plain(2, 12, 1), middle, plain(24, 3, 1), axes=before)
    small = halved(net, inputs, *axes, f"{own} channels {units}>{units // 2}").model
    assert (small.b.in_channels, small.b.groups) == (small.a.out_channels, {1: 1, 2: 1, 12: 6}[groups])
