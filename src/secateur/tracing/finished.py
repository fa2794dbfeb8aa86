"""Between dims as a `Graph` holds them, in leaves with names, and dims as a tracer works with them, in axes."""

from collections.abc import Mapping

from secateur.axes import Algebra, Axis, Expr, Leaf, Prod, Sum, concat, product, resolve


def live(expr: Expr, axes: Mapping[str, Expr], algebra: Algebra) -> Expr:
    """A finished dim with the given axes as leaves."""
    match expr:
        case Leaf():
            return axes[expr.name] if expr.name is not None else algebra.dim(expr.size)
        case Prod():
            return product(live(f, axes, algebra) for f in expr.factors)
        case Sum():
            return concat(live(p, axes, algebra) for p in expr.parts)
        case _:
            raise TypeError(f"{expr!r} is not a finished expression")


def finished(expr: Expr) -> Expr:
    """The dim as it has turned out, in leaves with the names of its axes."""
    match resolve(expr):
        case Axis(size, _, name):
            return Leaf(name, size)
        case Prod(factors):
            return product(map(finished, factors))
        case Sum(parts):
            return concat(map(finished, parts))
        case leaf:
            return leaf
