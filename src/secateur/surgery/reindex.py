"""One operation: a new index vector for an axis, carried to every dim that the axis runs through."""

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor

from secateur.axes import Expr, Leaf, Prod, Sum


def index(expr: Expr, kept: Mapping[str, Tensor]) -> Tensor:
    """Positions of a dim that stay, (new size,), when the named axes keep the given units.

    Args:
        expr: what the dim is made of.
        kept: units of each axis that change, (units kept,), int64; an axis that is missing stays whole.
    """
    match expr:
        case Leaf() | Prod(()):
            name = expr.name if isinstance(expr, Leaf) else None
            return kept[name] if name is not None and name in kept else torch.arange(expr.size)
        case Prod():
            at = index(expr.factors[0], kept)
            for factor in expr.factors[1:]:
                at = (at[:, None] * factor.size + index(factor, kept)[None, :]).flatten()
            return at
        case Sum():
            starts = accumulate((p.size for p in expr.parts[:-1]), initial=0)
            return torch.cat([start + index(part, kept) for start, part in zip(starts, expr.parts, strict=True)])
        case _:
            raise TypeError(f"{expr!r} is not a finished expression")


def take(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """The tensor with the kept positions of each dim, as memory of its own."""
    out = tensor.detach()
    for dim, at in kept.items():
        out = out.index_select(dim, at.to(out.device))
    return out if kept else out.clone()
