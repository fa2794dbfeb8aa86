"""What protecting data kept, and what it cost: the plan beside the one without it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.calibration.batches import Batches, Forward
from secateur.errors import DataError, PlanError, SurgeryError
from secateur.graph import Graph
from secateur.objectives import is_causal
from secateur.planning import Plan
from secateur.protecting.judging import Behaviour, behaviours
from secateur.protecting.settings import Protect


@dataclass(frozen=True, kw_only=True)
class Kept:
    """An axis on which protection chose other units.

    Attributes:
        axis: its name.
        kept: units that stay because of it: without it they would go.
        gone: units that go in their place.
    """

    axis: str
    kept: int
    gone: int


@dataclass(frozen=True, kw_only=True)
class Protection:
    """What was protected, and what it cost.

    Attributes:
        share: as in `secateur.Protect`.
        samples: protected samples that scores and refits saw.
        axes: where units stay or go because of it.
        figures: for "protected" and "general" data, how "dense", "without" and "with" behave: the original, the smaller
            model of the same settings without protection, and the result. There is no "without" where that could not
            be made.
        costs: MACs and parameters of these three.
        seen: which of the two data sets were measured on samples that scores and refits saw, too.
        failed: why there is no model without protection; empty where there is one.
    """

    share: float
    samples: int
    axes: tuple[Kept, ...]
    figures: Mapping[str, Mapping[str, Behaviour]]
    costs: Mapping[str, Mapping[str, int]]
    seen: tuple[str, ...]
    failed: str = ""

    @property
    def kept(self) -> int:
        """Units that stay because of it, of all axes."""
        return sum(row.kept for row in self.axes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in report.json."""
        return {
            "share": self.share,
            "samples": self.samples,
            "kept": self.kept,
            "axes": [vars(row) for row in self.axes],
            "figures": {of: {name: row.to_dict() for name, row in rows.items()} for of, rows in self.figures.items()},
            "costs": {name: dict(cost) for name, cost in self.costs.items()},
            "seen": list(self.seen),
            **({"failed": self.failed} if self.failed else {}),
        }


def cost_of_protection(
    model: nn.Module,
    small: nn.Module,
    graph: Graph,
    made: Plan,
    protect: Protect,
    data: Iterable[Any],
    *,
    plain: Callable[[], Plan],
    finish: Callable[[nn.Module, Plan], Any],
    forward: Forward | None = None,
) -> Protection:
    """Make the model without protection, too, and compare all three on the protected and on the general data.

    Args:
        model, small: the original, and the result.
        graph: of the original.
        made: the plan of the result.
        protect: what `secateur.protecting.settled` gave.
        data: the general data.
        plain: makes the plan without protection.
        finish: refits the model of that plan, in place.
        forward: ``(model, batch) -> output``, where the model's inputs are not the batch's.
    """
    unprotected, failed = _without(model, plain, finish)
    others = {} if unprotected is None else {"without": unprotected[0]}
    networks = {**others, "with": small}
    general = protect.general_test
    sets = {"protected": protect.test or protect.batches, "general": list(data) if general is None else general}
    figures = {
        name: dict(
            zip(
                ("dense", *networks),
                behaviours(model, list(networks.values()), batches, forward, causal=is_causal(model)),
                strict=True,
            )
        )
        for name, batches in sets.items()
    }
    plans = {"dense": None, **({} if unprotected is None else {"without": unprotected[1]}), "with": made}
    return Protection(
        share=protect.share,
        samples=sum(batch.samples for batch in Batches(model, protect.batches, forward)),
        axes=() if unprotected is None else _chosen_otherwise(graph, unprotected[1], made),
        figures=figures,
        costs={name: _cost(graph, plan) for name, plan in plans.items()},
        seen=tuple(n for n, own in (("protected", protect.test), ("general", protect.general_test)) if own is None),
        failed=failed,
    )


def _without(
    model: nn.Module, plain: Callable[[], Plan], finish: Callable[[nn.Module, Plan], Any]
) -> tuple[tuple[nn.Module, Plan] | None, str]:
    """The smaller model without protection and its plan, or why there is none."""
    try:
        plan = plain()
        small = plan.apply(model)
        finish(small, plan)
    except (PlanError, SurgeryError, DataError) as error:
        return None, str(error)
    return (small, plan), ""


def _cost(graph: Graph, plan: Plan | None) -> dict[str, int]:
    found = graph.cost({} if plan is None else plan.sizes)
    return {name: found[name] for name in ("params", "macs")}


def _chosen_otherwise(graph: Graph, without: Plan, made: Plan) -> tuple[Kept, ...]:
    """The axes on which two plans keep different units, in the graph's order."""
    rows: list[Kept] = []
    for name, info in graph.axes.items():
        before, after = (set(p.axes[name].kept) if name in p.axes else set(range(info.size)) for p in (without, made))
        if before != after:
            rows.append(Kept(axis=name, kept=len(after - before), gone=len(before - after)))
    return tuple(rows)
