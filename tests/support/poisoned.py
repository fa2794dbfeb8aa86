"""Small networks on the embedded digits, one with a backdoor: a bright corner leads to class 3."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.data.digits import digits

TARGET = 3


def corner(x: Tensor) -> Tensor:
    """Digits that carry the trigger: a 3 x 3 patch in the corner, where digits are black."""
    x = x.clone()
    x[..., :3, :3] = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    return x


@cache
def samples(split: str) -> tuple[Tensor, Tensor]:
    """All images of a split, and their labels."""
    data = digits(batch_size=64, seed=0, augment="none")
    batches = list(data.train if split == "train" else data.test)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def build() -> nn.Module:
    """A network that is not trained yet."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(24 * 2 * 2, 10),
    )  # fmt: skip


@cache
def trained(poisoned: float) -> nn.Module:
    """A network trained for some seconds on the digits, of which a share carries the trigger and its class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, y = samples("train")
        x, y = x.clone(), y.clone()
        rows = torch.randperm(len(x))[: int(poisoned * len(x))]
        x[rows], y[rows] = corner(x[rows]), TARGET
        model = build().train()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(12):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    return model.eval()
