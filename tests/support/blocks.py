"""Small networks of residual blocks, for the tests of depth."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mixing(nn.Module):
    """A residual block of 8 features with 12 of its own, that knows its index."""

    def __init__(self, index: int = 0) -> None:
        super().__init__()
        self.index = index
        self.inner, self.outer = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.tanh(self.inner(x)))


class Stack(nn.Module):
    """4 inputs, four blocks in a list, 3 outputs; ``forward`` counts the blocks by an attribute."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.depth, self.classes = depth, 3
        self.embed = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(Mixing(k) for k in range(depth))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for k in range(self.depth):
            x = self.blocks[k](x)
        return self.head(x)


class Cached(nn.Module):
    """A block that gets its stream by keyword and returns it with something else, as older transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, *, scale: float, stream: Tensor) -> tuple[Tensor, Tensor]:
        x = self.inner(stream)
        return stream + scale * x, x.mean()


class Keyed(nn.Module):
    """Three of these."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.layers = nn.ModuleList(Cached() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(scale=0.5, stream=x)[0]
        return x


class BasicBlock(nn.Module):
    """A block of a ResNet of 8 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + x)


class SmallResNet(nn.Module):
    """3 channels in, three blocks, 5 classes out; running statistics and gains are not those of a new network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.stage = nn.Sequential(BasicBlock(), BasicBlock(), BasicBlock())
        self.head = nn.Linear(8, 5)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                for tensor in (part.weight, part.bias, part.running_var):
                    nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage(self.stem(x)).mean((2, 3)))


class Literal(nn.Module):
    """Blocks, and a literal size in ``forward`` that pruning has to rewrite."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.blocks = nn.Sequential(*(Mixing(k) for k in range(3)))
        self.embed, self.head = nn.Linear(2 * 16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)).view(-1, 2 * 16)
        return self.head(self.blocks(self.embed(x)))


class PostNorm(nn.Module):
    """A block that normalises its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.inner(x))


def llama(layers: int = 4, **config: Any) -> nn.Module:
    """A Llama with grouped queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=64,
            **config,
        )
    ).eval()
