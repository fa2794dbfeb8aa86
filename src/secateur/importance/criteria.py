"""Criteria that need nothing but the weights. A criterion is its formula on one member; the axis's score is the sum."""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.importance.members import Member


@dataclass(frozen=True, kw_only=True)
class Magnitude:
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
class BatchNormScale:
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
class Random:
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
