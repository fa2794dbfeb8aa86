"""``sc.trace``: one forward pass of a stand-in of the model, on fake tensors, becomes a `Graph`."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)
from torch.func import functional_call
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from secateur import nests
from secateur.axes import Axis, Expr, leaves, resolve
from secateur.errors import ModelError, SecateurError, SurgeryError, TraceError
from secateur.graph import AxisInfo, Equation, Graph, Sizes, named
from secateur.inputs import as_call, fresh
from secateur.origins import Site
from secateur.tracing.build import collect, demands, freeze, prunable_sizes, spread_ties, tensor_infos
from secateur.tracing.capture import capture, has_argument, place_of, to_module
from secateur.tracing.shadow import named_tensors, quiet_backends, separate, shadow, tag_attributes
from secateur.tracing.sizes import SizeMode, Use
from secateur.tracing.tracer import Tracer

NEEDS_DATA = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)


@dataclass
class Run:
    """What one traced forward pass left."""

    tracer: Tracer
    uses: list[Use]
    dims: dict[str, list[Expr]]


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
        ModelError: the model can't be copied, or has no parameters.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> list(sc.trace(net, torch.zeros(1, 4)).axes)
        ['0.weight:0']
    """
    positional, keywords = as_call(args, kwargs)
    tensors = named_tensors(model)
    if not any(True for _ in model.parameters()):
        raise ModelError(f"{type(model).__name__} has no parameters, so there is nothing to prune")
    with quiet_backends():
        run = _run_class(model, positional, keywords)
        return _Builder(model, tensors, run, (positional, keywords)).build()


# ---------------------------------------------------------------------- running


def _run_class(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
    try:
        return _run(model, args, kwargs, fake=True)
    except (TraceError, *NEEDS_DATA):  # values decide, or an operation has no fake form: the real inputs know
        if any(t.device.type == "meta" for t in model.parameters()):
            raise
        return _run(model, args, kwargs, fake=False)


def _run(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, fake: bool, graph: fx.GraphModule | None = None
) -> Run:
    """Trace one forward pass of a shadow of the model, or of its captured graph."""
    tracer = Tracer()
    sizes = SizeMode(tracer)
    double = graph if graph is not None else shadow(model) if fake else separate(model)
    tag_attributes(double, tracer)
    call = _interpret(graph, sizes) if graph is not None else double
    originals = named_tensors(double)
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else None
    stand_ins = _stand_ins(originals, mode)
    dims = {name: [tracer.algebra.dim(int(s)) for s in t.shape] for name, t in stand_ins.items()}
    entered: dict[int, list[Expr]] = {}
    for name, tensor in stand_ins.items():
        dims[name] = entered.setdefault(id(tensor), dims[name])
        tracer.introduce(tensor, dims[name])
        if name.startswith("_tensor_constant"):
            tracer.freeze_all(tensor, "a constant made inside forward")
    values, spec = tree_flatten((args, kwargs) if fake else fresh((args, kwargs)))
    fakes = [mode.from_tensor(v) if mode and isinstance(v, Tensor) else v for v in values]
    for tensor in tensors_in(fakes):
        tracer.set_dims(tensor, [tracer.algebra.fixed(int(s), "an input of the model") for s in tensor.shape])
    _freeze_hooked(tracer, double, stand_ins)
    positional, keywords = tree_unflatten(fakes, spec)
    try:
        with mode or nullcontext(), tracer, sizes:
            out = functional_call(call, stand_ins, positional, keywords, tie_weights=False, strict=False)
    except NEEDS_DATA:
        raise
    except SecateurError:
        raise
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} does not run on the example inputs {describe_inputs(args, kwargs)}: "
            f"{type(error).__name__}: {error}. Pass inputs that model(*args, **kwargs) accepts."
        ) from error
    if not tensors_in(out):
        raise TraceError(
            f"{type(model).__name__} gives a {type(out).__name__} in which no tensor can be found, so nothing would "
            "hold its outputs in place. Return a tensor, or a tuple, mapping or dataclass of them."
        )
    tracer.freeze_all(tensors_in(out), "an output of the model")
    _freeze_unread(tracer, dims.values())
    own = {first: dims[first] for first in {id(t): name for name, t in reversed(originals.items())}.values()}
    return Run(tracer, sizes.uses, {name: own[name] for name in originals if name in own})


def _freeze_unread(tracer: Tracer, dims: Iterable[list[Expr]]) -> None:
    """What computes nothing on the example inputs (spare rows of a table, a layer for training) may on others."""

    def axes(exprs: Iterable[Expr]) -> list[Axis]:
        return [leaf for e in exprs for leaf in leaves(resolve(e)) if isinstance(leaf, Axis)]

    computed = {axis.order for axis in axes(tracer.computed.values())}
    for axis in axes(e for exprs in dims for e in exprs):
        if axis.order not in computed:
            tracer.algebra.freeze(axis, "the forward pass on the example inputs never reads it")


def _stand_ins(originals: Mapping[str, Tensor], mode: FakeTensorMode | None) -> dict[str, Tensor]:
    """A fake (or aliasing) tensor for each parameter and buffer; tied ones share theirs."""
    made: dict[int, Tensor] = {}
    for tensor in originals.values():
        if id(tensor) not in made:
            made[id(tensor)] = mode.from_tensor(tensor, static_shapes=True) if mode else tensor.detach()
    return {name: made[id(tensor)] for name, tensor in originals.items()}


def tensors_in(out: Any, seen: "frozenset[int]" = frozenset()) -> list[Any]:
    """The tensors of an output, in whatever it is that holds them. Caches among the outputs are none to keep."""
    if isinstance(out, Tensor):
        return [out]
    if out is None or isinstance(out, bool | int | float | complex | str | bytes | nn.Module | type) or id(out) in seen:
        return []
    if isinstance(out, Mapping):
        parts: list[Any] = list(cast("Mapping[Any, Any]", out).values())
    elif isinstance(out, list | tuple | set | frozenset):
        parts = list(cast("list[Any]", out))
    elif "Cache" in type(out).__name__ or callable(out):
        return []
    else:
        slots = [name for name in getattr(type(out), "__slots__", ()) if hasattr(out, name)]
        parts = [*getattr(out, "__dict__", {}).values(), *(getattr(out, name) for name in slots)]
    return [tensor for part in parts for tensor in tensors_in(part, seen | {id(out)})]


def _freeze_hooked(tracer: Tracer, model: nn.Module, stand_ins: Mapping[str, Tensor]) -> None:
    """Weights that the old spectral norm computes in a hook: silencing their origin would change the norm as well."""
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            name = f"{path}.{getattr(hook, 'name', '')}_orig".removeprefix(".")
            if isinstance(hook, SpectralNorm) and name in stand_ins:
                tracer.freeze_all(stand_ins[name], "torch.nn.utils.spectral_norm divides by a norm of the whole weight")


def _interpret(graph: fx.GraphModule, sizes: SizeMode) -> nn.Module:
    """The captured graph as a module that tells the size mode which node it runs."""

    class Interpreter(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            sizes.node = n.name if n.op in ("call_function", "call_method") else None
            sizes.place = place_of(n)
            return super().run_node(n)

    class Interpreted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.__dict__["graph_module"] = graph
            self._modules, self._parameters, self._buffers = graph._modules, graph._parameters, graph._buffers

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return Interpreter(graph).run(*bind(graph, args, kwargs))

    return Interpreted()


def bind(graph: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The inputs in the order of the graph's placeholders, defaults filled in."""
    bound: list[Any] = []
    remaining = list(args)
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            if remaining:
                bound.append(remaining.pop(0))
            elif node.target in kwargs:
                bound.append(kwargs[node.target])
            else:
                bound.append(node.args[0] if node.args else None)
    return bound


def describe_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Shapes and dtypes of example inputs, for people."""

    def one(value: Any) -> Any:
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}" if isinstance(value, Tensor) else value

    parts = [str(tree_map(one, a)) for a in args] + [f"{k}={tree_map(one, v)}" for k, v in kwargs.items()]
    return f"({', '.join(parts)})"


# ---------------------------------------------------------------------- building


class _Builder:
    """Puts the graph together, with the captured graph's sizes where the class holds literals."""

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor], run: Run, inputs: tuple[Any, Any]) -> None:
        self.model, self.tensors, self.run, self.inputs = model, tensors, run, inputs
        self.names = collect(run.tracer, run.dims)
        self.infos = dict(self.names.infos)

    def build(self) -> Graph:
        for dim, place in self.run.tracer.implicit_scales:
            self._freeze_scaled(dim, place)
        found = demands(self.run.uses, self.names, prunable_sizes(self.infos))
        captured = self._capture(found.stuck) if found.stuck else None
        ties = spread_ties(self.infos, found.ties)
        # what froze meanwhile needs no setting
        axes = {n: a for n, a in self.infos.items() if not a.frozen}
        params = set(dict(self.model.named_parameters(remove_duplicate=False)))
        return Graph(
            model=type(self.model).__name__,
            axes=axes,
            frozen={n: a for n, a in self.infos.items() if a.frozen},
            tensors=tensor_infos(self.tensors, params, self.run.dims, self.names),
            macs=tuple((name, tuple(self.names.finish(d) for d in dims)) for name, dims in self.run.tracer.costs),
            ties=tuple(ties),
            sizes=replace(found.sizes, equations=(*found.sizes.equations, *found.stuck)),
            captured=captured,
            example=self._example() if captured is not None else None,
            unknown=tuple(dict.fromkeys(self.run.tracer.unknown)),
            inputs=describe_inputs(*self.inputs),
        )

    def _freeze_scaled(self, dim: Expr, place: str) -> None:
        reason = f"attention without scale= divides by the root of its size, at {place}"
        freeze(self.infos, [n for n in named([self.names.finish(dim)]) if n in self.infos], reason)

    def _capture(self, stuck: list[Equation]) -> Sizes | None:
        """The sizes of the captured graph, which can all be set; without one, what is stuck freezes."""
        axes = list(dict.fromkeys(n for e in stuck for n in e.axes if n in self.infos and not self.infos[n].frozen))
        if not axes:
            return None
        try:
            sizes = self._captured_sizes()
        except (SecateurError, *NEEDS_DATA) as error:
            for equation in stuck:
                freeze(
                    self.infos,
                    [n for n in equation.axes if n in self.infos],
                    f"{equation.text} can't follow it while the class is kept, and {error}",
                )
            return None
        for name in axes:
            texts = tuple(dict.fromkeys(e.text for e in stuck if name in e.axes))
            self.infos[name] = replace(self.infos[name], rewrite=texts)
        return sizes

    def _example(self) -> Any:
        try:
            return nests.describe(self.inputs)
        except TypeError as error:
            raise SurgeryError(str(error)) from error

    def _captured_sizes(self) -> Sizes:
        positional, keywords = nests.imitate(self._example())
        double = shadow(self.model)
        graph = to_module(capture(double, positional, keywords), double)
        run = _run(self.model, *self.inputs, fake=True, graph=graph.eval())
        ordered = [
            *self.run.dims,
            *(n for n in run.dims if n not in self.run.dims),
        ]  # a captured graph has its own order
        names = collect(run.tracer, {n: run.dims[n] for n in ordered if n in run.dims})
        found, own = _shape(names.infos), _shape(self.names.infos)
        read = [name for name, info in self.names.infos.items() if any(m in run.dims for m, _ in info.members)]
        if any(found.get(name) != own[name] for name in read):
            raise SurgeryError("the captured graph has other axes than the model itself")
        prunable = prunable_sizes(self.infos)
        nodes = {node.name: node for node in graph.graph.nodes}
        settable = [use for use in run.uses if use.site and has_argument(nodes[use.site.node], use.site.path)]
        fixed = demands([use for use in run.uses if use not in settable], names, prunable)
        settings: dict[Site, Expr] = dict(fixed.sizes.settings)
        settings |= {use.site: names.finish(use.target) for use in reversed(settable) if use.site}
        for equation in fixed.stuck:
            freeze(
                self.infos,
                [n for n in equation.axes if n in prunable],
                f"{equation.text}: no argument of the call can be set",
            )
        return Sizes(settings={s: d for s, d in settings.items() if prunable.keys() & set(named([d]))}, equations=())


def _shape(infos: Mapping[str, AxisInfo]) -> dict[str, tuple[int, Any]]:
    """Sizes and members of axes; a capture's own constants don't count."""
    return {n: (a.size, [m for m in a.members if not m[0].startswith("_tensor_constant")]) for n, a in infos.items()}
