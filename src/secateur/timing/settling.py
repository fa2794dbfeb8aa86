"""Plans made on predicted latency are carried out and measured; where a result is off its budget, the prediction is
corrected by what was measured, and the plan made again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from secateur.errors import UnreachableBudget
from secateur.graph import Graph
from secateur.planning.budget import Budget
from secateur.planning.fast import duration
from secateur.planning.plan import Plan
from secateur.timing.fitting import latency_table
from secateur.timing.table import NANOSECONDS, LatencyTable
from secateur.timing.whole import whole_seconds

ROUNDS = 4  # of planning and measuring
CLOSE = 0.03  # share of the budget that the measured latency may be off
MISSED = 0.1  # share of the budget by which more is an error

Planner = Callable[[LatencyTable], Plan]
Measure = Callable[[Mapping[str, nn.Module]], Mapping[str, float]]


@dataclass(frozen=True)
class Latency:
    """What was found of one plan; seconds, but for the names that say otherwise.

    Attributes:
        dense, pruned: measured side by side.
        predicted: of the pruned model, before it was measured.
        work, dense_work: sums of the operations' own times, of the pruned model and of the original.
    """

    plan: Plan
    dense: float
    pruned: float
    predicted: float
    work: float
    dense_work: float

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

        One whose model does not even run is returned as it is: the proof says why.

        Raises:
            UnreachableBudget: the model can't become so fast, or no plan did.
        """
        tried: list[Latency] = []
        while len(tried) < ROUNDS:
            table = self._corrected(tried)
            try:
                made = planner(table)
            except UnreachableBudget:
                if not tried or min(map(self._off, tried)) > CLOSE:
                    raise
                break
            if any(made.sizes == before.plan.sizes for before in tried):
                break
            try:
                tried.append(self._timed(graph, made, made.apply(self.model), table))
            except Exception:  # code that holds a size in disguise: the proof finds the axis
                self.found = None
                return made
            if abs(self._off(tried[-1])) <= CLOSE:
                break
        best = self.found = min(tried, key=lambda found: abs(self._off(found)))
        if self._off(best) > MISSED:
            raise UnreachableBudget(_missed(best, self._off(best), len(tried)))
        return best.plan

    def confirm(self, graph: Graph, made: Plan, small: nn.Module, *, changed: bool) -> None:
        """Measure the model that is returned, unless it is the one that was measured already.

        Args:
            small: the model of a plan that was proved.
            changed: whether it was changed since it was cut: compensation may add biases.

        Raises:
            UnreachableBudget: what was changed made it miss the budget.
        """
        before = self.found if self.found is not None and self.found.plan is made else None
        if before is not None and not changed:
            return
        found = self._timed(graph, made, small, self.table)
        if before is not None:  # by a table that measurements had corrected
            found = replace(found, predicted=before.predicted / before.dense * found.dense)
        self.found = found
        if self._off(found) > MISSED:
            raise UnreachableBudget(_missed(found, self._off(found), 1))

    def _timed(self, graph: Graph, made: Plan, small: nn.Module, table: LatencyTable) -> Latency:
        predictor = table.compiled(graph.costs.order, graph.costs.dense)
        sizes = graph.costs.vector(made.sizes)
        times = self.measure({"dense": self.model, "pruned": small})
        return Latency(
            plan=made,
            dense=times["dense"],
            pruned=times["pruned"],
            predicted=(predictor.value(sizes) / predictor.value(predictor.dense)).item() * times["dense"],
            work=predictor.total(sizes).item(),
            dense_work=predictor.total(predictor.dense).item(),
        )

    def _corrected(self, tried: Sequence[Latency]) -> LatencyTable:
        """The table with its prediction through what was measured nearest to the budget, above it and below.

        The machine's speed may change meanwhile, so what counts of a measurement is the share of the original's time.
        """
        if not tried:
            return self.table
        whole = tried[-1].dense
        above = [found for found in tried if self._off(found) > 0]
        below = [found for found in tried if self._off(found) <= 0]
        points = [(tried[0].dense_work, whole)]
        points += [(found.work, whole * found.share) for found in sorted(above, key=self._off, reverse=True)[-1:]]
        points += [(found.work, whole * found.share) for found in sorted(below, key=self._off)[-1:]]
        return self.table.through(*points[-2:])

    def _off(self, found: Latency) -> float:
        """How far the measured latency is above the budget, as a share of it; 0 where the budget has none."""
        if self.budget is None or self.budget.latency is None:
            return 0.0
        only = Budget(latency=self.budget.latency)
        target = only.targets({"latency": round(found.dense * NANOSECONDS)})["latency"]
        return found.pruned * NANOSECONDS / target - 1


def _missed(best: Latency, off: float, plans: int) -> str:
    target, dense, pruned, predicted = (
        duration(seconds * NANOSECONDS)
        for seconds in (best.pruned / (1 + off), best.dense, best.pruned, best.predicted)
    )
    tried = "the plan" if plans == 1 else f"the nearest of {plans} plans"
    return (
        f"latency={target} of {dense} is not met: {tried} was measured at {pruned}, while its "
        f"operations by themselves predicted {predicted}. Raise the budget, give larger example inputs if the model "
        "spends its time between its operations, or try again when the machine is less busy"
    )
