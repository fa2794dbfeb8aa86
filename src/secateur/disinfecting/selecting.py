"""Which suspicious units go: the most suspicious first, as many as clean accuracy allows.

Shape letters: U units.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.disinfecting.clean import Clean, accuracy
from secateur.graph import Graph
from secateur.importance.views import AxisView
from secateur.planning import Plan, plan
from secateur.planning.limits import check_patterns
from secateur.progress import progress_bar

THRESHOLD = 0.5  # of the marks below: between those of units that go and those that stay
FAINT = 1e-6  # the largest mark of a unit that goes
TRIALS = 48  # networks that are judged, at most
ROUNDING = 1e-9  # by which a measure may miss its bound


@dataclass(frozen=True, kw_only=True)
class Marked:
    """A criterion that says what goes: 1 for units that stay, next to 0 for the others, the most suspicious least.

    Args:
        name: of the criterion that they are by.
        marks: by axis, (units,).
    """

    name: str
    marks: Mapping[str, Tensor]

    def of_axis(self, axis: AxisView) -> Tensor:
        """Score an axis, -> (units,)."""
        return self.marks[axis.name]

    @property
    def __name__(self) -> str:
        return self.name


def suspects(graph: Graph, scores: Mapping[str, Tensor], cutoff: float, **planning: Any) -> list[tuple[str, int]]:
    """Units that score below a cutoff, as (axis, unit), the lowest first; one of each axis is never among them.

    Args:
        scores: one vector for each axis, of one unit on all.
        cutoff: in that unit.
        planning: ``only`` and ``ignore`` as for `plan`.
    """
    only, ignore = (_patterns(planning.get(name)) for name in ("only", "ignore"))
    check_patterns(graph, [*only, *ignore])
    axes = (graph.select(only) if only else set(graph.axes)) - graph.select(ignore)
    found: list[tuple[float, str, int]] = []
    for axis in (name for name in graph.axes if name in axes):
        order = scores[axis].argsort(stable=True)[: graph.axes[axis].size - 1].tolist()
        found += [(value, axis, k) for k in order if (value := float(scores[axis][k])) < cutoff]
    return [(axis, unit) for _, axis, unit in sorted(found, key=lambda item: item[0])]


def _patterns(given: Any) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def marked(graph: Graph, gone: list[tuple[str, int]]) -> dict[str, Tensor]:
    """Marks by which ``plan(..., threshold=THRESHOLD)`` removes just these units, within its limits."""
    marks = {name: torch.ones(info.size) for name, info in graph.axes.items()}
    for rank, (axis, unit) in enumerate(gone):
        marks[axis][unit] = FAINT * rank / max(len(gone), 1)
    return marks


def most(
    model: nn.Module,
    graph: Graph,
    order: list[tuple[str, int]],
    judge: Callable[[nn.Module], float],
    least: float,
    **planning: Any,
) -> list[tuple[str, int]]:
    """As many units of an order as may go together while a measure stays at ``least`` or above.

    All are tried at once; where that is too much, the first half, then the second one with what went before, and so on
    down to single units: a unit that clean accuracy hangs on is passed over, and those after it still go.

    Args:
        judge: measures a network without these units; more is better.
        planning: limits of `plan`.
    """
    gone, parts, trials = list[tuple[str, int]](), [order] * bool(order), 0
    with progress_bar("Removing units", TRIALS) as advance:
        while parts and trials < TRIALS:
            part, trials = parts.pop(0), trials + 1
            if judge(removing(graph, gone + part, **planning).apply(model)) >= least - ROUNDING:
                gone = gone + part
            elif len(part) > 1:
                half = -(-len(part) // 2)
                parts = [part[:half], part[half:], *parts]
            advance()
    return gone


def removing(graph: Graph, gone: list[tuple[str, int]], **planning: Any) -> Plan:
    """The plan that removes some units."""
    return plan(graph, marked(graph, gone), threshold=THRESHOLD, **planning)


def accuracy_on(clean: Clean) -> Callable[[nn.Module], float]:
    """What measures a network by its accuracy on clean samples, in [0, 1]."""
    return lambda network: accuracy(network, clean)
