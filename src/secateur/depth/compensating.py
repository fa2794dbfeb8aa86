"""What stays of a shorter model is refitted, in closed form, to give what the original gives on calibration data."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from secateur.calibration.batches import Batch, Batches, Forward
from secateur.compensation import Compensation, How, method, refit_
from secateur.compensation.matching import Match, Matching
from secateur.depth.carrying import carry_out
from secateur.depth.change import DepthChange
from secateur.depth.crossings import Crossing, Crossings, find_crossings
from secateur.errors import PlanError
from secateur.modules import named_parameters
from secateur.tracing.shadow import shadow


def way(compensate: str | None, data: object) -> How | None:
    """How to compensate for blocks; None for not at all.

    Raises:
        PlanError: nobody knows the name, there is no data for it, or it is a way for units only.
    """
    how = method(compensate, data)
    if how == "merge":
        raise PlanError(
            'compensate="merge" folds units that go into units that stay, and here whole blocks go: give "lstsq", '
            '"mean" or None'
        )
    return how


def compensate_blocks_(
    model: nn.Module,
    short: nn.Module,
    change: DepthChange,
    data: Iterable[Any],
    *,
    how: How = "lstsq",
    forward: Forward | None = None,
) -> Compensation:
    """Refit a shorter model to the original on calibration data, in place, as `secateur.compensation.compensate_` does
    for fewer units. No labels are needed.

    The weight that makes the stream before blocks that went (the last projection of the block before, or the
    convolution of a stem) is fitted to give, with the stream as it is, what these blocks handed on in the original.
    Every other weight is fitted to what it gives in the original, on its inputs as they are now.

    Args:
        model: the original.
        short: what ``change.apply(model)`` gave.
        change: which blocks went.
        data: batches, up to 4,096 samples.
        how: "lstsq"; or "mean", by which the weight before blocks is given a constant, where it has a bias or a batch
            norm for it, and batch norms their outputs' means and variances.
        forward: runs a model on a batch, where its inputs are not the batch's.

    Returns:
        With ``left`` naming blocks whose part no weight took over, too, with the reason.

    Raises:
        DataError: no batch, NaN, or batches that the model does not take.
    """
    seen: list[Crossings] = []

    def match(example: Batch) -> Matching:
        seen.append(find_crossings(model, example.run, change.dropped))
        return _matching(seen[0], _names(model, change))

    done = refit_(model, short, Batches(model, data, forward), match, how=how, biases=False)
    return replace(done, left={**seen[0].left, **done.left})


def _names(model: nn.Module, change: DepthChange) -> dict[str, str]:
    """The parameters of the shorter model, with the names that they have in the original."""
    double = shadow(model)
    first: dict[int, str] = {}
    for name, parameter in named_parameters(double).items():
        first.setdefault(id(parameter), name)
    carry_out(change, double)
    return {name: first[id(parameter)] for name, parameter in named_parameters(double).items()}


def _matching(crossings: Crossings, names: dict[str, str]) -> Matching:
    """What each use in the shorter model is fitted to."""
    crossed: dict[tuple[str, int], Crossing] = {crossing.source: crossing for crossing in crossings.found}
    now = {old: new for new, old in reversed(names.items())}
    found: dict[tuple[str, int], Match | str] = {}
    for name, use in crossings.uses:
        if name not in now:
            continue
        crossing = crossed.get((name, use))
        match = Match(key=(name, use)) if crossing is None else Match(key=crossing.target, crosses=True)
        found[now[name], use] = crossings.shared.get(name, match)
    return found
