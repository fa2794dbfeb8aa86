"""``sc.plan``: scores and a budget, a threshold or a share become a `Plan`."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from secateur.axes import size_of
from secateur.costs import Costs
from secateur.errors import NothingToPrune, PlanError, UnreachableBudget
from secateur.explaining import way_out
from secateur.graph import AxisInfo, Graph, Scale, named
from secateur.origins import NodeArgument
from secateur.planning import families, limits
from secateur.planning.agreeing import affordable, agreed
from secateur.planning.budget import Budget
from secateur.planning.choosing import Greedy, Lane, lane, ranked
from secateur.planning.fast import duration, fast_lanes, fast_steps, slowest, with_latency
from secateur.planning.limits import Count, Multiple, Share
from secateur.planning.plan import Plan, PlannedAxis, PlannedScale, PlannedSplit, PlannedTensor, runs_through
from secateur.planning.resuming import reached, sunk
from secateur.timing.table import LatencyTable

Scope = Literal["global", "local", "isomorphic"]
SCOPES = ("global", "local", "isomorphic")


def plan(
    graph: Graph,
    scores: Mapping[str, Tensor],
    *,
    budget: Budget | None = None,
    threshold: float | None = None,
    keep: float | None = None,
    scope: Scope = "global",
    min_units: Count = 1,
    multiple_of: Multiple = 1,
    max_share: Share = 1.0,
    only: Iterable[str] = (),
    ignore: Iterable[str] = (),
    uniform: bool = False,
    keep_class: bool = False,
    latency: LatencyTable | None = None,
) -> Plan:
    """Choose which units stay. Give exactly one of ``budget``, ``threshold`` and ``keep``.

    Args:
        graph: what `trace` found.
        scores: what `score` gave, one vector for each axis; higher = kept longer.
        budget: greedy removal, least score per cost first, until the result costs no more.
        threshold: a unit goes when its score is below ``threshold`` times the mean score of its axis (the cutoff),
            above 0.
        keep: share of the units of every axis that stays, in (0, 1].
        scope: "global" ranks all units together, each axis normalised unless the scores of all axes have one unit
            (`Reconstruction` gives such), and "local" shrinks every axis alike: these two
            differ for a budget only. "isomorphic" ranks within each family of like axes (same kind, size and roles, as
            in repeated blocks): every family shrinks alike, and ``keep`` and ``threshold`` are of the family.
        min_units: fewest units an axis may keep; or a number for each pattern, as in ``only``, such as
            ``{"hidden": 64, "layer1.*": 8, "heads": 1}``. The last pattern that names an axis counts; other axes: 1.
        multiple_of: widths that change become multiples of this; or a number for each pattern, in the same way.
            "auto": for each axis the step between the widths at which the device is fast, by ``latency``.
        max_share: largest share of an axis's units that may be removed, in (0, 1]; or a share for each pattern, in the
            same way.
        only: names of axes, kinds, modules or tensors, globs allowed; nothing else is pruned.
        ignore: the same; these are not pruned.
        uniform: axes that correspond across repeated blocks (names equal up to the block's index) keep equal widths;
            the units themselves may differ.
        keep_class: leave alone the axes whose pruning would rewrite the model's ``forward``.
        latency: what `secateur.timing.latency_table` gave: needed for a budget of latency and ``multiple_of="auto"``.
            With it, no width is chosen at which an operation is slower than at a wider one.

    Raises:
        PlanError: arguments that contradict each other or name nothing.
        UnreachableBudget: the budget is below the smallest that the model can become.
        NothingToPrune: no axis is left to prune; says what froze them.
    """
    if uniform:
        graph = families.uniform(graph)
    kept = choose(
        graph,
        scores,
        budget=budget,
        threshold=threshold,
        keep=keep,
        scope=scope,
        min_units=min_units,
        multiple_of=multiple_of,
        max_share=max_share,
        only=only,
        ignore=ignore,
        keep_class=keep_class,
        latency=latency,
    )
    return make_plan(graph, kept)


def choose(
    graph: Graph,
    scores: Mapping[str, Tensor],
    *,
    budget: Budget | None = None,
    threshold: float | None = None,
    keep: float | None = None,
    scope: Scope = "global",
    min_units: Count = 1,
    multiple_of: Multiple = 1,
    max_share: Share = 1.0,
    only: Iterable[str] = (),
    ignore: Iterable[str] = (),
    keep_class: bool = False,
    latency: LatencyTable | None = None,
    agrees: Callable[[dict[str, int]], bool] | None = None,
    within: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The kept units of each axis that loses some. See `plan`.

    Args:
        agrees: whether sizes of axes may stand together; where they may not, one lane gets narrower until they do.
        within: kept units of the axes that an earlier plan for a larger budget narrowed: this one goes on from there.
    """
    _check_arguments(budget, threshold, keep, scope)
    limits.check(min_units, multiple_of, max_share)
    costs = with_latency(graph, latency, budget, multiple_of)
    axes = choose_axes(graph, scores, only, ignore, keep_class)
    one_unit = bool(getattr(scores, "comparable", False))
    within = within or {}
    scores = sunk(scores, within)
    multiples = fast_steps(graph, costs) if multiple_of == "auto" else limits.by_axis(graph, multiple_of, 1)
    lanes = lanes_of(graph, axes, scores, limits.fewest(graph, min_units, max_share), limits.steps(graph, multiples))
    lanes = fast_lanes(lanes, costs, budget, reached(lanes, within))
    if budget is not None:
        ranking = "comparable" if one_unit and scope == "global" else scope
        removed = _for_budget(graph, costs, lanes, budget, ranking, min_units, reached(lanes, within))
    elif scope == "isomorphic":
        removed = _by_family(lanes, keep, threshold)
    elif threshold is not None:
        removed = _widths(lanes, lambda ln: max(ln.sizes[0] - _below(ln, scores, threshold), 1))
    else:
        share = keep if keep is not None else 1.0
        removed = _widths(lanes, lambda ln: int(share * ln.sizes[0] + 0.5))
    if agrees is not None:
        removed = agreed(lanes, removed, agrees, affordable(costs, budget))
    return {
        axis: order[gone * share :].sort().values
        for ln, gone in zip(lanes, removed, strict=True)
        for axis, order, share in zip(ln.axes, ln.order, ln.shares, strict=True)
        if gone
    }


def _check_arguments(
    budget: Budget | None,
    threshold: float | None,
    keep: float | None,
    scope: str,
) -> None:
    given = {"budget": budget, "threshold": threshold, "keep": keep}
    named_ = [name for name, value in given.items() if value is not None]
    if len(named_) != 1:
        got = " and ".join(named_) or "none of them"
        raise PlanError(
            f"give exactly one of budget, threshold and keep; got {got}. For half the work: budget=sc.Budget(macs=0.5)"
        )
    if budget is not None and not isinstance(budget, Budget):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PlanError(f"budget={budget!r} is no Budget: write budget=sc.Budget(macs=0.5)")
    if threshold is not None and not 0 < threshold < float("inf"):
        raise PlanError(
            f"threshold={threshold}: give a number above 0, such as 0.8 (times the mean score of each axis)"
        )
    if keep is not None and not 0 < keep <= 1:
        raise PlanError(f"keep={keep}: give the share of units that stays, in (0, 1]")
    if scope not in SCOPES:
        raise PlanError(f'scope={scope!r}: give "global", "local" or "isomorphic"')


def choose_axes(
    graph: Graph, scores: Mapping[str, Tensor], only: Iterable[str], ignore: Iterable[str], keep_class: bool
) -> list[str]:
    """The axes that may be pruned, in the graph's order.

    Raises:
        PlanError: patterns that name nothing, or scores that don't fit the graph.
        NothingToPrune: none is left.
    """
    if not graph.axes:
        unknown = dict(graph.unknown)
        remedy = f". No rule knows {' and '.join(unknown)}: {way_out(unknown)}" if unknown else ""
        raise NothingToPrune(f"{graph.model} has no axis that can be pruned: {_why_frozen(graph.frozen)}{remedy}")
    only, ignore = _patterns(only), _patterns(ignore)
    limits.check_patterns(graph, [*only, *ignore])
    wanted = graph.select(only) if only else set(graph.axes)
    wanted -= graph.select(ignore)
    if keep_class:
        wanted -= {name for name, info in graph.axes.items() if info.rewrite}
    tied = {name for tie in graph.ties if not wanted.issuperset(tie) for name in tie}
    axes = [name for name in graph.axes if name in wanted - tied]
    if not axes:
        raise NothingToPrune(
            f"only={list(only)}, ignore={list(ignore)}, keep_class={keep_class} leave none of "
            f"{len(graph.axes)} axes to prune: {', '.join(list(graph.axes)[:5])}"
        )
    bad = [
        a
        for a in axes
        if a not in scores or tuple(scores[a].shape) != (graph.axes[a].size,) or bool(torch.isnan(scores[a]).any())
    ]
    if bad:
        raise PlanError(
            f"{len(bad)} axes have no score for each unit, {bad[0]} first (size "
            f"{graph.axes[bad[0]].size}): pass what sc.score(model, graph) gave"
        )
    return axes


def _patterns(patterns: Iterable[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _why_frozen(frozen: Mapping[str, AxisInfo]) -> str:
    """The reasons of the largest frozen axes."""
    largest = sorted(frozen.items(), key=lambda item: -item[1].size)[:5]
    return (
        "; ".join(f"{name} (size {info.size}): {info.frozen[0]}" for name, info in largest)
        or "no parameter has a dim above 1"
    )


def lanes_of(
    graph: Graph,
    axes: Sequence[str],
    scores: Mapping[str, Tensor],
    fewest: Mapping[str, int],
    steps: Mapping[str, int],
) -> list[Lane]:
    group = {name: tie for tie in graph.ties for name in tie}
    lanes: dict[tuple[str, ...], None] = dict.fromkeys(group.get(a, (a,)) for a in axes)
    alike = [tuple(families.likeness(graph.axes[name]) for name in tie) for tie in lanes]
    number = {like: k for k, like in enumerate(dict.fromkeys(alike))}
    return [
        lane(
            {name: graph.axes[name].size for name in tie},
            scores,
            [fewest[name] for name in tie],
            [steps[name] for name in tie],
            number[like],
        )
        for tie, like in zip(lanes, alike, strict=True)
    ]


def _below(ln: Lane, scores: Mapping[str, Tensor], threshold: float) -> int:
    """How many units of a lane are under the cutoff on every axis of it."""
    below = (int((scores[a] < threshold * scores[a].mean()).sum()) for a in ln.axes)
    return min(count // share for count, share in zip(below, ln.shares, strict=True))


def _widths(lanes: Sequence[Lane], wanted: Callable[[Lane], int]) -> list[int]:
    """Units removed from each lane: down to the allowed width nearest above the wanted one."""
    removed: list[int] = []
    for ln in lanes:
        large_enough = bisect_right(ln.sizes, -wanted(ln), key=lambda size: -size)  # sizes descend
        removed.append(ln.sizes[0] - ln.sizes[max(large_enough - 1, 0)])
    return removed


def _by_family(lanes: Sequence[Lane], keep: float | None, threshold: float | None) -> list[int]:
    """Units removed from each lane: those that rank lowest in their family, by a share of it or under its cutoff."""
    if keep is not None:
        gone = [int((rank <= 1 - keep + 1e-9).sum()) for rank in ranked(lanes)]
    else:
        pools = {f: torch.cat([ln.values for ln in lanes if ln.family == f]) for f in {ln.family for ln in lanes}}
        gone = [int((ln.values < (threshold or 0.0) * pools[ln.family].mean()).sum()) for ln in lanes]
    wanted = {ln.axes: max(ln.sizes[0] - k, 1) for ln, k in zip(lanes, gone, strict=True)}
    return _widths(lanes, lambda ln: wanted[ln.axes])


def _for_budget(
    graph: Graph, costs: Costs, lanes: Sequence[Lane], budget: Budget, scope: str, min_units: Count, start: Tensor
) -> list[int]:
    dense = costs.at({})
    targets = budget.targets(dense)
    least = {a: ln.sizes[-1] * share for ln in lanes for a, share in zip(ln.axes, ln.shares, strict=True)}
    smallest = costs.at(least)
    for kind, target in targets.items():
        if smallest[kind] > target:
            held = slowest(costs) if kind == "latency" else _held(graph, kind, least)
            raise UnreachableBudget(_unreachable(graph, kind, target, dense[kind], smallest[kind], held, min_units))
    steps = Greedy(lanes, costs, targets, scope, start).run()
    return [ln.sizes[0] - ln.sizes[k] for ln, k in zip(lanes, steps.tolist(), strict=True)]


def _unreachable(
    graph: Graph,
    kind: str,
    target: float,
    dense: int,
    smallest: int,
    held: Sequence[tuple[str, float]],
    min_units: Count,
) -> str:
    say = duration if kind == "latency" else short
    holders = ", ".join(f"{name} {say(amount)}" for name, amount in held[:3])
    return (
        f"{kind}={say(target)} of {say(dense)} is below the smallest that {graph.model} can get, {say(smallest)} "
        f"({smallest / dense:.3f} of the original). What holds it: {holders}. Raise the budget to at least "
        f"{kind}={smallest / dense + 0.0005:.3f}, or lower min_units={min_units} and multiple_of, raise "
        f"max_share, or ignore less."
    )


def _held(graph: Graph, kind: str, sizes: Mapping[str, int]) -> list[tuple[str, float]]:
    """Frozen and fully pruned axes by how much of the smallest cost lies on them, the most first."""
    held: dict[str, float] = {}
    if kind == "macs":
        terms = [([d for d in dims if not isinstance(d, int)], _amount(dims, sizes)) for _, dims in graph.macs]
    else:
        terms = [
            (list(t.dims), _amount(t.dims, sizes) * (1 if kind == "params" else t.itemsize))
            for t in graph.tensors.values()
            if t.parameter or kind == "bytes"
        ]
    for dims, amount in terms:
        for name in dict.fromkeys(named(dims)):
            if name in graph.frozen or name not in sizes:
                held[name] = held.get(name, 0.0) + amount
    return sorted(held.items(), key=lambda item: -item[1]) or [
        ("the axes at their least width", sum(a for _, a in terms))
    ]


def _amount(dims: Iterable[object], sizes: Mapping[str, int]) -> float:
    amount = 1.0
    for dim in dims:
        amount *= dim if isinstance(dim, int) else size_of(dim, sizes)  # type: ignore[arg-type]
    return amount


def short(number: float) -> str:
    """A number with a unit: 4.1G, 25.6M, 812."""
    for suffix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= scale:
            return f"{number / scale:.3g}{suffix}"
    return f"{number:.4g}"


def _planned_scale(scale: Scale, sizes: Mapping[str, int]) -> PlannedScale:
    return PlannedScale(
        tensor=scale.tensor,
        dim=scale.dim,
        positions=scale.positions,
        before=scale.size.size,
        after=size_of(scale.size, sizes),
    )


def make_plan(graph: Graph, kept: Mapping[str, Tensor]) -> Plan:
    """The plan that keeps the given units of the given axes.

    Args:
        graph: what `trace` found.
        kept: kept units, ascending, of each axis that changes; units that are repeated stand there repeatedly.

    Raises:
        PlanError: sizes in the code contradict the new widths (tied axes of different widths).
    """
    axes = {
        name: PlannedAxis(kind=graph.axes[name].kind, before=graph.axes[name].size, kept=tuple(kept[name].tolist()))
        for name in graph.axes
        if name in kept and kept[name].tolist() != list(range(graph.axes[name].size))
    }
    sizes = {name: len(axis.kept) for name, axis in axes.items()}
    for tie in graph.ties:
        shares = {sizes.get(name, graph.axes[name].size) / graph.axes[name].size for name in tie}
        if max(shares) - min(shares) > 1e-9:
            raise PlanError(
                f"{', '.join(tie)} must keep the proportions of their sizes, because one size in the code serves them "
                f"all; keep the same share of each"
            )
    broken = graph.sizes.broken(sizes)
    form = graph.captured if broken else graph.sizes
    if form is None:
        raise PlanError(f"the new widths break {broken[0].text}, which can't be changed")
    tensors = {
        name: PlannedTensor(names=t.names, dims=t.dims)
        for name, t in graph.tensors.items()
        if any(runs_through(d, axes) for d in t.dims)
    }
    repeated = {name for name, axis in axes.items() if len(set(axis.kept)) < len(axis.kept)}
    changed = tuple(
        (site, value)
        for site, value in form.values(sizes).items()
        if value != site.value or isinstance(site, NodeArgument)
    )
    return Plan(
        axes=axes,
        tensors=tensors,
        settings=changed,
        rewrites=tuple(e.text for e in broken),
        scales=tuple(_planned_scale(s, sizes) for s in graph.scales if size_of(s.size, sizes) != s.size.size),
        model=graph.model,
        example=graph.example if broken else None,
        splits=tuple(
            PlannedSplit(
                tensor=c.tensor, dim=c.dim, positions=c.positions, axes=tuple(n for n in c.axes if n in repeated)
            )
            for c in graph.consumers
            if repeated & set(c.axes)
        ),
    )
