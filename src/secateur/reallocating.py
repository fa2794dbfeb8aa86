"""``sc.reallocate``: width goes from axes that don't need it to those that do, at the same cost."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from secateur.calibration.batches import Forward
from secateur.errors import NothingToPrune, PlanError, ProofFailed, SurgeryError
from secateur.graph import Graph
from secateur.growing import culprits, finished, hindrance
from secateur.importance import Criterion, score
from secateur.importance.scoring import check_weights
from secateur.modules import Walk
from secateur.objectives import Loss
from secateur.planning import Budget, Plan, limits, make_plan
from secateur.planning.choosing import Lane
from secateur.planning.limits import Count, Share
from secateur.planning.moving import Move, units
from secateur.planning.planning import choose_axes, lanes_of
from secateur.proof import check_outputs, prove
from secateur.pruning import ROUNDS, Result, in_words, without
from secateur.tracing import trace
from secateur.tracing.shadow import check_kind

WITHIN = 0.01  # of the budget, below it


@dataclass(frozen=True, kw_only=True)
class Reallocation(Result):
    """What reallocating gave: a `Result` that also shows why.

    Attributes:
        importance: the mean score of the units of each axis, before.
    """

    importance: dict[str, float]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of each axis: name, kind, mean score of a unit, and width before and after."""
        return [{**row, "importance": self.importance.get(row["name"])} for row in self.axes]


def reallocate(
    model: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    data: Iterable[Any] | None = None,
    importance: str | Criterion = "auto",
    budget: Budget | None = None,
    loss: Loss | None = None,
    max_share: Share = 0.75,
    max_growth: float = 4.0,
    min_units: Count = 1,
    only: Iterable[str] = (),
    ignore: Iterable[str] = (),
    noise: float = 0.5,
    seed: int = 0,
    forward: Forward | None = None,
    keep_class: bool = False,
) -> Reallocation:
    """A model of other widths at the same cost: units go where they matter least for what they cost, and units are
    repeated where they matter most. One plan does both, proved like a pruning.

    A unit that goes loses its score. One that comes is worth no more than the least of those that are there, and less
    the more come. Width moves from the least loss to the largest gain, each per cost, as long as the gain is larger. So
    scores have to be in one unit on all axes, and say what is lost when the other units make up for a unit as well as
    they can: those of "reconstruction" do both ("fisher" and "taylor", changes of the loss, only the first). Copies
    differ by noise that leaves the function as it is, as in `grow`; then train.

    Args:
        model: any module, trained.
        args, kwargs: example inputs; the MACs are of these.
        data: batches with labels, for criteria that need them.
        importance: a name of `importance.names`, an object, or any callable on a `Member`.
        budget: what the result may cost, of one kind; ``Budget(macs=1.0)``, the cost of the model, where none is given.
            It is met within 1 %, from below.
        loss: ``(output, target) -> scalar``; by default the model's own, else cross-entropy.
        max_share: largest share of an axis's units that may be removed, in (0, 1]; or a share for each pattern.
        max_growth: largest width of an axis, as a multiple of its own, from 1.
        min_units, only, ignore, keep_class: as in `plan`.
        noise: as in `grow`.
        seed: of the noise, and of criteria that draw random numbers.
        forward: ``(model, batch) -> output``, where the model's inputs are not the batch's.

    Returns:
        A `Reallocation`, whose table has each axis's importance, and its width before and after. Axes that a mean or a
        variance runs over (the stream between LayerNorms) may get narrower, but not wider.

    Raises:
        TraceError, ModelError, ScoreError, DataError, PlanError, NothingToPrune: as in `prune`.
        PlanError: a budget of several kinds or of latency, limits out of range, or a budget that can't be met.
        ProofFailed: no plan passes the proof.

    Example:
        >>> import torch, secateur as sc
        >>> from torch.nn import Linear, ReLU, Sequential
        >>> _ = torch.manual_seed(0)
        >>> net = Sequential(Linear(16, 3), ReLU(), Linear(3, 60), ReLU(), Linear(60, 9))
        >>> x = torch.randn(256, 16)
        >>> result = sc.reallocate(net, x, data=[x])
        >>> [row["before"] for row in result.axes], result.axes[0]["after"] > 3, result.axes[1]["after"] < 60
        ([3, 60], True, True)
    """
    budget = budget or Budget(macs=1.0)
    _check(budget, max_growth, noise)
    check_kind(Walk(model))
    check_weights(model)
    check_outputs(model, args, kwargs)
    graph = trace(model, args, kwargs)
    data = list(data) if isinstance(data, Iterator) else data
    scores = score(model, graph, importance, data, loss, seed=seed, forward=forward)
    how: dict[str, Any] = {
        "max_share": max_share,
        "max_growth": max_growth,
        "min_units": min_units,
        "only": only,
        "ignore": ignore,
        "keep_class": keep_class,
    }
    for _ in range(ROUNDS):
        made = replace(moved(graph, scores, budget, **how), noise=float(noise), seed=seed)
        try:
            new = made.apply(model)
            proof = prove(model, new, graph, made, args, kwargs)
        except (ProofFailed, SurgeryError) as error:
            graph = without(graph, culprits(model, graph, made, args, kwargs), f"the proof fails: {error}")
            if not graph.axes:
                raise NothingToPrune(f"every axis fails the proof; the last failure: {error}") from error
            continue
        done: dict[str, Any] = {"importance": in_words(importance, with_data=data is not None), "seed": seed}
        found = finished(model, new, graph, made, proof, dict(scores), args, kwargs, step="reallocate", **done)
        means = {name: float(scores[name].mean()) for name in graph.axes if name in scores}
        rows = [{**row, "importance": means.get(row["name"])} for row in found.axes]
        told: dict[str, Any] = {**vars(found), "report": found.report.replace(axes=rows)}
        return Reallocation(**told, importance=means)
    raise ProofFailed(f"no plan passes the proof after {ROUNDS} rounds; freeze modules with ignore=[...]")


def _check(budget: Budget, max_growth: float, noise: float) -> None:
    if len(budget.given) != 1 or "latency" in budget.given:
        raise PlanError(f"{budget}: give one of macs, params and bytes; the others follow")
    if not max_growth >= 1 or max_growth == float("inf"):
        raise PlanError(f"max_growth={max_growth}: give the largest width as a multiple of an axis's own, from 1")
    if not 0 <= noise <= 1:
        raise PlanError(f"noise={noise}: give a share of the weights' size, in [0, 1]")


def moving(
    graph: Graph,
    scores: Mapping[str, Tensor],
    budget: Budget,
    *,
    max_share: Share,
    max_growth: float,
    min_units: Count,
    only: Iterable[str],
    ignore: Iterable[str],
    keep_class: bool = False,
) -> Move:
    """The widths as they are, and how they may move.

    Raises:
        PlanError: the limits leave no room for the budget.
    """
    limits.check(min_units, 1, max_share)
    axes = choose_axes(graph, scores, only, ignore, keep_class)
    steps = {name: info.step for name, info in graph.axes.items()}
    lanes = lanes_of(graph, axes, scores, limits.fewest(graph, min_units, max_share), steps)
    ((kind, target),) = budget.targets(graph.cost()).items()
    most = [int(max_growth * ln.sizes[0]) if _grows(graph, ln) else ln.sizes[0] for ln in lanes]
    move = Move(lanes=lanes, costs=graph.costs, kind=kind, target=target, most=most)
    low, high = move.reach
    if low > target or high < (1 - WITHIN) * target:
        raise PlanError(f"{_missed(move)}: the limits allow {low:.4g} to {high:.4g}. {_advice(max_share, max_growth)}")
    return move


def moved(graph: Graph, scores: Mapping[str, Tensor], budget: Budget, **how: Any) -> Plan:
    """The plan that moves width, at the budget.

    Args:
        how: see `moving`.

    Raises:
        PlanError: the budget can't be met within the limits.
    """
    move = moving(graph, scores, budget, **how)
    widths = move.run()
    if not (1 - WITHIN) * move.target <= move.cost <= move.target:
        advice = _advice(how["max_share"], how["max_growth"])
        raise PlanError(f"{_missed(move)}: the nearest within the limits is {move.cost:.4g}. {advice}")
    return make_plan(graph, units(move.lanes, widths, scores))


def _missed(move: Move) -> str:
    return f"{move.kind}={move.target:.4g} can't be met within 1 %"


def _advice(max_share: Any, max_growth: float) -> str:
    return f"Raise max_share={max_share} or max_growth={max_growth}, or choose another budget."


def _grows(graph: Graph, ln: Lane) -> bool:
    """Whether an axis can have any number of units more."""
    infos = [graph.axes[name] for name in ln.axes]
    summed = {name for c in graph.consumers for name in c.axes}
    return summed.issuperset(ln.axes) and all(
        info.step == 1 and not info.normalising and not hindrance(info, info.size + 1) for info in infos
    )
