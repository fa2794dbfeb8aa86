"""Criteria that need nothing but the weights.

Shape letters: U units.
"""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.importance.combining import Combinable
from secateur.importance.members import Member
from secateur.importance.views import AxisView


@dataclass(frozen=True, kw_only=True)
class Magnitude(Combinable):
    """Sum of |w|^p over all weights that a unit owns.

    Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710 (p=1, convolution filters only).
    Differs: sums over every member of the axis, not only the producing filter.

    Args:
        p: exponent, above 0. No root is taken, so a score has the unit of |w|^p.
    """

    p: float = 2.0

    def __call__(self, member: Member) -> Tensor:
        """Score one member, (units, rest) -> (units,)."""
        return member.power_sums(self.p)


@dataclass(frozen=True, kw_only=True)
class Lamp(Combinable):
    """Sum of w^2 over all weights that a unit owns, by the same sum over this unit and all that have no less.

    Lee et al. 2021, "Layer-Adaptive Sparsity for the Magnitude-Based Pruning", arXiv:2010.07611 (single weights).
    Differs: units in place of weights, and the axis in place of the layer. Equal units count each other in.
    """

    def of_axis(self, axis: AxisView) -> Tensor | None:
        """Score an axis, -> (units,)."""
        squares = axis.sum(member.power_sums(2.0) for member in axis.members)
        if squares is None:
            return None
        order = squares.argsort()
        least = torch.searchsorted(squares[order], squares)  # the first place of an equal one
        rest = squares[order].double().flip(0).cumsum(0).flip(0)[least]
        return (squares / rest.clamp_min(1e-300)).float()


@dataclass(frozen=True, kw_only=True)
class Fpgm(Combinable):
    """Sum of the distances between a unit's weights and those of all other units: least for the one nearest the
    geometric median, which the others replace best.

    He et al. 2019, "Filter Pruning via Geometric Median", arXiv:1811.00250 (convolution filters).
    Differs: sums over every member of the axis, not only the producing filter.
    """

    def __call__(self, member: Member) -> Tensor:
        """Score one member, (units, rest) -> (units,)."""
        rows = member.weight.float()
        return torch.cat([torch.cdist(part, rows).sum(1) for part in rows.split(1024)])


@dataclass(frozen=True, kw_only=True)
class BatchNormScale(Combinable):
    """|gamma| of the batch norms on the axis; the squared magnitude of an axis that none runs over.

    Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", arXiv:1708.06519.
    Differs: an axis with several norms sums them; axes without one fall back to `Magnitude`, so that every axis has a
    score (the two are never compared with each other: planning normalises each axis by its mean).
    """

    def __call__(self, member: Member) -> Tensor:
        """Score one member, (units, rest) -> (units,)."""
        if issubclass(member.module, _BatchNorm) and member.role == "weight":
            return member.weight.float().abs().sum(1)
        return member.weight.new_zeros(len(member.weight), dtype=torch.float32)

    @property
    def fallback(self) -> Magnitude:
        """What scores an axis on which this criterion finds nothing."""
        return Magnitude()


@dataclass(frozen=True, kw_only=True)
class Random(Combinable):
    """Uniform noise in [0, 1): the control that every criterion must beat.

    Args:
        seed: of the noise; the same seed gives the same scores for the same axis names.
    """

    seed: int = 0

    def __call__(self, member: Member) -> Tensor:
        """Score one member, (units, rest) -> (units,)."""
        key = zlib.crc32(f"{self.seed} {member.name}:{member.dim}".encode())
        generator = torch.Generator().manual_seed(key)
        return torch.rand(len(member.weight), generator=generator)
