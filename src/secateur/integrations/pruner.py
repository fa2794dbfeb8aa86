"""What the callbacks of all trainers share: when to prune, to what, and what has been done."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from secateur.errors import PlanError, RemapError
from secateur.integrations.record import Record, trains
from secateur.planning import Budget
from secateur.planning.schedules import Schedule, budgets
from secateur.pruning import prune
from secateur.reporting import Report
from secateur.tracing import trace

REACHED = ("threshold", "keep", "max_drop", "max_loss_increase", "max_robust_drop")


class Pruner:
    """Prunes a model in place while it is trained, at given steps.

    Args:
        example: example inputs, as for `secateur.prune`.
        at: after how many steps of the optimizer; several for pruning bit by bit.
        schedule: how a budget is reached over several steps; see `secateur.planning.schedules`.
        settings: further settings of `secateur.prune`. ``keep_class=True`` is always set, since a trainer holds the
            model in many places. A budget is a fraction of the original; other aims are the same at each step.

    Attributes:
        record: the plans that were carried out.
        reports: what pruning gave in this process, step by step.
    """

    def __init__(
        self, example: Any, *, at: int | Sequence[int], schedule: str | Schedule, settings: Mapping[str, Any]
    ) -> None:
        self.example, self.schedule = example, schedule
        self.at = (at,) if isinstance(at, int) else tuple(at)
        self.settings: dict[str, Any] = {**settings, "keep_class": True}
        if not self.at or self.at[0] < 1 or any(a >= b for a, b in pairwise(self.at)):
            raise PlanError(f"at={at!r}: give the steps after which to prune, from 1 and rising")
        if settings.get("keep_class", True) is not True:
            raise PlanError("a trainer holds the model in many places, so its class can't be replaced: keep_class=True")
        if self.settings.get("budget") is None and not any(self.settings.get(aim) is not None for aim in REACHED):
            self.settings["budget"] = Budget(macs=0.5)
        self.record = Record()
        self.reports: list[Report] = []

    def due(self, step: int) -> bool:
        """Whether it is time to prune, after so many steps of the optimizer."""
        done = len(self.record.plans)
        return done < len(self.at) and step >= self.at[done]

    def prune_(self, model: nn.Module, step: int, things: Iterable[Any]) -> None:
        """Make the model smaller in place, and carry over what belongs to it.

        Args:
            model: the one that is trained.
            step: how many steps of the optimizer were made.
            things: optimizers, of which those that train other parameters stay as they are; and copies of the model.

        Raises:
            RemapError: no optimizer trains the model's own parameters.
            SecateurError: as `secateur.prune`.
        """
        things = list(things)
        optimizers = [thing for thing in things if isinstance(thing, torch.optim.Optimizer)]
        others = [one for one in optimizers if not trains(one, model.parameters())]
        if optimizers and len(others) == len(optimizers):
            raise RemapError(
                "the optimizer does not hold the model's own parameters (flattened or sharded training, or copies in "
                "another precision): prune without it, and go on from the smaller model"
            )
        with plain(model):
            result = prune(model, self.example, **self._next(model))
            result.apply_(model, *(thing for thing in things if not any(thing is other for other in others)))
        self.record = self.record.with_plan(result.plan, step, result.graph.cost())
        self.reports.append(result.report)

    def _next(self, model: nn.Module) -> dict[str, Any]:
        """The settings of the next pruning."""
        budget = self.settings.get("budget")
        if budget is None or len(self.at) == 1:
            return self.settings
        dense = self.record.dense or trace(model, self.example).cost()
        steps = budgets(budget, self.schedule, steps=len(self.at), dense=dense)
        return {**self.settings, "budget": steps[len(self.record.plans)]}


@contextmanager
def plain(model: nn.Module) -> Generator[None]:
    """The model with its class's own ``forward``: accelerate puts one on the instance that a copy would share."""
    forward = vars(model).pop("forward", None)
    try:
        yield
    finally:
        if forward is not None:
            vars(model)["forward"] = forward


def one_process(count: int, what: str) -> None:
    """Refuse to prune where several processes hold the model.

    Raises:
        RemapError: always, for more than one.
    """
    if count > 1:
        raise RemapError(
            f"{what} trains in {count} processes, whose wrappers hold the model's parameters: prune in one process, "
            "save, and go on in several from the smaller model"
        )


class Prunes:
    """What the callbacks of all trainers tell of their pruning."""

    _pruner: Pruner

    @property
    def at(self) -> tuple[int, ...]:
        """After which steps it prunes."""
        return self._pruner.at

    @property
    def record(self) -> Record:
        """The plans that were carried out so far, those before a resumed checkpoint included."""
        return self._pruner.record

    @property
    def reports(self) -> list[Report]:
        """Of the prunings in this process."""
        return self._pruner.reports
