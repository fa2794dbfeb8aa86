"""A learning rate that a range test gave, tried out, and lowered where the network can't learn at it.

In a range test the weights at a rate are those that lower rates led to. A network that begins at that rate may be in
another place: an untrained one without normalising layers bears a high rate for the few steps of the test, and dies
where it lasts. So the rate is held for a short run. It is never raised: what is best for a hundred steps is often too
high for a long run.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secateur.tuning.ranging import Point

FACTOR = 3.0  # from one rate to the next
MOVES = 4  # at most


@dataclass(frozen=True, kw_only=True)
class Mended:
    """A rate, and what it was judged by.

    Attributes:
        lr: the rate.
        tried: the mean loss of the last third of a short run, by rate.
    """

    lr: float
    tried: dict[float, float]


def mend(run: Callable[[float], Sequence[Point]], lr: float, start: Sequence[float], steps: int) -> Mended:
    """Lower a rate by factors of three while a short run at it learns nothing, and one at the lower rate ends lower.

    Args:
        run: makes a short run in which a rate is held.
        lr: the rate that was read from a range test.
        start: losses before training.
        steps: of a short run.
    """
    losses = last_third(run(lr), steps)
    tried = {lr: mean(losses)}
    for _ in range(MOVES):
        if learnt(start, losses):
            break
        lower = float(f"{lr / FACTOR:.2g}")
        found = last_third(run(lower), steps)
        tried[lower] = mean(found)
        if math.isfinite(tried[lr]) and not better(found, losses):
            break
        lr, losses = lower, found
    return Mended(lr=lr, tried=tried)


def learnt(start: Sequence[float], losses: Sequence[float]) -> bool:
    """Whether losses lie below those at the start by more than a standard error of their difference.

    Example:
        >>> learnt([2.0, 2.2], [1.0, 1.2]), learnt([2.0, 2.2], [2.05, 2.1]), learnt([2.0], [math.inf])
        (True, False, False)
    """
    if not math.isfinite(mean(losses)):
        return False
    error = math.sqrt(_spread(start) / len(start) + _spread(losses) / len(losses))
    return mean(start) - mean(losses) > error


def _spread(values: Sequence[float]) -> float:
    """Their variance."""
    middle = mean(values)
    return sum((each - middle) ** 2 for each in values) / max(1, len(values) - 1)


def last_third(points: Sequence[Point], steps: int) -> list[float]:
    """The losses of the last third of a short run; infinity where it did not get to its end."""
    if len(points) < steps:
        return [math.inf]
    return [loss for _, loss in points[-max(1, steps // 3) :]]


def better(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether losses on the same batches are lower by more than a standard error.

    Example:
        >>> better([1.0, 2.0, 3.0], [1.1, 2.1, 3.1]), better([1.0, 2.0, 3.0], [0.9, 2.2, 3.0])
        (True, False)
    """
    if not math.isfinite(mean(ours)) or not math.isfinite(mean(theirs)):
        return mean(ours) < mean(theirs)
    gains = [b - a for a, b in zip(ours, theirs, strict=True)]
    return mean(gains) > math.sqrt(_spread(gains) / len(gains))


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)
