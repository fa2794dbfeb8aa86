"""``sc.prune``: trace, score, plan, apply and prove in one call."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from secateur.configs import Wording, learn
from secateur.errors import NothingToPrune, ProofFailed, SurgeryError
from secateur.graph import Graph
from secateur.importance import Criterion, score
from secateur.importance.scoring import check_weights
from secateur.inputs import as_call, split_batch
from secateur.modules import Walk
from secateur.planning import Budget, Plan, families, make_plan
from secateur.planning.planning import choose
from secateur.proof import Proof, check_outputs, prove
from secateur.provenance import remember
from secateur.reporting import Report
from secateur.reporting.figures import latency_cut_per_mac_cut
from secateur.timing.settling import Clock
from secateur.tracing import trace
from secateur.tracing.shadow import check_kind

ROUNDS = 8  # times that axes which fail the proof are frozen and the plan is made again


@dataclass(frozen=True, kw_only=True)
class Result:
    """What pruning gave.

    Attributes:
        model: the smaller model, a new module in the training mode of the original.
        plan: which units stayed.
        proof: the comparison with the silenced original.
        graph: what tracing found; axes that failed a proof are among the frozen ones.
        scores: the importance of each unit.
        report: a mapping in the form of report.json, which prints as a table.
    """

    model: nn.Module
    plan: Plan
    proof: Proof
    graph: Graph
    scores: dict[str, Tensor]
    report: Report

    @property
    def rewritten(self) -> str | None:
        """Why the model's class was replaced by its graph; None where the class is the original's."""
        return f"{self.plan.rewrites[0]} holds a size that pruning changes" if self.plan.rewrites else None

    @property
    def axes(self) -> list[dict[str, Any]]:
        """Name, kind, and width before and after of every prunable axis."""
        return axis_rows(self.graph, self.plan)

    def __rich__(self) -> Any:
        return self.report.__rich__()

    def __str__(self) -> str:
        return str(self.report)


def axis_rows(graph: Graph, made: Plan) -> list[dict[str, Any]]:
    """Name, kind, and width before and after of every prunable axis."""
    sizes = made.sizes
    return [{"name": n, "kind": a.kind, "before": a.size, "after": sizes.get(n, a.size)} for n, a in graph.axes.items()]


def prune(
    model: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    importance: str | Criterion = "auto",
    budget: Budget | None = None,
    threshold: float | None = None,
    keep: float | None = None,
    data: Iterable[Any] | None = None,
    keep_class: bool = False,
    uniform: bool = False,
    seed: int = 0,
    **planning: Any,
) -> Result:
    """A genuinely smaller model that computes what the original computes without the removed units, proved.

    Where the proof fails, the axes responsible are found by bisection and frozen with that reason, and the plan is made
    again: code can use a size in ways that no trace sees. The model given is untouched.

    Args:
        model: any module.
        args, kwargs: example inputs: a tensor, a tuple of positional inputs, or a mapping of keyword inputs.
        importance: a name of `importance.names`, or a callable on a `Member`.
        budget, threshold, keep: what to reach; exactly one. `Budget(macs=0.5)` where none is given. For a budget of
            latency each operation is timed over a few widths on the model's device (kept on disk), and the result
            measured.
        data: batches; the first one's outputs must not hold NaN.
        keep_class: never rewrite ``forward``; axes that would need it stay whole.
        seed: for criteria that draw random numbers.
        uniform: repeated blocks keep equal widths. Where ``type(model)(config)`` builds the model, the config says the
            new widths: a model built from it computes the same with the same weights, which is checked, so that a plain
            checkpoint loads without secateur. Axes that the config can't say stay whole.
        planning: further settings of `plan`: scope, min_units, multiple_of, only, ignore. With ``multiple_of="auto"``
            operations are timed, too.

    Raises:
        TraceError, ModelError, UnknownImportance, PlanError, UnreachableBudget, NothingToPrune: see `trace`, `score`,
        `plan`.
        ProofFailed: no plan passes the proof.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> sc.prune(net, torch.randn(1, 4), keep=0.5).model
        Sequential(
          (0): Linear(in_features=4, out_features=4, bias=True)
          (1): ReLU()
          (2): Linear(in_features=4, out_features=2, bias=True)
        )
    """
    if budget is None and threshold is None and keep is None:
        budget = Budget(macs=0.5)
    check_kind(Walk(model))
    check_weights(model)
    check_outputs(model, args, kwargs)  # before tracing, so that caches of the user's code fill with real tensors
    graph = trace(model, args, kwargs)
    for batch in data or ():
        positional, keywords, _ = split_batch(batch)
        check_outputs(model, positional, keywords)
        break
    scores = score(model, graph, importance, seed=seed)
    wording: Wording | None = None
    if uniform:
        graph, wording = as_config_says(model, graph, args, kwargs)
    chosen = {"budget": budget, "threshold": threshold, "keep": keep, "keep_class": keep_class, **planning}
    clock = Clock.where_asked(model, graph, args, kwargs, budget, planning.get("multiple_of"))
    for _ in range(ROUNDS):
        made = planned(graph, scores, wording, chosen, clock)
        try:
            small, proof = carried_out(model, graph, made, wording, args, kwargs)
        except (ProofFailed, SurgeryError) as error:
            if asked := {n for n, size in made.sizes.items() if size < graph.axes[n].asked[0]}:
                graph = as_asked(graph, asked)  # the likeliest cause, and tried in no time
                continue
            graph = without(
                graph,
                culprits(model, graph, made, wording, args, kwargs),
                f"the proof fails when it is pruned: {error}",
            )
            if not graph.axes:
                raise NothingToPrune(
                    f"every axis that could be pruned fails the proof; the last failure: {error}"
                ) from error
            continue
        remember(small, "inputs", as_call(args, kwargs))  # the probe of sc.save
        return Result(
            model=small,
            plan=made,
            proof=proof,
            graph=graph,
            scores={axis: scores[axis] for axis in graph.axes},
            report=_report(model, graph, made, proof, seed, clock),
        )
    raise ProofFailed(
        f"no plan passes the proof after {ROUNDS} rounds of freezing the axes responsible; freeze modules "
        f"with ignore=[...]"
    )


def as_config_says(
    model: nn.Module, graph: Graph, args: Any, kwargs: Mapping[str, Any] | None
) -> tuple[Graph, Wording | None]:
    """The graph with equal widths in repeated blocks, and what the model's config can say of them, if it has one."""
    graph = families.uniform(graph)
    wording = learn(model, graph, *as_call(args, kwargs))
    return (graph if wording is None else wording.restrict(graph)), wording


def planned(
    graph: Graph,
    scores: Mapping[str, Tensor],
    wording: Wording | None,
    chosen: Mapping[str, Any],
    clock: Clock | None = None,
) -> Plan:
    """A plan whose widths the config, if there is one, can say; with a clock, one whose result was measured."""
    if clock is not None:
        return clock.settle(graph, lambda table: planned(graph, scores, wording, {**chosen, "latency": table}))
    if wording is None:
        return make_plan(graph, choose(graph, scores, **chosen))
    kept = choose(graph, scores, **chosen, agrees=lambda sizes: wording.says(graph, sizes))
    return wording.write(graph, make_plan(graph, kept))


def carried_out(
    model: nn.Module,
    graph: Graph,
    made: Plan,
    wording: Wording | None,
    args: Any,
    kwargs: Mapping[str, Any] | None,
) -> tuple[nn.Module, Proof]:
    """The smaller model and its proof.

    Raises:
        ProofFailed, SurgeryError: it does not compute what it should, or its config does not say what it is.
    """
    small = made.apply(model)
    proof = prove(model, small, graph, made, args, kwargs)
    if wording is not None:
        wording.check(small, *as_call(args, kwargs))
    return small, proof


def as_asked(graph: Graph, axes: set[str]) -> Graph:
    """The graph in which the axes keep as many units as the way that the code takes needs."""
    kept = {n: replace(graph.axes[n], least=graph.axes[n].asked[0]) for n in axes}
    whole = [n for n, info in kept.items() if info.least >= info.size]
    for name in whole:
        reason = f"with fewer units the code would go another way at {graph.axes[name].asked[1]}"
        graph = without(graph, [name], reason)
    return replace(graph, axes={n: kept.get(n, info) for n, info in graph.axes.items()})


def culprits(
    model: nn.Module,
    graph: Graph,
    made: Plan,
    wording: Wording | None,
    args: Any,
    kwargs: Mapping[str, Any] | None,
) -> list[str]:
    """The axes whose pruning fails the proof, found by bisection; tied axes stay together."""
    tie = {name: group for group in graph.ties for name in group}
    groups = list(dict.fromkeys(tie.get(name, (name,)) for name in made.axes))

    def passes(part: list[tuple[str, ...]]) -> bool:
        kept = {name: made.units[name] for group in part for name in group if name in made.units}
        try:
            some = make_plan(graph, kept)
            some = some if wording is None else wording.write(graph, some)
            carried_out(model, graph, some, wording, args, kwargs)
        except (ProofFailed, SurgeryError):
            return False
        return True

    def find(part: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        if passes(part):
            return []
        if len(part) == 1:
            return part
        half = len(part) // 2
        found = find(part[:half]) + find(part[half:])
        return found or part[half:]  # each half passes alone: they fail together

    return [name for group in find(groups) for name in group]


def without(graph: Graph, axes: Iterable[str], reason: str) -> Graph:
    """The graph with the axes, and those tied to them, frozen."""
    gone = set(axes)
    gone |= {name for tie in graph.ties if gone & set(tie) for name in tie}
    return replace(
        graph,
        axes={n: a for n, a in graph.axes.items() if n not in gone},
        frozen={**graph.frozen, **{n: replace(a, frozen=(reason,)) for n, a in graph.axes.items() if n in gone}},
        ties=tuple(t for t in graph.ties if not gone & set(t)),
    )


def _report(model: nn.Module, graph: Graph, made: Plan, proof: Proof, seed: int, clock: Clock | None) -> Report:
    """The report of a bare pruning: costs in closed form, and latency where a clock measured it."""
    times = clock.found.figures() if clock is not None and clock.found is not None else ({}, {})

    def figures(cost: Mapping[str, int], times: Mapping[str, float]) -> dict[str, Any]:
        return {"params": cost["params"], "macs": cost["macs"], "size_bytes": cost["bytes"], **times, "metrics": {}}

    dense, pruned = figures(graph.cost(), times[0]), figures(graph.cost(made.sizes), times[1])
    ratio = latency_cut_per_mac_cut(dense, pruned)
    return Report(
        {
            "version": 1,
            "command": "sc.prune(...)",
            "seed": seed,
            "model": type(model).__name__,
            "dense": dense,
            "pruned": pruned,
            "tuned": None,
            "proof": proof.to_dict(),
            "axes": axis_rows(graph, made),
            **({} if ratio is None else {"latency_cut_per_mac_cut": ratio}),
            "plan": made.to_dict(),
            "environment": {},
        }
    )
