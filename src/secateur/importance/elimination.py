"""Reconstruction: how well the units that stay can stand in for the one that goes, weights refitted.

Shape letters: G groups, K features, N outputs, U units, P features of a unit, S uses of weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 96  # units that are taken one by one before several go at a time


@dataclass
class Regression:
    """One use of a weight: outputs = features @ matrix, and what the data say of the features.

    Attributes:
        gram: mean products of features, (K, K) float64.
        matrix: weights, each output's scaled by the root of what an error of it costs, (K, N) float64.
        blocks: the features of each unit, (U, P).
    """

    gram: Tensor
    matrix: Tensor
    blocks: Tensor


def eliminate(uses: Sequence[Regression], units: int, ridge: float = 1e-3) -> Tensor:
    """What each unit's going costs, at the moment it goes, when the cheapest always goes next and the rest is refitted.

    Optimal brain surgery on whole units (Hassibi and Stork 1992, "Second order derivatives for network pruning";
    Kurtic et al. 2023, "ZipLM", arXiv:2302.04089). Costs of the uses are added; they never fall along the way.

    Returns:
        (units,) float64. Sorted, their running sum is the error when so many have gone.
    """
    states = [_State(use, ridge) for use in uses]
    alive = torch.ones(units, dtype=torch.bool)
    costs = torch.zeros(units, dtype=torch.float64)
    floor = 0.0
    while (left := int(alive.sum())) > 1:
        price = sum((state.prices() for state in states), torch.zeros(units, dtype=torch.float64))
        price[~alive] = torch.inf
        going = torch.argsort(price, stable=True)[: max(1, left // STEPS)]
        for unit, cost in zip(going.tolist(), price[going].tolist(), strict=True):
            floor = costs[unit] = max(floor, cost)
        alive[going] = False
        for state in states:
            state.remove(going)
    costs[alive] = max(floor, float(sum(state.last(alive) for state in states)))
    return costs


class _State:
    def __init__(self, use: Regression, ridge: float) -> None:
        gram, self.blocks = use.gram, use.blocks
        scale = gram.diagonal().mean().clamp_min(1e-30)
        self.inverse = torch.linalg.inv(gram + ridge * scale * torch.eye(len(gram), dtype=gram.dtype))
        self.matrix = use.matrix.clone()

    def prices(self) -> Tensor:
        """What each unit's going costs now, (U,)."""
        own = self.inverse[self.blocks[:, :, None], self.blocks[:, None, :]]  # (U, P, P)
        own = own + 1e-30 * torch.eye(own.shape[-1], dtype=own.dtype)
        weights = self.matrix[self.blocks]  # (U, P, N)
        solved, failed = torch.linalg.solve_ex(own, weights)
        price = (weights * solved).sum((1, 2))
        return torch.where((failed == 0) & price.isfinite(), price.clamp_min(0), 0.0)

    def remove(self, units: Tensor) -> None:
        """Refit what stays without some units."""
        gone = self.blocks[units].flatten()
        own = self.inverse[gone][:, gone]
        across = torch.linalg.solve(
            own + 1e-30 * torch.eye(len(gone), dtype=own.dtype), self.inverse[gone]
        )  # (gone, K)
        self.matrix -= across.T @ self.matrix[gone]
        self.inverse -= self.inverse[:, gone] @ across
        self.matrix[gone] = 0
        self.inverse[gone] = 0
        self.inverse[:, gone] = 0
        self.inverse[gone, gone] = 1

    def last(self, alive: Tensor) -> Tensor:
        """The price of the only unit left."""
        return self.prices()[alive].sum()
