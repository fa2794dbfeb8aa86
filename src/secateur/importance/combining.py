"""Criteria that are sums of others, each brought to one scale first: ``0.5 * Taylor() + Magnitude()``."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from secateur.errors import ScoreError
from secateur.importance.protocols import Criterion, needs
from secateur.importance.rating import rate_axis
from secateur.importance.views import AxisView

Normalise = Literal["mean", "rank"]


class Combinable:
    """Lets a criterion be added to others, plain functions included, and be multiplied with a weight."""

    def __add__(self, other: Any) -> "Combined":
        return _combined(self) + other

    def __radd__(self, other: Any) -> "Combined":
        return _combined(other) + self

    def __mul__(self, weight: float) -> "Combined":
        return _combined(self) * weight

    __rmul__ = __mul__


@dataclass(frozen=True)
class Combined:
    """Weighted sum of criteria, normalised on each axis.

    The sum is ours; the rank normalisation is that of Borda's count.

    Args:
        terms: (weight, criterion) pairs, weights above 0.
        normalise: what is added: "mean", scores by their mean on the axis; "rank", places in the order of scores by the
            number of units, in (0, 1], equal scores sharing the mean of their places.
    """

    terms: tuple[tuple[float, Criterion], ...]
    normalise: Normalise = "mean"

    def __post_init__(self) -> None:
        if self.normalise not in SCALES:
            raise ValueError(f"normalise={self.normalise!r}; it is one of {', '.join(SCALES)}")
        bad = [weight for weight, _ in self.terms if not (0 < weight < float("inf"))]
        if bad or not self.terms:
            raise ValueError(f"a combination has terms with weights above 0; got {bad or 'no term'}")

    @property
    def needs(self) -> frozenset[str]:
        """What any term needs."""
        return frozenset[str]().union(*(needs(rate) for _, rate in self.terms))

    def of_axis(self, axis: AxisView) -> Tensor | None:
        """Scores (units,)."""
        scale = SCALES[self.normalise]
        return axis.sum(weight * scale(rate_axis(axis, rate)[0]) for weight, rate in self.terms)

    def ranked(self) -> "Combined":
        """The same terms, added by rank."""
        return replace(self, normalise="rank")

    def __add__(self, other: Any) -> "Combined":
        added = _combined(other)
        if isinstance(other, Combined) and other.normalise != self.normalise and len(other.terms) > 1:
            return Combined((*self.terms, (1.0, other)), self.normalise)
        return Combined((*self.terms, *added.terms), self.normalise)

    def __radd__(self, other: Any) -> "Combined":
        return replace(self, terms=(*_combined(other).terms, *self.terms))

    def __mul__(self, weight: float) -> "Combined":
        return replace(self, terms=tuple((weight * own, rate) for own, rate in self.terms))

    __rmul__ = __mul__


def _combined(rate: Any) -> Combined:
    if isinstance(rate, Combined):
        return rate
    if not (callable(rate) or hasattr(rate, "of_axis")):
        raise TypeError(f"criteria can be added to criteria and to functions of a member; got {rate!r}")
    return Combined(((1.0, cast(Criterion, rate)),))


def combine(*rates: Criterion, normalise: Normalise = "mean") -> Combined:
    """Several criteria as one.

    Args:
        rates: criteria, plain functions of a member included; ``0.5 * Taylor()`` for one that counts less.
        normalise: "mean" or "rank", see `Combined`.

    Example:
        >>> import secateur as sc
        >>> from secateur.importance import Fpgm, Magnitude
        >>> both = sc.importance.combine(0.5 * Fpgm(), Magnitude(), normalise="rank")
        >>> sc.importance.check_importance(both)
    """
    return Combined(tuple(term for rate in rates for term in _combined(rate).terms), normalise)


def by_mean(scores: Tensor) -> Tensor:
    """Scores by the mean of their sizes; as they are where all are 0."""
    mean = scores.abs().mean()
    return scores / mean if mean > 0 else scores


def by_rank(scores: Tensor) -> Tensor:
    """The place of each score in their order by their number, in (0, 1]; equal ones share the mean of their places."""
    if not bool(scores.isfinite().all()):
        raise ScoreError("scores that are not finite have no order")
    _, which, count = scores.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0)
    return ((last - (count - 1) / 2)[which] / len(scores)).to(torch.float32)


SCALES: dict[str, Callable[[Tensor], Tensor]] = {"mean": by_mean, "rank": by_rank}
