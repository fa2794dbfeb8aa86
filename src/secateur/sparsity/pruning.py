"""One weight pruned: a pure function of the weight, what data said of it, and how it is to be done.

Shape letters: G groups, O outputs, C columns.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from secateur.errors import PatternError
from secateur.sparsity import obs, refining
from secateur.sparsity.criteria import WeightCriterion, WeightView, needs, scored, within_rows
from secateur.sparsity.patterns import Pattern
from secateur.sparsity.statistics import rank_bound

METHODS = ("sparsegpt", "alps", "sparsegpt+alps")
"""How weights that stay can make up for those that go."""


@dataclass(frozen=True, kw_only=True)
class How:
    """How weights are pruned.

    Attributes:
        pattern: which may go together.
        rate: the criterion; None for the one that SparseGPT has of its own.
        compensate: one of `METHODS`, or None.
        threshold: times the mean score, below which a weight goes; None where a number of weights goes.
    """

    pattern: Pattern
    rate: WeightCriterion | None
    compensate: str | None = None
    threshold: float | None = None

    @property
    def needs(self) -> frozenset[str]:
        """What it takes of the data."""
        return needs(self.rate) | (frozenset({"inputs", "gram"}) if self.compensate else frozenset())


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A pruned weight.

    Attributes:
        weight: (O, C), in the precision that was calculated in.
        mask: bool (O, C), True = stays.
        notes: what the reader should know, in words.
    """

    weight: Tensor
    mask: Tensor
    notes: tuple[str, ...] = ()


def prune_weight(view: WeightView, how: How, remove: int | None = None) -> Pruned:
    """Prune one weight.

    Args:
        view: the weight as a matrix, with what `How.needs`.
        remove: how many numbers go; None where there is a threshold, or the pattern fixes it.

    Raises:
        ScoreError: the criterion's scores are none.
        PatternError: the pattern does not fit.

    Example:
        >>> from secateur.sparsity import Unstructured
        >>> from secateur.sparsity.criteria import Magnitude
        >>> view = WeightView(name="weight", weight=torch.tensor([[1.0, -3.0], [2.0, 0.5]]))
        >>> prune_weight(view, How(pattern=Unstructured(), rate=Magnitude()), 2).weight
        tensor([[ 0., -3.],
                [ 2.,  0.]])
    """
    mask = None if how.rate is None else _mask(view, how, how.rate, remove)
    if how.compensate is None:
        assert mask is not None
        return Pruned(weight=_masked(view.weight, mask), mask=mask)
    gram = view.statistics.gram
    assert gram is not None
    notes = _short(view)
    if "sparsegpt" in how.compensate:
        weight, mask, more = _surgery(view.weight, gram, mask, how.pattern, remove)
        notes += more
    else:
        assert mask is not None
        weight = view.weight.to(gram) * mask
    if "alps" in how.compensate:
        weight = by_groups(refining.refine, len(gram), (weight, view.weight.to(gram), mask), gram)
    return Pruned(weight=_masked(weight, mask), mask=mask, notes=notes)


def _masked(weight: Tensor, mask: Tensor) -> Tensor:
    """Zero off the mask, and no negative zero, whose bits would have to be stored."""
    return weight.masked_fill(~mask, 0.0)


def _mask(view: WeightView, how: How, rate: WeightCriterion, remove: int | None) -> Tensor:
    scores = scored(rate, view)
    if how.threshold is None:
        return how.pattern.mask(scores, remove=remove, within_rows=within_rows(rate))
    return how.pattern.mask(scores, remove=below(scores, how.pattern, how.threshold))


def below(scores: Tensor, pattern: Pattern, threshold: float) -> int:
    """How many weights have a score, or lie in a block with a mean, below so many times the mean of all.

    Raises:
        PatternError: the pattern fixes how many go.
    """
    if pattern.fixed is not None:
        raise PatternError(f"{pattern!r} fixes how many weights go: leave threshold={threshold} out")
    rows, cols = pattern.size
    cells = scores.unflatten(1, (-1, cols)).unflatten(0, (-1, rows)).mean((1, 3))
    return int((cells < threshold * scores.mean()).sum()) * prod(pattern.size)


def _short(view: WeightView) -> tuple[str, ...]:
    """A note where the Gram matrix can't have full rank."""
    columns, rank = view.weight.shape[1], rank_bound(view.statistics)
    if rank >= columns:
        return ()
    seen = (
        f"{view.statistics.rows} rows of data" if view.statistics.rows < columns else f"{rank} that are ever not zero"
    )
    return (f"rank-deficient: {columns} inputs, {seen}; the matrix is damped",)


def _surgery(
    dense: Tensor, gram: Tensor, mask: Tensor | None, pattern: Pattern, remove: int | None
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """SparseGPT on each group."""
    rows = len(dense) // len(gram)
    total, area = dense.numel(), prod(pattern.size)
    units = 0 if remove is None else remove // area
    weights, masks, damped = list[Tensor](), list[Tensor](), obs.DAMPING

    def quota(seen: int) -> int:
        """Weights that have gone when so many were decided upon."""
        return area * ((2 * units * seen + total) // (2 * total))

    for group, part in enumerate(dense.split(rows)):
        done = group * part.numel()

        def choose(scores: Tensor, start: int, done: int = done) -> Tensor:
            if pattern.fixed is not None:
                return pattern.mask(scores)
            first = done + start * rows
            return pattern.mask(scores, remove=quota(first + scores.numel()) - quota(first))

        own = None if mask is None else mask[group * rows : (group + 1) * rows]
        new, kept, damping = obs.solve(
            part, gram[group], own, choose, columns=pattern.columns, at_once=pattern.fixed is None
        )
        weights.append(new)
        masks.append(kept)
        damped = max(damped, damping)
    notes = (f"no Cholesky factor at a damping of 1 %: damped by {damped:.0%}",) if damped > obs.DAMPING else ()
    return (*((weights[0], masks[0]) if len(masks) == 1 else (torch.cat(weights), torch.cat(masks))), notes)


def by_groups(function: Any, groups: int, matrices: tuple[Tensor, ...], gram: Tensor) -> Tensor:
    """A function of matrices (O, C) and a Gram matrix (C, C), called for each group."""
    rows = len(matrices[0]) // groups
    parts = zip(*(m.split(rows) for m in matrices), strict=True)
    return torch.cat([function(*part, gram[group]) for group, part in enumerate(parts)])


def output_error(weight: Tensor, dense: Tensor, gram: Tensor) -> tuple[float, float]:
    """Squared error of a pruned weight's outputs, and the squared size of the dense ones', over the Gram's data."""
    zeros = torch.zeros_like(dense)
    squared = by_groups(refining.error, len(gram), (weight, dense), gram).sum()
    size = by_groups(refining.error, len(gram), (zeros, dense), gram).sum()
    return max(float(squared), 0.0), float(size)
