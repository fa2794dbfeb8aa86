"""Plans made on predicted latency are carried out and measured; where a result is off its budget, the prediction is
corrected by what was measured, and the plan made again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.errors import UnreachableBudget
from secateur.graph import Graph
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.timing.fitting import latency_table
from secateur.timing.table import NANOSECONDS, LatencyTable
from secateur.timing.whole import whole_seconds

ROUNDS = 5  # of planning and measuring
CLOSE = 0.03  # share of the budget that the measured latency may be off

Planner = Callable[[LatencyTable], Plan]
Measure = Callable[[Mapping[str, nn.Module]], Mapping[str, float]]


@dataclass(frozen=True)
class Latency:
    """What was found of one plan; seconds, but for the names that say otherwise.

    Attributes:
        dense, pruned: measured side by side.
        predicted: of the pruned model, before it was measured.
    """

    plan: Plan
    dense: float
    pruned: float
    predicted: float

    @property
    def share(self) -> float:
        """The latency that is left, of the original."""
        return self.pruned / self.dense

    def figures(self) -> tuple[dict[str, float], dict[str, float]]:
        """Of the dense and of the pruned model, in the form of a report. Of the dense one the prediction is what was
        measured: it is made to fit.
        """
        dense = {"latency_ms": self.dense * 1e3, "predicted_latency_ms": self.dense * 1e3}
        return dense, {"latency_ms": self.pruned * 1e3, "predicted_latency_ms": self.predicted * 1e3}


class Clock:
    """Times a model and what is pruned of it.

    Args:
        model: the original.
        budget: what the result may cost.
        table: of the operations' times, for the original.
        measure: seconds of models, by name.
    """

    def __init__(self, model: nn.Module, budget: Budget | None, table: LatencyTable, measure: Measure) -> None:
        self.model, self.budget, self.table, self.measure = model, budget, table, measure
        self.found: Latency | None = None

    @staticmethod
    def where_asked(
        model: nn.Module,
        graph: Graph,
        args: Any,
        kwargs: Mapping[str, Any] | None,
        budget: Budget | None,
        multiple_of: Any = 1,
    ) -> "Clock | None":
        """A clock where the budget, or the steps between widths, ask for times; else None."""
        if multiple_of != "auto" and (budget is None or budget.latency is None):
            return None
        table = latency_table(model, graph, args, kwargs)
        return Clock(model, budget, table, lambda models: whole_seconds(models, args, kwargs))

    def settle(self, graph: Graph, planner: Planner) -> Plan:
        """The plan whose measured latency is nearest to the budget's, if that has one; else the first.

        Raises:
            UnreachableBudget: the model can't become so fast.
        """
        costs = graph.costs
        table = self.table
        tried: list[Latency] = []
        while len(tried) < ROUNDS:
            predictor = table.compiled(costs.order, costs.dense)
            try:
                made = planner(table)
            except UnreachableBudget:
                if not tried or self._off(tried[-1]) > CLOSE:
                    raise
                break
            if any(made.sizes == before.plan.sizes for before in tried):
                break
            sizes = costs.vector(made.sizes)
            predicted = predictor.value(sizes).item() / NANOSECONDS
            times = self.measure({"dense": self.model, "pruned": made.apply(self.model)})
            tried.append(Latency(made, times["dense"], times["pruned"], predicted))
            if abs(self._off(tried[-1])) <= CLOSE:
                break
            dense = predictor.total(costs.dense).item()
            at_first = self.table.factor * dense + self.table.offset  # the machine's speed may have changed since
            table = table.through((dense, at_first), (predictor.total(sizes).item(), at_first * tried[-1].share))
        self.found = min(tried, key=lambda found: abs(self._off(found)))
        return self.found.plan

    def _off(self, found: Latency) -> float:
        """How far the measured latency is above the budget, as a share of it; 0 where the budget has none."""
        if self.budget is None or self.budget.latency is None:
            return 0.0
        target = self.budget.targets(dict.fromkeys(("params", "macs", "bytes", "latency"), found.dense * NANOSECONDS))
        return found.pruned * NANOSECONDS / target["latency"] - 1
