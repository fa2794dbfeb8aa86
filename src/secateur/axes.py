"""The algebra of tensor dimensions: what a dim is made of, and what equations between dims imply.

A dim expression is a tree. Its leaves are axes, the independent directions of width. A `Prod` is a row-major
product, ``(heads head_dim)``: what flattening makes. A `Sum` is a concatenation, ``{left + right}``: what ``cat``
makes. Two operations carry everything: `Algebra.unify` states that two dims are the same, and `Algebra.split` and
`Algebra.cut` ask for a dim in two factors or in two parts. All of them refine axes into smaller ones where a
boundary demands it, as unification of types does. Where sizes can't be reconciled, the axes involved freeze.

A size-1 axis is no axis (the empty product, `ONE`) except as a part of a sum, where it keeps its place.
Freezing is a note (expression, reason) that is read at the end, when every axis has its final form: so no binding
can ever lose it.

Pure Python: nothing here knows torch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd, prod


@dataclass(eq=False, slots=True)
class Axis:
    """A variable: one direction of width, until it is bound to an expression of finer ones."""

    size: int
    order: int
    name: str | None = None
    bound: "Expr | None" = None

    def __repr__(self) -> str:
        return self.name or f"a{self.order}:{self.size}"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A finished axis. ``name`` is None where the size is fixed and no parameter cares."""

    name: str | None
    size: int

    def __repr__(self) -> str:
        return self.name or str(self.size)


@dataclass(frozen=True, slots=True)
class Prod:
    """Row-major product of at least two factors, or the empty one (size 1)."""

    factors: "tuple[Expr, ...]"
    size: int = field(compare=False)

    def __repr__(self) -> str:
        return f"({' '.join(map(repr, self.factors))})" if self.factors else "1"


@dataclass(frozen=True, slots=True)
class Sum:
    """Concatenation of at least two parts."""

    parts: "tuple[Expr, ...]"
    size: int = field(compare=False)

    def __repr__(self) -> str:
        return "{" + " + ".join(map(repr, self.parts)) + "}"


Expr = Axis | Leaf | Prod | Sum
ONE = Prod((), 1)
EMPTY = Leaf(None, 0)


def product(factors: Iterable[Expr]) -> Expr:
    """Product of expressions, flattened, without size-1 factors."""
    flat: list[Expr] = []
    for factor in factors:
        if isinstance(factor, Prod):
            flat += factor.factors
        elif factor.size != 1:
            flat.append(factor)
    return flat[0] if len(flat) == 1 else Prod(tuple(flat), prod(f.size for f in flat)) if flat else ONE


def concat(parts: Iterable[Expr]) -> Expr:
    """Concatenation of expressions, flattened. A part of size 1 keeps its place."""
    flat: list[Expr] = []
    for part in parts:
        flat += part.parts if isinstance(part, Sum) else (part,)
    return flat[0] if len(flat) == 1 else Sum(tuple(flat), sum(p.size for p in flat))


def resolve(expr: Expr) -> Expr:
    """The expression with every bound axis replaced by what it is bound to."""
    match expr:
        case Axis():
            if expr.bound is None:
                return expr
            expr.bound = resolve(expr.bound)  # path compression
            return expr.bound
        case Prod():
            factors = [resolve(f) for f in expr.factors]
            return expr if all(a is b for a, b in zip(factors, expr.factors, strict=True)) else product(factors)
        case Sum():
            parts = [resolve(p) for p in expr.parts]
            return expr if all(a is b for a, b in zip(parts, expr.parts, strict=True)) else concat(parts)
        case Leaf():
            return expr


def leaves(expr: Expr) -> list[Axis | Leaf]:
    """The leaves from left to right, repeated ones repeatedly."""
    match expr:
        case Axis() | Leaf():
            return [expr]
        case Prod():
            return [leaf for factor in expr.factors for leaf in leaves(factor)]
        case Sum():
            return [leaf for part in expr.parts for leaf in leaves(part)]


def size_of(expr: Expr, sizes: Mapping[str, int]) -> int:
    """The size of a finished expression when the named axes have other sizes."""
    match expr:
        case Leaf() | Axis():
            return expr.size if expr.name is None else sizes.get(expr.name, expr.size)
        case Prod():
            return prod(size_of(f, sizes) for f in expr.factors)
        case Sum():
            return sum(size_of(p, sizes) for p in expr.parts)


class Algebra:
    """Axes, the equations between them, and notes on which of them are frozen and why."""

    def __init__(self) -> None:
        self.count = 0
        self.frozen: list[tuple[Expr, str]] = []

    def fresh(self, size: int, name: str | None = None) -> Axis:
        self.count += 1
        return Axis(size, self.count, name)

    def dim(self, size: int) -> Expr:
        """A new dim of the size: a fresh axis, or nothing where the size is 1."""
        return ONE if size == 1 else self.fresh(size)

    def fixed(self, size: int, reason: str) -> Expr:
        """A new dim that is frozen from the start."""
        return ONE if size == 1 else self.freeze(self.fresh(size), reason)

    def freeze(self, expr: Expr, reason: str) -> Expr:
        """Note that all axes of the expression must keep their size. Returns the expression."""
        self.frozen.append((expr, reason))
        return expr

    def concat(self, parts: Sequence[Expr]) -> Expr:
        """Concatenation of dims, empty ones left out."""
        kept = [resolve(p) for p in parts if p.size]
        return concat(kept) if kept else EMPTY

    # ------------------------------------------------------------------ equations

    def unify(self, a: Expr, b: Expr) -> bool:
        """State that two dims are the same, position by position.

        Returns:
            False where their sizes or boundaries can't be reconciled: then both must freeze.
        """
        a, b = resolve(a), resolve(b)
        if a is b or a == b:
            return True
        if a.size != b.size:
            return False
        match a, b:
            case Axis(), _:
                return self._bind(a, b)
            case _, Axis():
                return self._bind(b, a)
            case Prod(), Prod():
                return self._unify_products(a, b)
            case Sum(), _:
                return self._unify_sum(a, b)
            case _, Sum():
                return self._unify_sum(b, a)
            case _:
                return False

    @staticmethod
    def _bind(axis: Axis, expr: Expr) -> bool:
        if isinstance(expr, Axis):  # the older axis stays, so that names are stable
            if axis.order < expr.order:
                axis, expr = expr, axis
        elif axis in leaves(expr):
            return False
        axis.bound = expr
        return True

    def _unify_products(self, a: Prod, b: Prod) -> bool:
        left, right = list(a.factors), list(b.factors)
        while left and right:
            x, y = resolve(left[0]), resolve(right[0])
            if x.size < y.size:
                left, right, x, y = right, left, y, x
            if x.size != y.size:
                halves = self.split(x, y.size)
                if halves is None:
                    return False
                x, rest = halves
                left[1:1] = [rest]
            if not self.unify(x, y):
                return False
            left, right = _factors(left[1:]), _factors(right[1:])
        return True

    def _unify_sum(self, a: Sum, b: Expr) -> bool:
        rest: Expr = b
        for k, part in enumerate(a.parts):
            if k == len(a.parts) - 1:
                first = rest
            else:
                halves = self.cut(rest, part.size)
                if halves is None:
                    return False
                first, rest = halves
            if not self.unify(part, first):
                return False
        return True

    # ------------------------------------------------------------------ boundaries

    def split(self, expr: Expr, outer: int) -> tuple[Expr, Expr] | None:
        """The dim as a row-major product of a dim of size ``outer`` and the rest; None where it has no such form."""
        expr = resolve(expr)
        if outer == 1:
            return ONE, expr
        if outer == expr.size:
            return expr, ONE
        if outer < 1 or expr.size % outer:
            return None
        match expr:
            case Axis():
                first, second = self.fresh(outer), self.fresh(expr.size // outer)
                expr.bound = product((first, second))
                return first, second
            case Prod():
                return self._split_product(expr, outer)
            case Sum():
                return self._split_sum(expr, outer)
            case Leaf():
                return None

    def _split_product(self, expr: Prod, outer: int) -> tuple[Expr, Expr] | None:
        head, rest = expr.factors[0], product(expr.factors[1:])
        if head.size == outer:
            return head, rest
        common = gcd(head.size, outer)
        if common == head.size:
            halves = self.split(rest, outer // common)
            return halves and (product((head, halves[0])), halves[1])
        if common == outer:
            halves = self.split(head, outer)
            return halves and (halves[0], product((halves[1], rest)))
        return None

    def _split_sum(self, expr: Sum, outer: int) -> tuple[Expr, Expr] | None:
        inner = expr.size // outer
        if any(part.size % inner for part in expr.parts):
            return None
        outers: list[Expr] = []
        inners: list[Expr] = []
        for part in expr.parts:
            halves = self.split(part, part.size // inner)
            if halves is None:
                return None
            outers.append(halves[0])
            inners.append(halves[1])
        if not all(self.unify(inners[0], other) for other in inners[1:]):
            return None
        return self.concat(outers), resolve(inners[0])

    def cut(self, expr: Expr, first: int) -> tuple[Expr, Expr] | None:
        """The dim as a concatenation of a dim of size ``first`` (neither 0 nor all) and the rest; None where it can't
        be.
        """
        expr = resolve(expr)
        if not 0 < first < expr.size:
            return None
        match expr:
            case Axis():
                head, tail = self.fresh(first), self.fresh(expr.size - first)
                expr.bound = Sum((head, tail), expr.size)
                return head, tail
            case Prod():
                rest = product(expr.factors[1:])
                if first % rest.size:
                    return None
                halves = self.cut(expr.factors[0], first // rest.size)
                return halves and (product((halves[0], rest)), product((halves[1], rest)))
            case Sum():
                before: list[Expr] = []
                for k, part in enumerate(expr.parts):
                    if first < part.size:
                        halves = self.cut(part, first) if first else None
                        if first and halves is None:
                            return None
                        middle = halves or (None, part)
                        head = concat([*before, middle[0]]) if middle[0] is not None else concat(before)
                        return head, concat([middle[1], *expr.parts[k + 1 :]])
                    before.append(part)
                    first -= part.size
                raise AssertionError("a cut inside the sum was not found")
            case Leaf():
                return None

    # ------------------------------------------------------------------ shapes

    def reshape(self, dims: Sequence[Expr], sizes: Sequence[int], reason: Callable[[], str]) -> list[Expr]:
        """The dims of a row-major tensor after ``reshape(sizes)``; those that can't be followed freeze."""
        out: list[Expr] = []
        for before, after in segments([d.size for d in dims], sizes):
            found = self.regroup(dims[before], sizes[after])
            if found is None:
                why = reason()
                for dim in dims[before]:
                    self.freeze(dim, why)
                found = [self.fixed(size, why) for size in sizes[after]]
            out += found
        return out

    def regroup(self, dims: Sequence[Expr], sizes: Sequence[int]) -> list[Expr] | None:
        """The dims of a row-major tensor after ``reshape(sizes)``; None where it can't be followed."""
        rest = product(map(resolve, dims))
        if rest.size != prod(sizes):
            raise ValueError(f"{rest.size} elements can't be reshaped to {tuple(sizes)}")
        if rest.size == 0:
            return self._regroup_empty(dims, sizes)
        out: list[Expr] = []
        for size in sizes:
            halves = self.split(rest, size)
            if halves is None:
                return None
            first, rest = halves
            out.append(first)
        return out

    def _regroup_empty(self, dims: Sequence[Expr], sizes: Sequence[int]) -> list[Expr]:
        """Of a tensor without elements: the last dims stay as far as their sizes do, what is before them freezes."""
        same = 0
        while same < min(len(dims), len(sizes)) and dims[-1 - same].size == sizes[-1 - same]:
            same += 1
        reason = "a reshape of a tensor without elements can't be followed"
        for dim in dims[: len(dims) - same]:
            if dim.size != 1:
                self.freeze(dim, reason)
        before = [self.fixed(size, reason) for size in sizes[: len(sizes) - same]]
        return [*before, *(resolve(dim) for dim in dims[len(dims) - same :])]

    def pieces(self, dim: Expr, sizes: Sequence[int]) -> list[Expr] | None:
        """The parts of a dim cut at sizes that add up to it; None where it can't be followed."""
        rest = resolve(dim)
        out: list[Expr] = []
        for size in sizes:
            if size == 0:
                out.append(EMPTY)
            elif size == rest.size:
                out.append(rest if size > 1 else ONE)
            else:
                halves = self.cut(rest, size)
                if halves is None:
                    return None
                first, rest = halves
                out.append(first if size > 1 else ONE)
        return out


def _factors(exprs: Sequence[Expr]) -> list[Expr]:
    """The resolved factors of a list of factors, flattened."""
    whole = product(map(resolve, exprs))
    return list(whole.factors) if isinstance(whole, Prod) else [whole]


def segments(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """A reshape in parts that are independent: the shortest runs of both shapes with the same product."""
    if 0 in after:
        yield slice(0, len(before)), slice(0, len(after))
        return
    i = j = 0
    while i < len(before) or j < len(after):
        first, start = i, j
        left = right = 1
        while left != right or (i == first and j == start):
            if j >= len(after) or (i < len(before) and left <= right):
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        yield slice(first, i), slice(start, j)
