"""A learning rate that a range test gave, tried out and moved where short runs say that it is too high or too low.

In a range test the weights at a rate are those that lower rates led to; a network that begins at that rate may be in
another place. An untrained network without normalising layers, above all: its loss is flat until the rate is high, and
by then it has learnt enough to bear a rate at which it could not have begun.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secateur.tuning.ranging import Point, Reading

FACTOR = 3.0  # from one rate to the next
MOVES = 4  # at most, in one direction
SURE = 2.0  # standard errors by which a higher rate must be better: one that is too high costs more than one too low


@dataclass(frozen=True, kw_only=True)
class Mended:
    """A rate, and what it was judged by.

    Attributes:
        lr: the rate.
        losses: of the last third of the short run at that rate.
        tried: the mean of these losses, by rate.
    """

    lr: float
    losses: list[float]
    tried: dict[float, float]


def mend(run: Callable[[float], Sequence[Point]], reading: Reading, steps: int) -> Mended:
    """Move a rate by factors of three: down as long as a short run ends lower by more than a standard error; else up as
    long as one ends lower by more than two, and the rate is one that the range test found stable.

    Args:
        run: makes a short run at a rate.
        reading: of the range test.
        steps: of a short run.
    """
    lr = reading.lr
    losses = last_third(run(lr), steps)
    tried = {lr: mean(losses)}
    for factor, errors, highest in ((1 / FACTOR, 1.0, math.inf), (FACTOR, SURE, reading.stable)):
        for _ in range(MOVES):
            other = float(f"{lr * factor:.2g}")
            if other > highest or other in tried:
                break
            found = last_third(run(other), steps)
            tried[other] = mean(found)
            exploded = not math.isfinite(mean(losses)) and factor < 1
            if not exploded and not better(found, losses, errors):
                break
            lr, losses = other, found
    return Mended(lr=lr, losses=losses, tried=tried)


def last_third(points: Sequence[Point], steps: int) -> list[float]:
    """The losses of the last third of a short run; infinity where it did not get to its end."""
    if len(points) < steps:
        return [math.inf]
    return [loss for _, loss in points[-max(1, steps // 3) :]]


def better(ours: Sequence[float], theirs: Sequence[float], errors: float = 1.0) -> bool:
    """Whether losses on the same batches are lower by more than so many standard errors.

    Example:
        >>> better([1.0, 2.0, 3.0], [1.1, 2.1, 3.1]), better([1.0, 2.0, 3.0], [0.9, 2.2, 3.0])
        (True, False)
    """
    if not math.isfinite(mean(ours)) or not math.isfinite(mean(theirs)):
        return mean(ours) < mean(theirs)
    gains = [b - a for a, b in zip(ours, theirs, strict=True)]
    gain = mean(gains)
    spread = sum((each - gain) ** 2 for each in gains) / max(1, len(gains) - 1)
    return gain > errors * math.sqrt(spread / len(gains))


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)
