"""The model as a graph of torch calls, for code whose sizes can't be set from outside."""

from typing import Any

from torch import fx, nn

from secateur.errors import SurgeryError


def capture(model: nn.Module) -> fx.GraphModule:
    """The model as a trainable graph module that needs no source code.

    Standard layers stay modules, user modules are inlined. A flag that follows ``self.training`` still does.

    Args:
        model: a copy that may be kept; its submodules are shared with the result.

    Raises:
        SurgeryError: where `torch.fx` can't follow the code, or where training and evaluation run different code.
    """
    training = model.training
    try:
        graphs = [_trace(model.train(mode)) for mode in (False, True)]
    finally:
        model.train(training)
    module = fx.GraphModule(model, _merge(*graphs), type(model).__name__)
    module.train(training)
    return module


class _Tracer(fx.Tracer):
    """Records file and line of each call."""

    record_stack_traces = True


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except Exception as error:
        raise SurgeryError(f"torch.fx can't capture {type(model).__name__}: {type(error).__name__}: {error}") from error


def _merge(evaluation: fx.Graph, training: fx.Graph) -> fx.Graph:
    """One graph of both modes: a flag that differs between them becomes ``self.training``."""
    if len(evaluation.nodes) != len(training.nodes):
        raise SurgeryError("forward runs different code in training and in evaluation, which one graph can't hold")
    for node, twin in zip(list(evaluation.nodes), training.nodes, strict=True):
        if (node.op, node.name, str(node.target)) != (twin.op, twin.name, str(twin.target)):
            raise SurgeryError("forward runs different code in training and in evaluation, which one graph can't hold")
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


def place_of(node: fx.Node) -> str:
    """File and line of the user's code behind a node."""
    lines = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip().startswith("File")]
    if not lines:
        return "unknown place"
    file, _, rest = lines[-1].removeprefix('File "').partition('", line ')
    return f"{file}:{rest.split(',')[0]}"


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
        ends[key] = value
        return slice(ends["start"], ends["stop"], ends["step"])
    if isinstance(nest, dict):
        if key not in nest:
            raise SurgeryError(f"no argument {key!r} to set a size in")
        return {**nest, key: _put(nest[key], path[1:], value)}
    if isinstance(nest, list | tuple) and isinstance(key, int) and key < len(nest):
        items = [_put(item, path[1:], value) if k == key else item for k, item in enumerate(nest)]
        return type(nest)(items)
    raise SurgeryError(f"no argument at {path} to set a size in")
