"""A public suite that every criterion must pass, a user's own included."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.found import Inputs
from secateur.calibration.statistics import NEEDS
from secateur.errors import ScoreError
from secateur.importance.members import Member
from secateur.importance.protocols import AxisCriterion, Criterion, needs
from secateur.importance.rating import rate_axis
from secateur.importance.views import AxisView, Use


def check_importance(rate: Criterion, *, uses_weight: bool | None = None) -> None:
    """Test a criterion on small axes: shape, finite, deterministic, input untouched, what it claims to use matters.

    Args:
        rate: the criterion.
        uses_weight: whether changing a unit's weights must change the scores (False for a random control). None: unless
            the criterion needs data.

    Raises:
        ScoreError: naming the first property that fails.

    Example:
        >>> from secateur.importance import Magnitude, check_importance
        >>> check_importance(Magnitude(p=1.0))
    """
    asked = needs(rate)
    if unknown := asked - set(NEEDS):
        raise ScoreError(f"{rate!r} needs {', '.join(sorted(unknown))}; what data can give is {', '.join(NEEDS)}")
    for units, rest in ((5, 7), (4, 1), (1, 3)):
        axis = _axis(units, rest, asked)
        before = [values.clone() for values in _inputs(axis)]
        values = _rated(rate, axis)
        same = all(torch.equal(a, b) for a, b in zip(before, _inputs(axis), strict=True))
        _demand(rate, same, "changed the weights that it was shown, or the statistics")
        again = _rated(rate, _axis(units, rest, asked))
        _demand(rate, torch.equal(values, again), "is not deterministic: two calls on the same member differ")
        if units == 1:
            continue  # nothing to compare a unit with
        if uses_weight if uses_weight is not None else not asked:
            changed = _rated(rate, _heavier(axis))
            seen = not torch.equal(values, changed)
            _demand(rate, seen, "does not see a unit's weights: tripling them left its score")
        for need in sorted(asked):
            seen = any(not torch.equal(values, _rated(rate, other)) for other in _changes(axis, need))
            _demand(rate, seen, f"does not see what it says that it needs: other {need} left its scores as they were")


def _rated(rate: Criterion, axis: AxisView) -> Tensor:
    """Scores of the criterion itself, not of its fallback."""
    if isinstance(rate, AxisCriterion):
        given: Any = rate.of_axis(axis)
    else:
        given = rate(axis.members[0])
    shaped = isinstance(given, Tensor) and given.shape == (axis.size,)
    _demand(rate, shaped, f"gave no vector of {axis.size} scores")
    sound = given.is_floating_point() and bool(torch.isfinite(given).all())
    _demand(rate, sound, "gave scores that are not finite floats")
    if not isinstance(rate, AxisCriterion):
        return given.detach().clone()  # it may be a view of the weights
    return rate_axis(axis, rate)[0].clone()


def _draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _axis(units: int, rest: int, asked: frozenset[str]) -> AxisView:
    """An axis with one member, and one use of a weight: two features a unit, three outputs."""
    generator = torch.Generator().manual_seed(units)
    weight = _draw(generator, units, rest)
    member = Member(
        axis="norm.weight:0",
        name="norm.weight",
        dim=0,
        tensor=weight,
        module=nn.BatchNorm2d,
        role="weight",
        slopes=_draw(generator, units, rest) if "gradients" in asked else None,
    )
    if not asked:
        return AxisView(name="norm.weight:0", size=units, members=[member])
    x = _draw(generator, 11, units * 2).double()
    use = Use(
        name="next.weight",
        at=torch.arange(units * 2).reshape(units, 2),
        matrix=_draw(generator, 1, units * 2, 3),
        inputs=Inputs.of(x, 1),
        gram=(x.T @ x)[None] / len(x) if "gram" in asked else None,
        sensitivity=_draw(generator, 1, 3).double().abs() if "sensitivity" in asked else None,
    )
    gates = _draw(generator, 9, units)
    found = {
        "softmax": _draw(generator, units).softmax(0),
        "gate": gates.mean(0),
        "gate_magnitude": gates.abs().mean(0),
        "gate_square": gates.square().mean(0),
    }
    return AxisView(name="norm.weight:0", size=units, members=[member], asked=asked, consumers=[use], found=found)


def _inputs(axis: AxisView) -> Iterator[Tensor]:
    for member in axis.members:
        yield from (t for t in (member.tensor, member.slopes) if t is not None)
    for use in axis.consumers:
        yield from (
            t for t in (use.matrix, use.gram, use.sensitivity, *vars(use.inputs).values()) if isinstance(t, Tensor)
        )
    yield from axis.found.values()


def _heavier(axis: AxisView) -> AxisView:
    """The first unit's weights tripled, where it is made and where it is used."""
    factor = torch.ones(axis.size, 1)
    factor[0] = 3
    members = [replace(m, tensor=m.tensor * factor, known={}) for m in axis.members]
    uses = [replace(u, matrix=u.matrix * factor.repeat_interleave(2, 0)) for u in axis.consumers]
    return replace(axis, members=members, consumers=uses)


def _changes(axis: AxisView, need: str) -> Iterator[AxisView]:
    """The axis with other values of what a need stands for, for the first unit or output: one by one, where they are
    several; a little more, and much more and much less, as ranks change only then.
    """
    for factor in (1.5, 1000.0, 0.001):
        if need == "gradients":
            members = [replace(m, slopes=None if m.slopes is None else _bent(m.slopes, factor)) for m in axis.members]
            yield replace(axis, members=members)
        elif need == "inputs":
            for name in ("total", "magnitude", "square", "positive"):
                bent = {name: _bent(getattr(axis.consumers[0].inputs, name), factor)}
                yield replace(axis, consumers=[replace(u, inputs=replace(u.inputs, **bent)) for u in axis.consumers])
        elif need in ("gram", "sensitivity"):
            yield replace(axis, consumers=[_other(use, need, factor) for use in axis.consumers])
        else:
            for name in ("softmax",) if need == "softmax" else ("gate", "gate_magnitude", "gate_square"):
                yield replace(axis, found={**axis.found, name: _bent(axis.found[name], factor)})


def _other(use: Use, need: str, factor: float) -> Use:
    if need == "gram" and use.gram is not None:
        return replace(use, gram=_bent(_bent(use.gram, factor).mT, factor).mT)
    return use if use.sensitivity is None else replace(use, sensitivity=_bent(use.sensitivity.mT, factor).mT)


def _bent(values: Tensor, factor: float) -> Tensor:
    """The same, but for the first entry of the first dim, or of the second where the first is of length 1."""
    bent = values.clone()
    bent.select(0 if len(values) > 1 else 1, 0).mul_(factor)
    return bent


def _demand(rate: Criterion, holds: bool, failing: str) -> None:
    if not holds:
        raise ScoreError(f"{rate!r} {failing}")
