"""The uniform view that every criterion sees: a member of an axis as a (units, rest) matrix."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.axes import Expr, Leaf, Prod, Sum
from secateur.graph import Graph


@dataclass(frozen=True, kw_only=True)
class Member:
    """One parameter along one axis.

    Attributes:
        axis: name of the axis.
        name, dim: the parameter and its dim.
        weight: all weights that belong to a unit, (units, rest), floating point.
        module: the class of the module that owns the parameter (``torch.nn.BatchNorm2d``), for criteria that ask.
        role: the parameter's name on that module (``weight``).
    """

    axis: str
    name: str
    dim: int
    weight: Tensor
    module: type[nn.Module]
    role: str


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


def members(model: nn.Module, graph: Graph, axis: str) -> Iterator[Member]:
    """Every parameter that an axis runs through, buffers left out."""
    tensors: Mapping[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for name, dim in graph.axes[axis].members:
        info = graph.tensors[name]
        if not info.parameter:
            continue
        expr = info.dims[dim]
        rows = tensors[name].detach().movedim(dim, 0).reshape(expr.size, -1)
        if not (isinstance(expr, Leaf) and expr.name == axis):
            rows = torch.cat([rows[at.to(rows.device)].flatten(1) for at in positions(expr, axis)], 1)
        owner, _, role = name.rpartition(".")
        yield Member(axis=axis, name=name, dim=dim, weight=rows, module=type(model.get_submodule(owner)), role=role)
