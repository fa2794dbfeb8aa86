"""The uniform view that every criterion sees: a member of an axis as a (units, rest) matrix."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.axes import Expr, Leaf, Prod, Sum
from secateur.graph import Graph
from secateur.modules import Walk

CHUNK = 2**18  # weights that are worked on at a time, so that they stay in the cache


@dataclass(frozen=True, kw_only=True)
class Member:
    """One parameter along one axis.

    Attributes:
        axis: name of the axis.
        name, dim: the parameter and its dim.
        tensor: the parameter's values; absolute values where it is complex.
        places: where each unit sits in the dim, (units, places), int64; None where the dim is the axis itself.
        module: the class of the module that owns the parameter (``torch.nn.BatchNorm2d``), for criteria that ask.
        role: the parameter's name on that module (``weight``).
        known: power sums that other members of the same parameter have asked for.
    """

    axis: str
    name: str
    dim: int
    tensor: Tensor
    places: Tensor | None = None
    module: type[nn.Module]
    role: str
    known: dict[Any, Tensor] = field(default_factory=dict[Any, Tensor], repr=False, compare=False)

    @property
    def weight(self) -> Tensor:
        """All weights that belong to a unit, (units, rest), floating point."""
        rows = self.tensor.movedim(self.dim, 0)
        return rows.reshape(rows.shape[0], -1) if self.places is None else rows[self.places].flatten(1)

    def power_sums(self, p: float) -> Tensor:
        """Sum of |w|^p over all weights that belong to a unit, (units,) float32: ``weight.abs().pow(p).sum(1)``."""
        key = self.name, self.dim, p
        if key not in self.known:
            self.known[key] = power_sums(self.tensor, self.dim, p)
        sums = self.known[key]
        return sums if self.places is None else sums[self.places].sum(1)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A model's parameters and the classes of its modules by name, looked up once, and what was computed so far."""

    parameters: Mapping[str, Tensor]
    owners: Mapping[str, type[nn.Module]]
    known: dict[Any, Tensor] = field(default_factory=dict[Any, Tensor])
    _places: dict[tuple[Expr, str], Tensor] = field(default_factory=dict[tuple[Expr, str], Tensor])

    @staticmethod
    def of(model: nn.Module) -> "Weights":
        walk = Walk(model)
        return Weights(parameters=walk.parameters, owners={path: type(module) for path, module in walk.places})

    def places(self, expr: Expr, axis: str) -> Tensor:
        """Where the units of an axis sit in a dim, (units, places); alike dims of several parameters have the same."""
        if (expr, axis) not in self._places:
            self._places[expr, axis] = torch.cat(positions(expr, axis), 1)
        return self._places[expr, axis]


def power_sums(tensor: Tensor, dim: int, p: float) -> Tensor:
    """Sum of |w|^p at every position of a dim, (size,) float32, in one pass over the memory."""
    size = tensor.shape[dim]
    if tensor.dim() == 1:
        return _powers(tensor.float(), p)
    if dim == 0:
        wide = torch.promote_types(tensor.dtype, torch.float32)
        return torch.linalg.vector_norm(tensor.reshape(size, -1), p, dim=1, dtype=wide).float().pow(p)
    rows = tensor.reshape(-1, size * math.prod(tensor.shape[dim + 1 :]))  # (before, size * after)
    chunk = max(1, CHUNK // max(rows.shape[1], 1))
    total = _powers(rows[:chunk].float(), p).sum(0)
    for start in range(chunk, rows.shape[0], chunk):
        total += _powers(rows[start : start + chunk].float(), p).sum(0)
    return total.reshape(size, -1).sum(1)


def _powers(values: Tensor, p: float) -> Tensor:
    return values.square() if p == 2 else values.abs().pow(p)


def _real(tensor: Tensor) -> Tensor:
    return tensor.abs() if tensor.is_complex() else tensor


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


def members(
    model: nn.Module,
    graph: Graph,
    axis: str,
    weights: Weights | None = None,
) -> Iterator[Member]:
    """Every parameter that an axis runs through, buffers left out.

    Args:
        weights: the model's, where several axes are looked at.
    """
    weights = weights or Weights.of(model)
    for name, dim in graph.axes[axis].members:
        info = graph.tensors[name]
        if not info.parameter:
            continue
        expr = info.dims[dim]
        tensor, plain = _real(weights.parameters[name].detach()), isinstance(expr, Leaf) and expr.name == axis
        places = None if plain else weights.places(expr, axis).to(tensor.device)
        owner, _, role = name.rpartition(".")
        module = weights.owners[owner]
        yield Member(
            axis=axis, name=name, dim=dim, tensor=tensor, places=places, module=module, role=role, known=weights.known
        )
