"""Is a plan still good? Judged by results on labelled data where there are any, else by scores and overlap."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secateur.replaying.agreement import Stability
from secateur.reporting.numbers import percent, plain

POINTS = 0.01  # of accuracy, in [0, 1], that the replayed network may lie behind one that was pruned afresh
LOSS = 0.02  # share by which its loss may lie above that one's, where there is no accuracy
CORRELATION = (0.8, 0.5)  # of old and new scores: from here on good, below that bad
AGREEMENT = (0.6, 0.4)  # of the plans, beyond chance: "substantial" and below "moderate", Landis and Koch 1977


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an old plan is still good.

    Attributes:
        status: "still good", "doubtful" or "prune afresh".
        advice: the same with its reasons, in a sentence or two.
        dense, replayed, fresh: results on labelled data of the new dense network, of the replayed one and of one that
            was pruned afresh to the same cost: ``{"loss": ..., "accuracy": ...}``. Empty without such data.
    """

    status: str
    advice: str
    dense: Mapping[str, float]
    replayed: Mapping[str, float]
    fresh: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in report.json."""
        return {**vars(self), **{name: dict(getattr(self, name)) for name in ("dense", "replayed", "fresh")}}


def verdict(
    found: Stability,
    dense: Mapping[str, float] | None = None,
    replayed: Mapping[str, float] | None = None,
    fresh: Mapping[str, float] | None = None,
) -> Verdict:
    """Judge a plan.

    With results of the replayed network and of one pruned afresh, these decide: as far as `POINTS` of accuracy behind
    (or a loss `LOSS` above, where there is no accuracy) is still good, more is not. Without them every figure that is
    known must be at least the first number of `CORRELATION` and of `AGREEMENT`; one below the second number is reason
    to prune afresh, anything between is doubtful.

    Args:
        found: how the plan agrees with a fresh one.
        dense, replayed, fresh: results on the same labelled data, as `secateur.tuning.evaluate` gives them.
    """
    results = {"dense": dense or {}, "replayed": replayed or {}, "fresh": fresh or {}}
    if replayed and fresh:
        status, why = _by_results(results)
    else:
        status, why = _by_figures(found)
    drop = _drop(results)
    return Verdict(status=status, advice=" ".join(filter(None, [why, drop, _next(status)])), **results)


def _by_results(results: Mapping[str, Mapping[str, float]]) -> tuple[str, str]:
    replayed, fresh = results["replayed"], results["fresh"]
    if "accuracy" in replayed and "accuracy" in fresh:
        behind = fresh["accuracy"] - replayed["accuracy"]
        good, amount = round(behind, 9) <= POINTS, f"{100 * abs(behind):.1f} points"
        bound = f"{100 * POINTS:g} point"
    else:
        behind = replayed["loss"] - fresh["loss"]
        good = round(behind, 9) <= LOSS * abs(fresh["loss"])
        amount, bound = f"a loss of {plain(replayed['loss'])} instead of {plain(fresh['loss'])}", percent(LOSS)
    side = "as good as" if not behind else "behind" if behind > 0 else "ahead of"
    said = f"it is {side} a network pruned afresh to the same cost" + (f" ({amount})" if behind else "")
    if good:
        return "still good", f"Still good: {said}; up to {bound} behind counts as that."
    return "prune afresh", f"Prune afresh: {said}, and more than {bound} is too much."


def _by_figures(found: Stability) -> tuple[str, str]:
    figures = [
        ("the rank correlation of old and new scores", found.correlation, CORRELATION),
        ("the agreement with a fresh plan beyond chance", found.agreement, AGREEMENT),
    ]
    known = [(name, value, good, bad) for name, value, (good, bad) in figures if value is not None]
    if not known:
        return "doubtful", f"Doubtful: there is nothing to judge by. {found.left_out}".rstrip()
    worst = min(known, key=lambda item: (item[1] >= item[3]) + (item[1] >= item[2]))
    name, value, good, bad = worst
    if value >= good:
        said = " and ".join(f"{name} is {value:.2f} (good from {good})" for name, value, good, _ in known)
        return "still good", f"Still good: {said}."
    if value >= bad:
        return "doubtful", f"Doubtful: {name} is {value:.2f}, between {bad} (bad) and {good} (good)."
    return "prune afresh", f"Prune afresh: {name} is {value:.2f}, below {bad}."


def _drop(results: Mapping[str, Mapping[str, float]]) -> str:
    dense, replayed = results["dense"], results["replayed"]
    if "accuracy" in dense and "accuracy" in replayed:
        worse = dense["accuracy"] - replayed["accuracy"]
        change = f"{100 * abs(worse):.1f} points {'less' if worse > 0 else 'more'} than" if worse else "the same as"
        return f"Its accuracy on the validation data is {percent(replayed['accuracy'])}, {change} the dense network's."
    if "loss" in dense and "loss" in replayed:
        return (
            f"Its loss on the validation data is {plain(replayed['loss'])}, the dense network's {plain(dense['loss'])}."
        )
    return ""


def _next(status: str) -> str:
    """What to do."""
    return {
        "doubtful": "Labelled data decides: give some (--data, validate= in Python), or prune afresh and compare.",
        "prune afresh": "secateur prune makes a new plan.",
    }.get(status, "")
