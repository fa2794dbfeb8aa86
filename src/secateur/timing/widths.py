"""At which widths a device is fast: steps between them, and widths that save nothing or make an operation slower.

Letters: W widths of a lane, A axes, N operations.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from secateur.timing.table import Predictor

STEPS = (1, 2, 4, 8, 16, 32, 64)
COARSEST = 4  # steps that an axis has at least
AS_GOOD = 0.01  # share of a lane's time that a finer step may waste more than the best
SLOWER = 0.02  # share of an operation's time above which it counts as slower,
NOTICED = 5e-4  # if that is so much of the model's time
FAIR = 0.5  # of what a unit saves on average, that the units of a cut must save


def fast_steps(predictor: Predictor, axes: Mapping[str, int]) -> dict[str, int]:
    """The finest step between widths of each axis at which no time is wasted on blocks that are not full.

    Args:
        axes: names with sizes.
    """
    return {name: _fast_step(predictor.on([name]), name, size) for name, size in axes.items()}


def _fast_step(predictor: Predictor, axis: str, size: int) -> int:
    """By the operations that the axis runs through."""
    candidates = [step for step in STEPS if step * COARSEST <= size]
    if len(candidates) < 2:
        return 1
    widths = torch.arange(size // COARSEST, size)
    sizes = _varied(predictor, widths, [(axis, 1)])
    waste = predictor.total(sizes) / predictor.total(sizes, stairs=False).clamp_min(1e-12) - 1
    wasted = {step: waste[widths % step == 0].mean().item() for step in candidates}
    best = min(wasted.values())
    return next(step for step, value in wasted.items() if value <= best + AS_GOOD)


def _varied(predictor: Predictor, widths: Tensor, axes: Sequence[tuple[str, int]]) -> Tensor:
    """The original sizes, but for axes that are so many times as wide as given, (W, A)."""
    sizes = predictor.dense.repeat(len(widths), 1)
    for axis, share in axes:
        sizes[:, predictor.order[axis]] = widths.double() * share
    return sizes


def worthwhile(
    predictor: Predictor, widths: Sequence[int], axes: Sequence[tuple[str, int]], *, saving: bool
) -> tuple[int, ...]:
    """The widths of a lane at which no operation is slower than at a wider one, all else as in the original.

    Args:
        widths: descending; the first, the original, is always among the result.
        axes: of the lane, and how many units of each one of the lane stands for.
        saving: leave out, too, widths that save much less time than their units do on average.
    """
    whole = predictor.total(predictor.dense).item()
    part = predictor.on([axis for axis, _ in axes])
    each = part.seconds(_varied(part, torch.tensor(widths), axes)) * part.times  # (W, N)
    total: list[float] = each.sum(1).tolist()
    fastest = torch.cat([each[:1], each.cummin(0).values[:-1]])  # at any wider width
    excess = each - fastest
    slower: list[bool] = ((excess > SLOWER * fastest) & (excess > NOTICED * whole)).any(1).tolist()
    kept = [0]
    average = (total[0] - total[-1]) / max(widths[0] - widths[-1], 1)
    for k in (k for k in range(1, len(widths)) if not slower[k]):
        saved = total[kept[-1]] - total[k]
        if not saving or (saved > 0 and saved >= FAIR * average * (widths[kept[-1]] - widths[k])):
            kept.append(k)
    return tuple(widths[k] for k in kept)
