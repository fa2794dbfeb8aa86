"""Dims that no parameter runs through and that the code gives a size computed from others: they adapt by themselves."""

from collections.abc import Container, Iterator

from secateur.axes import Axis, Expr, leaves, resolve
from secateur.origins import Literal, Origin, Shape, atoms
from secateur.tracing.sizes import Use


def binding(uses: list[Use], known: Container[int]) -> list[Use]:
    """The uses that ask something of a plan: those that speak of no loose dim.

    Args:
        uses: all uses of one trace.
        known: axes by order of birth that are frozen, or run through a parameter.
    """
    loose = {a.order for use in uses if _computed(use.origin) for a in _single(use.target) if a.order not in known}
    loose -= {a.order for use in uses if isinstance(use.origin, Literal) for a in _single(use.target)}
    if not loose:
        return uses
    return [u for u in uses if not any(isinstance(a, Axis) and a.order in loose for a in leaves(resolve(u.target)))]


def _computed(origin: Origin) -> bool:
    return not isinstance(origin, Shape) and any(isinstance(atom, Shape) for atom in atoms(origin))


def _single(expr: Expr) -> Iterator[Axis]:
    expr = resolve(expr)
    if isinstance(expr, Axis):
        yield expr
