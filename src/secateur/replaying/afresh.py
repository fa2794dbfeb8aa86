"""What would be done today: a fresh plan for the same cost, and the scores that the old one was made by."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from secateur.errors import ModelError, PlanError, ProofFailed
from secateur.graph import Graph
from secateur.importance import Criterion, score
from secateur.importance.keeping import KeptScores
from secateur.importance.protocols import needs
from secateur.importance.scoring import AUTO, NAMED
from secateur.importance.scoring import criterion as criterion_of
from secateur.inputs import Args, Kwargs
from secateur.planning import Budget
from secateur.pruning import Result, in_words, prune
from secateur.replaying.agreement import Stability, stability
from secateur.replaying.carrying_out import widths


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How units are scored; see `secateur.score`."""

    importance: str | Criterion
    data: Iterable[Any] | None
    further: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the criterion is called."""
        return in_words(self.importance, with_data=self.data is not None)

    def of(self, model: nn.Module, graph: Graph) -> Mapping[str, Tensor]:
        """The scores of a model."""
        return score(model, graph, self.importance, self.data, **self.further)


def chosen_importance(importance: "str | Criterion", saved: KeptScores | None, *, with_data: bool) -> "str | Criterion":
    """The criterion to score with: the one asked for; for "auto" that of the saved scores, if it can do without more.

    Args:
        importance: what was asked for.
        saved: scores of the old weights, if they are known.
        with_data: whether there is data.
    """
    if importance != "auto":
        return importance
    known = saved is not None and saved.importance in NAMED
    if saved is None or not known or (needs(criterion_of(saved.importance)) and not with_data):
        return AUTO["with data" if with_data else "without data"]
    return saved.importance


def afresh(
    model: nn.Module,
    call: tuple[Args, Kwargs],
    graph: Graph,
    kept: Mapping[str, Tensor],
    scoring: Scoring,
    compensate: str | None,
    planning: Mapping[str, Any],
) -> "Result | str":
    """The model pruned afresh to the cost of an old plan; or why it can't be, in words.

    Args:
        model: the dense model with its new weights.
        call: example inputs, positional and keyword.
        graph: what tracing found of it.
        kept: what the old plan keeps of its axes.
        scoring: how units are scored.
        compensate: as for `secateur.prune`.
        planning: settings of `secateur.plan`; without any, the axes that the old plan narrows may be narrowed.
    """
    dense, small = graph.cost(), graph.cost(widths(kept))
    kind = next((name for name in ("macs", "params") if small[name] < dense[name]), None)
    if kind is None:
        return "the plan removes nothing of the dense network's axes"
    try:
        return prune(
            model,
            *call,
            importance=scoring.importance,
            data=scoring.data,
            budget=Budget(**{kind: small[kind]}),
            compensate=compensate,
            **scoring.further,
            **(planning or {"only": tuple(kept)}),
        )
    except (PlanError, ModelError, ProofFailed) as error:
        return f"pruning afresh to the same cost is not possible: {error}"


def compare(
    kept: Mapping[str, Tensor],
    fresh: "Result | str",
    scoring: Scoring,
    graph: Graph,
    saved: KeptScores | None,
    old: nn.Module | None,
) -> Stability:
    """How far an old plan agrees with a fresh one.

    Args:
        kept: what the old plan keeps of the dense model's axes.
        fresh: what `afresh` gave.
        scoring: how the new weights were scored.
        graph: what tracing found of the dense model.
        saved: scores of the old weights, if they are known.
        old: the dense model with its old weights, scored where no fitting scores are known.
    """
    if isinstance(fresh, str):
        return Stability(axes=(), importance=scoring.name, left_out=fresh)
    scores, origin, left_out = None, "", ""
    if saved is not None and saved.importance == scoring.name:
        scores, origin = saved.axes, "saved"
    elif old is not None:
        scores, origin = scoring.of(old, graph), "old weights"
    elif saved is None:
        left_out = "the scores of the old weights are not known"
    else:
        left_out = f"the old weights were scored by {saved.importance}, the new ones by {scoring.name}"
    return stability(
        kept, fresh.plan.units, fresh.scores, scores, importance=scoring.name, origin=origin, left_out=left_out
    )
