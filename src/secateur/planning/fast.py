"""Where planning meets measured times: latency as a cost, and the widths at which the device is fast."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from secateur.costs import Costs
from secateur.errors import PlanError
from secateur.graph import Graph
from secateur.planning.budget import Budget
from secateur.planning.choosing import Lane
from secateur.planning.limits import Multiple
from secateur.timing import widths
from secateur.timing.table import LatencyTable, Predictor


def with_latency(graph: Graph, table: LatencyTable | None, budget: Budget | None, multiple_of: Multiple) -> Costs:
    """The graph's costs, latency in nanoseconds among them where there is a table.

    Raises:
        PlanError: latency is asked for, but nothing was timed.
    """
    if table is not None:
        return graph.costs.along_with(latency=table.compiled(graph.costs.order, graph.costs.dense))
    asked = [f"budget=Budget(latency={budget.latency!r})"] if budget is not None and budget.latency is not None else []
    asked += ['multiple_of="auto"'] if multiple_of == "auto" else []
    if asked:
        raise PlanError(
            f"{' and '.join(asked)} needs the times of the model's operations, which a graph doesn't hold: use "
            "sc.prune, which takes them, or pass latency=secateur.timing.latency_table(model, graph, args)"
        )
    return graph.costs


def _predictor(costs: Costs) -> Predictor | None:
    found = costs.kinds.get("latency")
    return found if isinstance(found, Predictor) else None


def fast_steps(graph: Graph, costs: Costs) -> dict[str, int]:
    """The step between the widths of each axis at which the device is fast."""
    predictor = _predictor(costs)
    assert predictor is not None
    return widths.fast_steps(predictor, {name: info.size for name, info in graph.axes.items()})


def fast_lanes(lanes: Sequence[Lane], costs: Costs, budget: Budget | None, start: Tensor) -> list[Lane]:
    """The lanes without widths that make an operation slower; for a budget of latency, without those that save
    hardly any time. Widths that were reached before stay.

    Args:
        start: steps that each lane has taken, (L,).
    """
    predictor = _predictor(costs)
    if predictor is None:
        return list(lanes)
    saving = budget is not None and budget.latency is not None

    def fast(ln: Lane, at: int) -> tuple[int, ...]:
        axes = list(zip(ln.axes, ln.shares, strict=True))
        found = widths.worthwhile(predictor, ln.sizes, axes, saving=saving)
        return tuple(sorted({*found, ln.sizes[at]}, reverse=True))

    return [replace(ln, sizes=fast(ln, at)) for ln, at in zip(lanes, start.tolist(), strict=True)]


def slowest(costs: Costs) -> list[tuple[str, float]]:
    """Kinds of operations with their nanoseconds in the original, the slowest first."""
    predictor = _predictor(costs)
    return predictor.slowest() if predictor is not None else []


def duration(nanoseconds: float) -> str:
    """A time with its unit.

    >>> duration(5.25e6), duration(3e5)
    ('5.25ms', '300us')
    """
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g}{unit}"
    return f"{nanoseconds:.3g}ns"
