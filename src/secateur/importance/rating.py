"""One criterion on one axis: of whatever form it is, and what scores the axis where it finds nothing."""

from typing import Any

import torch
from torch import Tensor

from secateur.errors import ScoreError
from secateur.importance.protocols import AxisCriterion, Criterion
from secateur.importance.views import AxisView


def rate_axis(axis: AxisView, rate: Criterion) -> tuple[Tensor, bool]:
    """The scores of an axis, (units,) float32 on the CPU, and whether they are those of the criterion's fallback.

    Raises:
        ScoreError: what the criterion gave is no score.
    """
    scores = _own(axis, rate)
    if scores is not None:
        return scores, False
    fallback: Criterion | None = getattr(rate, "fallback", None)
    if fallback is None:
        return torch.zeros(axis.size), True
    return rate_axis(axis, fallback)[0], True


def _own(axis: AxisView, rate: Criterion) -> Tensor | None:
    if isinstance(rate, AxisCriterion):
        values: Any = rate.of_axis(axis)
        return None if values is None else _checked(values, axis, rate, f"axis {axis.name}")
    total = torch.zeros(axis.size)
    for member in axis.members:
        total += _checked(rate(member), axis, rate, f"{member.name}:{member.dim} on axis {axis.name}")
    return total if total.any() or getattr(rate, "fallback", None) is None else None


def _checked(values: Any, axis: AxisView, rate: Criterion, where: str) -> Tensor:
    """A user's own function may give anything."""
    if isinstance(values, Tensor) and tuple(values.shape) == (axis.size,) and values.is_floating_point():
        return values.detach().float().cpu()
    got = f"{values.dtype} of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
    raise ScoreError(f"{rate!r} gave {got} for {where}; a score is a float tensor of shape ({axis.size},)")
