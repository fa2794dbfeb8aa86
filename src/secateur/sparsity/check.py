"""A public suite that every criterion for single weights must pass, a user's own included."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from secateur.errors import ScoreError
from secateur.sparsity.criteria import WeightCriterion, WeightView, criterion, needs, scored
from secateur.sparsity.statistics import Statistics

SHAPES = ((4, 6, 1), (3, 1, 1), (1, 5, 1), (4, 3, 2))  # outputs, columns, groups


def check_criterion(rate: WeightCriterion, *, uses_weight: bool = True) -> None:
    """Test a criterion on small weights: shape, finite, deterministic, its input untouched, what it claims to use
    matters, and weights and data that are zero do no harm.

    Args:
        rate: the criterion.
        uses_weight: whether other weights must give other scores (False for a random control).

    Raises:
        ScoreError: naming the first property that fails.

    Example:
        >>> import secateur as sc
        >>> sc.sparsity.check_criterion(lambda view: view.weight.square())
    """
    criterion(rate)
    for shape in SHAPES:
        view = _view(*shape)
        before = [t.clone() for t in _tensors(view)]
        scores = scored(rate, view).clone()
        same = all(torch.equal(a, b) for a, b in zip(before, _tensors(view), strict=True))
        _demand(rate, same, "changed the weights that it was shown, or the statistics")
        again = scored(rate, _view(*shape))
        _demand(rate, torch.equal(scores, again), "is not deterministic: two calls on the same weight differ")
        scored(rate, _nothing(view))
        if uses_weight:
            seen = any(not torch.equal(scores, scored(rate, other)) for other in _weights(view))
            _demand(rate, seen, "does not see the weights: others left its scores as they were")
        for need in sorted(needs(rate)):
            seen = any(not torch.equal(scores, scored(rate, other)) for other in _changes(view, need))
            _demand(rate, seen, f"does not see what it says that it needs: other {need} left its scores as they were")


def _view(rows: int, cols: int, groups: int) -> WeightView:
    """A weight with all that data can say of it."""
    generator = torch.Generator().manual_seed(rows)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    found = Statistics(samples=7, gradient=draw(rows, cols).double(), fisher=draw(rows, cols).double().square())
    found.add(draw(11, groups, cols), gram=True)
    return WeightView(name="layer.weight", weight=draw(rows, cols), groups=groups, statistics=found)


def _tensors(view: WeightView) -> Iterator[Tensor]:
    found = view.statistics
    yield from (t for t in (view.weight, found.square, found.gram, found.gradient, found.fisher) if t is not None)


def _nothing(view: WeightView) -> WeightView:
    """All zero: weights that were pruned before, inputs that are never other than zero."""
    found = view.statistics
    empty = {n: torch.zeros_like(getattr(found, n)) for n in ("square", "gram", "gradient", "fisher")}
    return replace(view, weight=torch.zeros_like(view.weight), statistics=replace(found, **empty))


def _weights(view: WeightView) -> Iterator[WeightView]:
    """The view with another first weight."""
    for factor in (3.0, 1000.0):
        yield replace(view, weight=_bent(view.weight, factor))


def _changes(view: WeightView, need: str) -> Iterator[WeightView]:
    """The view with other values of what a need stands for: a little more, and much more and much less, as ranks change
    only then.
    """
    parts = {"inputs": "square", "gram": "gram", "gradients": "gradient", "fisher": "fisher"}
    for factor in (1.5, 1000.0, 0.001):
        values = getattr(view.statistics, parts[need])
        yield replace(view, statistics=replace(view.statistics, **{parts[need]: _bent(values, factor)}))


def _bent(values: Tensor, factor: float) -> Tensor:
    """The same, but for the first number."""
    bent = values.clone()
    bent.view(-1)[0] *= factor
    return bent


def _demand(rate: WeightCriterion, holds: bool, failing: str) -> None:
    if not holds:
        raise ScoreError(f"{rate!r} {failing}")
