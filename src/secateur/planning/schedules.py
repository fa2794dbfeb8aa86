"""Schedules for pruning bit by bit, with training in between: how much is left after each step.

A schedule is any callable ``(step, steps, final) -> left``: the share that is left after ``step`` of ``steps``, when
``final`` is to be left in the end.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from secateur.errors import PlanError
from secateur.planning.budget import Budget

Schedule = Callable[[int, int, float], float]


@dataclass(frozen=True)
class Linear:
    """Every step removes as much: 1 - (1 - final) step / steps.

    Example:
        >>> [Linear()(k, 4, 0.2) for k in range(5)]
        [1.0, 0.8, 0.6, 0.4, 0.2]
    """

    def __call__(self, step: int, steps: int, final: float) -> float:
        """What is left, in [final, 1]."""
        return _rounded(1 - (1 - final) * step / steps)


@dataclass(frozen=True)
class Cubic:
    """Much at first, ever less towards the end: final + (1 - final) (1 - step / steps)^3.

    Zhu & Gupta 2017, "To Prune, or Not to Prune: Exploring the Efficacy of Pruning for Model Compression",
    arXiv:1710.01878, equation 1, from a sparsity of 0. Differs: what is left of any cost, not of the weights.

    Example:
        >>> [Cubic()(k, 2, 0.2) for k in range(3)]
        [1.0, 0.3, 0.2]
    """

    def __call__(self, step: int, steps: int, final: float) -> float:
        """What is left, in [final, 1]."""
        return _rounded(final + (1 - final) * (1 - step / steps) ** 3)


@dataclass(frozen=True)
class Geometric:
    """Every step removes the same share of what is left: final^(step / steps).

    Frankle & Carbin 2019, "The Lottery Ticket Hypothesis", arXiv:1803.03635: rounds of 20 % of the rest.

    Example:
        >>> [Geometric()(k, 2, 0.25) for k in range(3)]
        [1.0, 0.5, 0.25]
    """

    def __call__(self, step: int, steps: int, final: float) -> float:
        """What is left, in [final, 1]."""
        return _rounded(final ** (step / steps))


NAMED: dict[str, Schedule] = {"linear": Linear(), "cubic": Cubic(), "geometric": Geometric()}


def names() -> list[str]:
    """Names of schedules."""
    return list(NAMED)


def schedule(choice: str | Schedule) -> Schedule:
    """The schedule that a name or an object stands for.

    Raises:
        PlanError: nobody knows the name; the message has the names and the nearest.
    """
    if callable(choice):
        return choice
    if choice not in NAMED:
        near = difflib.get_close_matches(str(choice), NAMED, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise PlanError(
            f"no schedule is called {choice!r}; known are {', '.join(NAMED)}, or any callable (step, steps, final)."
            f"{hint}"
        )
    return NAMED[choice]


def budgets(
    final: Budget, choice: str | Schedule = "cubic", *, steps: int, dense: Mapping[str, int] | None = None
) -> list[Budget]:
    """The budgets that lead to a final one, a step at a time.

    Args:
        final: what to reach in the end; the last budget is this one.
        choice: "linear", "cubic" or "geometric", or a callable ``(step, steps, final) -> left``.
        steps: how many budgets, at least 1.
        dense: costs of the original, ``graph.cost()``, and its "latency" in nanoseconds where the budget has one: the
            budgets are then absolute, for pruning a model that is smaller already. Without it they are fractions of the
            original, for plans that all start from its graph.

    Raises:
        PlanError: an unknown schedule, one that goes outside of (0, 1] or up again, or an absolute amount without
            ``dense``.

    Example:
        >>> [b.macs for b in budgets(Budget(macs=0.2), "linear", steps=2)]
        [0.6, 0.2]
        >>> [b.params for b in budgets(Budget(params="20k"), "linear", steps=2, dense={"params": 100_000})]
        [60000, 20000]
    """
    if type(steps) is not int or steps < 1:
        raise PlanError(f"steps={steps!r}: give the number of steps, from 1")
    shares = _shares(final, dense)
    paths = {kind: _path(schedule(choice), steps, share) for kind, share in shares.items()}
    if dense is None:
        return [*(Budget(**{kind: path[k] for kind, path in paths.items()}) for k in range(steps - 1)), final]
    amounts = {kind: [_amount(kind, left * dense[kind]) for left in path] for kind, path in paths.items()}
    return [Budget(**{kind: path[k] for kind, path in amounts.items()}) for k in range(steps)]


def _amount(kind: str, amount: float) -> int | str:
    whole = max(1, int(amount + 1e-6))
    return f"{whole}ns" if kind == "latency" else whole


def _shares(final: Budget, dense: Mapping[str, int] | None) -> dict[str, float]:
    """The final budget as fractions of the original."""
    if dense is None:
        absolute = [f"{kind}={amount!r}" for kind, amount in final.given.items() if not isinstance(amount, float)]
        if absolute:
            times = ' | {"latency": nanoseconds}' if isinstance(final.latency, str) else ""
            raise PlanError(
                f"{' and '.join(absolute)}: steps towards an absolute budget need the costs of the original: "
                f"dense=graph.cost(){times}"
            )
        return {kind: float(amount) for kind, amount in final.given.items()}
    lost = [kind for kind in final.given if kind not in dense]
    if lost:
        times = ' and its "latency" in nanoseconds' if "latency" in lost else ""
        raise PlanError(
            f"dense={dict(dense)} lacks {' and '.join(lost)}, which the budget is of: pass graph.cost(){times}"
        )
    return {kind: min(1.0, target / max(dense[kind], 1)) for kind, target in final.targets(dense).items()}


def _path(follow: Schedule, steps: int, final: float) -> list[float]:
    """What is left after each step; the last is exactly what is wanted."""
    path = [*(float(follow(k, steps, final)) for k in range(1, steps)), final]
    if not all(0 < left <= 1 for left in path) or path != sorted(path, reverse=True):
        raise PlanError(
            f"the schedule {follow!r} leaves {path} on the way to {final:g}: shares must lie in (0, 1] and never rise"
        )
    return path


def _rounded(left: float) -> float:
    """Without the noise of the last digits, so that budgets read well."""
    return round(left, 12)
