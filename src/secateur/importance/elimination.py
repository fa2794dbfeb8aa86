"""What each unit's going costs when the cheapest always goes next, the weights of those that stay refitted.

Shape letters: K features, N outputs, U units, V units that a use sees, P features of a unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 96  # units that are taken one by one before several go at a time
TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class Regression:
    """One use of a weight: outputs = features @ matrix, and what the data say of the features.

    Attributes:
        gram: mean products of features, (K, K) float64; or the mean squares alone, (K,), where nothing is refitted.
        matrix: weights, each output's scaled by the root of what an error of it costs, (K, N) float64.
        blocks: the features of each unit, (V, P).
        units: which units these are, (V,).
    """

    gram: Tensor
    matrix: Tensor
    blocks: Tensor
    units: Tensor


def eliminate(uses: Sequence[Regression], units: int, ridge: float = 1e-3) -> Tensor:
    """What each unit's going costs, at the moment it goes, when the cheapest always goes next and the rest is refitted.

    Optimal brain surgery on whole units (Hassibi and Stork 1992, "Second order derivatives for network pruning"; Kurtic
    et al. 2023, "ZipLM", arXiv:2302.04089). Costs of the uses are added; they never fall along the way. Of more than
    `STEPS` units, several go at a time.

    Args:
        uses: at least one.
        units: U.
        ridge: added to the diagonal of a Gram matrix, as a share of its mean.

    Returns:
        (units,) float64. Sorted, their running sum is the error when so many have gone.
    """
    states = [_Refitted(use, units, ridge) if use.gram.dim() == 2 else _Plain(use, units) for use in uses]
    alive = torch.ones(units, dtype=torch.bool)
    costs = torch.zeros(units, dtype=torch.float64)
    floor = 0.0
    while left := int(alive.sum()):
        price = torch.stack([state.prices() for state in states]).sum(0)
        price[~alive] = torch.inf
        going = torch.argsort(price, stable=True)[: max(1, left // STEPS)]
        for unit, cost in zip(going.tolist(), price[going].tolist(), strict=True):
            floor = costs[unit] = max(floor, cost)
        alive[going] = False
        for state in states if left > 1 else ():
            state.remove(going)
    return costs


class _Plain:
    """A use of which only the squares of the features are known: what is left is not refitted."""

    def __init__(self, use: Regression, units: int) -> None:
        rows = use.gram * use.matrix.square().sum(1)
        self.price = torch.zeros(units, dtype=torch.float64).index_add(0, use.units, rows[use.blocks].sum(1))

    def prices(self) -> Tensor:
        return self.price

    def remove(self, units: Tensor) -> None:
        pass


class _Refitted:
    """A use whose remaining weights are refitted whenever a unit goes.

    The inverse of the Gram matrix loses what has gone only once that is a quarter of it: cutting it down costs as much
    as a refit.
    """

    def __init__(self, use: Regression, units: int, ridge: float) -> None:
        self.blocks, self.units, self.size = use.blocks, use.units, units
        scale = use.gram.diagonal().mean().clamp_min(TINY)
        self.inverse = _inverse(use.gram, float(ridge * scale))
        silent = use.gram.diagonal() == 0  # the ridge would put a price on their weights
        self.matrix = use.matrix.masked_fill(silent[:, None], 0.0)
        self.gone = torch.zeros(len(use.gram), dtype=torch.bool)
        self.alive = torch.ones(units, dtype=torch.bool)

    def prices(self) -> Tensor:
        """What each unit's going costs now, (U,)."""
        own = self.inverse[self.blocks[:, :, None], self.blocks[:, None, :]]  # (V, P, P)
        if own.shape[1] == 1:
            price = self.matrix[self.blocks[:, 0]].square().sum(1) / own[:, 0, 0].clamp_min(TINY)
        else:
            weights = self.matrix[self.blocks]  # (V, P, N)
            solved, failed = torch.linalg.solve_ex(own + TINY * torch.eye(own.shape[1], dtype=own.dtype), weights)
            price = (weights * solved).sum((1, 2)).masked_fill(failed != 0, 0.0)
        price = torch.where(price.isfinite(), price.clamp_min(0), 0.0)
        return torch.zeros(self.size, dtype=torch.float64).index_add(0, self.units, price)

    def remove(self, units: Tensor) -> None:
        """Refit what stays without some units."""
        gone = self.blocks[torch.isin(self.units, units)].flatten()
        if not len(gone):
            return
        own = self.inverse[gone][:, gone]
        across = torch.linalg.solve(own + TINY * torch.eye(len(gone), dtype=own.dtype), self.inverse[gone])  # (gone, K)
        self.matrix.addmm_(across.T, self.matrix[gone], alpha=-1)
        self.inverse.addmm_(self.inverse[:, gone], across, alpha=-1)
        self.matrix[gone] = 0
        self.inverse[gone] = 0
        self.inverse[:, gone] = 0
        self.inverse[gone, gone] = 1
        self.gone[gone] = True
        self.alive[units] = False
        if int(self.gone.sum()) * 4 > len(self.gone):
            self._cut()

    def _cut(self) -> None:
        """Forget the features that have gone."""
        kept, seen = ~self.gone, self.alive[self.units]
        place = kept.cumsum(0) - 1
        self.inverse, self.matrix = self.inverse[kept][:, kept], self.matrix[kept]
        self.blocks, self.units = place[self.blocks[seen]], self.units[seen]
        self.gone = torch.zeros(len(self.inverse), dtype=torch.bool)


def _inverse(gram: Tensor, ridge: float) -> Tensor:
    """Of a Gram matrix with a ridge, or with more of it where rounding of the data has left the sum with negative
    directions: features that hardly move around a mean far from zero.
    """
    while True:
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
        if not failed or ridge > float(gram.abs().sum()):
            return torch.cholesky_inverse(factor)
        ridge *= 10
