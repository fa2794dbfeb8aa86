"""The arguments of ``sc.sparsify``, checked against each other, and the weights that they leave."""

from collections.abc import Mapping
from math import inf
from typing import Any

from secateur.errors import DataError, PatternError, SparsityError
from secateur.sparsity import allocation
from secateur.sparsity.criteria import Magnitude, Wanda, WeightCriterion, criterion
from secateur.sparsity.layers import Layers
from secateur.sparsity.passing import Uses
from secateur.sparsity.patterns import Pattern, agrees, is_number
from secateur.sparsity.pruning import METHODS, How

DEFAULT = 0.5  # the sparsity where nothing else is said
_MISFITS = ("shape ", "no data", "it is used in parts")
"""How reasons begin for which a weight that was asked for stays dense."""


def how_to(
    pattern: Pattern,
    sparsity: float | None,
    threshold: float | None,
    importance: str | WeightCriterion,
    allocation: str,
    compensate: str | None,
    with_data: bool,
    seed: int,
) -> How:
    """The settings, checked against each other."""
    _check_amount(pattern, sparsity, threshold, allocation)
    if compensate is not None and compensate not in METHODS:
        raise SparsityError(f"compensate={compensate!r}: give None or one of {', '.join(map(repr, METHODS))}")
    rate: WeightCriterion | None
    if importance == "auto":
        own = compensate is not None and "sparsegpt" in compensate and threshold is None
        rate = None if own else Wanda() if with_data else Magnitude()
    else:
        rate = criterion(importance, seed)
    how = How(pattern=pattern, rate=rate, compensate=compensate, threshold=threshold)
    if (asking := how.needs or (allocation == "owl")) and not with_data:
        what = f"compensate={compensate!r}" if compensate else "allocation='owl'" if asking is True else f"{rate!r}"
        raise SparsityError(f"{what} needs calibration data: give data=, batches of inputs")
    return how


def _check_amount(pattern: Pattern, sparsity: float | None, threshold: float | None, allocated: str) -> None:
    if sparsity is not None and threshold is not None:
        raise SparsityError(f"sparsity={sparsity} and threshold={threshold}: give one of the two")
    if threshold is not None and not (is_number(threshold) and 0 < threshold < inf):
        raise SparsityError(
            f"threshold={threshold!r}: give a number above 0, such as 0.5 (times each layer's mean score)"
        )
    if sparsity is not None and not (is_number(sparsity) and 0 < sparsity < 1):
        raise SparsityError(f"sparsity={sparsity!r}: give the share of the weights that goes, in (0, 1), such as 0.5")
    if allocated not in allocation.NAMES:
        raise SparsityError(f"allocation={allocated!r}: give one of {', '.join(map(repr, allocation.NAMES))}")
    if allocated != "uniform" and (threshold is not None or pattern.fixed is not None):
        why = "a threshold" if threshold is not None else repr(pattern)
        raise SparsityError(f"allocation={allocated!r}: {why} says already what each layer loses; leave it out")
    if pattern.fixed is not None and threshold is not None:
        raise PatternError(f"{pattern!r} fixes how many weights go: leave threshold={threshold} out")
    if pattern.fixed is not None and not agrees(pattern, sparsity):
        raise PatternError(f"{pattern!r} has a sparsity of {pattern.fixed:g}: leave sparsity={sparsity} out")


def fitting(layers: Layers, pattern: Pattern) -> Layers:
    """Without the weights that the pattern can't divide."""
    odd = {n: why for n, layer in layers.chosen.items() if (why := pattern.misfit(layer.pattern_shape))}
    if odd and len(odd) == len(layers.chosen):
        said = "; ".join(f"{name}: {why}" for name, why in list(odd.items())[:5])
        raise PatternError(f"{pattern!r} fits no weight: {said}")
    return left_out(layers, {n: f"shape {layers.chosen[n].pattern_shape}: {why}" for n, why in odd.items()})


def left_out(layers: Layers, reasons: Mapping[str, str]) -> Layers:
    """Without some of the weights, for reasons."""
    chosen = {name: layer for name, layer in layers.chosen.items() if name not in reasons}
    return Layers(chosen=chosen, left={**layers.left, **reasons})


def reached(layers: Layers, found: Uses, how: How) -> Layers:
    """Without the weights of which the data say nothing, where the data have to."""
    if not how.needs:
        return layers
    reasons = {name: f"{found.odd[name]}, so its inputs are not known" for name in layers.chosen if name in found.odd}
    reasons |= {name: "no data come to it" for name in layers.chosen if name not in found.times}
    if len(reasons) == len(layers.chosen):
        raise DataError(f"the data reach none of the weights that are to be pruned: {', '.join(reasons)[:300]}")
    return left_out(layers, reasons)


def check_all_fit(layers: Layers) -> None:
    """Refuse weights that were asked for and have to stay dense.

    Raises:
        SparsityError: naming them all.
    """
    if odd := {name: reason for name, reason in layers.left.items() if reason.startswith(_MISFITS)}:
        said = "; ".join(f"{name}: {reason}" for name, reason in odd.items())
        raise SparsityError(
            f"{len(odd)} weights can't be pruned as asked: {said}. Name them in ignore=, or leave strict=True out"
        )


def named(importance: str | WeightCriterion, how: How) -> str:
    if importance == "auto":
        return "sparsegpt" if how.rate is None else type(how.rate).__name__.lower()
    if isinstance(importance, str):
        return importance
    named: Any = getattr(importance, "__name__", None)
    text = named if isinstance(named, str) else repr(importance)
    return type(importance).__name__ if " at 0x" in text else text
