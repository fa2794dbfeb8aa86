"""The model as a graph of torch calls, for code whose sizes can't be set from outside."""

import builtins
import inspect
import operator
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.proxy import TraceError
from torch.utils._pytree import tree_leaves, tree_map

from secateur.errors import SurgeryError
from secateur.modules import Walk
from secateur.tracing.factories import recorded_factories
from secateur.tracing.leavings import nothing_left
from secateur.tracing.shadow import fake
from secateur.tracing.surroundings import quiet_backends

UNKNOWN = object()  # the value of a call that could not be run on fake tensors
CONSTANT = "secateur_constant"
OTHER_BRANCH = (
    "this rewritten model was captured on inputs that take another branch of forward; prune with inputs like these"
)
NOT_USERS = ("tracing/capture.py", "tracing/factories.py", '"<string>"', "torch/fx/", "torch/functional.py")
SKIPPED = "model"  # name of the traced model inside its caller


def capture(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> fx.Graph:
    """The calls that the model makes on inputs like these, as a graph over its own submodules.

    Standard layers stay modules, user modules are inlined. Control flow on shapes is followed as the inputs lead it. A
    flag that follows ``self.training`` still does, once the graph is in a module (`to_module`).

    Args:
        model: left as it is.
        args, kwargs: example inputs; only shapes and dtypes count, so tensors on the meta device will do.

    Raises:
        SurgeryError: where `torch.fx` can't follow the code, or where training and evaluation run different code.
    """
    evaluation, training = (_trace(model, args, kwargs, mode) for mode in (False, True))
    return _merge(evaluation, training)


def to_module(graph: fx.Graph, root: nn.Module) -> fx.GraphModule:
    """A trainable module that runs the graph on the submodules, parameters and buffers of another.

    Tensors that ``forward`` makes from nothing become buffers, ``_tensor_constant0`` and so on.
    """
    for node in graph.nodes:
        if CONSTANT in node.meta:
            setattr(root, str(node.target), node.meta[CONSTANT])
    module = fx.GraphModule(root, graph, type(root).__name__)
    modes = {path: part.training for path, part in root.named_modules()}
    for path, part in module.named_modules():
        part.training = modes.get(path, root.training)
    return module


# ---------------------------------------------------------------------- tracing with values at hand


class _Proxy(fx.Proxy):
    """A proxy that knows how many items its call gives on the example inputs.

    It does not turn into an int: a size that became one would be that of the example in every later call.
    """

    def __getattr__(self, k: str) -> Any:
        if k == "shape":  # fx would put off the call, and give a proxy of its own kind
            return self.tracer.create_proxy("call_function", getattr, (self, k), {})
        return super().__getattr__(k)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __add__(self, other: Any) -> Any:
        return (*self, *other) if self._is_shape() else super().__add__(other)  # type: ignore[misc]

    def __radd__(self, other: Any) -> Any:
        return (*other, *self) if self._is_shape() else super().__radd__(other)  # type: ignore[misc]

    def _is_shape(self) -> bool:
        """Whether this is a tuple: what is put together with another has places for sizes."""
        return isinstance(self.node.meta.get("value", UNKNOWN), tuple)

    def __len__(self) -> int:
        value = self.node.meta.get("value", UNKNOWN)
        if not isinstance(value, list | tuple):
            raise TraceError("len() of a tensor is a size of the example inputs; use its shape")
        return len(cast("list[Any]", value))


class _Tracer(fx.Tracer):
    """Runs each call on fake tensors as it records it, so that Python code can look at shapes and branch on them."""

    record_stack_traces = True
    proxy_buffer_attributes = True  # else what is computed from a buffer alone would become a constant

    def __init__(self, mode: FakeTensorMode, inputs: Mapping[str, Any]) -> None:
        super().__init__()
        self.mode, self.inputs = mode, inputs
        self.running = False  # a recorded call is being run: what it calls in turn is not recorded

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        proxy.node.meta["value"] = self._value(proxy.node)
        value = proxy.node.meta["value"]
        graded = [v for v in tree_leaves(value) if v is UNKNOWN or (isinstance(v, Tensor) and v.requires_grad)]
        if graded and not torch.is_grad_enabled() and kind != "get_attr":
            raise TraceError("forward switches gradients on or off")
        return proxy

    def create_arg(self, a: Any) -> Any:
        """A number of numpy's would need numpy in the code of the graph."""
        return super().create_arg(a.item() if type(a).__module__ == "numpy" and not getattr(a, "ndim", 1) else a)

    def _value(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.inputs.get(str(node.target), UNKNOWN)
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta.get("value", UNKNOWN))
        self.running = True
        try:
            if node.op == "get_attr":
                return _reach(self.root, str(node.target))
            with self.mode, torch.enable_grad():  # so that the result tells whether there is a gradient to lose
                match node.op:
                    case "call_function":
                        return node.target(*args, **kwargs)  # type: ignore[operator]
                    case "call_method":
                        return builtins.getattr(args[0], str(node.target))(*args[1:], **kwargs)
                    case "call_module":
                        return nn.Module.__call__(self.root.get_submodule(str(node.target)), *args, **kwargs)
                    case _:
                        return UNKNOWN
        except Exception:  # whoever needs the value will say that it is unknown
            return UNKNOWN
        finally:
            self.running = False

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        made_here = not self.running and not any(m is part for part in self.root.modules())
        if made_here and not any(True for _ in (*m.parameters(), *m.buffers())):
            return forward(*args, **kwargs)  # a layer that forward makes for itself
        return forward(*args, **kwargs) if self.running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = obj.node.meta.get("value", UNKNOWN)
        if value is UNKNOWN or isinstance(value, Tensor):
            raise TraceError("a tensor's values decide which code runs")
        held = obj if value else self.create_proxy("call_function", operator.not_, (obj,), {})
        self.create_proxy("call_function", torch._assert, (held, OTHER_BRANCH), {})
        return bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        value = obj.node.meta.get("value", UNKNOWN)
        if not isinstance(value, list | tuple):
            return super().iter(obj)
        items: Any = obj
        return iter([items[k] for k in range(len(cast("list[Any]", value)))])


def _reach(root: nn.Module, path: str) -> Any:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _trace(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool) -> fx.Graph:
    """Trace the model through a caller that hands on just the inputs given; other arguments keep their defaults."""
    names = _names(model, len(args))
    with quiet_backends(), nothing_left(Walk(model)):
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        double = fake(model, mode)  # in training mode a batch norm writes down what it sees
        caller = _caller(double.train(training), names, list(kwargs))
        device = next((t.device for t in model.parameters()), torch.device("cpu"))
        with mode:
            fakes = tree_map(lambda v: _like(v, device) if isinstance(v, Tensor) else v, (args, dict(kwargs)))
        inputs = {**dict(zip(names, fakes[0], strict=True)), **fakes[1]}
        try:
            tracer = _Tracer(mode, inputs)
            before = _plain_state(double)
            with _faithful(tracer), recorded_factories(tracer):
                graph = tracer.trace(caller)
            _check_unchanged(before, _plain_state(double))
        except Exception as error:
            raise SurgeryError(
                f"torch.fx can't capture {type(model).__name__}: {type(error).__name__}: {error}"
            ) from error
    graph._tracer_cls = fx.Tracer  # the graph may be pickled; ours wants arguments
    for node in graph.nodes:
        node.meta.pop("value", None)
        node._rename(node.name.removeprefix(f"{SKIPPED}_"))
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
            node.meta[CONSTANT] = getattr(caller, str(node.target))
        if node.op == "call_module" and str(node.target) == SKIPPED:
            raise SurgeryError(f"{type(model).__name__} is a layer of torch's own, whose code can't be rewritten")
        if node.op in ("call_module", "get_attr"):
            node.target = str(node.target).removeprefix(f"{SKIPPED}.")
    return graph


def _plain_state(model: nn.Module) -> dict[str, Any]:
    """The numbers, flags and texts on the model's modules: what a count of calls is kept in."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int | float | str)
    }


def _check_unchanged(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    changed = [name for name, value in after.items() if name in before and before[name] != value]
    if changed:
        raise TraceError(f"forward changes the attribute {changed[0]}, which a graph would not")


@contextmanager
def _faithful(tracer: _Tracer) -> Generator[None]:
    """While this lasts, code whose gradients a graph would lose is refused."""
    own = torch.autograd.Function.__dict__["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if tracer.running:
            return own.__func__(cls, *args, **kwargs)
        raise TraceError(f"{cls.__name__} has a backward pass of its own")

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[assignment]
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.autograd.Function.apply = own


def _like(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def _names(model: nn.Module, count: int) -> list[str]:
    """The names of the first positional arguments of ``forward``."""
    parameters = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    return names + [f"input_{k}" for k in range(len(names), count)]


def _caller(model: nn.Module, names: list[str], keywords: list[str]) -> nn.Module:
    """A module whose ``forward`` takes these arguments and no others."""

    class Caller(nn.Module):
        pass

    def forward(self: Any, *args: Any) -> Any:
        positional, named = args[: len(names)], dict(zip(keywords, args[len(names) :], strict=True))
        return self._modules[SKIPPED](*positional, **named)

    everything = [*names, *keywords]
    if not all(name.isidentifier() for name in everything):
        raise SurgeryError(f"torch.fx can't capture {type(model).__name__}: arguments are called {everything}")
    scope: dict[str, Any] = {"call": forward}
    exec(f"def forward(self, {', '.join(everything)}):\n    return call(self, {', '.join(everything)})", scope)
    Caller.forward = scope["forward"]
    caller = Caller()
    caller.add_module(SKIPPED, model)
    return caller


# ---------------------------------------------------------------------- one graph for training and evaluation


def _merge(evaluation: fx.Graph, training: fx.Graph) -> fx.Graph:
    """One graph of both modes: a flag that differs between them becomes ``self.training``."""
    different = SurgeryError("forward runs different code in training and in evaluation, which one graph can't hold")
    if len(evaluation.nodes) != len(training.nodes):
        raise different
    for node, twin in zip(list(evaluation.nodes), training.nodes, strict=True):
        if (node.op, node.name, str(node.target)) != (twin.op, twin.name, str(twin.target)):
            raise different
        node.args = tuple(_flag(evaluation, node, a, b) for a, b in zip(node.args, twin.args, strict=True))
        node.kwargs = {k: _flag(evaluation, node, a, twin.kwargs[k]) for k, a in node.kwargs.items()}
    return evaluation


def _flag(graph: fx.Graph, node: fx.Node, value: Any, other: Any) -> Any:
    if not (isinstance(value, bool) and isinstance(other, bool)) or value == other:
        return value
    if value:
        raise SurgeryError(f"{node.name} is on in evaluation and off in training, which a rewritten graph can't follow")
    with graph.inserting_before(node):
        return graph.create_node("get_attr", "training")


# ---------------------------------------------------------------------- nodes


def place_of(node: fx.Node) -> str:
    """File and line of the user's code behind a node."""
    lines = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip().startswith("File")]
    lines = [line for line in lines if not any(part in line for part in NOT_USERS)]
    if not lines:
        return "unknown place"
    file, _, rest = lines[-1].removeprefix('File "').partition('", line ')
    return f"{file}:{rest.split(',')[0]}"


def has_argument(node: fx.Node, path: tuple[int | str, ...]) -> bool:
    """Whether there is a place among a node's arguments to put a size: a whole shape that is passed on has none."""
    try:
        _put([list(node.args), dict(node.kwargs)], path, 0)
    except SurgeryError:
        return False
    return True


def set_argument(node: fx.Node, path: tuple[int | str, ...], value: int) -> None:
    """Put a size at a place among a node's arguments.

    Raises:
        SurgeryError: where there is no such place.
    """
    everything: Any = _put([list(node.args), dict(node.kwargs)], path, value)
    node.args, node.kwargs = tuple(everything[0]), everything[1]


def _put(nest: Any, path: tuple[int | str, ...], value: int) -> Any:
    if not path:
        return value
    key = path[0]
    if isinstance(nest, slice):
        ends: dict[Any, Any] = {"start": nest.start, "stop": nest.stop, "step": nest.step}
        ends[key] = _put(ends[key], path[1:], value)
        return slice(ends["start"], ends["stop"], ends["step"])
    if isinstance(nest, dict):
        if key not in nest:
            raise SurgeryError(f"no argument {key!r} to set a size in")
        return {**nest, key: _put(nest[key], path[1:], value)}
    if isinstance(nest, list | tuple) and isinstance(key, int) and key < len(nest):
        items = [_put(item, path[1:], value) if k == key else item for k, item in enumerate(nest)]
        return type(nest)(items)
    raise SurgeryError(f"no argument at {path} to set a size in")
