"""From timed samples to a curve: how long an operation takes at any sizes.

An operation's time is interpolated linearly between the sizes of a grid, and climbs in stairs where the device computes
in blocks: 49 to 64 channels then take as long as 64. Letters: K variables, G levels of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import isfinite, log

import torch
from torch import Tensor

from secateur.timing.operations import Operation, Sizes

LEVELS = (1 / 16, 1 / 4, 1 / 2, 3 / 4, 1.0)  # of the dense size at which one or two variables are timed
FEW_LEVELS = (1 / 4, 1 / 2, 1.0)  # where there are more variables, or the operation hardly counts
ANCHORS = (1 / 2, 1.0)  # of the dense size, below which stairs are looked for
OFFSETS = (1, 4, 8, 16, 24, 32)  # below an anchor
WIDEST = 64  # of a stair
BETTER = 0.7  # of the misfit of a straight line that stairs must leave at most
SURE = 0.02  # share of a time that is more than noise


@dataclass(frozen=True)
class Stair:
    """Blocks of units that take the same time together; a width that fills no block costs a share more besides."""

    step: int = 1
    penalty: float = 0.0


@dataclass(frozen=True)
class Curve:
    """The time of one operation.

    Attributes:
        levels: sizes, ascending, along each variable; where ``by_elements``, how many numbers it reads and writes.
        values: seconds at each point of the grid, (G, ...) once for each variable.
        stairs: of each variable.
        by_elements: whether time goes by the number of elements alone.
    """

    levels: tuple[Sizes, ...]
    values: Tensor
    stairs: tuple[Stair, ...]
    by_elements: bool


def levels(dense: int, fractions: Sequence[float] = LEVELS) -> Sizes:
    """Sizes at which to time, ascending, in round numbers.

    >>> levels(512), levels(12), levels(1)
    ((32, 128, 256, 384, 512), (1, 3, 6, 8, 12), (1,))
    """
    found = {dense}
    for wanted in (fraction * dense for fraction in fractions if fraction < 1):
        block = min(32, power_below(wanted / 2))
        found.add(min(dense, max(1, round(wanted / block) * block)))
    return tuple(sorted(found))


def power_below(number: float) -> int:
    """The largest power of two that is no more; 1 at least."""
    return 2 ** max(0, int(log(number, 2))) if number >= 1 else 1


def grid(operation: Operation, *, coarse: bool) -> list[Sizes]:
    """The sizes at which an operation is timed to know its trend."""
    few = coarse or len(operation.dense) > 2
    rows = [levels(size, FEW_LEVELS if few else LEVELS) for size in operation.dense]
    if operation.gridded and not coarse:
        return list(product(*rows))
    fractions = FEW_LEVELS if coarse else LEVELS
    return list(dict.fromkeys(tuple(max(1, round(f * size)) for size in operation.dense) for f in fractions))


def probes(operation: Operation) -> list[list[tuple[int, Sizes]]]:
    """For each variable, the anchors and the sizes below them at which stairs show, the others dense."""
    found: list[list[tuple[int, Sizes]]] = []
    for size in operation.dense:
        rows: list[tuple[int, Sizes]] = []
        for anchor, span in anchors(size):
            below = sorted({anchor - k for k in (0, *OFFSETS, span) if k <= span}, reverse=True)
            rows.append((span, tuple(below)))
        found.append(rows)
    return found


def anchors(dense: int) -> list[tuple[int, int]]:
    """Widths with the span below them that is looked at."""
    found: dict[int, int] = {}
    for fraction in ANCHORS:
        span = min(WIDEST, power_below(fraction * dense / 2))
        anchor = int(fraction * dense) // span * span
        if span > 1 and anchor > span:
            found[anchor] = span
    return list(found.items())


def at(operation: Operation, variable: int, size: int) -> Sizes:
    """The dense sizes, but for one variable."""
    return tuple(size if k == variable else dense for k, dense in enumerate(operation.dense))


def points(operation: Operation, *, coarse: bool) -> list[Sizes]:
    """All sizes at which an operation is timed."""
    found = dict.fromkeys(grid(operation, coarse=coarse))
    if operation.gridded and not coarse:
        for k, rows in enumerate(probes(operation)):
            found |= dict.fromkeys(at(operation, k, size) for _, below in rows for size in below)
    return list(found)


def fit(operation: Operation, samples: Mapping[Sizes, float], *, coarse: bool = False) -> Curve:
    """The curve through what was timed. Sizes at which the operation did not run count as if they were never tried.

    Args:
        samples: seconds by sizes; NaN where it did not run.
    """
    timed = {sizes: value for sizes, value in samples.items() if isfinite(value)}
    wanted = grid(operation, coarse=coarse)
    if operation.gridded and not coarse and all(sizes in timed for sizes in wanted):
        rows = tuple(tuple(sorted({sizes[k] for sizes in wanted})) for k in range(len(operation.dense)))
        values = torch.tensor([timed[sizes] for sizes in product(*rows)], dtype=torch.float64)
        stairs = tuple(_stair(operation, k, rows, timed) for k, rows in enumerate(probes(operation)))
        return Curve(rows, values.reshape([len(row) for row in rows]), stairs, by_elements=False)
    by_size = {operation.elements(sizes): timed[sizes] for sizes in wanted if sizes in timed}
    row = tuple(sorted(by_size))
    values = torch.tensor([by_size[n] for n in row], dtype=torch.float64)
    return Curve((row or (1,),), values if row else torch.zeros(1, dtype=torch.float64), (Stair(),), by_elements=True)


def _stair(
    operation: Operation, variable: int, rows: Sequence[tuple[int, Sizes]], timed: Mapping[Sizes, float]
) -> Stair:
    """The stairs that explain best what was timed below the anchors; none where a straight line does as well."""
    runs = [
        (span, {size: timed[at(operation, variable, size)] for size in below})
        for span, below in rows
        if all(at(operation, variable, size) in timed for size in below)
    ]
    if not runs:
        return Stair()
    widest = max(span for span, _ in runs)
    tried = [_misfit(2**k, runs) for k in range(widest.bit_length())]
    line, best = tried[0][0], min(tried, key=lambda t: t[0])
    return best[1] if best[0] < BETTER * line else Stair()


def _misfit(step: int, runs: Sequence[tuple[int, Mapping[int, float]]]) -> tuple[float, Stair]:
    """Squared error of stairs of the step, in logarithms of time, with the penalty that fits best."""
    whole: list[float] = []
    broken: list[float] = []
    for span, run in runs:
        top, bottom = max(run), max(run) - span
        slope = (run[top] - run[bottom]) / span
        for size, value in run.items():
            expected = run[top] - slope * (top - -(-size // step) * step)
            error = log(max(value, 1e-12) / max(expected, 1e-12))
            (broken if size % step else whole).append(error)
    penalty = max(0.0, sum(broken) / len(broken)) if broken else 0.0
    misfit = sum(e * e for e in whole) + sum((e - penalty) ** 2 for e in broken)
    return misfit, Stair(step, penalty if penalty > SURE else 0.0)
