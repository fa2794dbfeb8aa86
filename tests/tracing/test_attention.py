"""torch's own attention: nn.MultiheadAttention, the encoder with its fast path on and off, nn.Transformer."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc


class Attends(nn.Module):
    """32 wide, 4 heads: queries from one layer, keys and values from it or from others."""

    def __init__(self, *, cross: bool = False, weights: bool = False, masks: str = "", **settings: Any) -> None:
        super().__init__()
        self.cross, self.weights, self.masks = cross, weights, masks
        self.query = nn.Linear(8, 32)
        self.key, self.value = nn.Linear(8, settings.get("kdim", 32)), nn.Linear(8, settings.get("vdim", 32))
        self.attn = nn.MultiheadAttention(32, 4, batch_first=True, **settings)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        q = self.query(x)
        k, v = (self.key(x), self.value(x)) if self.cross else (q, q)
        length = x.shape[1]
        causal = torch.triu(torch.ones(length, length, dtype=torch.bool), 1) if "causal" in self.masks else None
        padding = torch.zeros(x.shape[0], length, dtype=torch.bool) if "padding" in self.masks else None
        y, w = self.attn(q, k, v, need_weights=self.weights, attn_mask=causal, key_padding_mask=padding)
        return self.head(q + y), w


WAYS: dict[str, dict[str, Any]] = {
    "self": {},
    "with weights": {"weights": True},
    "masks": {"masks": "causal padding"},
    "masks and weights": {"masks": "causal padding", "weights": True},
    "cross": {"cross": True},
    "cross of other widths": {"cross": True, "kdim": 24, "vdim": 20},
    "no bias": {"bias": False},
    "bias for keys and values": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_width_and_heads_shrink_together(way: str) -> None:
    result = sc.prune(Attends(**WAYS[way]), torch.randn(2, 6, 8), keep=0.5)
    assert result.proof.status == "proved"
    assert result.rewritten is None
    attn: Any = result.model.attn
    assert (attn.embed_dim, attn.num_heads, attn.head_dim) == (16, 2, 8)
    assert (attn.kdim, attn.vdim) == ((12, 10) if "kdim" in WAYS[way] else (16, 16))
    assert attn.out_proj.in_features == attn.out_proj.out_features == 16
    y, _ = result.model(torch.randn(3, 5, 8))
    assert y.shape == (3, 5, 3)
    y.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in attn.parameters())


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_the_encoder_agrees_with_its_fast_path(norm_first: bool, fast: bool) -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.Sequential(nn.Linear(8, 32), encoder, nn.Linear(32, 2)).eval()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        result = sc.prune(model, torch.randn(2, 6, 8), keep=0.5)
        assert torch.backends.mha.get_fastpath_enabled() is fast
        assert result.proof.status == "proved"
        assert sorted(result.plan.sizes.values()) == [2, 2, 16, 32, 32]
        x = torch.randn(3, 5, 8)
        with torch.no_grad():
            here = result.model(x)
            torch.backends.mha.set_fastpath_enabled(not fast)
            torch.testing.assert_close(result.model(x), here)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_a_whole_transformer() -> None:
    """Its width is compared with ``d_model``, which has to follow."""

    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(20, 32), nn.Linear(32, 20)
            self.body = nn.Transformer(32, 4, 1, 1, 48, batch_first=True)

        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
            return self.head(self.body(self.embed(source), self.embed(target), tgt_mask=mask, tgt_is_causal=True))

    example = torch.randint(0, 20, (2, 6)), torch.randint(0, 20, (2, 5))
    result = sc.prune(Translator(), example, keep=0.5)
    assert result.proof.status == "proved"
    body: Any = result.model.body
    assert (body.d_model, result.model.embed.embedding_dim) == (16, 16)
    assert result.graph.coverage > 0.99
    assert not [a for a in result.graph.frozen.values() if "proof" in a.frozen[0]]


def test_sizes_that_are_compared_stay_equal() -> None:
    """A shortcut that is taken where widths agree must go on being taken."""

    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).relu()
            y = self.b(h)
            return self.c(y.sin() if h.shape == y.shape else y.cos())

    graph = sc.trace(Shortcut(), torch.randn(3, 4))
    assert graph.ties == (("a.weight:0", "b.weight:0"),)
