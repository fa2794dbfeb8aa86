"""Gradual sparsity: ever more weights go while the model trains."""

from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor

from secateur.errors import TrainingError
from secateur.planning.schedules import Schedule, schedule
from secateur.sparsity import allocation
from secateur.sparsity.criteria import WeightCriterion
from secateur.sparsity.joining import MaskedTraining
from secateur.sparsity.living import KeptMasks
from secateur.sparsity.matrices import to_matrix
from secateur.sparsity.patterns import Pattern, Unstructured, is_number
from secateur.tuning.callbacks import Run

CHOICES = 25  # masks on the way, where nobody says how many steps lie between two
ALLOCATIONS = ("uniform", "global", "erk")


class GradualSparsity(MaskedTraining):
    """The sparsity rises while the model trains: s1 + (s0 - s1) (1 - (step - begin) / (end - begin))^3.

    Zhu & Gupta 2017, "To Prune, or Not to Prune: Exploring the Efficacy of Pruning for Model Compression",
    arXiv:1710.01878, equation 1. Every so many steps the mask is chosen anew, by the weights as they are; in between,
    and after the end, removed weights are kept at zero (`secateur.keep_masks`). What went does not come back.
    Differs: any criterion that needs no data, blocks, other schedules, a sparsity over all layers together.

    In `secateur.tune` it is a callback: ``sc.tune(model, train, callbacks=[GradualSparsity(0.8, end=1000)])``. States
    from before the end are no candidates for the best one. In a loop of your own:

    >>> import torch
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> with GradualSparsity(0.75, end=4, every=1).on(net) as gradual:
    ...     for _ in range(4):
    ...         net(torch.randn(2, 8)).square().sum().backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    ...         gradual.step()
    >>> gradual.sparsity
    0.75

    Args:
        sparsity: s1, the share of the weights that is gone in the end, in (0, 1), over all layers.
        end: steps of the optimizer after which it is reached, counted from the beginning of the training.
        begin: steps before it begins to rise.
        every: steps between two choices; None makes 25 of them.
        start: s0; None takes the share of zeros that the weights have.
        schedule: "cubic", "linear", "geometric", or a callable, as for `secateur.schedules`; of what is left.
        pattern: `Unstructured` or `Block`; n of m has one sparsity, so for it see `StraightThrough`.
        importance: see `MaskedTraining`.
        allocation: how much each layer loses: "uniform", "global", "erk", as for `secateur.sparsify`.
        only, ignore: which weights, as for `secateur.sparsify`.
        seed: of "random".

    Raises:
        SparsityError: what is given is no pattern.
        TrainingError: a setting out of its range; when training begins, if it has fewer than ``end`` steps.
    """

    def __init__(
        self,
        sparsity: float,
        *,
        end: int,
        begin: int = 0,
        every: int | None = None,
        start: float | None = None,
        schedule: str | Schedule = "cubic",
        pattern: Pattern = Unstructured(),  # noqa: B008
        importance: str | WeightCriterion = "magnitude",
        allocation: str = "uniform",
        only: Iterable[str] = (),
        ignore: Iterable[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(pattern=pattern, importance=importance, only=only, ignore=ignore, seed=seed)
        _check(sparsity, end, begin, every, start, pattern, allocation)
        self.final, self.end, self.begin = sparsity, end, begin
        self.start = self._given = start
        self.every = every if every is not None else ceil((end - begin) / CHOICES)
        self.schedule, self.allocation = schedule, allocation
        self.at = 0  # steps done
        self._kept: KeptMasks | None = None
        self._saved: Mapping[str, Any] | None = None

    def sparsity_at(self, step: int) -> float:
        """The sparsity that is to be reached after so many steps."""
        first = self.start or 0.0
        share = min(max(step - self.begin, 0), self.end - self.begin)
        left = (1 - self.final) / (1 - first)
        return 1 - (1 - first) * _follow(self.schedule)(share, self.end - self.begin, left)

    def step(self) -> None:
        """Count a step of the optimizer, and choose anew where it is time; for loops of one's own.

        Raises:
            TrainingError: `attach` was not called.
        """
        if not self.attached:
            raise TrainingError(
                "GradualSparsity.step() before attach(model): write `with GradualSparsity(...).on(model)`"
            )
        self._step_to(self.at + 1)

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """By name, bool, True = stays."""
        return {} if self._kept is None else self._kept.masks

    def settled(self, run: Run) -> bool:
        """Whether the final sparsity is reached."""
        return self.at >= self.end

    def on_start(self, run: Run) -> None:
        if run.steps < self.end:
            raise TrainingError(
                f"the sparsity is reached after end={self.end} steps, but training has {run.steps}: make end less, or "
                "train longer"
            )
        super().on_start(run)

    def after_step(self, run: Run) -> None:
        self._step_to(run.step)

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "start": self.start, "masks": dict(self.masks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._saved, self.at = state, int(state["at"])

    # ------------------------------------------------------------------ choosing

    def _begin(self) -> None:
        weights = {name: layer.parameter for name, layer in self.layers.items()}
        saved = self._saved or {"at": 0, "masks": {}, "start": self._given}
        masks = {name: saved["masks"].get(name, weight.detach() != 0) for name, weight in weights.items()}
        self.at, self.start, self._saved = int(saved["at"]), saved["start"], None
        self._kept = KeptMasks(weights, masks)
        if self.start is None:
            self.start = min(self._kept.sparsity, self.final)

    def _finish(self) -> None:
        if self._kept is not None:
            self._kept.apply_()
            self._kept.remove()

    def _step_to(self, step: int) -> None:
        self.at = step
        if self.begin < step <= self.end and ((step - self.begin) % self.every == 0 or step == self.end):
            self._choose(self.sparsity_at(step))

    @torch.no_grad()
    def _choose(self, sparsity: float) -> None:
        """Remove more: the least of those that stay, by the weights as they are."""
        assert self._kept is not None
        scores: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            found = self.scores(layer, layer.matrix)
            gone = self._gone(name)
            scores[name] = found.masked_fill(gone, float(found.min()) - 1)
        remove = self._counts(scores, sparsity)
        self._kept.set(
            {name: layer.unfold(self.choose(scores[name], remove=remove[name])) for name, layer in self.layers.items()}
        )

    def _gone(self, name: str) -> Tensor:
        """What has gone of a weight, as a matrix."""
        assert self._kept is not None
        layer = self.layers[name]
        return to_matrix(self._kept.gone(name), transposed=layer.transposed)

    def _counts(self, scores: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
        """How many numbers of each weight are to be gone: never fewer than are."""
        if self.allocation == "global":
            wanted = allocation.ranked(scores, self.pattern, sparsity)
        else:
            sizes = {name: layer.sizes for name, layer in self.layers.items()}
            shares = allocation.erk(sizes, sparsity) if self.allocation == "erk" else dict.fromkeys(sizes, sparsity)
            wanted = allocation.counts(
                shares, {name: layer.shape for name, layer in self.layers.items()}, self.pattern, sparsity
            )
        area = self.pattern.size[0] * self.pattern.size[1]
        return {name: max(count, int(self._gone(name).sum()) // area * area) for name, count in wanted.items()}


def _follow(choice: str | Schedule) -> Schedule:
    return schedule(choice)


def _check(
    sparsity: float, end: int, begin: int, every: int | None, start: float | None, pattern: Pattern, allocated: str
) -> None:
    """Report all settings that are out of their range."""
    amount, steps = is_number(sparsity), is_number(begin) and is_number(end)
    ranges = [
        (amount and 0 < sparsity < 1, f"sparsity={sparsity!r} must be in (0, 1)"),
        (steps and 0 <= begin < end, f"begin={begin!r} and end={end!r}: give 0 <= begin < end, in optimizer steps"),
        (every is None or (is_number(every) and every >= 1), f"every={every!r} must be at least 1"),
        (
            start is None or not amount or (is_number(start) and 0 <= start <= sparsity),
            f"start={start!r} must be in [0, sparsity]",
        ),
        (allocated in ALLOCATIONS, f"allocation={allocated!r}: give one of {', '.join(map(repr, ALLOCATIONS))}"),
        (pattern.fixed is None, f"{pattern!r} has one sparsity, which can't rise: use StraightThrough"),
    ]
    if wrong := [text for fits, text in ranges if not fits]:
        raise TrainingError("; ".join(wrong))
