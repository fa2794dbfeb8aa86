"""Soft masks and growing penalties whose plan follows a schedule: one choice for each step of it."""

from collections.abc import Callable

from torch import nn

from secateur.graph import Graph
from secateur.planning import Plan
from secateur.tuning.callbacks import Run
from secateur.tuning.regularising import GroupProximal
from secateur.tuning.softmasks import SoftMasks

Choose = Callable[[nn.Module, int], Plan]
"""From the model as it is, and the number of a step of the schedule, from 0, to what would stay after it."""


class Fading(SoftMasks):
    """Soft masks over the whole of a training run, which choose anew at the beginning of each of several steps.

    Args:
        choose: makes the plan of a step.
        count: how many steps the run is divided in.
    """

    def __init__(self, choose: Choose, count: int) -> None:
        super().__init__(self._scheduled, fall=1, every=1)
        self.choose, self.count = choose, count
        self._number = 0

    @property
    def chosen(self) -> Plan | None:
        """The plan as it stands; None before the first choice."""
        return self._plan

    def on_start(self, run: Run) -> None:
        self.fall, self.every = run.steps, run.steps // self.count
        super().on_start(run)

    def after_step(self, run: Run) -> None:
        self._number = min((run.step - 1) // (self.every or 1), self.count - 1)
        super().after_step(run)

    def _scheduled(self, model: nn.Module) -> Plan:
        return self.choose(model, self._number)


class Growing(GroupProximal):
    """A growing penalty on the units that a schedule's plans remove, chosen anew at the beginning of each step of it.

    As in Wang et al. 2021, "Neural Pruning via Growing Regularization", arXiv:2012.09243 (GReg-1). Differs, besides
    what `GroupProximal` says: the units are chosen step by step, and the strength is divided by the learning rate, so
    that units chosen late shrink as far as others where the rate falls.

    Args:
        graph: of the model that is trained.
        choose: makes the plan of a step.
        count: how many steps the run is divided in.
        strength: at the last step of the schedule a unit that no gradient holds falls to exp(-strength) of what it was,
            at the k-th of n steps to exp(-strength k / n); above 0.
    """

    def __init__(self, graph: Graph, choose: Choose, count: int, strength: float) -> None:
        super().__init__(graph, strength=strength / count, growth=strength / count, ceiling=strength, penalty="l2")
        self.choose, self.count = choose, count

    @property
    def chosen(self) -> Plan | None:
        """The plan as it stands; None before the first choice."""
        return self.plan

    def strength_at(self, step: int) -> float:
        """The strength after so many steps, at the present learning rate."""
        rate = max(self._rates.values(), default=0.0)
        return super().strength_at(step) / self.every / rate if rate else 0.0

    def on_start(self, run: Run) -> None:
        self.every = run.steps // self.count
        if self.chosen is None:
            self.plan = self.choose(run.model, 0)
        super().on_start(run)

    def after_step(self, run: Run) -> None:
        number, begun = divmod(run.step - 1, self.every)
        if number and not begun:
            self.plan = self.choose(run.model, number)
            super().on_start(run)
        super().after_step(run)
