"""What a weight's inputs were, and what the loss makes of it: sums that grow as data pass, and can be added up over
processes.

Shape letters: G groups, R rows of data, K features of a group with the window, O outputs, C columns.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

CHUNK = 2**13  # rows whose products are added up in the precision of the data, before the sum goes on in float64
NEEDS = ("inputs", "gram", "gradients", "fisher")
"""What a criterion may ask for: the inputs' mean squares, their Gram matrix, the loss's mean gradient, and the mean
square of each sample's gradient."""


@dataclass(kw_only=True)
class Statistics:
    """Of one weight, all sums over data in float64.

    Columns are in the order of `secateur.sparsity.matrices`.

    Attributes:
        rows: how many rows of inputs there were.
        square: sums of x^2, (G, K).
        gram: sums of products of features, (G, K, K); None where nobody asked.
        samples: how many samples the gradients are of.
        gradient: sum over samples of the loss's gradient, as a matrix (O, C).
        fisher: sum over samples of its square, (O, C).
    """

    rows: int = 0
    square: Tensor | None = None
    gram: Tensor | None = None
    samples: int = 0
    gradient: Tensor | None = None
    fisher: Tensor | None = None

    def add(self, rows: Tensor, *, gram: bool) -> None:
        """Count rows of inputs in.

        Args:
            rows: (R, G, K), of any floating type.
            gram: keep products too.
        """
        groups = rows.transpose(0, 1)  # (G, R, K)
        for start in range(0, groups.shape[1], CHUNK):
            part = groups[:, start : start + CHUNK].float()
            self.square = _sum(self.square, part.square().sum(1))
            if gram:
                self.gram = _sum(self.gram, part.transpose(1, 2) @ part)
        self.rows += rows.shape[0]

    def merge(self, other: Self) -> None:
        """Add what another process, or another use of the same weight, has seen."""
        self.rows += other.rows
        self.samples += other.samples
        for name in ("square", "gram", "gradient", "fisher"):
            value = getattr(other, name)
            if value is not None:
                setattr(self, name, _sum(getattr(self, name), value))

    @property
    def sound(self) -> bool:
        """Whether all sums are finite."""
        sums = (self.square, self.gram, self.gradient, self.fisher)
        return all(bool(s.isfinite().all()) for s in sums if s is not None)


def _sum(total: Tensor | None, more: Tensor) -> Tensor:
    """Added in place: a Gram matrix may be large."""
    wide = more.double() if more.device.type != "mps" else more.cpu().double()
    return wide.clone() if total is None else total.add_(wide)


def rank_bound(found: Statistics) -> int:
    """The most that the rank of a Gram matrix can be: the rows, or the features that were ever other than zero."""
    assert found.square is not None
    return min(found.rows, int((found.square > 0).sum(1).max()))


def absorb(found: Statistics, gradient: Tensor, *, samples: int, fisher: Tensor | None = None) -> None:
    """Count gradients in.

    Args:
        gradient: the sum over the samples, (O, C).
        fisher: the sum of their squares.
    """
    found.gradient = _sum(found.gradient, gradient)
    if fisher is not None:
        found.fisher = _sum(found.fisher, fisher)
    found.samples += samples


def spread(values: Tensor, rows: int) -> Tensor:
    """What each group has, (G, K), for each row of the matrix: (1, K), or (O, K) where there are several groups.

    >>> import torch
    >>> spread(torch.tensor([[1.0], [2.0]]), 4).tolist()
    [[1.0], [1.0], [2.0], [2.0]]
    """
    return values if len(values) == 1 else values.repeat_interleave(rows // len(values), 0)
