"""Each family of operations: the smaller model equals the silenced one, and what must freeze does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc


class Between(nn.Module):
    """Two layers around an operation: linear ones, or convolutions for images."""

    def __init__(self, function: Callable[[Tensor], Tensor], first: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.__dict__["function"] = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def rows(function: Callable[[Tensor], Tensor], width: int = 12, out: int = 12) -> tuple[nn.Module, Tensor]:
    """(N, 4) -> linear -> (N, width) -> function -> (N, out) -> linear -> (N, 3)."""
    return Between(function, nn.Linear(4, width), nn.Linear(out, 3)), torch.randn(2, 4)


def images(function: Callable[[Tensor], Tensor], width: int = 12, out: int = 12) -> tuple[nn.Module, Tensor]:
    """(N, 2, 6, 6) -> conv -> (N, width, 6, 6) -> function -> (N, out, ...) -> conv -> (N, 3, ...)."""
    return Between(function, nn.Conv2d(2, width, 3, padding=1), nn.Conv2d(out, 3, 1)), torch.randn(2, 2, 6, 6)


PRUNABLE: dict[str, tuple[nn.Module, Any]] = {
    "relu": rows(F.relu),
    "in-place": rows(lambda x: x.mul_(2).relu_()),
    "hardswish in place": rows(lambda x: F.hardswish(x, inplace=True)),
    "hardswish": rows(F.hardswish),
    "reversed subtraction of tensors": rows(lambda x: torch.rsub(x, 2 * x)),
    "gelu of a sum": rows(lambda x: F.gelu(x + 0.5 * x)),
    "where": rows(lambda x: torch.where(x > 0, x, 0.1 * x)),
    "masked fill": rows(lambda x: x.masked_fill(x < 0, 0.0)),
    "dropout in evaluation": rows(lambda x: F.dropout(x, 0.5, training=False)),
    "zeros like": rows(lambda x: x + torch.zeros_like(x)),
    "permute and back": images(lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)),
    "view as rows and back": rows(lambda x: x.view(2, 3, 4).reshape(2, 12)),
    "unsqueeze and squeeze": rows(lambda x: x[:, None].unsqueeze(-1).squeeze(-1).squeeze(1)),
    "cat with itself": rows(lambda x: torch.cat([x, 2 * x], 1), out=24),
    "cat of halves swapped": rows(lambda x: torch.cat([x[:, 6:], x[:, :6]], 1)),
    "chunk and gate": rows(lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(), out=6),
    "split in thirds": rows(lambda x: x.split(4, 1)[0] * x.split(4, 1)[2], out=4),
    "expand and flatten": rows(lambda x: x[:, :, None].expand(-1, -1, 2).flatten(1), out=24),
    "repeat": rows(lambda x: x.repeat(1, 2), out=24),
    "stack and sum": rows(lambda x: torch.stack([x, x * 2], 1).sum(1)),
    "norm of a vector": rows(lambda x: x / x.norm(dim=1, keepdim=True)),
    "normalize": rows(lambda x: F.normalize(x, dim=1)),
    "layer norm without affine": rows(lambda x: F.layer_norm(x, x.shape[1:])),
    "rms norm by hand": rows(lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)),
    "maximum over units": rows(lambda x: x - x.amax(1, keepdim=True)),
    "softmax over units": rows(lambda x: x.softmax(1)),
    "cumulative sum of units": rows(lambda x: x.cumsum(1)),
    "largest few of the units": rows(lambda x: x * x.topk(3, 1).values.sum(1, keepdim=True)),
    "maximum over units as a pair": rows(lambda x: x - x.max(1, keepdim=True).values),
    "variance over units": rows(lambda x: x / (x.var(1, keepdim=True) + 1)),
    "max pool": images(lambda x: F.max_pool2d(x, 2)),
    "average pool": images(lambda x: F.avg_pool2d(x, 2)),
    "adaptive pool": images(lambda x: F.adaptive_avg_pool2d(x, 3)),
    "global mean": images(lambda x: x.mean((2, 3), keepdim=True)),
    "upsample": images(lambda x: F.interpolate(x, scale_factor=2.0)),
    "bilinear": images(lambda x: F.interpolate(x, size=(5, 5), mode="bilinear")),
    "spatial pad": images(lambda x: F.pad(x, (1, 1, 2, 0))),
    "reflection pad": images(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "channel pad": images(lambda x: F.pad(x, (0, 0, 0, 0, 2, 3)), out=17),
    "pixel shuffle": images(lambda x: F.pixel_shuffle(x, 2), out=3),
    "pixel unshuffle": images(lambda x: F.pixel_unshuffle(x, 2), out=48),
    "channel shuffle": images(lambda x: F.channel_shuffle(x, 3)),
    "unfold": rows(lambda x: F.unfold(x[:, :, None, None].expand(-1, -1, 2, 2), 2).mean(2), out=48),
    "grid sample": images(lambda x: F.grid_sample(x, torch.zeros(2, 4, 4, 2), align_corners=False)),
    "instance norm": images(lambda x: F.instance_norm(x)),
    "roll in space": images(lambda x: x.roll((1, 2), (2, 3))),
    "flip in space": images(lambda x: x.flip(2)),
    "softmax in space": images(lambda x: x.flatten(2).softmax(-1).view_as(x)),
    "topk in space": images(lambda x: x.flatten(2).topk(4, -1).values[..., None]),
    "cumsum in space": images(lambda x: x.cumsum(2)),
    "gather in space": images(lambda x: x.gather(3, torch.zeros_like(x[..., :2]).long())),
    "index in space": images(lambda x: x[:, :, torch.tensor([0, 2, 4])]),
    "index select in space": images(lambda x: x.index_select(2, torch.tensor([0, 2]))),
    "einsum": rows(lambda x: torch.einsum("nc,mc->nm", x, x) @ x),
    "outer product": rows(lambda x: torch.bmm(x[:, :, None], x[:, None, :]).sum(2)),
}


@pytest.mark.parametrize("name", PRUNABLE)
def test_half_the_units_go_and_the_proof_holds(name: str) -> None:
    model, inputs = PRUNABLE[name]
    graph = sc.trace(model, inputs)
    assert not graph.unknown
    assert any(axis.startswith("first.weight:0") for axis in graph.axes), graph
    result = sc.prune(model, inputs, keep=0.5)
    assert result.proof.status == "proved"
    assert result.model.first.weight.shape[0] < model.first.weight.shape[0]  # type: ignore[union-attr]
    assert not [a for a in result.graph.frozen.values() if "proof fails" in a.frozen[0]]


FREEZING: dict[str, tuple[nn.Module, Any, str]] = {
    "a median of units": (*rows(lambda x: x - x.median(1, keepdim=True).values), "median"),
    "argmax over units": (*rows(lambda x: x * x.argmax(1, keepdim=True)), "mul"),
    "one unit picked": (*rows(lambda x: x * x[:, 3:4].sum(1, keepdim=True) + x[:, 3, None]), "select"),
    "a flip of units": (*rows(lambda x: x.flip(1)), "flip"),
    "every fifth unit": (*rows(lambda x: x[:, ::5], out=3), "slice"),
    "a constant vector added": (*rows(lambda x: x + torch.arange(12.0)), "arange"),
    "a sort of units": (*rows(lambda x: x.sort(1).values), "sort"),
    "a cumulative product of units": (*rows(lambda x: x.cumprod(1)), "cumprod"),
}


@pytest.mark.parametrize("name", FREEZING)
def test_positions_that_count_freeze_with_the_operation_named(name: str) -> None:
    model, inputs, operation = FREEZING[name]
    graph = sc.trace(model, inputs)
    assert not graph.axes
    reasons = (
        graph.frozen["first.weight:0"].frozen
        if "first.weight:0" in graph.frozen
        else [r for a in graph.frozen.values() for r in a.frozen]
    )
    assert any(operation in r and __file__ in r for r in reasons), reasons


def test_an_unknown_operation_freezes_what_it_touches_and_is_named() -> None:
    @torch.library.custom_op("secateur_test::mystery", mutates_args=())
    def mystery(x: Tensor) -> Tensor:
        return x.flip(1) * 2

    @mystery.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    model, inputs = rows(mystery)
    graph = sc.trace(model, inputs)
    assert not graph.axes
    ((name, place),) = graph.unknown
    assert name == "secateur_test::mystery"
    assert __file__ in place
    assert "no rule knows secateur_test::mystery" in str(graph)


def test_a_rule_from_user_code_makes_an_operation_prunable() -> None:
    from secateur.tracing import Op, rule
    from secateur.tracing.rules import RULES

    @torch.library.custom_op("secateur_test::double", mutates_args=())
    def double(x: Tensor) -> Tensor:
        return x * 2

    @double.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    @rule("secateur_test::double")
    def same_dims(op: Op) -> list[Any]:
        return op.dims("x")

    try:
        model, inputs = rows(double)
        assert sc.prune(model, inputs, keep=0.5).model.first.out_features == 6  # type: ignore[union-attr]
    finally:
        RULES.pop("secateur_test::double")


# ---------------------------------------------------------------------- modules with structure of their own


class Attention(nn.Module):
    """Self-attention by hand, grouped queries and rotary halves on demand; input (N, L, 16)."""

    def __init__(self, *, groups: int = 1, rotary: bool = False, fused: bool = False, scaled: bool = True) -> None:
        super().__init__()
        self.heads, self.head_dim, self.groups = 4, 8, groups
        self.q, self.k, self.v = nn.Linear(16, 32), nn.Linear(16, 32 // groups), nn.Linear(16, 32 // groups)
        self.o = nn.Linear(32, 16)
        self.rotary, self.fused, self.scale = rotary, fused, 8**-0.5 if scaled else None
        self.register_buffer("angles", torch.randn(5, 4), persistent=False)

    def turn(self, x: Tensor) -> Tensor:
        table = torch.cat([self.angles, self.angles], -1)
        first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * table.cos() + torch.cat([-second, first], -1) * table.sin()

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (f(x).view(n, length, -1, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.rotary:
            q, k = self.turn(q), self.turn(k)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale, enable_gqa=self.groups > 1)
        else:
            k, v = (
                t[:, :, None].expand(-1, -1, self.groups, -1, -1).reshape(n, self.heads, length, -1) for t in (k, v)
            )
            y = (q @ k.mT * (8**-0.5)).softmax(-1) @ v
        return self.o(y.transpose(1, 2).reshape(n, length, -1))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_attention_heads_go_as_wholes(groups: int, rotary: bool, fused: bool) -> None:
    model = Attention(groups=groups, rotary=rotary, fused=fused)
    result = sc.prune(model, torch.randn(2, 5, 16), keep=0.5, only=["heads", "kv_groups"])
    assert result.proof.status == "proved"
    assert result.model.q.out_features == 32 // (2 * groups)  # type: ignore[union-attr]
    assert result.model.k.out_features == 32 // (2 * groups)  # type: ignore[union-attr]


@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_convolutions(groups: int, transposed: bool) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    middle = kind(12, 24, 3, padding=1, groups=groups)
    model = nn.Sequential(nn.Conv2d(2, 12, 1), middle, nn.ReLU(), nn.Conv2d(24, 3, 1))
    small = sc.prune(model, torch.randn(1, 2, 6, 6), keep=0.5).model
    assert small[1].weight.numel() < middle.weight.numel()  # type: ignore[union-attr,operator]
    assert small[1].in_channels == small[0].out_channels  # type: ignore[union-attr]
    assert small[3].in_channels == small[1].out_channels  # type: ignore[union-attr]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_and_norms_of_every_rank(rank: int) -> None:
    conv, norm = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1], (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
    model = nn.Sequential(conv(2, 8, 3), norm(8), nn.ReLU(), conv(8, 3, 1)).eval()
    small = sc.prune(model, torch.randn(2, 2, *[5] * rank), keep=0.5).model
    assert small[1].num_features == 4  # type: ignore[union-attr]


def test_group_norm_loses_whole_groups_and_keeps_its_count_true() -> None:
    model = nn.Sequential(nn.Conv2d(2, 12, 3), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 3, 1))
    small = sc.prune(model, torch.randn(2, 2, 6, 6), keep=0.5).model
    assert (small[1].num_groups, small[1].num_channels) == (2, 2 * round(3 * 0.5 + 0.01))  # type: ignore[union-attr]


def test_a_shared_module_is_pruned_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.mid, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.mid(self.mid(self.inp(x)).relu()).relu())

    small = sc.prune(Twice(), torch.randn(2, 4), keep=0.5).model
    assert small.mid.weight.shape == (4, 4)  # type: ignore[union-attr]


def test_inputs_of_every_form() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Any]:
            return {"out": [self.b(self.a(x).relu() * scale)], "none": None}

    x, scale = torch.randn(3, 4), torch.ones(1)
    for args, kwargs in ((x, {"scale": scale}), ((x,), {"scale": scale}), ({"x": x, "scale": scale}, None)):
        assert list(sc.trace(Two(), args, kwargs).axes) == ["a.weight:0"]


@pytest.mark.parametrize("layer", [nn.Linear(6, 8), nn.Conv1d(6, 8, 1)])
def test_weight_normalisation_is_pruned_through(layer: nn.Module) -> None:
    """The norm of a silenced unit's zeros would be no number: the proof silences the effective weight."""
    last = nn.Linear(8, 2) if isinstance(layer, nn.Linear) else nn.Conv1d(8, 2, 1)
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(layer), nn.ReLU(), last)
    inputs = torch.randn(2, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 6, 3)
    result = sc.prune(model, inputs, keep=0.5)
    assert result.model[0].weight.shape[:2] == (4, 6)  # type: ignore[union-attr]
    assert "4" in result.model[0].extra_repr()  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("fused", [False, True])
def test_one_attribute_for_two_head_sizes_keeps_their_proportion(fused: bool) -> None:
    """Rotary halves couple the units of queries and keys in pairs; values have as many units, uncoupled."""
    model = Attention(rotary=True, fused=fused)
    graph = sc.trace(model, torch.randn(2, 5, 16))
    sizes = {name: graph.axes[name].size for tie in graph.ties for name in tie}
    assert sorted(sizes.values()) == [4, 8]
    result = sc.prune(model, torch.randn(2, 5, 16), keep=0.5, only=["head_dim"])
    small = result.model
    assert (small.head_dim, small.q.out_features, small.v.out_features) == (4, 16, 16)  # type: ignore[union-attr]
    assert small.angles.shape == (5, 2)  # type: ignore[union-attr]
    budget = sc.prune(model, torch.randn(2, 5, 16), budget=sc.Budget(params=0.6)).plan.sizes
    first, second = (budget.get(name, size) / size for name, size in sizes.items())
    assert first == second
