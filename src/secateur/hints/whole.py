"""What each hint's choice costs the whole model: pruned to a budget, as cut and with its weights refitted.

Silenced units and shares of single axes say how well a hint ranks; this says what pruning by it ends in.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from secateur.calibration.batches import Forward
from secateur.compensation import compensate_
from secateur.errors import PlanError
from secateur.graph import Graph
from secateur.hints.ablation import Ablation, OnBatch
from secateur.planning import Budget, plan

CONTROL = "at random"


@dataclass(frozen=True, kw_only=True)
class Whole:
    """How far the loss rises, or the outputs move, when the whole model is pruned as a hint chooses.

    Attributes:
        cut: with the weights that stay as they were.
        refitted: after least squares on the calibration data.
    """

    cut: float
    refitted: float


def prune_by_each(
    model: nn.Module,
    graph: Graph,
    scores: Mapping[str, Mapping[str, Tensor]],
    budget: Budget,
    ablation: Ablation,
    data: Iterable[Any],
    calibration: Iterable[Any],
    *,
    only: Iterable[str] = (),
    ignore: Iterable[str] = (),
    forward: Forward | None = None,
    tell: Callable[[], None] = lambda: None,
) -> dict[str, Whole]:
    """Prune the model to a budget as each hint chooses, and measure it on the data before and after refitting.

    Args:
        scores: by hint; the control at random among them.
        tell: called after each hint.

    Raises:
        UnreachableBudget: the model can't become as small.
    """
    found: dict[str, Whole] = {}
    for name, values in scores.items():
        made = plan(graph, values, budget=budget, only=only, ignore=ignore)
        small = made.apply(model).eval()
        cut = _rise(ablation, data, small)
        compensate_(model, small, graph, made, calibration, forward=forward)
        found[name] = Whole(cut=cut, refitted=_rise(ablation, data, small.eval()))
        tell()
    return found


def _rise(ablation: Ablation, data: Iterable[Any], small: nn.Module) -> float:
    """Mean over samples of what a smaller model costs more than the dense one; infinite where that is no number."""
    total, samples = 0.0, 0
    for batch in ablation.batches(data):
        on = OnBatch(ablation, batch)
        total += on.rise_with(small) * on.samples
        samples += on.samples
    return total / samples if samples and math.isfinite(total) else math.inf


def check_budget(budget: Any) -> None:
    """Refuse what is no budget, or one that needs a clock.

    Raises:
        PlanError: saying what to pass.
    """
    if not isinstance(budget, Budget):
        raise PlanError(f"budget={budget!r} is no Budget: write budget=sc.Budget(macs=0.5)")
    if budget.latency is not None:
        raise PlanError("hints are compared at a budget of macs, params or bytes, not of latency")
