"""``sc.score``: one vector of scores for each axis."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from secateur.errors import ModelError, ScoreError, UnknownImportance
from secateur.graph import Graph
from secateur.importance.criteria import BatchNormScale, Magnitude, Random
from secateur.importance.members import Member, Weights, members
from secateur.modules import named_parameters


class Criterion(Protocol):
    """Any callable that scores one member."""

    def __call__(self, member: Member, /) -> Tensor:
        """Score one member, (units, rest) -> (units,)."""
        ...


NAMED: dict[str, Callable[[int], Criterion]] = {
    "l1": lambda seed: Magnitude(p=1.0),
    "l2": lambda seed: Magnitude(p=2.0),
    "bn_scale": lambda seed: BatchNormScale(),
    "random": lambda seed: Random(seed=seed),
}


def names() -> list[str]:
    """Names that ``importance=`` knows, besides "auto" (now: "l2")."""
    return list(NAMED)


def criterion(importance: "str | Criterion", seed: int = 0) -> Criterion:
    """The criterion that a name or an object stands for.

    Raises:
        UnknownImportance: nobody knows the name; the message has the names and the nearest.
    """
    if not isinstance(importance, str):
        if not callable(importance):
            raise UnknownImportance(
                f"importance={importance!r} is neither a name ({', '.join(names())}) nor a callable on a member"
            )
        return importance
    if importance == "auto":
        return NAMED["l2"](seed)
    if importance not in NAMED:
        near = difflib.get_close_matches(importance, NAMED, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownImportance(
            f"no importance is called {importance!r}; known are auto, {', '.join(names())}, or any callable.{hint}"
        )
    return NAMED[importance](seed)


def score(
    model: nn.Module, graph: Graph, importance: "str | Criterion" = "auto", *, seed: int = 0
) -> dict[str, Tensor]:
    """How much each unit contributes.

    Args:
        model: the model that was traced, or one of the same architecture with other weights.
        graph: what `trace` found.
        importance: a name of `importance.names`, an object, or any callable on a `Member`.
        seed: for criteria that draw random numbers.

    Returns:
        For each prunable axis a float32 vector (units,), higher = kept longer.

    Raises:
        UnknownImportance: nobody knows the name.
        ScoreError: the criterion gave something that is no score.
        ModelError: the weights hold NaN or infinity, or are on the meta device.
    """
    rate = criterion(importance, seed)
    check_loaded(model)
    weights = Weights.of(model)
    _check_fit(type(model).__name__, weights.parameters, graph)
    found = {axis: list(members(model, graph, axis, weights)) for axis in graph.axes}
    scores = {axis: _score(graph, axis, rate, found[axis]) for axis in graph.axes}
    if scores and not torch.cat(list(scores.values())).isfinite().all():
        check_weights(model)
        bad = [axis for axis, values in scores.items() if not torch.isfinite(values).all()]
        raise ScoreError(f"{rate!r} gave scores that are not finite on {len(bad)} axes, {bad[0]} first")
    return scores


def _check_fit(model: str, parameters: Mapping[str, Tensor], graph: Graph) -> None:
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    wrong = [n for n, t in graph.tensors.items() if t.parameter and shapes.get(n) != t.shape]
    if wrong:
        got = shapes.get(wrong[0], "missing")
        raise ModelError(
            f"the graph is of another architecture ({graph.model}) than this {model}: "
            f"{len(wrong)} parameters differ; {wrong[0]} is {got}, traced as {graph.tensors[wrong[0]].shape}. "
            "Score the model that was traced."
        )


def _score(graph: Graph, axis: str, rate: Criterion, found: list[Member]) -> Tensor:
    total = _sum(axis, graph.axes[axis].size, found, rate)
    fallback: Criterion | None = getattr(rate, "fallback", None)
    return _sum(axis, graph.axes[axis].size, found, fallback) if fallback is not None and not total.any() else total


def _sum(axis: str, size: int, found: list[Member], rate: Criterion) -> Tensor:
    total = torch.zeros(size)
    for member in found:
        values: Any = rate(member)  # a user's own function may give anything
        if not isinstance(values, Tensor) or tuple(values.shape) != (size,) or not values.is_floating_point():
            got = (
                f"{values.dtype} of shape {tuple(values.shape)}"
                if isinstance(values, Tensor)
                else type(values).__name__
            )
            raise ScoreError(
                f"{rate!r} gave {got} for {member.name}:{member.dim} on axis {axis}; a score is a float "
                f"tensor of shape ({size},)"
            )
        total += values.detach().float().cpu()
    return total


def check_loaded(model: nn.Module) -> None:
    """Refuse a model on the meta device.

    Raises:
        ModelError: saying what can be done with one.
    """
    if any(p.is_meta for p in named_parameters(model).values()):
        raise ModelError(
            f"{type(model).__name__} is on the meta device, where weights have no values: sc.trace follows it, but to "
            "score and to prune it the weights must be loaded"
        )


def check_weights(model: nn.Module) -> None:
    """Refuse weights that are not there, or are NaN or infinite; all of them at once.

    Raises:
        ModelError: naming the parameters.
    """
    check_loaded(model)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    bad = [name for name, p in parameters.items() if not torch.isfinite(p).all()]
    if not bad:
        return
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    raise ModelError(
        f"NaN or infinite weights in {', '.join(bad[:5])}{more}: a model that computes nothing can't be pruned. "
        "Load sound weights."
    )
