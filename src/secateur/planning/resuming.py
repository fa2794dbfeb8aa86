"""A plan that goes on from an earlier one, so that the smaller model is always a part of the larger one."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from secateur.planning.choosing import Lane


def sunk(scores: Mapping[str, Tensor], within: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scores with all units that are gone below those that are left.

    Args:
        scores: of all units, (units,) for each axis.
        within: kept units, ascending, of the axes that have lost some.
    """
    return {axis: _sunk(values, within[axis]) if axis in within else values for axis, values in scores.items()}


def _sunk(values: Tensor, kept: Tensor) -> Tensor:
    """Just below the lowest, and below 0: shares of a score are taken after the lowest is brought up to 0."""
    left = values.double()[kept]
    scale = float(left.abs().max())
    floor = min(0.0, float(left.min())) - 1e-9 * (scale or 1.0)
    return torch.full((len(values),), floor, dtype=torch.float64).index_copy_(0, kept, left)


def reached(lanes: Sequence[Lane], within: Mapping[str, Tensor]) -> Tensor:
    """Steps that each lane has taken with the given units kept, (L,)."""
    steps = [0] * len(lanes)
    for k, ln in enumerate(lanes):
        widths = [len(within[a]) // share for a, share in zip(ln.axes, ln.shares, strict=True) if a in within]
        if widths:
            steps[k] = next((at for at, size in enumerate(ln.sizes) if size <= min(widths)), len(ln.sizes) - 1)
    return torch.tensor(steps, dtype=torch.long)
