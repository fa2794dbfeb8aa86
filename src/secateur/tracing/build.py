"""From what the tracer saw to a `Graph`: names, kinds, reasons, and what the sizes in the code demand of a plan."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import gcd
from random import Random
from typing import Any

from secateur.axes import Axis, Expr, Leaf, Prod, Sum, concat, leaves, product, resolve
from secateur.graph import AxisInfo, Equation, Member, Sizes, TensorInfo, named
from secateur.modules import Walk
from secateur.origins import Attribute, Literal, NodeArgument, Operation, Origin, Shape, Site, atoms
from secateur.tracing.limits import fewest, steps
from secateur.tracing.loose import binding
from secateur.tracing.sizes import Use
from secateur.tracing.tracer import Tracer

NUMBER = "float"  # the function of a use of a size as a number
WINDOW = "the window of a convolution"
SPARE = {"head_dim": 0, "channels": 2, "residual": 3, "hidden": 3}  # which kinds stay whole rather than others
SHARES = [[random.random() for _ in range(61)] for random in map(Random, range(8))]  # of their sizes that axes keep
KINDS = ("experts", "heads", "head_dim", "groups", "residual", "channels", "hidden")  # the first that was seen wins


@dataclass
class Names:
    """Names, members and reasons of the final axes of one trace, by their order of birth."""

    names: dict[int, str] = field(default_factory=dict)
    infos: dict[str, AxisInfo] = field(default_factory=dict)
    frozen: frozenset[int] = frozenset()
    _leaves: dict[int, Leaf] = field(default_factory=dict)

    def finish(self, expr: Expr | int) -> Any:
        """An expression with its axes as leaves; neighbouring nameless ones are merged."""
        if isinstance(expr, int):
            return expr
        return self._finish(resolve(expr))

    def _finish(self, expr: Expr) -> Expr:
        match expr:
            case Axis():
                found = self._leaves.get(expr.order)
                if found is None:
                    found = self._leaves[expr.order] = Leaf(self.names.get(expr.order), expr.size)
                return found
            case Prod():
                return product(_merged([self._finish(f) for f in expr.factors]))
            case Sum():
                return concat(self._finish(p) for p in expr.parts)
            case Leaf():
                return expr


def _merged(factors: list[Expr]) -> list[Expr]:
    merged: list[Expr] = []
    for factor in factors:
        last = merged[-1] if merged else None
        if isinstance(last, Leaf) and isinstance(factor, Leaf) and last.name is None and factor.name is None:
            merged[-1] = Leaf(None, last.size * factor.size)
        else:
            merged.append(factor)
    return merged


def collect(tracer: Tracer, dims: Mapping[str, list[Expr]]) -> Names:
    """Name every axis that runs through a tensor, and gather what is known of it."""
    reasons = _by_leaf(tracer.algebra.frozen)
    hints = _by_leaf(tracer.hints)
    normalising = _by_leaf(tracer.normalising)
    windows = {order for order, texts in reasons.items() if texts.keys() == {WINDOW}}
    found: dict[int, Axis] = {}
    members: dict[int, dict[Member, None]] = {}
    made_of_several: list[Expr] = []
    for tensor, exprs in dims.items():
        for k, expr in enumerate(map(resolve, exprs)):
            if not isinstance(expr, Axis):
                made_of_several.append(expr)
            for leaf in leaves(expr):
                if isinstance(leaf, Axis) and leaf.size > 1 and leaf.order not in windows:
                    found.setdefault(leaf.order, leaf)
                    members.setdefault(leaf.order, {})[tensor, k] = None
    result = Names(frozen=frozenset(reasons))
    kinds = {order: _kind(hints.get(order, {}), len(dims[next(iter(members[order]))[0]])) for order in found}
    _mark_groups(kinds, members, made_of_several)
    least, multiples = fewest(tracer.least, reasons), steps(tracer.steps)
    for order, axis in found.items():
        name = _name(next(iter(members[order])), order, dims, kinds)
        result.names[order] = name
        result.infos[name] = AxisInfo(
            size=axis.size,
            kind=kinds[order],
            members=tuple(members[order]),
            normalising=tuple(normalising.get(order, ())),
            frozen=tuple(reasons.get(order, ()))[:3],
            least=least.get(order, 1),
            step=multiples.get(order, 1),
        )
    return result


def _by_leaf(notes: Iterable[tuple[Expr, str]]) -> dict[int, dict[str, None]]:
    found: dict[int, dict[str, None]] = {}
    for expr, text in notes:
        whole = resolve(expr)
        for leaf in (whole,) if isinstance(whole, Axis) else leaves(whole):
            if isinstance(leaf, Axis):
                found.setdefault(leaf.order, {})[text] = None
    return found


def _kind(hints: Mapping[str, None], rank: int) -> str:
    """Experts are units that something chose, and something else then picked by number."""
    seen = (k for k in KINDS if k in hints and (k != "experts" or "chosen" in hints))
    return next(seen, "hidden" if rank < 3 else "channels")


def _mark_groups(kinds: dict[int, str], members: Mapping[int, Mapping[Member, None]], exprs: Iterable[Expr]) -> None:
    """Of two axes of heads in one dim, the one that runs through more members groups the other: grouped queries. Of two
    axes of experts it is the first: group-limited routing.
    """
    for expr in exprs:
        orders = dict.fromkeys(leaf.order for leaf in leaves(expr) if isinstance(leaf, Axis))
        heads = sorted((o for o in orders if kinds.get(o) == "heads"), key=lambda o: -len(members[o]))
        if len(heads) == 2 and len(members[heads[0]]) > len(members[heads[1]]):
            kinds[heads[0]] = "kv_groups"
        experts = [o for o in orders if kinds.get(o) == "experts"]
        if len(experts) == 2:
            kinds[experts[0]] = "groups"


def _name(member: Member, order: int, dims: Mapping[str, list[Expr]], kinds: Mapping[int, str]) -> str:
    """``tensor:dim``; where the dim is made of several axes, with the kind, numbered where several are of one kind."""
    tensor, k = member
    expr = resolve(dims[tensor][k])
    if isinstance(expr, Axis):
        return f"{tensor}:{k}"
    orders = dict.fromkeys(leaf.order for leaf in leaves(expr) if isinstance(leaf, Axis))
    alike = [o for o in orders if kinds.get(o) == kinds[order]]
    suffix = kinds[order] if len(alike) == 1 else f"{kinds[order]}{alike.index(order) + 1}"
    return f"{tensor}:{k}/{suffix}"


# ---------------------------------------------------------------------- sizes in the code


@dataclass
class Demands:
    """What the sizes in the code ask: settings to make, equations to respect, axes to tie, and what can't be had."""

    sizes: Sizes
    ties: list[tuple[str, ...]]
    stuck: list[Equation]


def equations_of(uses: list[Use], names: Names) -> list[Equation]:
    """What the uses of sizes state, each equation once."""
    found: dict[tuple[Origin, Expr], Equation] = {}
    for use in binding(uses, names.frozen | names.names.keys()):
        origin, target = _finish_origin(use.origin, names), names.finish(use.target)
        if (origin, target) not in found:
            what = origin.value if isinstance(origin, Literal) else describe(origin)
            text = f"{use.function}({what}) at {use.where}"
            found[origin, target] = Equation(origin=origin, target=target, text=text, number=use.function == NUMBER)
    return list(found.values())


def demands(equations: list[Equation], prunable: Mapping[str, int]) -> Demands:
    """Sort the uses of sizes by what they ask of a plan.

    An attribute used alone is set to the dim's new size. An equation that always holds is dropped; one that holds while
    equal axes stay equal, or all axes keep their proportions, ties them; any other, and any literal, is stuck: its axes
    freeze, or the graph is rewritten.
    """
    settings: dict[Site, Expr] = {}
    for equation in equations:
        if isinstance(equation.origin, Site) and set(equation.axes) & prunable.keys():
            settings.setdefault(equation.origin, equation.target)
    for equation in equations:
        _solve(equation, settings, prunable)
    for equation in equations:
        _solve(equation, settings, prunable, tied=True)
    rest: list[Equation] = []
    for equation in equations:
        sites = {a for a in atoms(equation.origin) if isinstance(a, Site)}
        concerned = set(equation.axes) & prunable.keys() or sites & settings.keys()
        if concerned and settings.get(equation.origin) != equation.target:  # type: ignore[arg-type]
            rest.append(equation)
    sizes = Sizes(settings=settings, equations=())
    kept: list[Equation] = []
    ties: list[tuple[str, ...]] = []
    stuck: list[Equation] = []
    for equation in rest:
        involved = _involved(equation, sizes, prunable)
        if isinstance(equation.origin, Literal):
            stuck.append(equation)
        elif _holds(equation, sizes, prunable, involved, tied=False):
            continue
        elif _holds(equation, sizes, prunable, involved, tied=True):
            ties += [
                tuple(n for n in involved if prunable[n] == size) for size in {prunable[n]: None for n in involved}
            ]
            kept.append(equation)
        elif _scales(equation, sizes, prunable, involved):
            ties.append(tuple(involved))
            kept.append(equation)
        else:
            stuck.append(replace(equation, more=tuple(involved)))
    return Demands(Sizes(settings=settings, equations=tuple(kept)), ties, stuck)


def relax(uses: list[Use], names: Names, infos: dict[str, AxisInfo], tensors: Mapping[str, list[Expr]]) -> Demands:
    """The demands when axes that need not be pruned stay whole: the head size where heads can go, so that
    ``width // heads`` holds. The model's class is kept that way, and every parameter stays on a prunable axis.
    """
    dims = [[names.finish(e) for e in exprs] for exprs in tensors.values()]
    equations = equations_of(uses, names)
    while True:
        prunable = prunable_sizes(infos)
        found = demands(equations, prunable)
        chosen = set(_hold_numbers([e for e in found.stuck if isinstance(e.origin, Shape)], infos))
        for equation in [] if chosen else found.stuck:
            victims = _victims(equation, found.sizes, prunable_sizes(infos), infos, dims)
            freeze(infos, victims, f"stays whole so that {equation.text} holds for the others")
            chosen.update(victims)
        if not chosen:
            chosen.update(_hold_numbers(found.stuck, infos))
        if not chosen:
            return found


def keep_whole(
    uses: list[Use],
    names: Names,
    infos: dict[str, AxisInfo],
    reason: str,
    covered: Callable[[Mapping[str, AxisInfo]], int],
) -> Demands:
    """The demands when no graph can take the class's place: of the axes that a size holds, those freeze that cover the
    fewest parameters.
    """
    equations = equations_of(uses, names)
    while True:
        prunable = prunable_sizes(infos)
        found = demands(equations, prunable)
        for equation in found.stuck:
            axes = _least(equation, found.sizes, infos, covered)
            freeze(infos, axes, f"{equation.text} can't follow it while the class is kept, and {reason}")
        if len(prunable_sizes(infos)) == len(prunable):
            return found


def _least(
    equation: Equation, sizes: Sizes, infos: dict[str, AxisInfo], covered: Callable[[Mapping[str, AxisInfo]], int]
) -> tuple[str, ...]:
    """The axes that hold an equation when they freeze, and leave the most parameters on others."""
    prunable = prunable_sizes(infos)
    involved = _involved(equation, sizes, prunable)
    groups = [tuple(involved)]
    if not isinstance(equation.origin, Literal):
        groups += [g for count in (1, 2) for g in combinations(involved, count) if len(involved) <= 8]
        groups = [g for g in groups if _satisfied(equation, sizes, {n: s for n, s in prunable.items() if n not in g})]
    return max(groups, key=lambda g: covered({n: i for n, i in infos.items() if n not in g}), default=tuple(involved))


def _hold_numbers(stuck: list[Equation], infos: dict[str, AxisInfo]) -> list[str]:
    """Freeze the axes of tensors whose size the code calculates with: no attribute and no argument can undo that."""
    held: list[str] = []
    for equation in stuck:
        if equation.number and any(isinstance(a, Shape) for a in atoms(equation.origin)):
            names = [n for n in equation.axes if n in infos and not infos[n].frozen]
            freeze(infos, names, f"its size is used as a number: {equation.text}")
            held += names
    return held


def _victims(
    equation: Equation,
    sizes: Sizes,
    prunable: Mapping[str, int],
    infos: Mapping[str, AxisInfo],
    tensors: list[list[Expr]],
) -> tuple[str, ...]:
    """The fewest axes that could stay whole for an equation to hold, in dims that another axis can make smaller."""
    involved = _involved(equation, sizes, prunable)
    if isinstance(equation.origin, Literal):
        groups = [tuple(involved)]
    else:
        order = sorted(involved, key=lambda n: (SPARE.get(infos[n].kind, 1), infos[n].size))
        groups = [g for count in (1, 2) for g in combinations(order, count)]
    for group in groups:
        rest = {n: s for n, s in prunable.items() if n not in group}
        if all(_spared(n, rest, tensors, infos[n].kind) for n in group) and _satisfied(equation, sizes, rest):
            return group
    return ()


def _spared(name: str, rest: Mapping[str, int], tensors: Iterable[list[Expr]], kind: str) -> bool:
    """Whether an axis is, wherever it occurs, a factor beside one that can be pruned; of a head size it is enough that
    another dim of the parameter can be.
    """
    for dims in tensors:
        if any(name in named([d]) and not _beside(d, name, rest, beside=False) for d in dims):
            others = named([d for d in dims if name not in named([d])])
            if kind != "head_dim" or not rest.keys() & set(others):
                return False
    return True


def _beside(expr: Expr, name: str, rest: Mapping[str, int], *, beside: bool) -> bool:
    match expr:
        case Prod():
            factors = [set(named([f])) for f in expr.factors]
            others = [any(n in rest for j, f in enumerate(factors) if j != k for n in f) for k in range(len(factors))]
            return all(_beside(factor, name, rest, beside=beside or others[k]) for k, factor in enumerate(expr.factors))
        case Sum():
            return all(_beside(part, name, rest, beside=beside) for part in expr.parts)
        case _:
            return beside or expr.name != name


def _satisfied(equation: Equation, sizes: Sizes, prunable: Mapping[str, int]) -> bool:
    if isinstance(equation.origin, Literal):
        return True
    involved = _involved(equation, sizes, prunable)
    return any(
        (
            _holds(equation, sizes, prunable, involved, tied=False),
            _holds(equation, sizes, prunable, involved, tied=True),
            len(involved) > 1 and _scales(equation, sizes, prunable, involved),
        )
    )


def _solve(equation: Equation, settings: dict[Site, Expr], prunable: Mapping[str, int], *, tied: bool = False) -> None:
    """An attribute that only occurs within an expression is set to what makes the equation hold: a part of the dim, or
    what the expression was computed from.

    Args:
        tied: it may hold while equal axes stay equal, and one of several attributes may change alone.
    """
    unknown = dict.fromkeys(a for a in atoms(equation.origin) if isinstance(a, Site) and a not in settings)
    if not set(equation.axes) & prunable.keys() or (len(unknown) != 1 and not tied):
        return
    for site in unknown:
        inverse = _inverse(equation.origin, equation.target, site, settings)
        for part in [*([] if inverse is None else [inverse]), *_parts(equation.target)]:
            if part.size == site.value and set(named([part])) & prunable.keys():
                trial = Sizes(settings={**settings, site: part}, equations=())
                if _holds(equation, trial, prunable, _involved(equation, trial, prunable), tied=tied):
                    settings[site] = part
                    return


def _inverse(origin: Origin, target: Expr, site: Site, settings: Mapping[Site, Expr]) -> Expr | None:
    """What an attribute must be for ``width // n`` or ``width - n`` to be the target; None for other expressions."""
    if origin == site:
        return target
    if not isinstance(origin, Operation) or origin.symbol not in ("//", "-"):
        return None
    other = _as_expr(origin.right, settings)
    if other is None:
        return None
    whole = product((other, target)) if origin.symbol == "//" else concat((other, target))
    return _inverse(origin.left, whole, site, settings)


def _as_expr(origin: Origin, settings: Mapping[Site, Expr]) -> Expr | None:
    """A size as a dim expression, where it is a plain one."""
    match origin:
        case Literal():
            return Leaf(None, origin.value) if origin.value > 0 else None
        case Attribute() | NodeArgument():
            return settings.get(origin, Leaf(None, origin.value) if origin.value > 0 else None)
        case Shape():
            return origin.dim
        case Operation():
            return None


def _parts(expr: Expr) -> Iterable[Expr]:
    """Everything that a dim is made of: its leaves, and the runs of factors and parts."""
    yield expr
    items = expr.factors if isinstance(expr, Prod) else expr.parts if isinstance(expr, Sum) else ()
    join = product if isinstance(expr, Prod) else concat
    for start in range(len(items)):
        for stop in range(start + 1, len(items) + 1):
            if stop - start == 1:
                yield from _parts(items[start])
            elif stop - start < len(items):
                yield join(items[start:stop])


def _finish_origin(origin: Origin, names: Names) -> Origin:
    match origin:
        case Shape():
            return Shape(names.finish(origin.dim))
        case Operation():
            return Operation(origin.symbol, _finish_origin(origin.left, names), _finish_origin(origin.right, names))
        case _:
            return origin


def describe(origin: Origin) -> str:
    """An origin as people would write it."""
    match origin:
        case Literal():
            return str(origin.value)
        case Attribute() | NodeArgument():
            return str(origin)
        case Shape():
            return f"size of {origin.dim!r}"
        case Operation():
            return f"{describe(origin.left)} {origin.symbol} {describe(origin.right)}"


def _involved(equation: Equation, sizes: Sizes, prunable: Mapping[str, int]) -> list[str]:
    """The prunable axes that an equation depends on, through shapes, settings and its target."""
    set_by = [sizes.settings[a] for a in atoms(equation.origin) if isinstance(a, Site) and a in sizes.settings]
    return [n for n in dict.fromkeys([*equation.axes, *named(set_by)]) if n in prunable]


def _holds(equation: Equation, sizes: Sizes, prunable: Mapping[str, int], involved: list[str], *, tied: bool) -> bool:
    """Whether the equation holds for all sizes, tried on a seeded sample of them; ``tied`` keeps equal axes equal."""
    group: dict[str, str | int] = {n: prunable[n] if tied else n for n in involved}
    groups = {key: number for number, key in enumerate(dict.fromkeys(group.values()))}
    concerned = sizes.of(equation)
    for m in involved:
        trial = {n: max(1, prunable[n] - 1) if group[n] == group[m] else prunable[n] for n in involved}
        if not equation.holds(trial, concerned.values(trial)):
            return False
    for row in SHARES:
        trial = {n: max(1, int(prunable[n] * row[groups[group[n]] % len(row)])) for n in involved}
        if not equation.holds(trial, concerned.values(trial)):
            return False
    return True


def _scales(equation: Equation, sizes: Sizes, prunable: Mapping[str, int], involved: list[str]) -> bool:
    """Whether the equation holds at every size that keeps the proportions of its axes: one int for two head sizes."""
    steps, concerned = gcd(*(prunable[n] for n in involved)), sizes.of(equation)
    trials = ({n: prunable[n] // steps * k for n in involved} for k in range(1, steps, max(1, steps // 16)))
    return steps > 1 and all(equation.holds(t, concerned.values(t)) for t in trials)


# ---------------------------------------------------------------------- the graph


def freeze(infos: dict[str, AxisInfo], axes: Iterable[str], reason: str) -> None:
    """Note a reason on axes that were prunable so far."""
    for name in axes:
        if not infos[name].frozen:
            infos[name] = replace(infos[name], frozen=(reason,))


def note_questions(
    infos: dict[str, AxisInfo], bounds: Mapping[tuple[Origin, int], str], sizes: Sizes, names: Names
) -> None:
    """Note how many units an axis needs for the way that the code takes: below, it goes another (``if groups > 1``)."""
    for (origin, least), place in bounds.items():
        dim = names.finish(origin.dim) if isinstance(origin, Shape) else sizes.settings.get(origin)  # type: ignore[arg-type]
        if isinstance(dim, Leaf) and dim.name in infos and least > infos[dim.name].asked[0]:
            infos[dim.name] = replace(infos[dim.name], asked=(least, place))


def prunable_sizes(infos: Mapping[str, AxisInfo]) -> dict[str, int]:
    return {n: a.size for n, a in infos.items() if not a.frozen}


def spread_ties(infos: dict[str, AxisInfo], ties: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Ties that share an axis are one; a tie with a frozen axis is frozen."""
    groups: list[set[str]] = []
    for tie in ties:
        joined = set(tie).union(*(g for g in groups if g & set(tie)))
        groups = [g for g in groups if not g & joined] + [joined]
    order = list(infos)
    kept: list[tuple[str, ...]] = []
    for group in groups:
        stuck = [n for n in group if infos[n].frozen]
        if stuck:
            freeze(infos, group, f"must stay as large as {min(stuck, key=order.index)}, which is frozen")
        elif gcd(*(infos[n].size for n in group)) == 1 and len(group) > 1:
            freeze(infos, group, f"tied to the size of {min(group, key=order.index)} in proportions that can't shrink")
        elif len(group) > 1:
            kept.append(tuple(sorted(group, key=order.index)))
    return kept


def tensor_infos(walk: Walk, dims: Mapping[str, list[Expr]], names: Names) -> dict[str, TensorInfo]:
    """Every tensor once, under its first name."""
    tensors = walk.tensors
    aliases: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        aliases.setdefault(id(tensor), []).append(name)
    return {
        group[0]: TensorInfo(
            dims=tuple(names.finish(d) for d in dims[group[0]]),
            names=tuple(group),
            parameter=group[0] in walk.parameters,
            itemsize=tensors[group[0]].itemsize,
        )
        for group in aliases.values()
    }
