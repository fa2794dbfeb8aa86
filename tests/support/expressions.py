"""Random dim expressions, and what they mean, position by position."""

from hypothesis import strategies as st

from secateur.axes import Expr, Leaf, Prod, Sum, concat, product

SIZES = {"a": 2, "b": 3, "c": 1}


def exprs() -> st.SearchStrategy[Expr]:
    """Products and sums, nested at random, of the axes in `SIZES` and of nameless ones."""
    leaf = st.sampled_from([*(Leaf(n, s) for n, s in SIZES.items()), Leaf(None, 2), Leaf(None, 1)])
    return st.recursive(
        leaf,
        lambda inner: st.lists(inner, min_size=2, max_size=3).flatmap(
            lambda items: st.sampled_from([product(items), concat(items)])
        ),
        max_leaves=6,
    )


def brute_force(expr: Expr) -> list[list[tuple[int, str | None, int]]]:
    """For each position of a dim, which unit of which occurrence (numbered from the left) of a leaf it belongs to."""

    def walk(e: Expr, first: int) -> tuple[list[list[tuple[int, str | None, int]]], int]:
        if isinstance(e, Leaf):
            return [[(first, e.name, unit)] for unit in range(e.size)], first + 1
        rows: list[list[tuple[int, str | None, int]]] = [[]] if isinstance(e, Prod) else []
        for part in e.factors if isinstance(e, Prod) else e.parts if isinstance(e, Sum) else ():
            inner, first = walk(part, first)
            rows = [row + more for row in rows for more in inner] if isinstance(e, Prod) else rows + inner
        return rows, first

    return walk(expr, 0)[0]
