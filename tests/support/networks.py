"""Small networks that the tests of the core share, each with example inputs by `example`."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mlp(nn.Sequential):
    """4 inputs, 8 hidden units, 2 outputs: axis ``0.weight:0``."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 2))


class Cnn(nn.Module):
    """Two convolutions with batch norm, flattened by ``torch.flatten``: axes of 8 and 12 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(torch.flatten(x, 1))


class Residual(nn.Module):
    """A stem of 8 channels, and two blocks that add to it through 16 and 12 channels of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, c, 1), nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 8, 3, padding=1))
            for c in (16, 12)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(F.relu(x).mean((2, 3)))


class Grouped(nn.Module):
    """A depthwise convolution over 8 channels, and one of 4 groups from 8 to 12."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.mix = nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(F.relu(self.conv(x))))
        x = F.relu(self.grouped(F.relu(self.mix(x))))
        return self.head(x)


class Transposed(nn.Module):
    """Down by a convolution, up by transposed ones, one of them grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2)
        self.up = nn.ConvTranspose2d(8, 12, 2, stride=2)
        self.grouped = nn.ConvTranspose2d(12, 8, 2, groups=4)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.grouped(F.relu(self.up(F.relu(self.down(x)))))))


class LiteralNet(nn.Module):
    """Its ``forward`` holds the size 6 * 16 as a literal, and dropout that follows the training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.bn = nn.BatchNorm2d(6)
        self.fc1 = nn.Linear(6 * 16, 10)
        self.fc2 = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = x.view(-1, 6 * 16)
        x = F.dropout(F.relu(self.fc1(x)), 0.5, training=self.training)
        return self.fc2(x)


class Chunked(nn.Module):
    """One projection whose two halves of 8, each with an output of its own, ``chunk`` keeps equal."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(4, 16)
        self.left, self.right = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.both(x).chunk(2, -1)
        return self.left(F.relu(left)) + self.right(torch.tanh(right))


class Normed(nn.Module):
    """A residual stream of 8 that a norm runs over, between two projections; ``norm`` makes the norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.norm = norm
        self.hidden = nn.Linear(8, 12)
        self.out = nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.out(F.gelu(self.hidden(self.norm(x))))
        return self.head(x)


class Attention(nn.Module):
    """4 heads of 6 on a stream of 8, written as everyday code is, scaled by an attribute."""

    def __init__(self, heads: int = 4, width: int = 6) -> None:
        super().__init__()
        self.heads, self.scale = heads, width**-0.5
        self.embed = nn.Linear(5, 8)
        self.qkv = nn.Linear(8, 3 * heads * width)
        self.out = nn.Linear(heads * width, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        weights = (q @ k.transpose(-1, -2) * self.scale).softmax(-1)
        return self.head(x + self.out((weights @ v).transpose(1, 2).flatten(2)))


class Scaled(nn.Module):
    """Attention that divides by the root of its head size by itself: queries of a smaller head are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Tied(nn.Module):
    """A language model in miniature: its embedding is its output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.hidden = nn.Linear(8, 16)
        self.back = nn.Linear(16, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.back(F.relu(self.hidden(self.embed(ids)))))


def llama() -> nn.Module:
    """A Llama of two layers: 4 heads of 8 over 2 pairs of keys and values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def bert() -> nn.Module:
    """A BERT of two layers: 4 heads of 8."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64,
    )  # fmt: skip
    return BertModel(config).eval()


def example(model: nn.Module) -> Any:
    """Example inputs of one of these networks, a batch of two."""
    image = torch.randn(2, 3, 8, 8)
    match type(model).__name__:
        case "Cnn" | "Residual" | "Grouped" | "Transposed":
            return image
        case "LiteralNet":
            return torch.randn(2, 1, 6, 6)
        case "Attention":
            return torch.randn(2, 7, 5)
        case "Tied":
            return torch.randint(11, (2, 7))
        case "BertModel" | "LlamaForCausalLM":
            return {"input_ids": torch.randint(64, (2, 7))}
        case _:
            return torch.randn(2, 4)
