"""Criteria of what the loss would make of a unit's going, from its derivatives: all need a loss.

Shape letters: U units.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from secateur.importance.combining import Combinable
from secateur.importance.criteria import Magnitude
from secateur.importance.members import Member
from secateur.importance.views import AxisView


class _OfLoss(Combinable):
    needs: ClassVar[frozenset[str]] = frozenset({"gates"})

    @property
    def fallback(self) -> Magnitude:
        """What scores an axis that the loss does not depend on, or that no weight takes in."""
        return Magnitude()


@dataclass(frozen=True, kw_only=True)
class Taylor(_OfLoss):
    """|sum of w dL/dw| over the weights that a unit owns, L the mean loss: its change to first order when they go.

    Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", arXiv:1906.10771, equation 8.
    Differs: no square, so a score has the unit of the loss; summed over every member of the axis. Members that scale
    one another (a filter and its norm) say the same twice.

    Args:
        joint: sum over a member's weights before the absolute value is taken, not after it.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradients"})
    joint: bool = True

    def __call__(self, member: Member) -> Tensor:
        """Score one member, (units, rest) -> (units,)."""
        changes = member.weight.float() * member.gradient.float()
        return changes.sum(1).abs() if self.joint else changes.abs().sum(1)


@dataclass(frozen=True, kw_only=True)
class TaylorGate(_OfLoss):
    """Mean over samples of |sum of x dL/dx|, L a sample's loss: its change to first order when the unit is silenced.

    Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference", arXiv:1611.06440.
    Differs: the sum over places is no mean, and runs over every use of a weight that takes the unit in.
    """

    def of_axis(self, axis: AxisView) -> Tensor | None:
        """Score an axis, -> (units,)."""
        return axis.gate_magnitude


@dataclass(frozen=True, kw_only=True)
class Fisher(_OfLoss):
    """Half the mean over samples of (sum of x dL/dx)^2, L a sample's loss: its change to second order without the unit.

    Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", arXiv:1801.05787. It is the
    diagonal of the Hessian by a factor on each unit, as in LeCun et al. 1989, "Optimal Brain Damage", with the Fisher
    information in its place: squares of each sample's derivative, not of their mean.
    Differs: runs over every use of a weight that takes the unit in; costs are for planning to divide by.
    """

    def of_axis(self, axis: AxisView) -> Tensor | None:
        """Score an axis, -> (units,)."""
        return None if axis.gate_square is None else axis.gate_square / 2
