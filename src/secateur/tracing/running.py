"""One traced forward pass: a stand-in of the model, or its captured graph, on fake tensors or on the real inputs."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from secateur.axes import Expr
from secateur.errors import SecateurError, TraceError
from secateur.inputs import fresh
from secateur.modules import Walk
from secateur.objectives import logits_of
from secateur.tracing import filling as filling
from secateur.tracing import positions as positions
from secateur.tracing import whole as whole
from secateur.tracing.capture import place_of
from secateur.tracing.hollow import Hollow, NeedsValues
from secateur.tracing.rules.registry import raised_at
from secateur.tracing.sequences import name_units
from secateur.tracing.shadow import copied, evaluating, own_tensor, tag_attributes, to_fake
from secateur.tracing.sizes import SizeMode, Use
from secateur.tracing.surroundings import as_if_exported
from secateur.tracing.tracer import Tracer
from secateur.tracing.unread import freeze_alternatives, freeze_unread
from secateur.tracing.widths import watch_widths

NEEDS_DATA = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)


Tensors = Literal["hollow", "fake", "real"]


@dataclass
class Run:
    """What one traced forward pass left.

    Attributes:
        scores: the dims of the output, or of what class scores among several outputs would be; None where there are no
            such.
    """

    tracer: Tracer
    uses: list[Use]
    dims: dict[str, list[Expr]]
    stand_ins: dict[str, Tensor]
    scores: list[Expr] | None = None


def run_class(walk: Walk, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
    """Trace on tensors that cost least; where values decide, or an operation has no form without them, on others."""
    try:
        return run_shapes(walk, args, kwargs)
    except (TraceError, *NEEDS_DATA) as error:
        if not on_meta(walk):
            return run(walk, args, kwargs, "real")
        if isinstance(error, TraceError):
            raise
        raise TraceError(
            f"the code of {type(walk.model).__name__} depends on values ({error} at {raised_at(error)}), and a model "
            "on the meta device has none. Load its weights and trace it on real inputs."
        ) from error


def run_shapes(walk: Walk, args: tuple[Any, ...], kwargs: dict[str, Any], *, captured: bool = False) -> Run:
    """Trace without values: on hollow tensors, else on torch's fake ones, which know more operations."""
    try:
        return run(walk, args, kwargs, "hollow", captured=captured)
    except (TraceError, NeedsValues):
        return run(walk, args, kwargs, "fake", captured=captured)


def on_meta(walk: Walk) -> bool:
    """Whether any parameter is on the meta device, without a value."""
    return any(t.is_meta for t in walk.parameters.values())


def run(walk: Walk, args: tuple[Any, ...], kwargs: dict[str, Any], on: Tensors, *, captured: bool = False) -> Run:
    """Trace one forward pass of a copy of a model, or of the graph that was captured of it.

    The copy's parameters and buffers are the traced tensors themselves, so that whatever else holds them (the flat list
    of a recurrent layer) holds these too.
    """
    tracer = Tracer()
    sizes = SizeMode(tracer)
    mode = FakeTensorMode(allow_non_fake_inputs=True) if on == "fake" else None
    tracer.hollow = hollow = Hollow() if on == "hollow" else None
    double = copied(walk, hollow.like if hollow else to_fake(mode) if mode else own_tensor)
    model = evaluating(double)
    tag_attributes(double, tracer, walk)
    watch_widths(double, sizes)
    name_units(double, sizes)
    call = _interpret(model, sizes) if captured and isinstance(model, fx.GraphModule) else model
    stand_ins = double.tensors
    tracer.original = walk.model
    dims = {name: [tracer.algebra.dim(int(s)) for s in t.shape] for name, t in stand_ins.items()}
    entered: dict[int, list[Expr]] = {}
    for name, tensor in stand_ins.items():
        dims[name] = entered.setdefault(id(tensor), dims[name])
        tracer.introduce(tensor, dims[name])
        if name.startswith("_tensor_constant"):
            tracer.freeze_all(tensor, "a constant made inside forward")
    values, spec = tree_flatten(fresh((args, kwargs)))
    if hollow:
        values = [hollow.like(v) if isinstance(v, Tensor) else v for v in values]
    elif on_meta(walk):
        values = [v.to("meta") if isinstance(v, Tensor) else v for v in values]
    fakes = [mode.from_tensor(v) if mode and isinstance(v, Tensor) else v for v in values]
    for tensor in tensors_in(fakes):
        tracer.set_dims(tensor, [tracer.algebra.fixed(int(s), "an input of the model") for s in tensor.shape])
    positional, keywords = tree_unflatten(fakes, spec)
    try:
        with as_if_exported() if on != "real" else nullcontext(), mode or nullcontext(), tracer, sizes:
            out = nn.Module.__call__(call, *positional, **keywords)
    except (NeedsValues, SecateurError, *NEEDS_DATA):
        raise
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} does not run on the example inputs {describe_inputs(args, kwargs)}: "
            f"{type(error).__name__}: {error} (at {raised_at(error)}). Pass inputs that model(*args, **kwargs) accepts."
        ) from error
    if not tensors_in(out):
        raise TraceError(
            f"{type(model).__name__} gives a {type(out).__name__} in which no tensor can be found, so nothing would "
            "hold its outputs in place. Return a tensor, or a tuple, mapping or dataclass of them."
        )
    tracer.freeze_all(tensors_in(out), "an output of the model")
    freeze_unread(tracer, dims)
    if on == "real":
        freeze_alternatives(tracer, model, dims)
    own = {first: dims[first] for first in {id(t): name for name, t in reversed(stand_ins.items())}.values()}
    found = logits_of(out)
    scores = list(tracer.dims(found)) if found is not None else None
    return Run(tracer, sizes.uses, {name: own[name] for name in stand_ins if name in own}, stand_ins, scores)


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


def _interpret(graph: fx.GraphModule, sizes: SizeMode) -> nn.Module:
    """The captured graph as a module that tells the size mode which node it runs."""

    class Interpreter(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            sizes.node = n.name if n.op in ("call_function", "call_method") else None
            sizes.place = place_of(n) if sizes.node else None  # a layer's own code, or a hook of it, says where it is
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
