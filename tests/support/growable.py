"""Networks whose axes are hard to widen, each small, with example inputs of a batch of two by `inputs`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class Decoder(nn.Module):
    """One block of 4 heads of 8 over 2 pairs of keys and values, a gated MLP, and an embedding tied to the head."""

    def __init__(self, *, normed: bool = False, explicit: bool = False) -> None:
        super().__init__()
        self.heads, self.pairs, self.size, self.explicit = 4, 2, 8, explicit
        self.embed, self.norm, self.last = nn.Embedding(20, 16), nn.RMSNorm(16), nn.LayerNorm(16)
        self.q, self.k, self.v, self.o = nn.Linear(16, 32), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(32, 16)
        self.up, self.gate, self.down = nn.Linear(16, 20), nn.Linear(16, 20), nn.Linear(20, 16)
        self.qnorm = nn.RMSNorm(8) if normed else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        b, t, _ = x.shape
        y = self.norm(x)
        q = self.qnorm(self.q(y).view(b, t, self.heads, self.size)).transpose(1, 2)
        k, v = (f(y).view(b, t, self.pairs, self.size).transpose(1, 2) for f in (self.k, self.v))
        k, v = (z.repeat_interleave(self.heads // self.pairs, 1) for z in (k, v))
        if self.explicit:
            mixed = (q @ k.transpose(-1, -2) * 0.35).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(b, t, -1))
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return F.linear(self.last(x), self.embed.weight)


class Recurrent(nn.Module):
    """A recurrent network of two layers and 6 hidden units, and a linear head."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.cells = kind(5, 6, 2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(12 if bidirectional else 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0])


class Square(nn.Module):
    """A residual stream whose one matrix both takes it in and adds to it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + torch.tanh(self.inner(x)))


class Weighted(nn.Module):
    """A sum of units, each times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.weights = nn.Linear(5, 8), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return (self.first(x) * self.weights).sum(-1, keepdim=True)


class Unit(nn.Module):
    """Features of length 1, compared by their sum: what a copy of a unit would change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.normalize(self.first(x), dim=-1))


def grouped() -> nn.Module:
    """4 groups, a depthwise convolution of 12 channels, and a head."""
    mixed = [nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=12)]
    return nn.Sequential(*mixed, nn.Conv2d(12, 4, 1), nn.Flatten(), nn.Linear(16, 2))


def group_norm() -> nn.Module:
    """4 groups of 2 channels, normalised by group."""
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 4, 6), nn.Flatten())


def transposed() -> nn.Module:
    """Transposed convolutions, one of them in 2 groups."""
    return nn.Sequential(
        nn.ConvTranspose2d(3, 8, 2), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, groups=2), nn.Conv2d(6, 2, 1)
    )


def gated() -> nn.Module:
    """One half of 12 units gates the other."""
    return nn.Sequential(nn.Linear(5, 12), nn.GLU(), nn.Linear(6, 3))


def weight_norm() -> nn.Module:
    """Weights as directions and lengths."""
    norm = parametrizations.weight_norm
    return nn.Sequential(norm(nn.Linear(5, 6)), nn.Tanh(), norm(nn.Linear(6, 7)), nn.Tanh(), nn.Linear(7, 2))


def spectral_norm() -> nn.Module:
    """Weights that are divided by their largest singular value."""
    norm = parametrizations.spectral_norm
    return nn.Sequential(norm(nn.Linear(5, 6)), nn.Tanh(), norm(nn.Linear(6, 7)), nn.Tanh(), nn.Linear(7, 2))


def inputs(model: nn.Module) -> Tensor:
    """Example inputs of one of these networks."""
    if isinstance(model, Decoder):
        return torch.randint(0, 20, (2, 5), generator=torch.Generator().manual_seed(0))
    first = next(m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.RNNBase))
    shape = (2, 4, 5) if isinstance(first, nn.Linear | nn.RNNBase) else (2, 3, 6, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
