"""Which state of a run to keep."""

import copy
import math
from typing import Any

from torch import Tensor

from secateur.objectives import Totals
from secateur.tuning.states import State


class Best:
    """The latest state that validation can't tell from the best one; the last one where there is no validation.

    For accuracies that is the latest state at most one standard error below the highest: a few hundred samples can't
    tell such states apart, and the later one was trained at a lower rate (Breiman et al. 1984, "Classification and
    Regression Trees", choose among trees in this way). Where a metric was given, the best value counts; else the loss.

    Args:
        validated: whether validation says which is best.
        larger: whether a larger metric is better.
        last: whether the last state stays whatever validation says, which may still end the run.
    """

    def __init__(self, *, validated: bool, larger: bool = True, last: bool = False) -> None:
        self.validated, self.larger, self.last = validated, larger, last
        self.highest, self.lowest, self.value = 0.0, math.inf, -math.inf if larger else math.inf
        self.epoch, self.since = 0, 0
        self.state: State = {}

    def consider(self, epoch: int, state: State, scores: Totals | None, metric: float | None = None) -> None:
        """Keep the present state if it is as good as the best one.

        Args:
            epoch: its number; 0 before training.
            state: the model's whole state.
            scores, metric: what validation gave.
        """
        better = self._better(scores, metric)
        self.since = 0 if better else self.since + 1
        if self._as_good(scores, metric) or self.last or not self.state:
            self.epoch = epoch
            self.state = {
                name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
                for name, value in state.items()
            }

    def _better(self, scores: Totals | None, metric: float | None) -> bool:
        """Whether it is better than all before, for early stopping."""
        if not self.validated:
            return True
        if metric is not None:
            return metric > self.value if self.larger else metric < self.value
        if scores is None:
            return True
        return scores.loss < self.lowest if scores.accuracy is None else scores.accuracy > self.highest

    def _as_good(self, scores: Totals | None, metric: float | None) -> bool:
        if not self.validated:
            return True
        if metric is not None:
            good = metric >= self.value if self.larger else metric <= self.value
            self.value = metric if good else self.value
            return good or not math.isfinite(self.value)  # as long as every value is NaN, the last state will do
        if scores is None:
            return True
        if scores.accuracy is None:
            self.lowest = min(self.lowest, scores.loss)
            return scores.loss <= self.lowest or not math.isfinite(self.lowest)
        self.highest = max(self.highest, scores.accuracy)
        # Two hits and two misses more, as Agresti and Coull (1998) advise: one sample never decides, not even at 100 %.
        likely = (self.highest * scores.labelled + 2) / (scores.labelled + 4)
        return scores.accuracy >= self.highest - math.sqrt(likely * (1 - likely) / scores.labelled)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        names = ("highest", "lowest", "value", "epoch", "since", "state")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for name, value in state.items():
            setattr(self, name, value)
