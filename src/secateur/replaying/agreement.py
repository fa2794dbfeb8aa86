"""How far an old plan is the one that would be made today: rank correlation of scores, and units that are kept again.

Shape letters: U units of an axis.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from secateur.hints.ranks import FEWEST, spearman


@dataclass(frozen=True, kw_only=True)
class AxisAgreement:
    """One axis, as an old plan and a fresh one have it.

    Attributes:
        name: of the axis.
        units: how many it has in the dense model.
        kept: units that the old plan keeps.
        fresh: units that the fresh plan keeps.
        both: units that both keep.
        correlation: Spearman's of old and new scores, in [-1, 1]; None where the old ones are unknown, or where there
            are fewer than 3 units, or all have one score.
    """

    name: str
    units: int
    kept: int
    fresh: int
    both: int
    correlation: float | None

    @property
    def alike(self) -> int:
        """Units that meet the same fate in both plans."""
        return self.units - self.kept - self.fresh + 2 * self.both

    @property
    def by_chance(self) -> float:
        """Units that would, if each plan drew as many at random."""
        return (self.kept * self.fresh + (self.units - self.kept) * (self.units - self.fresh)) / self.units


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How far an old plan agrees with a fresh one for the same cost.

    Attributes:
        axes: those that either plan makes narrower.
        importance: the criterion that scored the units.
        scores: where the old scores are from: "saved", "old weights", or "" where they are unknown.
        left_out: why there is no correlation, or what could not be compared, in words; empty if nothing.
    """

    axes: tuple[AxisAgreement, ...]
    importance: str
    scores: str = ""
    left_out: str = ""

    @cached_property
    def correlation(self) -> float | None:
        """The mean of the axes' rank correlations, every axis alike; None where the old scores are unknown."""
        known = [axis.correlation for axis in self.axes if axis.correlation is not None]
        return sum(known) / len(known) if known else None

    @cached_property
    def overlap(self) -> float | None:
        """Share of the units kept by the old plan that the fresh one keeps, too; None where nothing is narrower."""
        kept = sum(axis.kept for axis in self.axes)
        return sum(axis.both for axis in self.axes) / kept if kept else None

    @cached_property
    def agreement(self) -> float | None:
        """How far units meet the same fate in both plans, beyond what chance would do: 1 is always, 0 is by chance.

        Cohen 1960, "A Coefficient of Agreement for Nominal Scales". Differs: chance is taken within each axis.
        """
        units = sum(axis.units for axis in self.axes)
        chance = sum(axis.by_chance for axis in self.axes)
        if units <= chance:  # also where there is no axis
            return None
        return (sum(axis.alike for axis in self.axes) - chance) / (units - chance)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in report.json."""
        return {
            "importance": self.importance,
            "scores": self.scores,
            "left_out": self.left_out,
            "correlation": self.correlation,
            "overlap": self.overlap,
            "agreement": self.agreement,
            "axes": [vars(axis) for axis in self.axes],
        }


def stability(
    kept: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    old_scores: Mapping[str, Tensor] | None = None,
    *,
    importance: str,
    origin: str = "",
    left_out: str = "",
) -> Stability:
    """Compare an old plan with a fresh one.

    Args:
        kept: units of each axis that the old plan keeps, (units kept,); axes that are not there stay whole.
        fresh: the same of the fresh plan.
        scores: of the new weights, (U,) for each axis.
        old_scores: of the weights that the old plan was made on.
        importance, origin, left_out: attributes of `Stability`; ``origin`` is its ``scores``.

    Example:
        >>> import torch
        >>> old, new = {"a": torch.tensor([0, 1])}, {"a": torch.tensor([1, 2])}
        >>> stability(old, new, {"a": torch.rand(4)}, importance="l2").overlap
        0.5
    """
    found: list[AxisAgreement] = []
    for name, values in scores.items():
        if name in kept or name in fresh:
            units = len(values)
            mine, theirs = (set(plan[name].tolist()) if name in plan else set(range(units)) for plan in (kept, fresh))
            found.append(
                AxisAgreement(
                    name=name,
                    units=units,
                    kept=len(mine),
                    fresh=len(theirs),
                    both=len(mine & theirs),
                    correlation=_correlation(values, (old_scores or {}).get(name)),
                )
            )
    return Stability(axes=tuple(found), importance=importance, scores=origin, left_out=left_out)


def _correlation(new: Tensor, old: Tensor | None) -> float | None:
    if old is None or old.shape != new.shape or len(new) < FEWEST:
        return None
    value = float(spearman(old.cpu(), new.cpu()))
    return None if math.isnan(value) else value
