"""All settings of ``secateur prune``, and how they contradict each other."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from secateur.config.adversarial import FloorSettings, adversarial_problems
from secateur.config.amounts import LIMITS, budget_problems, limit, limit_problems, parse_budget
from secateur.config.base import Settings
from secateur.config.common import DataSettings, ModelSettings, PlaceSettings, RunSettings
from secateur.config.protect import ProtectSettings, protect_problems
from secateur.config.removal import GradualSettings, PlanSettings
from secateur.config.robust import RobustSettings, robust_problems
from secateur.config.trained import TrainedSettings
from secateur.config.training import TrainSettings
from secateur.plain import CHOICES
from secateur.planning import Budget

THRESHOLD = 0.8
BOUNDS = ("max_drop", "max_loss_increase", "max_robust_drop")


@dataclass(frozen=True, kw_only=True)
class PruneSettings(FloorSettings, RobustSettings, ProtectSettings, GradualSettings, PlanSettings, TrainedSettings):
    """All settings of ``secateur prune``; each is described at the class that it comes from.

    Raises:
        ConfigError: settings that contradict each other or lie out of range; all of them at once.

    Example:
        >>> PruneSettings(model="package.module:Net", budget="params=0.1").resolved().epochs
        5
    """

    COMMAND = "prune"
    SECTIONS = (
        ModelSettings,
        DataSettings,
        PlanSettings,
        ProtectSettings,
        GradualSettings,
        TrainSettings,
        FloorSettings,
        RobustSettings,
        RunSettings,
    )

    def problems(self) -> Iterable[str]:
        """What contradicts each other or lies out of range."""
        yield from _choice_problems(self)
        yield from budget_problems(self.budget)
        yield from limit_problems({name: getattr(self, name) for name in LIMITS})
        yield from super().problems()
        yield from _gradual_problems(self)
        yield from robust_problems(self, attacked=self.attacked)
        yield from adversarial_problems(self, self, attacked=self.attacked)
        yield from _floor_problems(self)
        yield from protect_problems(self)

    def resolved(self) -> Self:
        """The same settings with every default that depends on the others filled in: what a run really uses."""
        none = all(getattr(self, name) is None for name in (*CHOICES, "max_robust_drop"))
        return replace(super().resolved(), threshold=THRESHOLD if none else self.threshold)

    @property
    def bounded(self) -> dict[str, float]:
        """The bounds on held-out data that were given: max_drop, max_loss_increase, max_robust_drop."""
        given = {name: getattr(self, name) for name in BOUNDS}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def attacked(self) -> bool:
        """Whether training or pruning looks at attacked inputs."""
        return self.adversarial != "none" or self.max_robust_drop is not None

    def cost(self) -> Budget | None:
        """The budget as `plan` takes it; None where there is none."""
        return None if self.budget is None else parse_budget(self.budget)

    def limits(self) -> dict[str, Any]:
        """``min_units``, ``multiple_of`` and ``max_share`` as `plan` takes them."""
        return {name: limit(name, getattr(self, name)) for name in LIMITS}


def like(settings: PlaceSettings, *sections: type[Settings], **others: Any) -> PruneSettings:
    """The settings of a run of ``secateur prune`` that gets its network, or its data, in the same way.

    Args:
        settings: of another command.
        sections: the groups of these that both have.
        others: settings that both don't have.
    """
    names = (*(item.name for section in sections for item in fields(section)), "seed", "device")
    return PruneSettings(**{name: getattr(settings, name) for name in names}, **others)


def _choice_problems(settings: PruneSettings) -> Iterable[str]:
    """What is wrong with that which says what goes."""
    given = _given(settings)
    if len(given) > 1:
        yield f"{' and '.join(given)} given together: each says by itself what goes; give one of {', '.join(CHOICES)}"
    if settings.threshold is not None and not 0 < settings.threshold < math.inf:
        yield f"threshold={settings.threshold} must be above 0"
    for name in BOUNDS:
        value = getattr(settings, name)
        if value is not None and not 0 <= value < math.inf:
            yield f"{name}={value} must be at least 0"
    if settings.keep is not None and not 0 < settings.keep <= 1:
        yield f"keep={settings.keep} must be in (0, 1]"


def _floor_problems(settings: PruneSettings) -> Iterable[str]:
    """What is wrong with a floor of robustness."""
    if settings.max_robust_drop is None:
        return
    for name in ("threshold", "keep"):
        if (value := getattr(settings, name)) is not None:
            yield f"{name}={value} says by itself what goes: max_robust_drop goes with a budget, max_drop or alone"
    if settings.schedule != "none":
        yield f"schedule={settings.schedule} leads to its budget whatever it costs: leave max_robust_drop out"
    budget = (
        parse_budget(settings.budget).given if settings.budget and not list(budget_problems(settings.budget)) else {}
    )
    if len(budget) > 1 or "latency" in budget:
        yield f"budget={settings.budget}: with max_robust_drop it is of one of macs, params or bytes"


def _given(settings: PruneSettings) -> list[str]:
    """Each way to say what goes that was taken, with its value."""
    return [f"{name}={getattr(settings, name)}" for name in CHOICES if getattr(settings, name) is not None]


def _gradual_problems(settings: PruneSettings) -> Iterable[str]:
    """What is wrong with pruning bit by bit."""
    if settings.schedule == "none":
        for name, nothing in (("gradual", "cut"), ("rewind", "none")):
            if getattr(settings, name) != nothing:
                yield f"{name}={getattr(settings, name)} is for pruning in steps: give schedule=cubic, too"
        return
    if settings.budget is None:
        given = _given(settings)
        instead = f" instead of {' and '.join(given)}" if given else ""
        others = [name for name in CHOICES if name != "budget"]
        yield (
            f"schedule={settings.schedule} leads to a budget, step by step: give budget=macs=0.5, say,{instead} with "
            f"it; {', '.join(others[:-1])} and {others[-1]} have no steps in between"
        )
    for name in ("steps", "step_epochs"):
        if getattr(settings, name) < 1:
            yield f"{name}={getattr(settings, name)} must be at least 1"
    if not 0 <= settings.rewind_at < 1:
        yield f"rewind_at={settings.rewind_at} must be in [0, 1)"
    if settings.rewind != "none" and settings.gradual != "cut":
        yield f"rewind={settings.rewind} begins again after each surgery, so it goes with gradual=cut"
    if settings.rewind != "none" and not settings.dense_epochs:
        yield (
            f"rewind={settings.rewind} goes back to the dense network's training in this run, which has none: give "
            "train_epochs"
        )
    if settings.compensate not in ("auto", "none") and (settings.gradual == "soft" or settings.rewind == "weights"):
        why = "gradual=soft" if settings.gradual == "soft" else "rewind=weights"
        yield f"compensate={settings.compensate} has nothing to make up for with {why}: leave it out"
