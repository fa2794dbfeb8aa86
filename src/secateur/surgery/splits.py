"""Where units are repeated, what sums over them is divided among the copies, so that the sums stay what they were.

Chen et al. 2016, "Net2Net: Accelerating Learning via Knowledge Transfer", arXiv:1511.05641 (Net2Wider: fully connected
and convolutional layers, units drawn at random). Differs: any axis of any graph, each unit repeated as often as it is
asked; and noise that leaves the function as it is, since what is added to one copy's weights is taken from the others'.

Shape letters: N positions of a dim after surgery.
"""

import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from secateur.axes import Expr, Leaf, Prod, Sum, size_of
from secateur.surgery.reindex import index

if TYPE_CHECKING:
    from secateur.planning.plan import Plan, PlannedSplit


def copies(expr: Expr, units: Mapping[str, Tensor], axes: Collection[str]) -> Tensor:
    """A number for each position of a dim after surgery, (N,), equal for copies of one unit along the given axes.

    Args:
        expr: what the dim is made of.
        units: of each axis that changes, int64.
        axes: those along which positions count as copies; along others every position is one of its own.

    Example:
        >>> copies(Leaf("a", 2), {"a": torch.tensor([0, 0, 1])}, {"a"})
        tensor([0, 0, 1])
    """
    return _copies(expr, units, axes)[0]


def _copies(expr: Expr, units: Mapping[str, Tensor], axes: Collection[str]) -> tuple[Tensor, int]:
    """The numbers, and one more than the largest that there can be."""
    match expr:
        case Leaf(name, size):
            if name is not None and name in axes and name in units:
                return units[name], size
            after = len(units[name]) if name is not None and name in units else size
            return torch.arange(after), after
        case Prod(factors):
            at, count = torch.zeros(1, dtype=torch.long), 1
            for factor in factors:
                inner, size = _copies(factor, units, axes)
                at, count = (at[:, None] * size + inner[None, :]).flatten(), count * size
            return at, count
        case Sum(parts):
            found, count = list[Tensor](), 0
            for part in parts:
                inner, size = _copies(part, units, axes)
                found.append(inner + count)
                count += size
            return torch.cat(found), count
        case _:
            raise TypeError(f"{expr!r} is not a finished expression")


def multiplicity(groups: Tensor) -> Tensor:
    """How many positions share each position's number, (N,) float64."""
    return torch.bincount(groups).to(torch.float64)[groups]


def shares(split: "PlannedSplit", plan: "Plan") -> Tensor:
    """What each position of the split dim is multiplied by, (N,) float64: one part of as many as there are copies."""
    dim = plan.tensors[split.tensor].dims[split.dim]
    groups = copies(dim, plan.units, split.axes)
    return torch.where(chosen(split, dim, plan), 1 / multiplicity(groups), 1.0)


def chosen(split: "PlannedSplit", dim: Expr, plan: "Plan") -> Tensor:
    """Which positions after surgery the split is of, (N,) bool."""
    before = torch.zeros(size_of(dim, {}), dtype=torch.bool)
    for start, stop in split.positions:
        before[start:stop] = True
    return before[index(dim, plan.units)]


def disturbed(weight: Tensor, split: "PlannedSplit", plan: "Plan") -> Tensor:
    """The weight with noise that adds up to nothing over the copies of each unit.

    Args:
        weight: of the size after surgery, divided among copies.
        split: the dim along which it is.
        plan: with the noise's size, as a share of the weights' root mean square, and its seed.
    """
    dim = plan.tensors[split.tensor].dims[split.dim]
    groups, on = copies(dim, plan.units, split.axes), chosen(split, dim, plan)
    generator = torch.Generator().manual_seed(plan.seed ^ zlib.crc32(f"{split.tensor}:{split.dim}".encode()))
    drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    drawn = drawn * along(on.to(torch.float64), split.dim, weight.dim())
    means = torch.zeros(
        [*weight.shape[: split.dim], int(groups.max()) + 1, *weight.shape[split.dim + 1 :]], dtype=drawn.dtype
    )
    means = means.index_add(split.dim, groups, drawn) / along(
        torch.bincount(groups).clamp_min(1).to(torch.float64), split.dim, weight.dim()
    )
    drawn = drawn - means.index_select(split.dim, groups)
    values = weight.detach().to("cpu", torch.float64)
    drawn = drawn * (values != 0)  # copies of a zero are all zeros, so sums stay; those of sparse weights must, too
    return (weight + (plan.noise * values.square().mean().sqrt() * drawn).to(weight.device)).to(weight.dtype)


def along(values: Tensor, dim: int, rank: int) -> Tensor:
    """A vector as a tensor of a rank, to be broadcast along one dim."""
    return values.reshape([-1 if k == dim else 1 for k in range(rank)])


def gradients(name: str | None, plan: "Plan", shape: Sequence[int]) -> Tensor | None:
    """What the gradient of each weight after surgery is of that before, float64, to be broadcast; None for the same.

    A copy's output is used with a share of the weights that the unit's was, so its own weights get a share of the
    gradient; weights that were divided get the whole, because what they are multiplied with is what it was.
    """
    planned = None if name is None else plan.tensors.get(name)
    found: Tensor | None = None
    for k, dim in enumerate(planned.dims if planned is not None and plan.repeats else ()):
        if name is None or k not in plan.kept[name]:
            continue
        part = 1 / multiplicity(index(dim, plan.units))
        for split in (s for s in plan.splits if (s.tensor, s.dim) == (name, k)):
            part = part / shares(split, plan)
        if bool((part != 1).any()):
            wide = along(part, k, len(shape))
            found = wide if found is None else found * wide
    return found
