"""The embedded example: a small network, written as everyday code is."""

from torch import Tensor, nn
from torch.nn import functional as F


class SimpleNet(nn.Module):
    """Two convolutions and three linear layers for 10x10 images of one channel; 81,194 parameters.

    ``forward`` holds the literal size ``16 * 6 * 6`` on purpose: everyday code does, and pruning has to survive it.

    Example:
        >>> import torch
        >>> SimpleNet()(torch.zeros(2, 1, 10, 10)).shape
        torch.Size([2, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3)
        self.conv2 = nn.Conv2d(6, 16, 3)
        self.fc1 = nn.Linear(16 * 6 * 6, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 1, 10, 10) to class scores (batch, 10)."""
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = x.view(-1, 16 * 6 * 6)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)
