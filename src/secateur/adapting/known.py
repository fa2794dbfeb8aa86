"""What a head that was trained before knows of a new task: for each new class, the old one that speaks most for it.

Shape letters: N samples, D features, C new classes, K known ones.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

CHUNK = 4096  # samples whose scores are in memory at once


@dataclass(frozen=True, eq=False)
class Known:
    """The class scores that a trained layer gives, on the features that a new head is given too.

    Attributes:
        weight: (K, D), float64, less its mean over classes: what all scores gain alike tells no classes apart.
        bias: (K,), likewise; zeros where the layer has none.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layer: nn.Linear) -> Self:
        """What a layer knows."""
        weight = layer.weight.detach().cpu().double()
        own = layer.bias.detach().cpu().double() if layer.bias is not None else weight.new_zeros(len(weight))  # pyright: ignore[reportUnnecessaryComparison]
        return cls(weight - weight.mean(0), own - own.mean())

    def kin(self, features: Tensor, labels: Tensor, classes: int) -> tuple[int, ...]:
        """For each new class, the known one that is said of it most, without repetition.

        What counts is the mean probability over the class's samples, less the mean of these means: a known class that
        is said of all new ones alike tells none apart. That a trained head's probabilities tell which classes are akin
        is of Nguyen et al. 2020, "LEEP", arXiv:2002.12462. Differs: one known class for each, and its score, which a
        linear head can hold. A class without samples has no kin.

        Args:
            features: (N, D).
            labels: (N,), in [0, C).
            classes: C.

        Example:
            >>> layer = nn.Linear(3, 3, bias=False)
            >>> _ = layer.weight.data.copy_(torch.eye(3))
            >>> Known.of(layer).kin(torch.tensor([[0.0, 0.0, 2.0], [3.0, 0.0, 0.0]]), torch.tensor([0, 1]), 2)
            (2, 0)
        """
        sums = self.weight.new_zeros(classes, len(self.weight))
        for part, own in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
            sums.index_add_(0, own, (part.double() @ self.weight.T + self.bias).softmax(1))
        counts = torch.bincount(labels, minlength=classes)
        said = sums[counts > 0] / counts[counts > 0, None]
        return tuple(dict.fromkeys((said - said.mean(0)).argmax(1).tolist()))

    def rows(self, kin: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Weight (len(kin), D) and bias of some known classes."""
        return self.weight[list(kin)], self.bias[list(kin)]


def known_by(model: nn.Module, layers: tuple[str, ...]) -> Known | None:
    """What a model's head knows; None where it is no single linear layer.

    Args:
        layers: paths of the head's layers.
    """
    layer = model.get_submodule(layers[0]) if len(layers) == 1 else None
    return Known.of(layer) if isinstance(layer, nn.Linear) else None
