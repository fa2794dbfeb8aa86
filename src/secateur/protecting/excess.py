"""Two scores of every unit become one: what matters in general, and what matters more than that where it is protected.

Shape letters: U units.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

TINY = 1e-30


def protected(general: Tensor, special: Tensor, strength: float, *, comparable: bool) -> Tensor:
    """A unit's score on the general data, plus ``strength`` times what its score on the protected data exceeds it by.

    With strength 1 it is the larger of the two.

    Args:
        general, special: scores by one criterion on the general and on the protected data, (U,).
        strength: from 0.
        comparable: the scores of both have one unit. Else those on the protected data are first brought to the mean of
            the others, on the axis.

    Returns:
        Scores (U,), nowhere below the general ones.

    Example:
        >>> protected(torch.tensor([4.0, 2.0]), torch.tensor([1.0, 2.0]), 1.0, comparable=False)
        tensor([4., 4.])
    """
    scale = 1.0 if comparable else float(general.abs().mean() / special.abs().mean().clamp_min(TINY))
    return general + strength * (special * scale - general).clamp_min(0)


def protected_axes(
    general: Mapping[str, Tensor], special: Mapping[str, Tensor], strength: float, *, comparable: bool
) -> dict[str, Tensor]:
    """`protected` for every axis."""
    return {axis: protected(general[axis], special[axis], strength, comparable=comparable) for axis in general}
