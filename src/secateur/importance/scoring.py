"""``sc.score``: one vector of scores for each axis."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.batches import Forward
from secateur.calibration.found import Statistics
from secateur.calibration.mixing import mixed
from secateur.calibration.statistics import LABELLED, NEEDS, collect
from secateur.errors import ModelError, ScoreError, UnknownImportance
from secateur.graph import Graph
from secateur.importance.activations import ActivationMean, ActivationVariance, Apoz, Softmax, Wanda
from secateur.importance.criteria import BatchNormScale, Fpgm, Lamp, Magnitude, Random
from secateur.importance.gradients import Fisher, Taylor, TaylorGate
from secateur.importance.members import Weights
from secateur.importance.protocols import Criterion, comparable, needs
from secateur.importance.rating import rate_axis
from secateur.importance.reconstruction import Reconstruction
from secateur.importance.views import view
from secateur.modules import named_parameters
from secateur.objectives import Loss
from secateur.protecting.settings import NAME, Protect, settled
from secateur.rebuilding import as_module

AUTO = {"without data": "l2", "with data": "reconstruction"}
"""What "auto" stands for: the best without data, and the best with data but without labels, as measured so far."""

NAMED: dict[str, Callable[[int], Criterion]] = {
    "l1": lambda seed: Magnitude(p=1.0),
    "l2": lambda seed: Magnitude(p=2.0),
    "lamp": lambda seed: Lamp(),
    "fpgm": lambda seed: Fpgm(),
    "bn_scale": lambda seed: BatchNormScale(),
    "taylor": lambda seed: Taylor(),
    "taylor_gate": lambda seed: TaylorGate(),
    "fisher": lambda seed: Fisher(),
    "activation": lambda seed: ActivationMean(),
    "flap": lambda seed: ActivationVariance(),
    "apoz": lambda seed: Apoz(),
    "softmax": lambda seed: Softmax(),
    "wanda": lambda seed: Wanda(),
    "reconstruction": lambda seed: Reconstruction(),
    "random": lambda seed: Random(seed=seed),
}
ALIASES = {"hessian": "fisher"}
"""The diagonal Hessian by a factor on each unit is estimated by Fisher's information: one formula."""


class Scores(dict[str, Tensor]):
    """For each prunable axis a float32 vector (units,), higher = kept longer.

    Attributes:
        comparable: scores of different axes have one unit, and can be ranked as they are.
        dead: axes with units whose activations were zero throughout the data, which are free to remove: how many.
        general: the scores on the general data alone, where others were protected; else None.
    """

    comparable: bool = False
    dead: Mapping[str, int]
    general: "Scores | None" = None

    def __init__(
        self, scores: Mapping[str, Tensor], *, comparable: bool = False, dead: Mapping[str, int] | None = None
    ):
        super().__init__(scores)
        self.comparable, self.dead = comparable, dead or {}


def names() -> list[str]:
    """Names that ``importance=`` knows, besides "auto" (see `AUTO`) and "hessian" (see `ALIASES`)."""
    return list(NAMED)


def criterion(importance: "str | Criterion", seed: int = 0, *, with_data: bool = False) -> Criterion:
    """The criterion that a name or an object stands for.

    Args:
        seed: for criteria that draw random numbers.
        with_data: what "auto" may use.

    Raises:
        UnknownImportance: nobody knows the name; the message has the names and the nearest.
    """
    if not isinstance(importance, str):
        if isinstance(importance, type):
            raise UnknownImportance(
                f"importance={importance.__name__} is a class: pass an instance, {importance.__name__}()"
            )
        if not (callable(importance) or hasattr(importance, "of_axis")):
            raise UnknownImportance(
                f"importance={importance!r} is neither a name ({', '.join(names())}) nor a callable on a member"
            )
        return importance
    if importance == "auto":
        importance = AUTO["with data" if with_data else "without data"]
    importance = ALIASES.get(importance, importance)
    if importance not in NAMED:
        near = difflib.get_close_matches(importance, NAMED, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownImportance(
            f"no importance is called {importance!r}; known are auto, {', '.join(names())}, or any callable.{hint}"
        )
    return NAMED[importance](seed)


def looks_at_data(importance: "str | Criterion") -> bool:
    """Whether a criterion looks at data; "auto" does where there are some."""
    return bool(needs(criterion(importance, with_data=True)))


def score(
    model: nn.Module,
    graph: Graph,
    importance: "str | Criterion" = "auto",
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    *,
    seed: int = 0,
    forward: Forward | None = None,
    protect: Any = None,
) -> Scores:
    """How much each unit contributes.

    Args:
        model: the model that was traced, or one of the same architecture with other weights.
        graph: what `trace` found.
        importance: a name of `importance.names`, an object, or any callable on a `Member`.
        data: batches, for criteria that look at activations or gradients; gone through once, one in memory at a time.
        loss: ``(output, target) -> scalar``, a mean over the batch, for criteria that need one; None takes the model's
            own (``output.loss``), else cross-entropy.
        seed: for criteria that draw random numbers.
        forward: ``(model, batch) -> output``, for batches of another form; the last item of a batch is its target.
        protect: data whose behaviour must not change, or `secateur.Protect`: scores are then those on both data sets,
            of which it makes up a share by weight; those on the general data alone are in ``general``.

    Returns:
        For each prunable axis a float32 vector (units,), higher = kept longer.

    Raises:
        UnknownImportance: nobody knows the name.
        ScoreError: the criterion gave something that is no score, or needs data or a loss and there is none; or data
            are to be protected and it looks at none.
        DataError: there is no batch, or one holds NaN or does not fit the model; naming it.
        ModelError: the weights hold NaN or infinity, or are on the meta device.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> batches = [(torch.randn(16, 4), torch.randint(2, (16,)))]
        >>> graph = sc.trace(net, torch.randn(1, 4))
        >>> {axis: scores.shape for axis, scores in sc.score(net, graph, "taylor", batches).items()}
        {'0.weight:0': torch.Size([8])}
    """
    guard = settled(protect, as_module(model), forward)
    hints = {"scores": importance}
    return score_all(model, graph, hints, data, loss, seed=seed, forward=forward, protect=guard)["scores"]


def score_all(
    model: nn.Module,
    graph: Graph,
    hints: "Mapping[str, str | Criterion]",
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    *,
    seed: int = 0,
    forward: Forward | None = None,
    protect: Protect | None = None,
) -> dict[str, Scores]:
    """What `score` gives for each of several criteria, all from one pass over the data.

    Args:
        hints: by any name: criteria, or names of them.
        model, graph, data, loss, seed, forward: see `score`.
        protect: what `secateur.protecting.settled` gave.
    """
    model = as_module(model)
    rates = {name: criterion(hint, seed, with_data=data is not None) for name, hint in hints.items()}
    check_loaded(model)
    weights = Weights.of(model)
    _check_fit(type(model).__name__, weights.parameters, graph)
    if protect is not None:
        _check_protects(rates, data)
    found = _statistics(model, graph, rates, data, loss, seed, forward)
    scores = _scored(model, graph, rates, weights, found)
    if protect is None or found is None or not protect.share:
        return scores
    special = _statistics(model, graph, rates, protect.batches, loss, seed, forward, name=NAME)
    assert special is not None  # the criteria need data
    both = _scored(model, graph, rates, weights, mixed(found, special, protect.share))
    for name, own in both.items():
        own.general = scores[name]
    return both


def _scored(
    model: nn.Module, graph: Graph, rates: Mapping[str, Criterion], weights: Weights, found: Statistics | None
) -> dict[str, Scores]:
    """What each criterion makes of the weights and of what a pass over data found."""
    scores: dict[str, dict[str, Tensor]] = {name: {} for name in rates}
    guessed: dict[str, list[str]] = {name: [] for name in rates}
    for axis in graph.axes:
        seen = view(model, graph, axis, weights, found)
        for name, rate in rates.items():
            scores[name][axis], fallen = rate_axis(seen, rate)
            guessed[name] += [axis] * fallen
    dead = {} if found is None else found.dead(graph)
    for name, rate in rates.items():
        if comparable(rate):
            _scale(scores[name], guessed[name])
        _check_finite(model, rate, scores[name])
    return {name: Scores(scores[name], comparable=comparable(rate), dead=dead) for name, rate in rates.items()}


def _check_protects(rates: Mapping[str, Criterion], data: Iterable[Any] | None) -> None:
    """Refuse criteria that can't tell data sets apart.

    Raises:
        ScoreError: saying what to do.
    """
    if data is None:
        raise ScoreError(
            "protect= compares what matters on the protected data with what matters in general, and there are no "
            "general data: pass data=[batch, ...], too"
        )
    blind = sorted({repr(rate) for rate in rates.values() if not needs(rate)})
    if blind:
        looking = ", ".join(name for name, make in NAMED.items() if needs(make(0)))
        raise ScoreError(
            f"{', '.join(blind)} looks at weights alone, so it can't tell what matters on the protected data: take "
            f"importance= of {looking}, or leave out protect="
        )


def _statistics(
    model: nn.Module,
    graph: Graph,
    rates: Mapping[str, Criterion],
    data: Iterable[Any] | None,
    loss: Loss | None,
    seed: int,
    forward: Forward | None,
    *,
    name: str = "calibration data",
) -> Statistics | None:
    """What a pass over the data finds of all that the criteria need; None where none needs any."""
    asked = {repr(rate): needs(rate) for rate in rates.values()}
    wanted = frozenset[str]().union(*asked.values())
    if unknown := wanted - set(NEEDS):
        raise ScoreError(f"a criterion needs {', '.join(sorted(unknown))}; what data can give is {', '.join(NEEDS)}")
    if not wanted:
        return None
    check_weights(model)
    if data is None:
        asking = ", ".join(who for who, what in asked.items() if what)
        raise ScoreError(
            f"{asking} can't be computed without data: pass data=[batch, ...], each a tensor, a mapping or "
            "(inputs, target)"
        )
    asking = ", ".join(who for who, what in asked.items() if what & LABELLED)
    return collect(
        model, graph, data, wanted, loss=loss, forward=forward, seed=seed, asking=asking or "criteria", name=name
    )


def _scale(scores: dict[str, Tensor], guessed: list[str]) -> None:
    """Bring scores of another unit to the mean score of those that are comparable."""
    known = [values for axis, values in scores.items() if axis not in guessed]
    mean = torch.cat(known).mean() if known else torch.tensor(1.0)
    for axis in guessed:
        own = scores[axis].mean()
        scores[axis] = scores[axis] * (mean / own) if own > 0 else scores[axis]


def _check_finite(model: nn.Module, rate: Criterion, scores: Mapping[str, Tensor]) -> None:
    if scores and not torch.cat(list(scores.values())).isfinite().all():
        check_weights(model)
        bad = [axis for axis, values in scores.items() if not torch.isfinite(values).all()]
        raise ScoreError(f"{rate!r} gave scores that are not finite on {len(bad)} axes, {bad[0]} first")


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
