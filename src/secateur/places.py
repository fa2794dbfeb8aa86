"""Where the units of an axis sit in a dim."""

import torch
from torch import Tensor

from secateur.axes import Expr, Leaf, Prod, Sum


def positions(expr: Expr, axis: str) -> list[Tensor]:
    """Where an axis's units sit in a dim: one (units, places) matrix for each occurrence."""
    match expr:
        case Leaf():
            return [torch.arange(expr.size)[:, None]] if expr.name == axis else []
        case Prod():
            found: list[Tensor] = []
            for k, factor in enumerate(expr.factors):
                before = Prod(expr.factors[:k], _size(expr.factors[:k])).size
                after = _size(expr.factors[k + 1 :])
                for inner in positions(factor, axis):  # (u, p)
                    outer = torch.arange(before)[None, :, None, None] * factor.size  # a position before
                    at = (outer + inner[:, None, :, None]) * after + torch.arange(after)[None, None, None, :]
                    found.append(at.reshape(inner.shape[0], -1))
            return found
        case Sum():
            found, offset = [], 0
            for part in expr.parts:
                found += [offset + inner for inner in positions(part, axis)]
                offset += part.size
            return found
        case _:
            return []


def _size(factors: tuple[Expr, ...]) -> int:
    size = 1
    for factor in factors:
        size *= factor.size
    return size
