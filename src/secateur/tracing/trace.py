"""``sc.trace``: one forward pass of a stand-in of the model, on fake tensors, becomes a `Graph`."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from secateur import nests
from secateur.axes import Expr, Leaf
from secateur.errors import ModelError, SecateurError, SurgeryError
from secateur.graph import AxisInfo, Consumer, Graph, Scale, Sizes, named
from secateur.inputs import as_call
from secateur.modules import Walk, check_original, named_tensors
from secateur.origins import Shape, Site, atoms, evaluate
from secateur.rebuilding import Rebuilds, as_module
from secateur.surgery.lengths import recomputed
from secateur.tracing.build import (
    NUMBER,
    Demands,
    Names,
    collect,
    demands,
    equations_of,
    freeze,
    keep_whole,
    note_questions,
    prunable_sizes,
    relax,
    spread_ties,
    tensor_infos,
)
from secateur.tracing.capture import capture, has_argument, to_module
from secateur.tracing.consumers import Consumers
from secateur.tracing.leavings import nothing_left
from secateur.tracing.running import NEEDS_DATA, Run, describe_inputs, run_class, run_shapes
from secateur.tracing.scales import NotLinear, makers, ranges
from secateur.tracing.shadow import shadow
from secateur.tracing.sizes import Use
from secateur.tracing.surroundings import no_collection, quiet_backends

KEPT = "a rewritten graph would put few more parameters on prunable axes"
WORTH = 0.97  # share of the parameters on prunable axes for which head sizes stay whole and the class is kept


def trace(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> Graph:
    """Find the axes of a model: which slices of which parameters go together.

    The forward pass runs once, on fake tensors: no data, no compute, so a model on the meta device will do. Where code
    depends on values it runs on the example inputs instead. The model itself is never touched.

    Args:
        model: any module.
        args: example inputs: a tensor, a tuple of positional inputs, or a mapping of keyword inputs.
        kwargs: further keyword inputs.

    Returns:
        The `Graph`: plain data that prints well.

    Raises:
        TraceError: the model does not run on the example inputs.
        ModelError: the model can't be copied, has no parameters, or is what `secateur.accelerate` made.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> list(sc.trace(net, torch.zeros(1, 4)).axes)
        ['0.weight:0']
    """
    model = as_module(model)
    positional, keywords = as_call(args, kwargs)
    walk = Walk(model)
    check_original(walk)  # which may have no parameters
    if not walk.parameters:
        raise ModelError(f"{type(model).__name__} has no parameters, so there is nothing to prune")
    with quiet_backends(), nothing_left(walk), no_collection():
        return _graph(walk, positional, keywords)


def _graph(walk: Walk, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
    """What the run left dies with this call, before garbage is collected again."""
    traced = run_class(walk, args, kwargs)
    graph = Builder(walk, traced, (args, kwargs)).build()
    traced.tracer.forget()
    return graph


class Builder:
    """Puts the graph together, with the captured graph's sizes where the class holds literals."""

    def __init__(self, walk: Walk, run: Run, inputs: tuple[Any, Any]) -> None:
        self.model, self.walk, self.run, self.inputs = walk.model, walk, run, inputs
        self.tensors = walk.tensors
        self.names = collect(run.tracer, run.dims)
        self.infos = dict(self.names.infos)
        self.captured_ties: list[tuple[str, ...]] = []

    def build(self) -> Graph:
        scales = self._scales()
        self.uses = [*self.run.uses, *self._numbers(), *self._comparisons()]
        parameters = {n: dims for n, dims in self.run.dims.items() if isinstance(self.tensors[n], nn.Parameter)}
        found = relax(self.uses, self.names, self.infos, parameters)
        if isinstance(self.model, Rebuilds):
            found = replace(found, stuck=[])
        captured, found = self._capture(found) if found.stuck else (None, found)
        note_questions(self.infos, self.run.tracer.bounds, found.sizes, self.names)
        consumers = self._consumers()
        ties = spread_ties(self.infos, [*found.ties, *self.captured_ties])
        # what froze meanwhile needs no setting
        axes = {n: a for n, a in self.infos.items() if not a.frozen}
        return Graph(
            model=type(self.model).__name__,
            axes=axes,
            frozen={n: a for n, a in self.infos.items() if a.frozen},
            tensors=tensor_infos(self.walk, self.run.dims, self.names),
            macs=tuple((name, tuple(self.names.finish(d) for d in dims)) for name, dims in self.run.tracer.costs),
            ties=tuple(ties),
            sizes=replace(found.sizes, equations=(*found.sizes.equations, *found.stuck)),
            captured=captured,
            example=self._example() if captured is not None else None,
            unknown=tuple(dict.fromkeys(self.run.tracer.unknown)),
            inputs=describe_inputs(*self.inputs),
            scales=tuple(s for s in scales if axes.keys() & set(named([s.size]))),
            consumers=tuple(c for c in consumers if axes.keys() & set(c.axes)),
        )

    def _scales(self) -> list[Scale]:
        """Weights that can carry the change of a head size; where there are none, the head size freezes."""
        tracer = self.run.tracer
        first = {id(t): name for name, t in reversed(self.run.stand_ins.items())}
        scales: dict[Scale, None] = {}
        for query, dim, place in tracer.implicit_scales:
            size = self.names.finish(dim)
            axes = [n for n in named([size]) if n in self.infos and not self.infos[n].frozen]
            try:
                parts = makers(query, tracer.made) if axes else []
            except NotLinear:
                reason = f"attention without scale= divides by the root of its size, at {place}"
                freeze(self.infos, axes, reason)
                continue
            for part in parts:
                scales[
                    Scale(tensor=first[id(part.parameter)], dim=part.dim, positions=ranges(part.mask), size=size)
                ] = None
        return list(scales)

    def _consumers(self) -> list[Consumer]:
        """Weights that sum over the units of axes."""
        held = {id(t): name for name, t in reversed(self.tensors.items())}
        anew = {id(self.run.stand_ins[held[id(t)]]) for t, _ in recomputed(self.model) if id(t) in held}
        return Consumers(self.run.tracer, self.names, self.run.stand_ins, anew).find(self.infos)

    def _numbers(self) -> list[Use]:
        """Sizes that the code calculates with must keep their values."""
        found = self.run.tracer.numbers
        return [Use(origin, Leaf(None, evaluate(origin, {}, {})), NUMBER, place) for origin, place in found]

    def _comparisons(self) -> list[Use]:
        """Sizes that the code found to be equal must stay so, or it would go another way."""
        uses: list[Use] = []
        for a, b, place in self.run.tracer.comparisons:
            origin, shape = (a, b) if isinstance(b, Shape) else (b, a)
            if isinstance(shape, Shape):
                uses.append(Use(origin, shape.dim, "==", place))
        return uses

    def _capture(self, found: Demands) -> tuple[Sizes | None, Demands]:
        """The sizes of the captured graph, which can all be set; without one, what holds the class in place freezes."""
        stuck = found.stuck
        axes = list(dict.fromkeys(n for e in stuck for n in e.axes if n in self.infos and not self.infos[n].frozen))
        if not axes:
            return None, found
        kept = dict(self.infos)
        settled = keep_whole(self.uses, self.names, kept, KEPT, self._covered)
        lost = {a.kind for n, a in kept.items() if a.frozen and not self.infos[n].frozen}
        if lost == {"head_dim"} and self._covered(kept) > WORTH * self._covered(self.infos):
            self.infos.update(kept)
            return None, settled
        try:
            sizes = self._captured_sizes()
        except (SecateurError, *NEEDS_DATA) as error:
            return None, keep_whole(self.uses, self.names, self.infos, str(error), self._covered)
        if self._covered(self.infos) < self._covered(kept):
            self.infos.update(kept)
            self.captured_ties = []
            return None, settled
        for name in axes:
            texts = tuple(dict.fromkeys(e.text for e in stuck if name in e.axes))
            self.infos[name] = replace(self.infos[name], rewrite=texts)
        return sizes, found

    def _covered(self, infos: Mapping[str, AxisInfo]) -> int:
        """How many parameters lie on an axis that is not frozen."""
        on_axis = {tensor for info in infos.values() if not info.frozen for tensor, _ in info.members}
        return sum(self.tensors[n].numel() for n in on_axis if isinstance(self.tensors[n], nn.Parameter))

    def _example(self) -> Any:
        try:
            return nests.describe(self.inputs)
        except TypeError as error:
            raise SurgeryError(str(error)) from error

    def _captured_sizes(self) -> Sizes:
        positional, keywords = nests.imitate(self._example())
        double = shadow(self.model)
        graph = to_module(capture(double, positional, keywords), double)
        captured = run_shapes(Walk(graph.eval()), *self.inputs, captured=True)
        own_names = {id(tensor): name for name, tensor in reversed(named_tensors(double).items())}
        renamed = {name: own_names.get(id(tensor), name) for name, tensor in named_tensors(graph).items()}
        captured.dims = {renamed[name]: dims for name, dims in captured.dims.items()}  # tied weights have several names
        ordered = [*self.run.dims, *(n for n in captured.dims if n not in self.run.dims)]  # it has an order of its own
        names = collect(captured.tracer, {n: captured.dims[n] for n in ordered if n in captured.dims})
        found, own = _shape(names.infos), _shape(self.names.infos)
        read = [name for name, info in self.names.infos.items() if any(m in captured.dims for m, _ in info.members)]
        if any(found.get(name) != own[name] for name in read):
            raise SurgeryError("the captured graph has other axes than the model itself")
        prunable = prunable_sizes(self.infos)
        nodes = {node.name: node for node in graph.graph.nodes}
        settable = [use for use in captured.uses if use.site and has_argument(nodes[use.site.node], use.site.path)]
        fixed = demands(equations_of([use for use in captured.uses if use not in settable], names), prunable)
        settings: dict[Site, Expr] = dict(fixed.sizes.settings)
        settings |= {use.site: names.finish(use.target) for use in reversed(settable) if use.site}
        follow: dict[Any, set[str]] = {use.site: set(named(_exprs(use, names))) for use in settable}
        for equation in fixed.stuck:
            freeze(
                self.infos,
                [n for n in equation.axes if n in prunable],
                f"{equation.text}: no argument of the call can be set",
            )
        self.captured_ties = [*fixed.ties, *self._shared_arguments(settable, names)]
        kept = {s: d for s, d in settings.items() if prunable.keys() & follow.get(s, set(named([d])))}
        return Sizes(settings=kept, equations=())

    def _shared_arguments(self, uses: list[Use], names: Names) -> Iterator[tuple[str, ...]]:
        """One argument for several dims (the size of equal splits) keeps these equal."""
        targets: dict[Any, dict[Expr, None]] = {}
        for use in uses:
            targets.setdefault(use.site, {})[names.finish(use.target)] = None
        prunable = prunable_sizes(self.infos)
        for site, dims in targets.items():
            axes = [n for n in dict.fromkeys(named(list(dims))) if n in prunable]
            if len(dims) > 1 and all(isinstance(d, Leaf) and d.name in prunable for d in dims):
                yield tuple(axes)
            elif len(dims) > 1:
                freeze(self.infos, axes, f"{site} is the size of several dims that are not alike")


def _exprs(use: Use, names: Names) -> list[Expr]:
    """The dims that a size follows: the one that it must be equal to, and those that the code computes it from."""
    return [names.finish(use.target), *(names.finish(a.dim) for a in atoms(use.origin) if isinstance(a, Shape))]


def _shape(infos: Mapping[str, AxisInfo]) -> dict[str, tuple[int, Any]]:
    """Sizes and members of axes; a capture's own constants don't count."""
    return {n: (a.size, [m for m in a.members if not m[0].startswith("_tensor_constant")]) for n, a in infos.items()}
