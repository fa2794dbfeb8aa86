"""The latency of a model as a function of its axis sizes: the sum of its operations' curves.

Letters: A axes, C calls of one number of variables, K variables, G levels; ... any further dims of a batch of sizes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from secateur.axes import Expr, leaves
from secateur.costs import Polynomial, multiply, polynomial
from secateur.timing.curves import Curve
from secateur.timing.operations import Call, Operation

NANOSECONDS = 1e9


@dataclass(frozen=True)
class Timed:
    """Alike calls with their curve, and how often they stand in the model."""

    call: Call
    curve: Curve
    times: int = 1


@dataclass(frozen=True)
class LatencyTable:
    """Timed operations, and how their sum relates to the time of the model as a whole.

    Attributes:
        timed: the operations with their curves.
        offset, factor: seconds of the model = offset + factor * (sum of its operations).
    """

    timed: tuple[Timed, ...]
    offset: float = 0.0
    factor: float = 1.0

    def through(self, *points: tuple[float, float]) -> "LatencyTable":
        """The table whose predictions go through what was measured.

        Args:
            points: sums of operations with the measured seconds of the model. One gives the factor, two the offset
                too, unless less work took more time: then the last one counts.
        """
        (s, measured), *more = points
        if more and abs(more[0][0] - s) > 1e-3 * s:
            factor = (measured - more[0][1]) / (s - more[0][0])
            if factor > 0:
                return replace(self, offset=measured - factor * s, factor=factor)
            s, measured = more[0]
        return replace(self, offset=0.0, factor=measured / s if s > 0 else 1.0)

    def compiled(self, order: Mapping[str, int], dense: Tensor) -> "Predictor":
        """The table as a function of size vectors.

        Args:
            order: position of each axis in a vector; axes that are not in it keep their sizes.
            dense: the original sizes, (A,).
        """
        return Predictor(self, order, dense)


class Predictor:
    """Latency in nanoseconds at vectors of axis sizes; with `value` and `slopes` as other costs have them."""

    def __init__(self, table: LatencyTable, order: Mapping[str, int], dense: Tensor) -> None:
        self.table, self.order, self.dense = table, order, dense
        prunable = {name: int(dense[k]) for name, k in order.items()}
        kinds = sorted({len(t.curve.levels) for t in table.timed})
        chosen = [[t for t in table.timed if len(t.curve.levels) == k] for k in kinds]
        self.timed = [t for group in chosen for t in group]
        self.groups = [_Group(group, prunable, order) for group in chosen]
        self.times = torch.tensor([t.times for t in self.timed], dtype=torch.float64)

    def seconds(self, sizes: Tensor, *, stairs: bool = True) -> Tensor:
        """Time of one call of every operation at sizes (..., A): (..., operations), in the order of ``timed``."""
        parts = [group.seconds(sizes, stairs=stairs) for group in self.groups]
        return torch.cat(parts, -1) if parts else sizes.new_zeros((*sizes.shape[:-1], 0))

    def total(self, sizes: Tensor, *, stairs: bool = True) -> Tensor:
        """Sum of the operations in seconds, not yet brought to the model's own time, (...)."""
        return (self.seconds(sizes, stairs=stairs) * self.times).sum(-1)

    def value(self, sizes: Tensor) -> Tensor:
        """Nanoseconds of the model at sizes (A,), a scalar."""
        return (self.table.offset + self.table.factor * self.total(sizes)).clamp_min(0) * NANOSECONDS

    def slopes(self, sizes: Tensor) -> Tensor:
        """What a unit of each axis costs, to first order, along the trend without stairs, (A,)."""
        with torch.inference_mode(False), torch.enable_grad():
            at = sizes.detach().clone().requires_grad_()
            total = self.total(at, stairs=False)
            if not total.requires_grad:
                return torch.zeros_like(sizes)
            (slopes,) = torch.autograd.grad(total, at)
        return slopes * self.table.factor * NANOSECONDS

    def on(self, axes: Collection[str]) -> "Predictor":
        """The operations alone that one of the axes runs through."""
        timed = [t for t in self.timed if any(leaf.name in axes for v in t.call.variables for leaf in leaves(v))]
        return Predictor(replace(self.table, timed=tuple(timed)), self.order, self.dense)

    def slowest(self) -> list[tuple[str, float]]:
        """Kinds of operations with their nanoseconds in the original, the slowest first, and what is none of theirs."""
        found = {"the model outside of its operations": max(0.0, self.table.offset) * NANOSECONDS}
        for timed, value in zip(self.timed, (self.seconds(self.dense) * self.times).tolist(), strict=True):
            name = timed.call.operation.name
            found[name] = found.get(name, 0.0) + value * self.table.factor * NANOSECONDS
        return sorted((item for item in found.items() if item[1] > 0), key=lambda item: -item[1])


class _Group:
    """Operations whose curves have one number of variables, together."""

    def __init__(self, timed: Sequence[Timed], prunable: Mapping[str, int], order: Mapping[str, int]) -> None:
        k = len(timed[0].curve.levels)
        shape = (len(timed), k)
        self.quantities = _Quantities([q for t in timed for q in _variables(t, prunable)], shape, order)
        width = max(2, *(len(row) for t in timed for row in t.curve.levels))
        knots = [_padded(row, width) for t in timed for row in t.curve.levels]
        self.knots = torch.tensor(knots, dtype=torch.float64).reshape(*shape, width)
        self.tops = torch.tensor([row[-1] for t in timed for row in t.curve.levels], dtype=torch.float64).reshape(shape)
        self.values = torch.stack([_stretched(t.curve.values, width).flatten() for t in timed])
        self.places = torch.tensor([width**e for e in reversed(range(k))])
        stairs = [s for t in timed for s in t.curve.stairs]
        self.step = torch.tensor([s.step for s in stairs], dtype=torch.float64).reshape(shape)
        self.penalty = torch.tensor([s.penalty for s in stairs], dtype=torch.float64).reshape(shape)

    def seconds(self, sizes: Tensor, *, stairs: bool) -> Tensor:
        """(..., C)."""
        v = self.quantities(sizes)  # (..., C, K)
        extra = torch.ones_like(v[..., 0])
        if stairs:
            extra = (1 + self.penalty * (v % self.step != 0)).prod(-1)
            v = torch.minimum((v / self.step).ceil() * self.step, torch.maximum(self.tops, v))
        cell = (v.unsqueeze(-1) >= self.knots[..., 1:-1]).sum(-1)  # (..., C, K)
        knots = self.knots.expand(*v.shape, -1)
        low = knots.gather(-1, cell.unsqueeze(-1)).squeeze(-1)
        high = knots.gather(-1, cell.unsqueeze(-1) + 1).squeeze(-1)
        share = ((v - low) / (high - low)).clamp(max=1.0)
        values = self.values.expand(*v.shape[:-1], -1)
        result = torch.zeros_like(v[..., 0])
        for corner in product((0, 1), repeat=v.shape[-1]):
            up = torch.tensor(corner)
            at = ((cell + up) * self.places).sum(-1, keepdim=True)
            weight = torch.where(up.bool(), share, 1 - share).prod(-1)
            result = result + weight * values.gather(-1, at).squeeze(-1)
        return result.clamp_min(0) * extra


def _variables(timed: Timed, prunable: Mapping[str, int]) -> list[Polynomial]:
    """What the curve's variables are, in axis sizes."""
    call = timed.call
    if not timed.curve.by_elements:
        return [polynomial(expr, prunable) for expr in call.variables]
    parts = {f"v{k}": polynomial(expr, prunable) for k, expr in enumerate(call.variables)}
    total: Polynomial = {}
    for dims in call.operation.tensors():
        for monomial, value in multiply(_spelled(d, parts) for d in dims).items():
            total[monomial] = total.get(monomial, 0.0) + value
    return [total]


def _spelled(dim: Expr, parts: Mapping[str, Polynomial]) -> Polynomial:
    """A dim of an operation as a polynomial in the model's axes."""
    total: Polynomial = {}
    for monomial, value in polynomial(dim, dict.fromkeys(parts, 1)).items():
        for inner, factor in multiply(parts[name] for name in monomial).items():
            total[inner] = total.get(inner, 0.0) + value * factor
    return total


class _Quantities:
    """Many polynomials at once. Letters: T terms of all of them, P highest degree."""

    def __init__(self, polynomials: Sequence[Polynomial], shape: tuple[int, int], order: Mapping[str, int]) -> None:
        self.shape, self.count = shape, len(polynomials)
        rows = [(k, value, [order[n] for n in m]) for k, p in enumerate(polynomials) for m, value in p.items()]
        degree = max((len(at) for _, _, at in rows), default=0)
        indices = [at + [len(order)] * (degree - len(at)) for _, _, at in rows]
        self.owner = torch.tensor([k for k, _, _ in rows], dtype=torch.long)
        self.coefficients = torch.tensor([value for _, value, _ in rows], dtype=torch.float64)
        self.indices = torch.tensor(indices, dtype=torch.long).reshape(len(rows), degree)

    def __call__(self, sizes: Tensor) -> Tensor:
        """(..., A) -> (..., C, K)."""
        padded = torch.cat([sizes, sizes.new_ones((*sizes.shape[:-1], 1))], -1)
        terms = self.coefficients * padded[..., self.indices].prod(-1)
        total = sizes.new_zeros((*sizes.shape[:-1], self.count)).index_add(-1, self.owner, terms)
        return total.reshape(*sizes.shape[:-1], *self.shape)


def _padded(row: Sequence[int], width: int) -> list[float]:
    """Levels with further ones above the last, which no size reaches."""
    return [*map(float, row), *(row[-1] + k for k in range(1, width - len(row) + 1))]


def _stretched(values: Tensor, width: int) -> Tensor:
    """The grid with its last values repeated up to a width."""
    for dim in range(values.dim()):
        at = torch.arange(width).clamp_max(values.shape[dim] - 1)
        values = values.index_select(dim, at)
    return values


def operations(calls: Sequence[Call]) -> dict[Operation, int]:
    """The distinct operations, and how often each is called."""
    found: dict[Operation, int] = {}
    for call in calls:
        found[call.operation] = found.get(call.operation, 0) + 1
    return found
