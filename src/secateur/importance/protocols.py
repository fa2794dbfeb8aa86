"""What a criterion is, and what it says of itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from secateur.importance.members import Member
from secateur.importance.views import AxisView


@runtime_checkable
class MemberCriterion(Protocol):
    """Any callable that scores one member; scores of an axis's members are added."""

    def __call__(self, member: Member, /) -> Tensor:
        """Score one member, (units, rest) -> (units,)."""
        ...


@runtime_checkable
class AxisCriterion(Protocol):
    """What scores a whole axis at once."""

    def of_axis(self, axis: AxisView, /) -> Tensor | None:
        """Scores (units,); None where there is nothing on the axis that it could score."""
        ...


Criterion = MemberCriterion | AxisCriterion


def needs(rate: Any) -> frozenset[str]:
    """What a criterion needs of the data, a subset of `statistics.NEEDS`; nothing where it doesn't say."""
    return frozenset(getattr(rate, "needs", ()))


def comparable(rate: Any) -> bool:
    """Whether scores of different axes have the same unit, so that they can be ranked as they are."""
    return bool(getattr(rate, "comparable", False))


@dataclass(frozen=True)
class OnAxis:
    """A function of an `AxisView` as a criterion; see `on_axis`."""

    function: Callable[[AxisView], Tensor | None]
    needs: frozenset[str]

    def of_axis(self, axis: AxisView) -> Tensor | None:
        """Scores (units,)."""
        return self.function(axis)


def on_axis(*needs: str) -> Callable[[Callable[[AxisView], Tensor | None]], OnAxis]:
    """Make a criterion of a function that scores a whole axis.

    Args:
        needs: what it reads of the data, see `secateur.calibration.statistics.NEEDS`.

    Example:
        >>> import secateur as sc
        >>> @sc.importance.on_axis("inputs")
        ... def energy(axis):
        ...     return axis.sum(use.square.sum(1) for use in axis.uses)
        >>> sc.importance.check_importance(energy)
    """
    return lambda function: OnAxis(function, frozenset(needs))
