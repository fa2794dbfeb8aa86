"""The smallest model within a bound on held-out data: greedy removal in rounds, with new scores, and roll-back.

With a budget the search ends there, if the bounds hold so far.

Every round plans a little further, from the original's graph, so that its result is one plan like any other. The plan
is carried out on the original, the smaller model measured on the held-out data, and its units scored anew. Where a
round breaks the bound, the search goes back to the last state that met it, and on in smaller steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from secateur.errors import PlanError, UnreachableBound, UnreachableBudget
from secateur.graph import Graph
from secateur.heldout import Bound
from secateur.importance import Scores
from secateur.limits import Limits, Reading
from secateur.modules import kept_modes
from secateur.planning import Budget, Plan, PlannedAxis
from secateur.rounds import Round, telling

STEP = 0.1  # share of the present cost that a round removes at first
REDUCE = ("macs", "params", "bytes")
HALVINGS = 4  # rounds after the first that broke the bound, each with half the step of the one before


class Pick(Protocol):
    """Plans for a budget, going on from the units that are still kept."""

    def __call__(
        self, graph: Graph, scores: Mapping[str, Tensor], /, *, budget: Budget, within: Mapping[str, Tensor]
    ) -> Plan: ...


Rescore = Callable[[nn.Module, Plan], Mapping[str, Tensor]]
"""Scores of the units that a smaller model still has, by the original's axes; axes may be missing."""
Finish = Callable[[nn.Module, nn.Module, Plan], Any]
"""Given the original, the bare smaller model and the plan, changes the smaller one before it is measured: compensation.
What it returns is kept."""


@dataclass(frozen=True, kw_only=True)
class State:
    """A plan that met the bounds, its model as it was measured, what finished it, and the scores of what is left."""

    plan: Plan
    small: nn.Module
    finished: Any
    readings: Sequence[Reading]
    scores: Mapping[str, Tensor]


class Descent:
    """The search; `plan` may be called again with a graph in which more is frozen, and goes on from what was reached.

    Args:
        model: the original, which stays as it is.
        measured: the original to measure: the same, in evaluation mode.
        bounds: what must hold.
        scores: of the original.
        pick: makes plans.
        rescore: scores a smaller model.
        finish: what is done to a smaller model before it is measured; nothing where None.
        kind: the cost to bring down: macs, params or bytes.
        enough: a budget of that cost, at which the search ends; without it, it ends where a bound would be broken.
        on_round: called after each round.
    """

    def __init__(
        self,
        model: nn.Module,
        measured: nn.Module,
        bounds: Sequence[Bound],
        scores: Mapping[str, Tensor],
        *,
        pick: Pick,
        rescore: Rescore,
        finish: Finish | None = None,
        kind: str = "macs",
        enough: Budget | None = None,
        on_round: Callable[[Round], None] | None = None,
    ) -> None:
        if kind not in REDUCE:
            raise PlanError(f"reduce={kind!r}: give {', '.join(REDUCE[:-1])} or {REDUCE[-1]}")
        self.model, self.scores, self.enough = model, scores, enough
        self.pick, self.rescore, self.finish, self.kind, self.on_round = pick, rescore, finish, kind, on_round
        self.limits = Limits(bounds, measured)
        self.broken: list[tuple[Reading, float]] = []  # what the bounds that broke said, and at which cost
        self.reached = False
        self.rounds: list[Round] = []
        self.best: State | None = None
        self.failed: tuple[Plan, Exception] | None = None
        self.interrupted = False
        self._tell: Callable[[Round], None] = lambda done: None

    def plan(self, graph: Graph) -> Plan:
        """The last plan that met the bound. One whose model does not even run is returned as it is: the proof says why.

        After Ctrl-C it is the last one that met the bound so far.

        Raises:
            UnreachableBound: not even the smallest removal that was tried meets it.
            PlanError: nothing can be removed at all.
            KeyboardInterrupt: Ctrl-C before any plan met the bound.
        """
        try:
            with telling(self.limits.bounds, self.on_round) as self._tell:
                broken = self._take_up(graph) or (None if self.interrupted else self._descend(graph))
        except KeyboardInterrupt:
            broken, self.interrupted = None, True
        if broken is not None:
            return broken
        if self.best is not None:
            return self.best.plan
        if self.interrupted:
            raise KeyboardInterrupt
        raise UnreachableBound(self._unreachable())

    def result(self, made: Plan) -> tuple[nn.Module, Any]:
        """The model of a plan that was proved, as it was measured, and what finished it.

        Raises:
            Exception: what kept it from being measured, where its proof found nothing wrong.
        """
        if self.failed is not None and self.failed[0] is made:
            raise self.failed[1]
        assert self.best is not None
        return self.best.small, self.best.finished

    def _take_up(self, graph: Graph) -> Plan | None:
        """Bring the last state that met the bound to a graph in which more is frozen; a plan that can't be measured."""
        if self.best is None:
            return None
        before, self.best = self.best, None
        kept = still_free(graph, before.plan)
        if not kept:
            return None
        scores = Scores(
            {name: (before.scores if name in kept else self.scores)[name] for name in graph.axes},
            comparable=bool(getattr(self.scores, "comparable", False)),
        )
        cost = graph.cost({name: len(units) for name, units in kept.items()})[self.kind]
        return self._try(graph, self.pick(graph, scores, budget=_budget(self.kind, cost), within=kept), scores)

    def _descend(self, graph: Graph) -> Plan | None:
        """Rounds until the bound can't be kept to; or a plan that can't be measured."""
        step, more = STEP, HALVINGS
        refining = False
        broke: list[Mapping[str, PlannedAxis]] = [{}]  # plans not to try again
        while not self._reached(graph):
            before = self.best
            try:
                made = self._further(graph, step)
            except PlanError:  # nothing left to go, or no widths there that may stand together
                if not self.rounds and not more:
                    raise
                made = None
            if made is not None and made.axes not in broke:
                scores = before.scores if before else self.scores
                if self._try(graph, made, scores) is not None:
                    return made
                broke.append(made.axes)
            refining = refining or self.best is before
            if refining and not more:
                return None
            if refining:
                step, more = step / 2, more - 1
        self.reached = True
        return None

    def _reached(self, graph: Graph) -> bool:
        """Whether the best plan meets the budget."""
        target = self._target(graph)
        return target is not None and self.best is not None and graph.cost(self.best.plan.sizes)[self.kind] <= target

    def _target(self, graph: Graph) -> int | None:
        """The cost at which it is enough."""
        return None if self.enough is None else int(self.enough.targets(graph.cost())[self.kind])

    def _further(self, graph: Graph, step: float) -> Plan:
        """A plan that goes on from the best one, to a cost that is smaller by a share of it."""
        if self.best is None:
            kept, scores, cost = {}, self.scores, graph.cost()[self.kind]
        else:
            kept, scores, cost = self.best.plan.units, self.best.scores, graph.cost(self.best.plan.sizes)[self.kind]
        if int(cost * (1 - step)) < 1:
            raise UnreachableBudget(f"{graph.model} has {cost} {self.kind}, of which none can go: try another reduce=")
        aim = max(cost * (1 - step), self._target(graph) or 0)
        return self.pick(graph, scores, budget=_budget(self.kind, aim), within=kept)

    def _try(self, graph: Graph, made: Plan, scores: Mapping[str, Tensor]) -> Plan | None:
        """Measure a plan, and make it the best state if it meets the bound; the plan if it can't be measured."""
        try:
            small = made.apply(self.model)
            finished = None if self.finish is None else self.finish(self.model, small, made)
            with kept_modes(small):
                readings = self.limits.read(small.eval())
        except Exception as error:  # code that holds a size in disguise: the proof finds the axis
            self.failed = made, error
            return made
        told, met = readings[-1] if not readings[-1].met else readings[0], readings[-1].met
        cost = graph.cost(made.sizes)[self.kind] / max(graph.cost()[self.kind], 1)
        done = Round(
            number=len(self.rounds) + 1,
            metric=told.bound.name,
            unit=told.bound.unit,
            cost=cost,
            value=told.value,
            worse=told.worse,
            met=met,
            others=tuple(reading.describe() for reading in readings if reading is not told),
        )
        if not met:
            self.broken.append((told, cost))
        self.rounds.append(done)
        if met:
            self.best = State(plan=made, small=small, finished=finished, readings=readings, scores=scores)
        self._tell(done)
        if self.best is not None and met:
            self.best = replace(self.best, scores=restored(graph, made, self.rescore(small, made), scores))
        return None

    def _unreachable(self) -> str:
        settings = " and ".join(bound.setting for bound in self.limits.bounds)
        if not self.broken:
            return f"no plan that was tried removes anything, so {settings} says nothing: give a budget= instead"
        least, cost = min(self.broken, key=lambda pair: pair[0].worse - pair[0].bound.amount)
        bound, unit = least.bound, f" {least.bound.unit}" if least.bound.unit else ""
        return (
            f"{bound.setting}={bound.amount:g} can't be kept to: the least harm of {len(self.rounds)} rounds is "
            f"{bound.name} {least.value:.4g} on the held-out data, {least.worse:.3g}{unit} worse than the original's "
            f"{least.dense:.4g}, for {1 - cost:.1%} of the {self.kind}. Allow more, give another importance=, or "
            f"set a budget= and train afterwards"
        )

    def held_out(self) -> dict[str, Any]:
        """What the search found, as plain data for a report."""
        assert self.best is not None
        first, *others = [reading.to_dict() for reading in self.best.readings]
        more: dict[str, Any] = {} if not others else {"others": others}
        if self.enough is not None:
            more |= {"budget": {self.kind: self.enough.given[self.kind]}, "ended_by": self._ended_by()}
        return {
            **first,
            "rounds": len(self.rounds),
            "met": sum(row.met for row in self.rounds),
            "interrupted": self.interrupted,
            **more,
        }

    def _ended_by(self) -> str:
        """What kept more from going: "budget", the name of a bound, or "nothing left"; empty after Ctrl-C."""
        if self.reached or self.interrupted:
            return "budget" if self.reached else ""
        return self.broken[-1][0].bound.setting if self.broken else "nothing left"


def single_cost(budget: Budget) -> Any:
    """The cost that a budget is of, which a search within bounds brings down.

    Raises:
        PlanError: it is of several, or of latency.
    """
    if len(budget.given) == 1 and (kind := next(iter(budget.given))) in REDUCE:
        return kind
    raise PlanError(
        f"a budget with max_robust_drop is of one of {', '.join(REDUCE)}; got {' and '.join(budget.given)}: give one "
        "of them, such as Budget(macs=0.5)"
    )


def _budget(kind: str, amount: float) -> Budget:
    return Budget(**{kind: int(amount)})


def still_free(graph: Graph, plan: Plan) -> dict[str, Tensor]:
    """The kept units of a plan's axes, without those that a graph now holds back, and those tied to them."""
    free = {n for n, axis in plan.axes.items() if n in graph.axes and len(axis.kept) >= graph.axes[n].least}
    stuck = {name for tie in graph.ties if not free.issuperset(tie) for name in tie}
    return {name: plan.units[name] for name in plan.axes if name in free - stuck}


def restored(graph: Graph, plan: Plan, found: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Scores:
    """The scores of a smaller model as scores of the original's units, (units,) for each axis.

    Units that are gone, and axes that were not found in the smaller model, keep the scores from before.
    """
    scores: dict[str, Tensor] = {}
    for name, info in graph.axes.items():
        kept = plan.units.get(name, torch.arange(info.size))
        fits = name in found and found[name].shape == kept.shape
        scores[name] = before[name].double().index_copy(0, kept, found[name].double()) if fits else before[name]
    return Scores(scores, comparable=bool(getattr(before, "comparable", False)))
