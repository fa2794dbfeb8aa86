"""Costs in closed form: every operation's work is a product of dim sizes, so a model's cost is a polynomial in its
axis sizes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from secateur.axes import Axis, Expr, Leaf, Prod, Sum

Monomial = tuple[str, ...]  # axis names, sorted, repeated for powers
Polynomial = dict[Monomial, float]


def polynomial(expr: Expr | int, prunable: Mapping[str, int]) -> Polynomial:
    """The size of an expression as a polynomial in the prunable axes."""
    match expr:
        case int():
            return {(): float(expr)}
        case Leaf() | Axis():
            name = expr.name
            return {(name,): 1.0} if name is not None and name in prunable else {(): float(expr.size)}
        case Prod():
            return multiply([polynomial(f, prunable) for f in expr.factors])
        case Sum():
            total: Polynomial = {}
            for part in expr.parts:
                for monomial, value in polynomial(part, prunable).items():
                    total[monomial] = total.get(monomial, 0.0) + value
            return total


def multiply(factors: Iterable[Polynomial]) -> Polynomial:
    """The product of polynomials."""
    result: Polynomial = {(): 1.0}
    for factor in factors:
        if len(factor) == 1:  # the common case: one monomial shifts all
            ((shift, scale),) = factor.items()
            result = {tuple(sorted(m + shift)) if shift else m: v * scale for m, v in result.items()}
        else:
            product: Polynomial = {}
            for m, v in result.items():
                for n, w in factor.items():
                    key = tuple(sorted(m + n))
                    product[key] = product.get(key, 0.0) + v * w
            result = product
    return result


class Cost(Protocol):
    """A cost as a function of the axis sizes (A,)."""

    def value(self, sizes: Tensor) -> Tensor:
        """The cost, a scalar."""
        ...

    def slopes(self, sizes: Tensor) -> Tensor:
        """What one unit of each axis costs, to first order, (A,)."""
        ...


@dataclass(frozen=True)
class Compiled:
    """A polynomial as tensors. Letters: T terms, P highest degree; index A (one past the last axis) holds a constant
    1.
    """

    coefficients: Tensor  # (T,)
    indices: Tensor  # (T, P)

    @staticmethod
    def of(poly: Polynomial, order: Mapping[str, int]) -> "Compiled":
        degree = max((len(m) for m in poly), default=0)
        rows = [[order[n] for n in m] + [len(order)] * (degree - len(m)) for m in poly]
        indices = torch.tensor(rows, dtype=torch.long).reshape(len(poly), degree)
        return Compiled(torch.tensor(list(poly.values()), dtype=torch.float64), indices)

    def value(self, sizes: Tensor) -> Tensor:
        """The polynomial at sizes (A,), a scalar."""
        padded = torch.cat([sizes, sizes.new_ones(1)])
        return (self.coefficients * padded[self.indices].prod(1)).sum()

    def slopes(self, sizes: Tensor) -> Tensor:
        """The derivative by each axis at sizes (A,): what one unit more or less costs, to first order. Sizes must not
        be 0.
        """
        padded = torch.cat([sizes, sizes.new_ones(1)])
        factors = padded[self.indices]
        parts = (self.coefficients * factors.prod(1))[:, None] / factors
        slopes = torch.zeros_like(padded).index_add_(0, self.indices.flatten(), parts.flatten())
        return slopes[:-1]


@dataclass(frozen=True)
class Costs:
    """Params, MACs and bytes of a model as functions of its axis sizes.

    Attributes:
        order: position of each prunable axis in the size vectors.
        dense: the original sizes, (A,).
    """

    order: dict[str, int]
    dense: Tensor
    kinds: Mapping[str, Cost]

    @staticmethod
    def of(
        prunable: Mapping[str, int],
        params: Sequence[tuple[Sequence[Expr], int]],
        buffers: Sequence[tuple[Sequence[Expr], int]],
        macs: Sequence[Sequence[Expr | int]],
    ) -> "Costs":
        """Collect the polynomials.

        Args:
            prunable: the axes and their sizes.
            params, buffers: the dims of each tensor with its bytes an element.
            macs: the factors of each operation's multiply-accumulates.
        """
        totals: dict[str, Polynomial] = {"params": {}, "macs": {}, "bytes": {}}

        def add(kind: str, factors: Sequence[Expr | int], scale: int = 1) -> None:
            for monomial, value in multiply(polynomial(f, prunable) for f in factors).items():
                totals[kind][monomial] = totals[kind].get(monomial, 0.0) + value * scale

        for dims, itemsize in params:
            add("params", dims)
            add("bytes", dims, itemsize)
        for dims, itemsize in buffers:
            add("bytes", dims, itemsize)
        for factors in macs:
            add("macs", factors)
        order = {name: k for k, name in enumerate(prunable)}
        dense = torch.tensor(list(prunable.values()), dtype=torch.float64)
        return Costs(order, dense, {kind: Compiled.of(poly, order) for kind, poly in totals.items()})

    def along_with(self, **kinds: Cost) -> "Costs":
        """These costs and others."""
        return replace(self, kinds={**self.kinds, **kinds})

    def vector(self, sizes: Mapping[str, int]) -> Tensor:
        """Sizes as a vector (A,), the original where none is given."""
        vector = self.dense.clone()
        for name, size in sizes.items():
            if name in self.order:
                vector[self.order[name]] = size
        return vector

    def at(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The costs when axes have the given sizes."""
        vector = self.vector(sizes)
        return {kind: round(compiled.value(vector).item()) for kind, compiled in self.kinds.items()}
