"""What tracing found, as plain data: axes, where they run, what they cost, and which sizes in the code follow them."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from secateur.axes import Expr, leaves, size_of
from secateur.costs import Costs
from secateur.origins import Attribute, NodeArgument, Origin, Shape, Site, atoms, evaluate

if TYPE_CHECKING:
    from secateur.explaining import Explanation

Member = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class AxisInfo:
    """One axis.

    Attributes:
        size: number of units.
        kind: channels, hidden, residual, heads, kv_groups, head_dim, groups or experts.
        members: (parameter or buffer, dim) pairs that it runs through, in the model's own order.
        normalising: where a mean, variance or maximum is taken along it; removing a unit changes that by design.
        frozen: why it must keep its size; empty where it may be pruned.
        rewrite: the sizes in ``forward`` that pruning it makes stale, so that the graph is rewritten; empty if none.
        least: the fewest units that the operations along it can do with: routing to the best two needs two experts.
        asked: the fewest units with which the code goes the way that it went, and where it asks (``if groups > 1``).
        step: what its size must be a multiple of, where a kernel wants aligned rows.
        once: why its units can't be repeated; empty where they can.
    """

    size: int
    kind: str
    members: tuple[Member, ...]
    normalising: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    rewrite: tuple[str, ...] = ()
    least: int = 1
    asked: tuple[int, str] = (1, "")
    step: int = 1
    once: tuple[str, ...] = ()

    @property
    def limits(self) -> tuple[str, ...]:
        """What its width has to respect, for people."""
        fewest = [f"at least {self.least} units"] * (self.least > 1)
        return (*fewest, *[f"a multiple of {self.step}"] * (self.step > 1))


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A parameter or buffer.

    Attributes:
        dims: what each dim is made of.
        names: every qualified name that it has (tied tensors have several), its own first.
        parameter: False for a buffer.
        itemsize: bytes an element.
    """

    dims: tuple[Expr, ...]
    names: tuple[str, ...]
    parameter: bool
    itemsize: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(d.size for d in self.dims)


@dataclass(frozen=True, kw_only=True)
class Equation:
    """A size in the code, ``origin``, that must equal the size of a dim.

    Attributes:
        text: which size, and where, for people.
        more: axes that it depends on besides those of its shapes and its target, through attributes.
        number: the code calculates with the size, so that it must keep its value.
    """

    origin: Origin
    target: Expr
    text: str
    more: tuple[str, ...] = ()
    number: bool = False

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes whose sizes it speaks of, in order."""
        exprs = [self.target, *(a.dim for a in atoms(self.origin) if isinstance(a, Shape))]
        return tuple(dict.fromkeys([*named(exprs), *self.more]))

    def holds(self, sizes: Mapping[str, int], settings: Mapping[Site, int]) -> bool:
        return evaluate(self.origin, sizes, settings) == size_of(self.target, sizes)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Weights to be scaled by the root of (new size / old size) of a dim, which attention divides by the root of.

    Attributes:
        tensor, dim: a parameter and the dim that the positions are of.
        positions: ranges [start, stop) of the dim.
        size: the dim whose size counts: the head size.
    """

    tensor: str
    dim: int
    positions: tuple[tuple[int, int], ...]
    size: Expr


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """Weights that are multiplied with what the units of axes give, and summed: where a unit is repeated they are
    divided among its copies.

    Attributes:
        tensor, dim: a parameter and the dim that the positions are of.
        positions: ranges [start, stop) of the dim.
        axes: those of the dim's axes that are summed over.
    """

    tensor: str
    dim: int
    positions: tuple[tuple[int, int], ...]
    axes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that a form of the model (its class, or a captured graph) holds.

    Attributes:
        settings: attributes, or arguments in a captured graph, that hold the size of a dim, and that dim.
        equations: sizes computed from shapes and attributes that a plan must respect.
    """

    settings: dict[Site, Expr]
    equations: tuple[Equation, ...]

    def values(self, sizes: Mapping[str, int]) -> dict[Site, int]:
        """What every setting must be when axes have the given sizes."""
        return {site: size_of(dim, sizes) for site, dim in self.settings.items()}

    def of(self, equation: Equation) -> "Sizes":
        """The settings that an equation speaks of."""
        sites = [a for a in atoms(equation.origin) if isinstance(a, Attribute | NodeArgument)]
        return Sizes(settings={a: self.settings[a] for a in sites if a in self.settings}, equations=())

    def broken(self, sizes: Mapping[str, int]) -> list[Equation]:
        """The equations that the given sizes break."""
        values = self.values(sizes)
        return [e for e in self.equations if not e.holds(sizes, values)]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """All that planning and surgery need to know of a model.

    Attributes:
        model: name of the model's class.
        axes: the axes that can be pruned, by name. A name is the axis's first member, ``layer1.0.conv1.weight:0``.
        frozen: the others that run through a parameter, with reasons.
        tensors: every parameter and buffer once, under its first name.
        macs: for each operation, its name and the factors of its multiply-accumulates.
        ties: groups of axes that must keep the proportions of their sizes; most are of equal size.
        sizes: the sizes that the model's class holds.
        captured: the same of the model captured as a graph, where literals in ``forward`` make that necessary.
        unknown: operations that no rule knows, with their place.
        scales: weights that make the queries of attention which divides by the root of its head size.
        consumers: weights that sum over the units of axes.
        inputs: shapes and dtypes of the example inputs, for people.
        example: the same as data (`secateur.nests`), where the model was captured as a graph.
    """

    model: str
    axes: dict[str, AxisInfo]
    frozen: dict[str, AxisInfo]
    tensors: dict[str, TensorInfo]
    macs: tuple[tuple[str, tuple[Expr | int, ...]], ...]
    ties: tuple[tuple[str, ...], ...]
    sizes: Sizes
    captured: Sizes | None
    unknown: tuple[tuple[str, str], ...]
    inputs: str
    scales: tuple[Scale, ...] = ()
    consumers: tuple[Consumer, ...] = ()
    example: Any = None

    @cached_property
    def costs(self) -> Costs:
        """Params, MACs and bytes as polynomials in the axis sizes."""
        params = [(t.dims, t.itemsize) for t in self.tensors.values() if t.parameter]
        buffers = [(t.dims, t.itemsize) for t in self.tensors.values() if not t.parameter]
        return Costs.of({n: a.size for n, a in self.axes.items()}, params, buffers, [m for _, m in self.macs])

    def cost(self, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
        """Params, MACs (of one forward pass on the example inputs) and bytes, when axes have the given sizes."""
        return self.costs.at(sizes or {})

    def select(self, patterns: Iterable[str]) -> set[str]:
        """Names of the prunable axes that a pattern names: an axis, a kind, a module or a tensor; globs allowed."""
        return {name for pattern in patterns for name in self.axes if self._matches(name, pattern)}

    def _matches(self, name: str, pattern: str) -> bool:
        info = self.axes[name]
        if pattern == info.kind or pattern == name or fnmatch.fnmatchcase(name, pattern):
            return True
        aliases = {alias for member, _ in info.members for alias in self.tensors[member].names}
        places = aliases | {alias.rpartition(".")[0] for alias in aliases}
        return any(p == pattern or p.startswith(pattern + ".") or fnmatch.fnmatchcase(p, pattern) for p in places)

    @property
    def coverage(self) -> float:
        """Share of all parameters that lie on a prunable axis, in [0, 1]."""
        sizes = [
            (prod(t.shape), bool(self.axes.keys() & set(named(t.dims)))) for t in self.tensors.values() if t.parameter
        ]
        total = sum(size for size, _ in sizes)
        return sum(size for size, on_axis in sizes if on_axis) / total if total else 0.0

    def explain(self, tensor: str, dim: int | None = None) -> "Explanation":
        """What a dim of a parameter or buffer is made of, what is coupled with it, and why it may or may not be pruned.

        Args:
            tensor: name of a parameter or buffer; or, without ``dim``, ``name:dim``, as in the name of an axis.
            dim: from 0, or from the end where negative.

        Returns:
            An `Explanation`, which prints.

        Raises:
            UnknownTensor: there is no such tensor or dim.

        Example:
            >>> import torch, secateur as sc
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> print(sc.trace(net, torch.zeros(1, 4)).explain("2.weight", 1))
            2.weight, dim 1: 8 = hidden 8
              hidden: 0.weight:0, 8 units: can be pruned
                coupled with            0.weight:0
                                        0.bias:0
        """
        from secateur.explaining import explain

        return explain(self, tensor, dim)

    def __rich__(self) -> Any:
        from secateur.printing import graph_tables

        return graph_tables(self)

    def __str__(self) -> str:
        from secateur.printing import as_text

        return as_text(self)


def named(exprs: Sequence[Expr]) -> list[str]:
    """Names of the leaves of expressions, in order, repeated ones repeatedly."""
    return [leaf.name for e in exprs for leaf in leaves(e) if leaf.name is not None]
