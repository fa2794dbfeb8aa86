"""The learning-rate range test: on a copy of the model the rate rises with every step; the loss says how far it may.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186; with Gugger 2018, "How Do You Find
A Good Learning Rate", as in fastai: exponential steps, a smoothed loss, an end where the loss explodes, and a rate
well below the one where it turns.
"""

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from secateur.errors import Diverged, ModelError, TrainingError
from secateur.tuning import randomness
from secateur.tuning.distilling import Distillation, Lesson
from secateur.tuning.gradients import Objective
from secateur.tuning.loop import Pace, Run
from secateur.tuning.optimizers import MakeOptimizer, make_optimizer
from secateur.tuning.processes import Processes, processes

Point = tuple[float, float]
"""A learning rate, and the loss of the batches before the step at that rate."""

LOWEST, HIGHEST = 1e-6, 10.0  # rates of a test
MOST, FEWEST = 100, 50  # steps of a test
SIDE = 25  # a smoothed loss is the median over a 25th of the steps to either side
TOLERANCE = 6.0  # standard errors of a smoothed loss by which it may lie above the lowest one
SAFETY = 4.0  # what the highest stable rate is divided by
EXPLODED = 3.0  # times the first losses, on top of them: there a test ends


class _Enough(Exception):
    """The short run is over."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Short runs on copies of a model, with the settings of the run to come.

    Args:
        model, train, accumulate, clip, halve, weight_decay, device, precision, seed: as for `tune`.
        teacher: None where there is none.
        objective: from the processes, and the lesson where there is a teacher, to what is minimised.
        steps: of each short run.
    """

    model: nn.Module
    train: Iterable[Any]
    teacher: Distillation | None
    objective: Callable[[Processes, Lesson | None], Objective]
    accumulate: int
    clip: float | None
    halve: bool
    weight_decay: float
    device: str | torch.device | None
    precision: str | None
    seed: int
    steps: int

    def run(self, optimizer: str | MakeOptimizer, lr: float, fraction: Callable[[int], float]) -> list[Point]:
        """Train a copy of the model; every run sees the same batches.

        Args:
            optimizer, lr: as for `tune`.
            fraction: from a step to the share of ``lr`` that holds there.

        Returns:
            A point for each step; fewer than ``steps`` where the loss exploded.
        """
        with ExitStack() as stack:
            these = stack.enter_context(processes(self.device, self.precision))
            stack.enter_context(randomness.as_found(these.device))
            stack.enter_context(loader_as_found(self.train))
            pace = Pace(
                total=self.steps, accumulate=self.accumulate, clip=self.clip, fraction=fraction, halve=self.halve
            )
            copied = duplicate(self.model)
            wrapped, stepper = these.prepare(
                copied, lambda trained: make_optimizer(optimizer, trained, lr=lr, weight_decay=self.weight_decay)
            )
            lesson = None if self.teacher is None else stack.enter_context(self.teacher.on(these.unwrap(wrapped)))
            run = Run(wrapped, stepper, self.train, self.objective(these, lesson), these, pace, seed=self.seed)
            randomness.seed_all(self.seed, these.rank)
            watch = _Watch(run)
            try:
                for _ in run.epochs(self.steps, watch):
                    run.next_epoch()
            except (_Enough, Diverged):
                pass
            return watch.points


class _Watch:
    """Notes the loss of each step, until there are enough or it has exploded."""

    def __init__(self, run: Run) -> None:
        self.run, self.points, self.lr = run, list[Point](), run.lr
        self._before = (0, 0.0, 0)  # epoch, sum of losses and samples up to the last step

    def __call__(self) -> None:
        run, totals = self.run, self.run.at.totals
        epoch, loss_sum, samples = self._before
        if epoch != run.epoch:
            loss_sum, samples = 0.0, 0
        self._before = (run.epoch, totals.loss_sum, totals.samples)
        loss, count = run.processes.total(totals.loss_sum - loss_sum, totals.samples - samples)
        self.points.append((self.lr, loss / count))
        self.lr = run.lr
        if len(self.points) >= run.steps or exploded([value for _, value in self.points], side(run.steps)):
            raise _Enough


def range_test(bench: Bench, optimizer: str | MakeOptimizer) -> list[Point]:
    """Losses at rates that rise exponentially from 1e-6 to 10, or to where the loss explodes.

    Args:
        bench: what to train, and how. It and its loader are left as they were.
        optimizer: as for `tune`.

    Raises:
        TrainingError: the loss was not finite before there was a step worth speaking of.
    """
    last = bench.steps - 1
    points = bench.run(optimizer, HIGHEST, lambda step: (LOWEST / HIGHEST) ** (1 - min(step, last) / last))
    if len(points) <= 2 * side(bench.steps):
        raise TrainingError(
            f"no learning rate can be chosen: after {len(points)} steps with rates from {LOWEST:g} the loss was not "
            f"finite, or had exploded. Look for NaN in the data and the model, normalise the inputs, or give lr="
        )
    return points


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a range test says.

    Attributes:
        lr: the rate to train with, the highest stable one divided by four, to two digits.
        stable: the highest rate at which the smoothed loss is as low as it gets.
        lowest: the lowest smoothed loss.
        error: standard error of a smoothed loss.
        risen: whether the loss rose after ``stable``; else the test ended before it did.
        smoothed: loss of each step.
    """

    lr: float
    stable: float
    lowest: float
    error: float
    risen: bool
    smoothed: list[float]


def read(points: Sequence[Point], steps: int) -> Reading:
    """Choose a rate from a range test: a quarter of the highest rate at which the smoothed loss can't be told from its
    lowest value.

    Far from an optimum, the loss falls and then explodes: that rate is at the end of the valley. Near one, as in a
    network that was pruned and refitted, the loss is flat in the noise of the batches before it explodes, and its
    minimum and its steepest descent (which others choose by) are anywhere; the end of the flat part is not. So the end
    of what is as low as it gets is looked for, and "as low" means within six standard errors: the lowest of a hundred
    noisy values is two or three of them too low, and since losses explode exponentially, a wide margin costs a few
    steps only. It means at most twice the lowest, too, for a loss that falls to almost nothing without noise. A
    smoothed loss is a median, which neither a hard batch nor the explosion moves, and its standard error
    is from second differences, which take out any trend.
    A loss that grows by a factor with every step takes a few steps to be seen, in which the rate has risen too; so the
    limit of stability is somewhat lower than where the loss rises, and the fastest rate is half of that limit on a
    quadratic: together a factor of four.

    Args:
        points: what `range_test` gave.
        steps: that the test was to have.

    Raises:
        TrainingError: the loss rises from the lowest rates on.

    Example:
        >>> flat, exploding = [(10.0**k, 1.0) for k in range(-60, -20)], [(10.0**k, 9.0) for k in range(-20, -10)]
        >>> read([*flat, *exploding], 50).stable
        1e-21
    """
    losses = [loss for _, loss in points]
    reach = side(steps)
    smooth = smoothed(losses, reach)
    lowest = min(range(len(smooth)), key=smooth.__getitem__)
    error = noise(losses[: max(lowest, len(losses) // 4) + 2]) * math.sqrt(math.pi / 2 / (2 * reach + 1))
    bound = smooth[lowest] + min(TOLERANCE * error, abs(smooth[lowest]))
    last = max(at for at, value in enumerate(smooth) if value <= bound)
    if last <= reach:
        raise TrainingError(
            f"no learning rate can be chosen: the loss rises from lr={points[0][0]:g} on. Normalise the inputs, or "
            f"give lr="
        )
    stable = points[last][0]
    return Reading(
        lr=float(f"{stable / SAFETY:.2g}"),
        stable=stable,
        lowest=smooth[lowest],
        error=error,
        risen=last < len(points) - 1 or len(points) < steps,
        smoothed=smooth,
    )


def steps_for(total: int) -> int:
    """Steps of a short run: 100, or as many as the run to come has, but at least 50: fewer can't be smoothed.

    Args:
        total: steps of the run to come.
    """
    return min(MOST, max(FEWEST, total))


def side(steps: int) -> int:
    """Steps to either side that a smoothed loss is taken over."""
    return max(1, steps // SIDE)


def smoothed(losses: Sequence[float], reach: int) -> list[float]:
    """The median of each value and as many to either side as there are, up to ``reach``."""
    return [median(losses[max(0, at - reach) : at + reach + 1]) for at in range(len(losses))]


def noise(losses: Sequence[float]) -> float:
    """Standard deviation of losses around their trend, from the median of second differences.

    Example:
        >>> noise([1.0, 2.0, 3.0, 4.0, 5.0])
        0.0
    """
    bends = [abs(losses[k - 1] - 2 * losses[k] + losses[k + 1]) for k in range(1, len(losses) - 1)]
    return median(bends) / (0.6745 * math.sqrt(6)) if bends else 0.0


def exploded(losses: Sequence[float], reach: int) -> bool:
    """Whether the last losses all lie far above the first ones."""
    first, last = losses[: 2 * reach + 1], losses[-reach:]
    top = max(first)
    return len(losses) > len(first) + reach and min(last) > top + EXPLODED * abs(top)


def duplicate(model: nn.Module) -> nn.Module:
    """A copy of a model, with its hooks and modes.

    Raises:
        ModelError: it can't be copied.
    """
    try:
        return deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} can't be copied ({type(error).__name__}: {error}), so nothing can be tried out "
            f"on a copy. Give lr= and optimizer=, or remove what copy.deepcopy fails on"
        ) from error


@contextmanager
def loader_as_found(loader: Any) -> Generator[None]:
    """Put a loader's generators, and the epoch that it is told, back afterwards."""
    states, epoch = randomness.states_of(loader), getattr(loader, "epoch", None)
    try:
        yield
    finally:
        randomness.put_states(loader, states)
        if isinstance(epoch, int) and callable(set_epoch := getattr(loader, "set_epoch", None)):
            set_epoch(epoch)
