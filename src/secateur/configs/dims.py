"""The dims of all tensors, as far as groups of axes tell them apart: which groups explain other shapes?"""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from secateur.axes import Expr, Leaf, Prod, Sum
from secateur.configs.blueprint import Shapes
from secateur.graph import Graph, named


class Dims:
    """Every dim of every tensor, as far as groups of axes can tell them apart."""

    def __init__(self, graph: Graph, grouped: Sequence[tuple[str, ...]]) -> None:
        self.count = len(grouped)
        number = {name: k for k, group in enumerate(grouped) for name in group}
        self.exprs = {n: tuple(_numbered(d, number) for d in t.dims) for n, t in graph.tensors.items()}

    def along(self, chosen: Iterable[int]) -> set[tuple[str, int]]:
        """The dims that run along the given groups."""
        wanted = {str(k) for k in chosen}
        dims = ((n, k, set(named([e]))) for n, exprs in self.exprs.items() for k, e in enumerate(exprs))
        return {(n, k) for n, k, names in dims if names & wanted}

    def fixed(self, new: Shapes, among: Iterable[str]) -> str | None:
        """A dim that runs along no prunable axis but has another size."""
        for name in among:
            for dim, (expr, size) in enumerate(zip(self.exprs.get(name, ()), new[name], strict=False)):
                if size != expr.size and not named([expr]):
                    return f"{name}:{dim}"
        return None

    def explain(self, new: Shapes, share: Fraction, *, partly: bool = False) -> list[tuple[int, ...]]:
        """The sets of groups that, scaled by the share, give the new shapes; ``partly``: where groups decide them."""
        if any(len(new[name]) != len(exprs) for name, exprs in self.exprs.items()):
            return []
        pairs = ((e, s) for name, exprs in self.exprs.items() for e, s in zip(exprs, new[name], strict=True))
        wanted = {(e, s) for e, s in pairs if named([e]) or not partly}
        by_last: dict[int, list[tuple[Expr, int]]] = {}
        for expr, size in wanted:
            by_last.setdefault(max((int(n) for n in named([expr])), default=-1), []).append((expr, size))

        def fits(chosen: tuple[int, ...], last: int) -> bool:
            return all(_size(expr, chosen, share) == size for expr, size in by_last.get(last, ()))

        found = [()] if fits((), -1) else []
        for k in range(self.count):
            found = [c for chosen in found for c in (chosen, (*chosen, k)) if fits(c, k)]
        return [chosen for chosen in found if chosen]


def _numbered(expr: Expr, number: Mapping[str, int]) -> Expr:
    """The expression with the numbers of groups in place of their axes' names; other axes are nameless."""
    match expr:
        case Prod():
            return Prod(tuple(_numbered(f, number) for f in expr.factors), expr.size)
        case Sum():
            return Sum(tuple(_numbered(p, number) for p in expr.parts), expr.size)
        case _:
            return Leaf(str(number[expr.name]) if expr.name is not None and expr.name in number else None, expr.size)


def _size(expr: Expr, chosen: Sequence[int], share: Fraction) -> Fraction:
    match expr:
        case Prod():
            size = Fraction(1)
            for factor in expr.factors:
                size *= _size(factor, chosen, share)
            return size
        case Sum():
            return sum((_size(p, chosen, share) for p in expr.parts), Fraction(0))
        case _:
            scaled = expr.name is not None and int(expr.name) in chosen
            return expr.size * share if scaled else Fraction(expr.size)
