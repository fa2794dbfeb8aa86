"""``graph.explain``: what one dim of one tensor is made of, what goes with it, and why it may or may not be pruned."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from secateur.axes import Expr, Leaf, Prod, Sum, leaves
from secateur.errors import UnknownTensor

if TYPE_CHECKING:
    from secateur.graph import AxisInfo, Graph, Member


@dataclass(frozen=True, kw_only=True)
class ExplainedAxis:
    """One of the axes that a dim is made of.

    Attributes:
        name: of the axis, as in ``graph.axes`` or ``graph.frozen``.
        label: what stands for it in the dim's expression.
        prunable: whether units of it may be removed.
        coupled: the (tensor, dim) pairs besides the explained one that lose the same units.
        tied: axes that shrink in the same proportion.
        sizes: attributes of modules that are set to its new size, or to one made of it.
        equations: sizes computed in ``forward``, with file and line, that must go on agreeing with it.
        normalising: where a mean, variance or maximum runs over it.
        limits: what its width has to respect: routing to the best two needs two experts.
        rewrite: the sizes in ``forward``, with file and line, for which the graph is rewritten when it is pruned.
        frozen: why it must keep its size.
        remedy: what would change that, where something would.
    """

    name: str
    label: str
    size: int
    kind: str
    prunable: bool
    coupled: "tuple[Member, ...]"
    tied: tuple[str, ...]
    sizes: tuple[str, ...]
    equations: tuple[str, ...]
    normalising: tuple[str, ...]
    limits: tuple[str, ...]
    rewrite: tuple[str, ...]
    frozen: tuple[str, ...]
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What one dim is made of.

    Attributes:
        tensor, dim: the dim that was asked about; the tensor by its first name.
        names: every name of the tensor; tied ones have several.
        size: number of positions.
        expression: what they are made of: ``(heads 4 x head_dim 8)`` is a product, ``{left 3 + right 5}`` a sum.
        axes: the axes of the expression, from left to right, each once.
    """

    tensor: str
    dim: int
    names: tuple[str, ...]
    size: int
    expression: str
    axes: tuple[ExplainedAxis, ...]

    @property
    def prunable(self) -> bool:
        """Whether anything of the dim may be removed."""
        return any(axis.prunable for axis in self.axes)

    def __rich__(self) -> Any:
        return Group(*_lines(self))

    def __str__(self) -> str:
        return "\n".join(line.plain for line in _lines(self))


def explain(graph: "Graph", tensor: str, dim: int | None = None) -> Explanation:
    """See `Graph.explain`."""
    if dim is None:
        tensor, dim = _parsed(tensor)
    first, info = next(((n, t) for n, t in graph.tensors.items() if tensor in t.names), (None, None))
    if first is None or info is None:
        raise UnknownTensor(f"{graph.model} has no parameter or buffer {tensor!r}{_nearest(graph, tensor)}")
    if not -len(info.dims) <= dim < len(info.dims):
        raise UnknownTensor(f"{tensor} has {len(info.dims)} dims, {list(info.shape)}; there is no dim {dim}")
    dim %= len(info.dims)
    expr = info.dims[dim]
    known = {**graph.axes, **graph.frozen}
    labels = _labels(expr, known)
    axes = tuple(_axis(graph, name, known[name], label, (first, dim)) for name, label in labels.items())
    return Explanation(
        tensor=first, dim=dim, names=info.names, size=expr.size, expression=_written(expr, labels), axes=axes
    )


def _parsed(text: str) -> tuple[str, int]:
    """``name:1`` as a name and a dim; an axis's name will do."""
    name, _, dim = text.partition("/")[0].rpartition(":")
    if not name or not dim.removeprefix("-").isdecimal():
        raise UnknownTensor(f"{text!r} does not say which dim: write a tensor's name and the number of a dim, name:0")
    return name, int(dim)


def _nearest(graph: "Graph", tensor: str) -> str:
    names = [name for info in graph.tensors.values() for name in info.names]
    near = difflib.get_close_matches(tensor, names, n=3, cutoff=0.5)
    return f". The nearest names are {', '.join(near or names[:3])}"


# ---------------------------------------------------------------------- one axis


def _axis(graph: "Graph", name: str, info: "AxisInfo", label: str, member: "Member") -> ExplainedAxis:
    tied = next((group for group in graph.ties if name in group), ())
    return ExplainedAxis(
        name=name,
        label=label,
        size=info.size,
        kind=info.kind,
        prunable=name in graph.axes,
        coupled=tuple(m for m in info.members if m != member),
        tied=tuple(n for n in tied if n != name),
        sizes=tuple(str(site) for site, size in graph.sizes.settings.items() if name in _names(size)),
        equations=_equations(graph, name),
        normalising=info.normalising,
        limits=info.limits,
        rewrite=info.rewrite,
        frozen=info.frozen,
        remedy=_remedy(graph, info),
    )


def _equations(graph: "Graph", name: str) -> tuple[str, ...]:
    """The sizes in the class's code that an axis must agree with when it changes, while the class is kept."""
    if name not in graph.axes:
        return ()
    rewritten = {text for info in graph.axes.values() for text in info.rewrite}
    texts = [e.text for e in graph.sizes.equations if name in e.axes]
    return tuple(dict.fromkeys(text for text in texts if text not in rewritten))


def _remedy(graph: "Graph", info: "AxisInfo") -> str:
    """The way out where an operation without a rule froze an axis."""
    names = [name for name, _ in graph.unknown if any(reason.startswith(f"{name} at ") for reason in info.frozen)]
    return f"no rule knows the operation: {way_out(names)}" if names else ""


def way_out(operations: Iterable[str]) -> str:
    """What a user can do about operations that no rule knows."""
    return "say how its dims go together with " + " and ".join(f'@sc.rule("{n}")' for n in dict.fromkeys(operations))


# ---------------------------------------------------------------------- the expression


def _labels(expr: Expr, known: "Mapping[str, AxisInfo]") -> dict[str, str]:
    """A short label for each axis: its kind, numbered where several are of one kind."""
    names = _names(expr)
    labels: dict[str, str] = {}
    for name in names:
        alike = [n for n in names if known[n].kind == known[name].kind]
        labels[name] = known[name].kind + (str(alike.index(name) + 1) if len(alike) > 1 else "")
    return labels


def _names(expr: Expr) -> list[str]:
    """The names of an expression's axes from left to right, each once."""
    return list(dict.fromkeys(leaf.name for leaf in leaves(expr) if leaf.name is not None))


def _written(expr: Expr, labels: Mapping[str, str]) -> str:
    """The expression in labels and sizes. What has no name has no axis: a window, or a single position."""
    match expr:
        case Prod() if expr.factors:
            return f"({' x '.join(_written(f, labels) for f in expr.factors)})"
        case Sum():
            return "{" + " + ".join(_written(p, labels) for p in expr.parts) + "}"
        case Leaf() if expr.name is not None:
            return f"{labels[expr.name]} {expr.size}"
        case _:
            return "a single position" if expr.size == 1 else f"{expr.size} fixed"


# ---------------------------------------------------------------------- text


def _lines(explanation: Explanation) -> Iterable[Text]:
    also = [name for name in explanation.names if name != explanation.tensor]
    alias = f" (also {', '.join(also)})" if also else ""
    head = f"{explanation.tensor}{alias}, dim {explanation.dim}: {explanation.size} = {explanation.expression}"
    yield Text(head, style="bold")
    if not explanation.axes:
        what = "one position, which is no axis" if explanation.size == 1 else "positions of a window, which stay"
        yield Text(f"  {what}")
    for axis in explanation.axes:
        yield from _axis_lines(axis)


def _axis_lines(axis: ExplainedAxis) -> Iterable[Text]:
    verdict = ("can be pruned", "green") if axis.prunable else ("must keep its size", "yellow")
    yield Text.assemble(f"  {axis.label}: {axis.name}, {axis.size} units: ", verdict)
    facts: dict[str, Iterable[str]] = {
        "because": axis.frozen,
        "remedy": [axis.remedy] * bool(axis.remedy),
        "rewrites the graph for": axis.rewrite,
        "shrinks with": axis.tied,
        "keeps": axis.limits,
        "coupled with": [f"{name}:{dim}" for name, dim in axis.coupled],
        "sizes that follow": axis.sizes,
        "must agree with": axis.equations,
        "normalised over by": axis.normalising,
    }
    for fact, values in facts.items():
        for k, value in enumerate(values):
            yield Text.assemble((f"    {fact if k == 0 else '':<24}", "dim"), value)
