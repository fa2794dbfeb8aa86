"""A public suite that every criterion must pass, a user's own included."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ScoreError
from secateur.importance.members import Member
from secateur.importance.scoring import Criterion


def check_importance(rate: Criterion, *, uses_weight: bool = True) -> None:
    """Test a criterion on small members: shape, finite, deterministic, input untouched, what it claims to use matters.

    Args:
        rate: the criterion.
        uses_weight: whether changing a unit's weights must change its score (False for a random control).

    Raises:
        ScoreError: naming the first property that fails.

    Example:
        >>> from secateur.importance import Magnitude, check_importance
        >>> check_importance(Magnitude(p=1.0))
    """
    for units, rest in ((5, 7), (4, 1), (1, 3)):
        member = _member(units, rest)
        before = member.weight.clone()
        values: Any = rate(member)
        _demand(rate, isinstance(values, Tensor) and values.shape == (units,), f"gave no vector of {units} scores")
        _demand(
            rate,
            values.is_floating_point() and bool(torch.isfinite(values).all()),
            "gave scores that are not finite floats",
        )
        _demand(rate, bool(torch.equal(member.weight, before)), "changed the weights that it was shown")
        values = values.clone()  # it may be a view of the weights
        _demand(
            rate, bool(torch.equal(values, rate(member))), "is not deterministic: two calls on the same member differ"
        )
        if uses_weight:
            member.weight[0] *= 3
            _demand(
                rate,
                not torch.equal(values[0], rate(replace(member, known={}))[0]),
                "does not see a unit's weights: tripling them left its score",
            )


def _member(units: int, rest: int) -> Member:
    weight = torch.randn(units, rest, generator=torch.Generator().manual_seed(units))
    return Member(axis="norm.weight:0", name="norm.weight", dim=0, tensor=weight, module=nn.BatchNorm2d, role="weight")


def _demand(rate: Criterion, holds: bool, failing: str) -> None:
    if not holds:
        raise ScoreError(f"{rate!r} {failing}")
