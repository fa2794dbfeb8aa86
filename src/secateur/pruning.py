"""``sc.prune``: trace, score, plan, apply and prove in one call."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur import digests
from secateur.calibration.batches import Forward, checked
from secateur.carrying import Ancestry, remap_
from secateur.compensation import Compensation, compensate_, method
from secateur.configs import Wording, learn
from secateur.descending import Descent, single_cost
from secateur.errors import NothingToPrune, ProofFailed, SurgeryError, TraceError
from secateur.graph import Graph
from secateur.heldout import Metric, bounds
from secateur.importance import Criterion, score_all
from secateur.importance.keeping import KeptScores
from secateur.importance.scoring import AUTO, check_weights, looks_at_data
from secateur.inputs import as_call, split_batch
from secateur.modules import Walk, named_parameters, named_tensors
from secateur.objectives import Loss
from secateur.planning import Budget, Plan, families, make_plan
from secateur.planning.planning import choose
from secateur.proof import Proof, check_outputs, prove
from secateur.protecting import Protect
from secateur.protecting import settled as settled_protection
from secateur.protecting.outcome import Protection, cost_of_protection
from secateur.provenance import note_step, recall, remember
from secateur.rebuilding import as_module, handed_out, is_keras
from secateur.reporting import Report
from secateur.reporting.figures import latency_cut_per_mac_cut
from secateur.rounds import Round
from secateur.safety.adversarial import Adversarial
from secateur.safety.material import material
from secateur.timing.settling import Clock
from secateur.timing.table import LatencyTable
from secateur.tracing import trace
from secateur.tracing.shadow import check_kind, separate
from secateur.trying import HINTS, Trial, try_hints
from secateur.zeros import sparse_weights

ROUNDS = 8  # times that axes which fail the proof are frozen and the plan is made again


@dataclass(frozen=True, kw_only=True)
class Result:
    """What pruning gave.

    Attributes:
        model: the smaller model, a new module in the training mode of the original.
        plan: which units stayed.
        proof: the comparison with the silenced original.
        compensation: what refitting the weights did; None where there was none.
        graph: what tracing found; axes that failed a proof are among the frozen ones.
        scores: the importance of each unit.
        hint: the criterion that it is by, in words.
        trial: how that was chosen, where several were tried.
        protection: what protecting data kept and cost; None where none were.
        report: a mapping in the form of report.json, which prints as a table.
        ancestry: the parameters of the dense model, held weakly, by which `remap_` knows what belongs to it.
    """

    model: nn.Module
    plan: Plan
    proof: Proof
    graph: Graph
    scores: dict[str, Tensor]
    report: Report
    hint: str = ""
    compensation: Compensation | None = None
    trial: Trial | None = None
    protection: Protection | None = None
    ancestry: Ancestry = field(default_factory=Ancestry, repr=False)

    def remap_(self, thing: Any) -> Any:
        """Carry what trains along with the dense model over to ``model``, in place. Returns it.

        See `secateur.carrying.remap_` for what can be carried (optimizers; copies such as moving averages, as a module,
        an ``AveragedModel`` or a dict of tensors by name) and how. Learning-rate schedulers and gradient scalers need
        nothing.

        Raises:
            RemapError: the thing belongs to another model, or is of no kind that can be carried.
            SurgeryError: a copy that the plan does not fit, or that can't be changed in place.

        Example:
            >>> import torch, secateur as sc
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> optimizer = torch.optim.Adam(net.parameters())
            >>> result = sc.prune(net, torch.randn(1, 4), keep=0.5)
            >>> [list(p.shape) for p in result.remap_(optimizer).param_groups[0]["params"]]
            [[4, 4], [4], [2, 4], [2]]
        """
        return remap_(self.plan, thing, self.ancestry.parameters, self.model)

    def apply_(self, model: nn.Module, *things: Any) -> nn.Module:
        """Make the dense model itself what ``model`` is, in place, and carry things over to it. Returns it.

        For code that holds the dense model in other places too, which all see the smaller one then. The result's own
        ``model`` stays another one.

        Args:
            model: the one that was pruned.
            things: optimizers and copies, as for `remap_`.

        Raises:
            SurgeryError: it is another model, or its class would have to be replaced (prune with ``keep_class=True``).
            RemapError: as `remap_`.
        """
        old = named_parameters(model)
        self.plan.apply_(model)
        present = named_tensors(model)
        with torch.no_grad():
            for name, tensor in named_tensors(self.model).items():
                present[name].copy_(tensor)
        remember(model, "inputs", recall(self.model, "inputs"))
        remember(model, "history", recall(self.model, "history"))
        remember(model, "scores", recall(self.model, "scores"))
        for thing in things:
            self.plan.remap_(thing, old, model)
        return model

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
    max_drop: float | None = None,
    max_loss_increase: float | None = None,
    max_robust_drop: float | None = None,
    validate: Iterable[Any] | None = None,
    metric: Metric | None = None,
    reduce: Literal["macs", "params", "bytes"] = "macs",
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    adversarial: Adversarial | None = None,
    protect: Any = None,
    compensate: str | None = "auto",
    forward: Forward | None = None,
    keep_class: bool = False,
    uniform: bool = False,
    seed: int = 0,
    on_round: Callable[[Round], None] | None = None,
    **planning: Any,
) -> Result:
    """A genuinely smaller model that computes what the original computes without the removed units, proved.

    Where the proof fails, the axes responsible are found by bisection and frozen with that reason, and the plan is made
    again: code can use a size in ways that no trace sees. The model given is untouched.

    Args:
        model: any module.
        args, kwargs: example inputs: a tensor, a tuple of positional inputs, or a mapping of keyword inputs.
        importance: a name of `importance.names`, an object, or any callable on a `Member`. "auto" with data and a
            budget or ``keep`` tries `trying.HINTS`, each refitted to a part of the data, and takes the one whose
            outputs on another part are nearest to the original's; that takes two batches or more, and least squares.
            Otherwise it is `importance.scoring.AUTO`.
        budget, threshold, keep, max_drop, max_loss_increase: what to reach; one at most. `Budget(macs=0.5)` where none
            is given. For a budget of latency each operation is timed over a few widths on the model's device (kept on
            disk), and the result measured.
        max_drop: how much the metric may fall on held-out data, in its own unit: ``max_drop=0.5`` is half a percentage
            point of accuracy. Units go in rounds, with new scores and compensation in each, until the bound is broken;
            the last state that met it is the result. It holds for the model returned, before any training.
        max_loss_increase: the same for the loss, which may rise by so much.
        max_robust_drop: a floor of robustness: how much the metric may fall under attack, in percentage points of
            accuracy where no metric is given. It goes with a budget, which is then reached only as far as the floor
            allows (the report says which of the two ended it), with max_drop or max_loss_increase, or alone. Every
            model is attacked anew, as ``adversarial`` says.
        validate: the held-out data for these three: batches as in ``data``, iterable again and again, which neither
            trained the model nor will test it.
        metric: for max_drop and max_robust_drop, ``(model, batches) -> number``, of which more is better; called in
            evaluation mode without gradients. By default the accuracy in percentage points.
        reduce: which cost these bounds bring down: macs, params or bytes; with a budget it is the budget's.
        data: batches for calibration, for criteria that look at activations or gradients (see `score`) and for
            compensation. The first one's outputs must not hold NaN.
        loss: ``(output, target) -> scalar``, for criteria that need one and for max_loss_increase; by default the
            model's own, else cross-entropy.
        adversarial: attacks on ``data``, so that importance is about the robust loss: scores are computed at attacked
            inputs, hints judged at them, and weights refitted to batches as they are and attacked ones in turns. The
            attacks are on the original; see `secateur.safety.attacked`. It is the attack of max_robust_drop, too.
        protect: data whose behaviour must not change: batches as in ``data``, one batch, or `secateur.Protect`, which
            has settings. Units that matter there more than in general are kept, refits weigh it, and the report says
            what that kept and cost, next to a plan without it. It takes ``data`` and a criterion that looks at them.
        compensate: how the weights that stay make up for those that went, after the proof: "lstsq", "merge", "mean",
            None for not at all; see `secateur.compensation.compensate_`. "auto" is "lstsq" where there are data.
        forward: ``(model, batch) -> output``, where the model's inputs are not the batch's.
        keep_class: never rewrite ``forward``; axes that would need it stay whole.
        seed: for criteria that draw random numbers.
        uniform: repeated blocks keep equal widths. Where ``type(model)(config)`` builds the model, the config says the
            new widths: a model built from it computes the same with the same weights, which is checked, so that a plain
            checkpoint loads without secateur. Axes that the config can't say stay whole.
        on_round: called after each round of max_drop or max_loss_increase; without it a terminal shows a bar. After
            Ctrl-C the result is the last state that met the bound, and its report says so.
        planning: further settings of `plan`: scope, min_units, multiple_of, max_share, only, ignore. With
            ``multiple_of="auto"`` operations are timed, too.

    Raises:
        TraceError, ModelError, UnknownImportance, ScoreError, DataError, PlanError, UnreachableBudget, NothingToPrune:
        see `trace`, `score`, `plan`.
        ProofFailed: no plan passes the proof.
        DataError: held-out data that is empty, has no labels, does not fit the model, or gives NaN; protected data that
            is empty or does not fit the model.
        ScoreError: data are to be protected, but there is no ``data``, or the criterion looks at weights alone.
        UnreachableBound: nothing can be removed within max_drop or max_loss_increase.

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
    if is_keras(model):
        given = {name: value for name, value in locals().items() if name not in ("model", "planning")}
        found = prune(as_module(model), **given, **planning)
        return replace(found, model=handed_out(found.model))
    how = method(compensate, data)
    choices = {
        "budget": budget,
        "threshold": threshold,
        "keep": keep,
        "max_drop": max_drop,
        "max_loss_increase": max_loss_increase,
    }
    limits = bounds(
        choices,
        max_robust_drop,
        adversarial=adversarial,
        validate=validate,
        metric=metric,
        loss=loss,
        forward=forward,
        seed=seed,
    )
    if limits and budget is not None:
        reduce = single_cost(budget)
    if not limits and all(choice is None for choice in choices.values()):
        budget = Budget(macs=0.5)
    check_kind(Walk(model))
    check_weights(model)
    check_outputs(model, args, kwargs)  # before tracing, so that caches of the user's code fill with real tensors
    graph = trace(model, args, kwargs)
    if isinstance(data, Iterator):  # it can be gone through once only
        data = list(data)
    for batch in () if data is None else checked(data):
        if forward is None:
            positional, keywords, _ = split_batch(batch)
            check_outputs(model, positional, keywords)
        break
    seen = material(model, data, adversarial, loss, forward, seed, bounded=bool(limits))
    guard = settled_protection(protect, model, forward)
    trying = None
    if importance == "auto" and how == "lstsq" and (budget is not None or keep is not None):
        seen = seen.listed()
        trying = seen.parts(model, forward)
    tried = tuple(h for h in HINTS if guard is None or looks_at_data(h)) if trying else (importance,)
    hints = {str(hint): hint for hint in tried}
    scored = score_all(model, graph, hints, seen.scored, loss, seed=seed, forward=forward, protect=guard)
    wording: Wording | None = None
    if uniform:
        graph, wording = as_config_says(model, graph, args, kwargs)
    chosen = {"keep_class": keep_class, **planning}
    clock = Clock.where_asked(model, graph, args, kwargs, budget, planning.get("multiple_of"))

    def pick(graph: Graph, scores: Mapping[str, Tensor], **reach: Any) -> Plan:
        table = clock.table if clock is not None else None
        return planned(graph, scores, wording, {**chosen, "latency": table, **reach})

    trial: Trial | None = None
    if trying:
        trial = try_hints(
            model, graph, scored, lambda found: pick(graph, found, budget=budget, keep=keep), *trying, forward, guard
        )
        importance = trial.chosen
    scores, named = scored[str(importance)], in_words(importance, with_data=data is not None)

    def settled() -> Plan:
        def planner(table: LatencyTable | None) -> Plan:
            return pick(graph, scores, budget=budget, threshold=threshold, keep=keep, latency=table)

        return planner(None) if clock is None else clock.settle(graph, planner)

    def rescore(small: nn.Module, _: Plan) -> Mapping[str, Tensor]:
        with suppress(TraceError):
            anew = {"scores": importance}
            smaller = trace(small, args, kwargs)
            return score_all(small, smaller, anew, seen.scored, loss, seed=seed, forward=forward, protect=guard)[
                "scores"
            ]
        return {}

    def finish(model: nn.Module, small: nn.Module, made: Plan, guard: Protect | None = guard) -> Compensation | None:
        if how is None or seen.refitted is None:
            return None
        given: dict[str, Any] = {"how": how, "biases": wording is None, "forward": forward, "protect": guard}
        return compensate_(model, small, graph, made, seen.refitted, **given)

    def compared(graph: Graph, made: Plan, small: nn.Module) -> Protection | None:
        """The result beside the model of the same settings without protection."""
        if guard is None or data is None:
            return None
        reach: dict[str, Any] = {"budget": budget, "threshold": threshold, "keep": keep}
        if limits:  # found in rounds: what costs as much is found at once
            reach = {"budget": Budget(**{reduce: graph.cost(made.sizes)[reduce]}), "threshold": None, "keep": None}
        return cost_of_protection(
            model,
            small,
            graph,
            made,
            guard,
            data,
            plain=lambda: pick(graph, scores.general or scores, **reach),
            finish=lambda small, made: finish(model, small, made, None),
            forward=forward,
        )

    search: Descent | None = None
    if limits:
        search = Descent(
            model,
            separate(model),
            limits,
            scores,
            pick=pick,
            rescore=rescore,
            finish=finish,
            kind=reduce,
            enough=budget,
            on_round=on_round,
        )
    for _ in range(ROUNDS):
        made = search.plan(graph) if search else settled()
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
        small, compensation = search.result(made) if search else (small, finish(model, small, made))
        if clock is not None:
            clock.confirm(graph, made, small, changed=compensation is not None)
        protection = compared(graph, made, small)
        remember(small, "inputs", as_call(args, kwargs))  # the probe of sc.save
        if recall(model, "plans") is None:  # else the earlier pruning's scores are those of the dense model
            remember(small, "scores", KeptScores(importance=named, axes=dict(scores.general or scores)))
        report = bare_report(
            model,
            graph,
            made,
            proof,
            seed=seed,
            compensation=compensation,
            trial=trial,
            protection=protection,
            held_out=None if search is None else search.held_out(),
            clock=clock,
            dead=sum(scores.dead.values()),
        )
        note_step(
            small,
            "prune",
            figures=report["pruned"],
            before=report["dense"],
            importance=named,
            seed=seed,
            parent=digests.of_model(model),
        )
        _tell_broken(model, small)
        return Result(
            model=small,
            plan=made if compensation is None else replace(made, biases=compensation.biases),
            compensation=compensation,
            proof=proof,
            graph=graph,
            scores={axis: scores[axis] for axis in graph.axes},
            hint=named,
            trial=trial,
            protection=protection,
            ancestry=Ancestry.of(model),
            report=report,
        )
    raise ProofFailed(
        f"no plan passes the proof after {ROUNDS} rounds of freezing the axes responsible; freeze modules "
        f"with ignore=[...]"
    )


def _tell_broken(model: nn.Module, small: nn.Module) -> None:
    """Warn where taking units has broken the pattern of a sparse weight's zeros."""
    if sparse_weights(model):
        from secateur.sparsity.remembering import tell_broken  # which needs this module

        tell_broken(model, small)


def in_words(importance: str | Criterion, *, with_data: bool) -> str:
    """A criterion's name: as it was given, or of the function or object that was given."""
    if importance == "auto":
        return AUTO["with data" if with_data else "without data"]
    if isinstance(importance, str):
        return importance
    named: Any = getattr(importance, "__name__", None)
    text = named if isinstance(named, str) else repr(importance)
    return type(importance).__name__ if " at 0x" in text else text


def as_config_says(
    model: nn.Module, graph: Graph, args: Any, kwargs: Mapping[str, Any] | None
) -> tuple[Graph, Wording | None]:
    """The graph with equal widths in repeated blocks, and what the model's config can say of them, if it has one."""
    graph = families.uniform(graph)
    wording = learn(model, graph, *as_call(args, kwargs))
    return (graph if wording is None else wording.restrict(graph)), wording


def planned(graph: Graph, scores: Mapping[str, Tensor], wording: Wording | None, chosen: Mapping[str, Any]) -> Plan:
    """A plan whose widths the config, if there is one, can say."""
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


def bare_report(
    model: nn.Module,
    graph: Graph,
    made: Plan,
    proof: Proof,
    *,
    seed: int,
    compensation: Compensation | None = None,
    held_out: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
    dead: int = 0,
    trial: Trial | None = None,
    protection: Protection | None = None,
) -> Report:
    """The report of a bare pruning: costs in closed form, and latency where a clock measured it."""
    times = clock.found.figures() if clock is not None and clock.found is not None else ({}, {})

    def figures(cost: Mapping[str, int], times: Mapping[str, float]) -> dict[str, Any]:
        return {"params": cost["params"], "macs": cost["macs"], "size_bytes": cost["bytes"], **times, "metrics": {}}

    dense, pruned = figures(graph.cost(), times[0]), figures(graph.cost(made.sizes), times[1])
    if compensation is not None:
        pruned["params"] += compensation.added[0]
        pruned["size_bytes"] += compensation.added[1]
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
            **({"held_out": held_out} if held_out else {}),
            **({"compensation": compensation.to_dict()} if compensation is not None else {}),
            **({"trial": trial.to_dict()} if trial is not None else {}),
            **({"protected": protection.to_dict()} if protection is not None else {}),
            **({"dead_units": dead} if dead else {}),
        }
    )
