"""A captured graph as JSON, and back: white-listed operations only, so that a file can hold no code.

Standard layers are stored as their class name in ``torch.nn`` and their constructor's arguments; functions by name,
among
those that torch lists as working on tensors; sizes and flags as plain values.
"""

import inspect
import operator
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from secateur.errors import ArtifactError
from secateur.tracing.factories import FACTORIES

OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "matmul", "getitem", "eq", "ne", "lt",
             "le", "gt", "ge", "and_", "or_", "invert", "iadd", "isub", "imul", "itruediv", "setitem")  # fmt: skip
READ_ATTRIBUTES = ("shape", "dtype", "device", "ndim", "T", "mT", "is_cuda", "min", "max", "eps", "tiny")
NAMESPACES: dict[str, Any] = {
    "torch.nn.functional": F,
    "torch": torch,
    "torch.linalg": torch.linalg,
    "torch.fft": torch.fft,
}
# Methods that run code, hand out memory or change what a tensor is.
DENIED = {
    "__reduce_ex__", "__reduce__", "__setstate__", "apply_", "map_", "map2_", "register_hook", "backward",
    "module_load", "register_post_accumulate_grad_hook", "numpy", "storage", "untyped_storage", "storage_type",
    "data_ptr", "const_data_ptr", "set_", "resize", "resize_", "resize_as", "resize_as_", "resize_as_sparse_",
    "sparse_resize_", "sparse_resize_and_clear_", "share_memory_", "pin_memory",
}  # fmt: skip
MAX_NODES = 200_000


@cache
def functions() -> dict[str, Any]:
    """The functions that a stored graph may call, by name."""
    allowed = torch.overrides.get_overridable_functions()
    tensor_functions = {f for namespace, found in allowed.items() if namespace is not torch.Tensor for f in found}
    table: dict[str, Any] = {}
    for prefix, namespace in NAMESPACES.items():
        for name in dir(namespace):
            function = getattr(namespace, name)
            if (
                not name.startswith("_")
                and name not in DENIED
                and callable(function)
                and _in(function, tensor_functions)
            ):
                table[f"{prefix}.{name}"] = function
    table |= {f"operator.{name}": getattr(operator, name) for name in OPERATORS}
    for name in FACTORIES:
        table[f"torch.{name}"] = getattr(torch, name)
    return table | {"getattr": getattr, "operator.not_": operator.not_, "torch._assert": torch._assert}


def _in(function: Any, allowed: set[Any]) -> bool:
    try:
        return function in allowed
    except TypeError:
        return False


@cache
def methods() -> frozenset[str]:
    """The tensor methods that a stored graph may call."""
    found = torch.overrides.get_overridable_functions()[torch.Tensor]
    names = {getattr(f, "__name__", "") for f in found}
    return frozenset(n for n in names if n and not n.startswith("_") and n not in DENIED)


# ---------------------------------------------------------------------- writing


def encode_graph(module: fx.GraphModule) -> dict[str, Any]:
    """The graph as JSON data.

    Raises:
        ArtifactError: it calls something that is not on the white list.
    """
    names = {id(f): name for name, f in functions().items()}
    nodes: list[dict[str, Any]] = []
    layers: dict[str, Any] = {}
    for node in module.graph.nodes:
        target: Any = node.target
        if node.op == "call_function":
            target = names.get(id(node.target)) or _refuse(f"a call of {node.target}")
        elif node.op == "call_method" and target not in methods():
            _refuse(f"a call of the tensor method {target}")
        elif node.op == "call_module":
            layers[target] = _encode_layer(module.get_submodule(target), target)
        nodes.append(
            {
                "op": node.op,
                "name": node.name,
                "target": target,
                "args": _encode(node.args),
                "kwargs": _encode(node.kwargs),
            }
        )
    return {"class": type(module).__name__, "nodes": nodes, "layers": layers}


def _refuse(what: str) -> Any:
    raise ArtifactError(
        f"the rewritten graph holds {what}, which is not on the white list of stored graphs; save with "
        f"build= and load from the class"
    )


def _encode_layer(layer: nn.Module, path: str) -> dict[str, Any]:
    name = type(layer).__name__
    if getattr(nn, name, None) is not type(layer):
        _refuse(f"the layer {path} of class {name}, which torch.nn does not have,")
    arguments: dict[str, Any] = {}
    for key in inspect.signature(type(layer).__init__).parameters:
        if key in ("self", "device", "dtype") or not hasattr(layer, key):
            continue
        value: Any = getattr(layer, key)
        arguments[key] = _encode(value is not None if key == "bias" else value)
    return {"class": name, "arguments": arguments}


def _encode(value: Any) -> Any:
    match value:
        case bool() | None | str():
            return value
        case int():
            return int(value)
        case float():
            return value if value == value and abs(value) != float("inf") else {"float": repr(value)}
        case fx.Node():
            return {"node": value.name}
        case slice():
            return {"slice": [_encode(value.start), _encode(value.stop), _encode(value.step)]}
        case tuple():
            return {"tuple": [_encode(v) for v in cast("tuple[Any, ...]", value)]}
        case list():
            return [_encode(v) for v in cast("list[Any]", value)]
        case dict():
            return {"dict": {str(k): _encode(v) for k, v in cast("dict[Any, Any]", value).items()}}
        case torch.dtype() | torch.device() | torch.memory_format():
            return {type(value).__name__: str(value).removeprefix("torch.")}
        case _ if value is Ellipsis:
            return {"ellipsis": True}
        case _:
            return _refuse(f"the value {value!r}")


# ---------------------------------------------------------------------- reading


def decode_graph(data: Mapping[str, Any], tensors: Mapping[str, tuple[torch.Tensor, bool]]) -> fx.GraphModule:
    """Build the module that `encode_graph` described.

    Args:
        data: what `encode_graph` gave.
        tensors: the values of its parameters and buffers, and whether each is a parameter.

    Raises:
        ArtifactError: a call, layer or value that is not on the white list, or tensors that don't fit.
    """
    nodes: list[Any] = data["nodes"]
    if len(nodes) > MAX_NODES:
        raise ArtifactError(f"a stored graph of {len(nodes)} calls; at most {MAX_NODES} are read")
    root = nn.Module()
    for path, layer in data["layers"].items():
        parent, name = _parent(root, str(path))
        parent.add_module(name, _decode_layer(layer, str(path)))
    for path, (tensor, parameter) in tensors.items():
        _place(root, path, tensor, parameter)
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    for entry in nodes:
        target = _target(entry)
        if entry["op"] in ("get_attr", "call_module") and target != "training":
            _reach(root, target)
        args, kwargs = _decode(entry["args"], made), _decode(entry["kwargs"], made)
        for keyword in kwargs:  # these become source code
            _identifier(keyword)
        node = graph.create_node(entry["op"], target, args, kwargs, name=str(entry["name"]))
        made[str(entry["name"])] = node
    module = fx.GraphModule(root, graph, _identifier(data["class"]))
    return module.eval()


def _identifier(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise ArtifactError(f"{name!r} is no name")
    return name


def _parts(path: str) -> list[str]:
    """The parts of a qualified name; fx turns them into source code, so nothing but names and numbers may pass."""
    parts = path.split(".")
    if not all(part.isidentifier() or (part.isascii() and part.isdigit()) for part in parts):
        raise ArtifactError(f"{path!r} is no qualified name")
    return parts


def _reach(root: nn.Module, path: str) -> None:
    value: Any = root
    for part in _parts(path):
        if part.startswith("__") or not hasattr(value, part):
            raise ArtifactError(f"the stored graph reads {path}, which the file does not hold")
        value = getattr(value, part)
    if not isinstance(value, torch.Tensor | nn.Module):
        raise ArtifactError(f"the stored graph reads {path}, which is no tensor")


def _target(entry: Mapping[str, Any]) -> Any:
    op, target = entry["op"], entry["target"]
    name = _identifier(entry["name"])
    if not isinstance(target, str):
        raise ArtifactError(f"{name} has the target {target!r}, which is no name")
    if op == "call_function":
        if target not in functions():
            raise ArtifactError(f"{name} calls {target}, which is not on the white list")
        if target == "getattr" and _decode_plain(entry["args"])[1] not in READ_ATTRIBUTES:
            raise ArtifactError(f"{name} reads an attribute that is not on the white list")
        return functions()[target]
    if op == "call_method" and target not in methods():
        raise ArtifactError(f"{name} calls the tensor method {target}, which is not on the white list")
    if op == "placeholder":
        return target if target.lstrip("*").isidentifier() else _identifier(target)
    if op not in ("call_method", "call_module", "get_attr", "output"):
        raise ArtifactError(f"{name} is a {op!r}, which no graph has")
    return target


def _decode_plain(args: Any) -> list[Any]:
    items = args.get("tuple") if isinstance(args, dict) else None
    if not isinstance(items, list) or len(cast("list[Any]", items)) != 2:
        raise ArtifactError("an attribute is read with other than two arguments")
    return cast("list[Any]", items)


def _decode_layer(layer: Mapping[str, Any], path: str) -> nn.Module:
    name = str(layer["class"])
    kind = getattr(nn, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)) or name in (
        "Module",
        "Sequential",
        "ModuleList",
        "ModuleDict",
    ):
        raise ArtifactError(f"the layer {path} is of class {name!r}, which is no layer of torch.nn")
    arguments = {str(k): _decode(v, {}) for k, v in layer["arguments"].items()}
    with torch.device("meta"):
        return kind(**arguments)


def _parent(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    *parents, name = _parts(path)
    module = root
    for part in parents:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = cast(nn.Module, module._modules[part])
    return module, name


def _place(root: nn.Module, path: str, tensor: torch.Tensor, parameter: bool) -> None:
    """Put a tensor where a layer expects it, or, outside of layers, where the graph reads it."""
    parent, name = _parent(root, path)
    tables: list[dict[str, Any]] = [parent._parameters, parent._buffers]
    table = next((t for t in tables if name in t), None)
    if table is not None:
        expected = table[name]
        if expected is None or tuple(expected.shape) != tuple(tensor.shape):
            raise ArtifactError(
                f"{path} has shape {list(tensor.shape)}, its layer expects "
                f"{None if expected is None else list(expected.shape)}"
            )
        table[name] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point()) if parameter else tensor
    elif parameter:
        parent.register_parameter(name, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
    else:
        parent.register_buffer(name, tensor)


def _decode(value: Any, made: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(v, made) for v in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = cast("dict[str, Any]", value).items()
    match kind:
        case "node":
            return made[inner]
        case "tuple":
            return tuple(_decode(v, made) for v in inner)
        case "dict":
            return {k: _decode(v, made) for k, v in inner.items()}
        case "slice":
            return slice(*(_decode(v, made) for v in inner))
        case "float":
            return float(inner)
        case "dtype" | "memory_format":
            found = getattr(torch, inner)
            if isinstance(found, torch.dtype | torch.memory_format):
                return found
        case "device":
            return torch.device(inner)
        case "ellipsis":
            return Ellipsis
        case _:
            pass
    raise ArtifactError(f"{value!r} is no value that a stored graph has")
