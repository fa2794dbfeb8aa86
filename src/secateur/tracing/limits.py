"""How few units an axis may keep, and in which steps, where operations demand it: the k of a top-k, aligned rows."""

from collections.abc import Iterable, Mapping
from math import gcd, lcm

from secateur.axes import Axis, Expr, Leaf, Prod, leaves, resolve


def fewest(notes: Iterable[tuple[Expr, int]], frozen: Iterable[int]) -> dict[int, int]:
    """The fewest units of each axis (by order of birth) for which every dim keeps as many units as noted.

    Of a dim made of several axes the last gives way least, as far as it must.
    """
    least = dict.fromkeys(frozen, 0)  # 0: all
    resolved = [(resolve(expr), units) for expr, units in notes]
    for expr, units in sorted(resolved, key=lambda note: sum(1 for _ in leaves(note[0]))):
        for axis in reversed([leaf for leaf in leaves(expr) if isinstance(leaf, Axis)]):
            while _smallest(expr, least) < units and 0 < least.get(axis.order, 1) < axis.size:
                least[axis.order] = least.get(axis.order, 1) + 1
    return {order: units for order, units in least.items() if units}


def _smallest(expr: Expr, least: Mapping[int, int]) -> int:
    match expr:
        case Axis():
            return least.get(expr.order, 1) or expr.size
        case Leaf():
            return expr.size
        case Prod():
            size = 1
            for factor in expr.factors:
                size *= _smallest(factor, least)
            return size
        case _:
            return sum(_smallest(part, least) for part in expr.parts)


def steps(notes: Iterable[tuple[Expr, int]]) -> dict[int, int]:
    """What the size of each axis (by order of birth) must be a multiple of, for every dim to be a multiple as noted, or
    as far as it is one now.
    """
    found: dict[int, int] = {}
    for expr, multiple in notes:
        for axis in _decisive(resolve(expr)):
            found[axis.order] = lcm(found.get(axis.order, 1), gcd(axis.size, multiple))
    return found


def _decisive(expr: Expr) -> list[Axis]:
    """Axes that make the size a multiple if theirs is one: the last factor of a product, every part of a sum."""
    match expr:
        case Axis():
            return [expr]
        case Leaf():
            return []
        case Prod():
            return _decisive(expr.factors[-1]) if expr.factors else []
        case _:
            return [axis for part in expr.parts for axis in _decisive(part)]
