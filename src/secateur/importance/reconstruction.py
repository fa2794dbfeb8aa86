"""Reconstruction: how badly the units that stay can stand in for the one that goes, their weights refitted.

Shape letters: U units, V units that a group sees, P features of a unit, G groups, K features of a group with the
window, N outputs of a group.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secateur.importance.combining import Combinable
from secateur.importance.criteria import Magnitude
from secateur.importance.elimination import TINY, Regression, eliminate
from secateur.importance.views import AxisView, Use

CONSTANT = 1e-6  # share of the outputs' squares below which their variance is rounding: they are constant


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Combinable):
    """The error in what the weights that take a unit in give, when it goes and those of the other units are refitted by
    least squares; the cheapest unit goes first, and each is scored at the moment it goes.

    Hassibi and Stork 1992, "Second order derivatives for network pruning: Optimal Brain Surgeon"; Kurtic et al. 2023,
    "ZipLM", arXiv:2302.04089 (whole structures). He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural
    Networks", arXiv:1707.06168, chooses by the same error with LASSO.
    Differs: errors of all the uses that take the unit in are added, each as a share of the variance of what its output
    becomes part of; constants are free, as a bias or a norm can make up for them; of a wide axis several units go at a
    time; where a use has over 4608 features, its units go without refitting, which makes them dearer. An axis that no
    weight takes in is scored by `Magnitude`, scaled to the mean score of the others: a guess.

    Scores of all axes have one unit, so they can be compared as they are.

    Args:
        weighted: False: an error counts as a share of the variance of the residual stream that the output is added to,
            after the batch norm if one follows, or of the outputs themselves where they are added to nothing. So blocks
            that add little to their stream are dear to nobody. No gradients are taken.
            True: an output's error counts with half the mean square of the loss's derivative by it, its second-order
            cost; labels are not needed, as the loss is against answers drawn from the model's own.
        ridge: added to the diagonal of a Gram matrix, as a share of its mean, above 0.
    """

    comparable: ClassVar[bool] = True
    weighted: bool = False
    ridge: float = 1e-3

    @property
    def needs(self) -> frozenset[str]:
        """What it needs of the data."""
        return frozenset({"gram", "sensitivity"} if self.weighted else {"gram"})

    @property
    def fallback(self) -> Magnitude:
        """What scores an axis that no weight takes in."""
        return Magnitude()

    def of_axis(self, axis: AxisView) -> Tensor | None:
        """Score an axis, -> (units,)."""
        found = [regression for use in axis.uses for regression in self._regressions(use)]
        return eliminate(found, axis.size, self.ridge).float() if found else None

    def _regressions(self, use: Use) -> Iterator[Regression]:
        """One for each group that sees units of the axis."""
        if self.weighted and use.sensitivity is None:
            return
        matrix = use.matrix.cpu().double()
        squares = _squares(use)
        blocks = _blocks(use)
        grams = [None if blocks is None or use.gram is None else _around_mean(use, g) for g in range(len(matrix))]
        if blocks is None:
            rows = use.rows_of.flatten(1)
            units = torch.arange(len(rows))
            blocks = [
                (units[:, None].expand_as(rows)[inside][:, None], rows[inside][:, None] - g * matrix.shape[1])
                for g in range(len(matrix))
                for inside in [rows // matrix.shape[1] == g]
            ]
        costs = self._costs(use, matrix, [s if g is None else g for s, g in zip(squares, grams, strict=True)])
        for g, (units, features) in enumerate(blocks):
            if len(features):
                gram = grams[g]
                yield Regression(
                    gram=squares[g] if gram is None else gram,
                    matrix=_narrow(matrix[g] * costs[g].sqrt()),
                    blocks=features,
                    units=units.flatten(),
                )

    def _costs(self, use: Use, matrix: Tensor, grams: list[Tensor]) -> Tensor:
        """What an error of one in an output costs, (G, N)."""
        if self.weighted and use.sensitivity is not None:
            return use.sensitivity.cpu() / 2
        slope = torch.ones_like(matrix[:, 0]) if use.slope is None else use.slope.cpu().double()
        own = sum(_output(m * s, g) for m, s, g in zip(matrix, slope, grams, strict=True))
        least = CONSTANT * sum(_output(m * s, g) for m, s, g in zip(matrix, slope, _squares(use), strict=True))
        return slope.square() / max(use.stream or own, least, TINY)


def _around_mean(use: Use, group: int) -> Tensor:
    """Covariances of a group's features, (K, K)."""
    assert use.gram is not None
    gram = use.gram[group].cpu()
    if use.centre is None:
        return gram
    mean = use.centre[group].cpu()
    return gram - mean[:, None] * mean[None]


def _narrow(matrix: Tensor) -> Tensor:
    """A matrix (K, at most 2 K) with the same products of rows, on which all errors hang: a vocabulary is wide."""
    if matrix.shape[1] <= 2 * matrix.shape[0]:
        return matrix
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return vectors * values.clamp_min(0).sqrt()


def _output(matrix: Tensor, gram: Tensor) -> float:
    """Variance of a group's outputs, summed over them."""
    return float((matrix * (gram @ matrix if gram.dim() == 2 else gram[:, None] * matrix)).sum())


def _squares(use: Use) -> Tensor:
    """Mean squares of the features, (G, K)."""
    mean = (use.inputs.square / use.inputs.rows).cpu()
    groups, width, _ = use.matrix.shape
    if len(mean) * use.window == groups * width:
        return mean.repeat_interleave(use.window).reshape(groups, width)
    return mean.expand(groups, -1)


def _blocks(use: Use) -> list[tuple[Tensor, Tensor]] | None:
    """For each group the units that it sees, (V,), and their features, (V, P); None where not all have as many."""
    groups, width, _ = use.matrix.shape
    rows = use.rows_of.flatten(1)  # (U, P of all groups)
    found: list[tuple[Tensor, Tensor]] = []
    for group in range(groups):
        inside = rows // width == group
        counts = inside.sum(1)
        if len(counts[counts > 0].unique()) > 1:
            return None
        units = counts.nonzero()[:, 0]
        found.append((units, rows[inside].reshape(len(units), -1) - group * width if len(units) else rows[:0]))
    return found
