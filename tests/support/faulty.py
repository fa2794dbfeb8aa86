"""A small network, and data, with whatever can go wrong in a run."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CLASSES, INPUTS, SAMPLES = 3, 8, 16


class Net(nn.Module):
    """Has room for so many samples at a time when it trains (0 is any number), and otherwise, too, if said."""

    def __init__(self, room: int, always: bool) -> None:
        super().__init__()
        self.room, self.always = room, always
        self.first, self.second = nn.Linear(INPUTS, 24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.room and len(x) > self.room and (self.training or self.always):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.second(torch.relu(self.first(x)))


def net(room: int = 0, always: bool = False) -> Net:
    return Net(room, always)


class Batches:
    """Batches of which one is "nan" or "raises", from a pass over them on, until a file is there."""

    def __init__(self, seed: int, fault: str, at: int, passes: int, mended: str) -> None:
        self.seed, self.fault, self.at, self.passes, self.mended = seed, fault, at, passes, mended
        self.passed = 0

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passed += 1
        generator = torch.Generator().manual_seed(self.seed)
        for number in range(len(self)):
            labels = torch.arange(SAMPLES) % CLASSES
            x = torch.randn(SAMPLES, INPUTS, generator=generator) + 2 * torch.eye(CLASSES, INPUTS)[labels]
            if number == self.at and self.passed >= self.passes and not Path(self.mended).exists():
                if self.fault == "nan":
                    x[0, 0] = math.nan
                if self.fault == "raises":
                    raise OSError("the disk is gone")
            yield x, labels


def data(
    fault: str = "", split: str = "train", at: int = 3, passes: int = 1, mended: str = "never", **other: Any
) -> dict[str, Any]:
    made = {
        name: Batches(seed, fault if name == split else "", at, passes, mended)
        for seed, name in enumerate(("train", "validation", "test"))
    }
    return {**made, "classes": CLASSES}
