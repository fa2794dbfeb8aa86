"""Attention that divides by the root of the current head size: the query's weights carry the change."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur import Plan


class Attention(nn.Module):
    """Three heads of 8, in the way that ``how`` says, without ``scale=``."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.heads, self.head_dim = how, 3, 8
        self.enter, self.leave = nn.Linear(5, 16), nn.Linear(24, 4)
        self.qkv = nn.Linear(16, 72)
        self.q, self.k, self.v = nn.Linear(16, 24), nn.Linear(16, 24, bias=False), nn.Linear(16, 24)
        self.query_norm, self.key_norm = nn.LayerNorm(8), nn.RMSNorm(8)
        self.gain = nn.Parameter(torch.rand(8))
        self.conv = nn.Conv1d(16, 72, 1)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, length, _ = x.shape
        if self.how in ("fused", "selected"):
            qkv = self.qkv(x).reshape(n, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
            return qkv.unbind(0) if self.how == "fused" else (qkv[0], qkv[1], qkv[2])  # type: ignore[return-value]
        if self.how == "chunked":
            return tuple(t.view(n, length, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))  # type: ignore[return-value]
        if self.how == "convolution":
            q, k, v = self.conv(x.mT).view(n, 3, self.heads, self.head_dim, length).mT.unbind(1)
            return q, k, v
        q, k, v = (f(x).view(n, length, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.how == "rotary":
            angle = torch.arange(length)[:, None] * torch.ones(self.head_dim // 2)
            cos, sin = (torch.cat([t, t], -1) for t in (angle.cos(), angle.sin()))
            q, k = (t * cos + torch.cat([-t[..., 4:], t[..., :4]], -1) * sin for t in (q, k))
        if self.how == "normed":
            q, k = self.query_norm(q), self.key_norm(k)
        if self.how == "gain":
            q = self.gain * q
        if self.how == "sine":
            q = q.sin()
        if self.how == "shared":
            k = q
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        q, k, v = self.parts(x)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.leave(out.transpose(1, 2).flatten(2))


WAYS = {
    "plain": {"q.weight", "q.bias"},
    "fused": {"qkv.weight", "qkv.bias"},
    "selected": {"qkv.weight", "qkv.bias"},
    "chunked": {"qkv.weight", "qkv.bias"},
    "convolution": {"conv.weight", "conv.bias"},
    "normed": {"query_norm.weight", "query_norm.bias"},
    "gain": {"gain"},
}


@pytest.mark.parametrize("how", WAYS)
def test_the_head_size_is_pruned_and_the_query_carries_the_factor(how: str) -> None:
    model = Attention(how)
    result = sc.prune(model, torch.randn(2, 6, 5), keep=0.5, only=["head_dim"])
    assert result.proof.status == "proved"
    assert {s.tensor for s in result.plan.scales} == WAYS[how]
    assert set(result.plan.sizes.values()) == {4}
    name = min(WAYS[how])
    (scale,) = (s for s in result.plan.scales if s.tensor == name)
    kept = result.plan.kept[name][scale.dim]
    new, old = result.model.get_parameter(name), model.get_parameter(name)
    scaled = [any(start <= at < stop for start, stop in scale.positions) for at in kept.tolist()]
    expected = old.index_select(scale.dim, kept) * torch.tensor([0.5**0.5 if s else 1.0 for s in scaled]).reshape(
        [-1 if k == scale.dim else 1 for k in range(old.dim())]
    )
    assert sum(scaled) == len(scaled) // (3 if "qkv" in name or "conv" in name else 1)
    torch.testing.assert_close(new, expected)


def test_rotary_pairs_are_scaled_together() -> None:
    """The rotation runs over a table that the code makes with a fixed size, so the pairs stay; heads can go."""
    result = sc.prune(Attention("rotary"), torch.randn(2, 6, 5), keep=0.5)
    assert result.proof.status == "proved"
    assert any(axis.kind == "heads" for axis in result.plan.axes.values())


@pytest.mark.parametrize("how", ["sine", "shared"])
def test_what_does_not_scale_keeps_its_head_size(how: str) -> None:
    """A sine of the query does not scale with it; a shared query and key would be scaled twice."""
    result = sc.prune(Attention(how), torch.randn(2, 6, 5), keep=0.5)
    assert result.proof.status == "proved"
    frozen = [info for info in result.graph.frozen.values() if info.kind == "head_dim"]
    assert frozen
    reason = frozen[0].frozen[0]
    assert ("divides by the root of its size" in reason and __file__ in reason) if how == "sine" else "proof" in reason


def test_scales_are_saved_with_the_plan_and_replayed() -> None:
    model, x = Attention("fused"), torch.randn(2, 6, 5)
    result = sc.prune(model, x, keep=0.5)
    again = Plan.from_dict(result.plan.to_dict())
    assert again == result.plan
    torch.testing.assert_close(again.apply(model)(x), result.model(x))
    again.apply_(model)
    torch.testing.assert_close(model(x), result.model(x))
