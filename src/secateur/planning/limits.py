"""How narrow an axis may become: numbers that hold for every axis, or one for each pattern that names some."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import lcm
from typing import Literal, TypeVar

from secateur.errors import PlanError
from secateur.graph import Graph

Count = int | Mapping[str, int]
Multiple = Count | Literal["auto"]
Share = float | Mapping[str, float]
Number = TypeVar("Number", int, float)
KINDS = ("channels", "hidden", "residual", "heads", "kv_groups", "head_dim", "groups", "experts")


def check(min_units: Count, multiple_of: Multiple, max_share: Share) -> None:
    """Refuse limits that are no numbers of their range.

    Raises:
        PlanError: naming them.
    """
    multiples = () if multiple_of == "auto" else _numbers(multiple_of)
    if any(type(n) is not int or n < 1 for n in (*_numbers(min_units), *multiples)):
        raise PlanError(
            f"min_units={min_units}, multiple_of={multiple_of}: both must be whole numbers from 1; multiple_of may "
            'also be "auto"'
        )
    if any(type(n) not in (int, float) or not 0 < n <= 1 for n in _numbers(max_share)):
        raise PlanError(f"max_share={max_share}: give the largest share of an axis that may be removed, in (0, 1]")


def _numbers(given: float | Mapping[str, float]) -> Iterable[float]:
    return given.values() if isinstance(given, Mapping) else (given,)


def fewest(graph: Graph, min_units: Count, max_share: Share) -> dict[str, int]:
    """Units that each axis keeps at least."""
    least, shares = by_axis(graph, min_units, 1), by_axis(graph, max_share, 1.0)
    removable = {name: int(shares[name] * info.size + 1e-9) for name, info in graph.axes.items()}  # 0.3 * 10 is 3
    return {n: max(least[n], info.least, info.size - removable[n]) for n, info in graph.axes.items()}


def steps(graph: Graph, multiples: Mapping[str, int]) -> dict[str, int]:
    """What each axis's width is to be a multiple of: of the number that is asked for, and of what the code needs."""
    return {name: lcm(number, graph.axes[name].step) for name, number in multiples.items()}


def by_axis(graph: Graph, given: Number | Mapping[str, Number], otherwise: Number) -> dict[str, Number]:
    """The number of each axis: that of the last pattern that names it.

    Args:
        given: a number for all axes, or one for each pattern.
        otherwise: the number of axes that no pattern names.

    Raises:
        PlanError: a pattern names nothing.
    """
    if not isinstance(given, Mapping):
        return dict.fromkeys(graph.axes, given)
    check_patterns(graph, list(given))
    found = dict.fromkeys(graph.axes, otherwise)
    for pattern, number in given.items():
        found |= dict.fromkeys(graph.select([pattern]), number)
    return found


def check_patterns(graph: Graph, patterns: Sequence[str]) -> None:
    """Patterns that name nothing at all are typing errors; those that name frozen axes are not."""
    everything = replace(graph, axes={**graph.axes, **graph.frozen})
    lost = [p for p in patterns if p not in KINDS and not everything.select([p])]
    if lost:
        known = [
            *everything.axes,
            *{t.rpartition(".")[0] for t in graph.tensors},
            *{a.kind for a in everything.axes.values()},
        ]
        near = difflib.get_close_matches(lost[0], known, 3)
        hint = (
            f" Did you mean {' or '.join(map(repr, near))}?"
            if near
            else f" Kinds here: {', '.join(sorted({a.kind for a in graph.axes.values()}))}."
        )
        raise PlanError(f"{', '.join(map(repr, lost))} name no axis, kind, module or tensor of {graph.model}.{hint}")
