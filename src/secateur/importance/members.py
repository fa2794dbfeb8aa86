"""The uniform view that every criterion sees: a member of an axis as a (units, rest) matrix."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.axes import Expr, Leaf
from secateur.errors import ScoreError
from secateur.graph import Graph
from secateur.modules import Walk
from secateur.places import positions

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
        slopes: the mean derivative of the loss by the parameter; None where no criterion declared that it needs
            "gradients".
    """

    axis: str
    name: str
    dim: int
    tensor: Tensor
    places: Tensor | None = None
    module: type[nn.Module]
    role: str
    known: dict[Any, Tensor] = field(default_factory=dict[Any, Tensor], repr=False, compare=False)
    slopes: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def weight(self) -> Tensor:
        """All weights that belong to a unit, (units, rest), floating point."""
        return self._by_unit(self.tensor)

    @property
    def gradient(self) -> Tensor:
        """The mean derivative of the loss by each weight, in the order of `weight`, (units, rest).

        Raises:
            ScoreError: the criterion did not declare that it needs "gradients".
        """
        if self.slopes is None:
            raise ScoreError("member.gradient is there for criteria that declare it: needs = frozenset({'gradients'})")
        return self._by_unit(self.slopes)

    def _by_unit(self, tensor: Tensor) -> Tensor:
        rows = tensor.movedim(self.dim, 0)
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


def members(
    model: nn.Module,
    graph: Graph,
    axis: str,
    weights: Weights | None = None,
    gradients: Mapping[str, Tensor] | None = None,
) -> Iterator[Member]:
    """Every parameter that an axis runs through, buffers left out.

    Args:
        weights: the model's, where several axes are looked at.
        gradients: of the loss by each parameter, where there are any; a parameter without one has gradients of 0.
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
        slopes = None if gradients is None else _slopes(gradients.get(name), tensor)
        yield Member(
            axis=axis,
            name=name,
            dim=dim,
            tensor=tensor,
            places=places,
            module=weights.owners[owner],
            role=role,
            known=weights.known,
            slopes=slopes,
        )


def _slopes(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else _real(gradient).to(like.device)
