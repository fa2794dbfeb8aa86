"""A stored graph read back: a file from anyone, of which nothing but the white list may pass."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import fx, nn

from secateur.artifacts.whitelist import MAX_NODES, READ_ATTRIBUTES, functions, methods
from secateur.errors import ArtifactError

MAX_DEPTH = 50  # of lists in lists, and of modules in modules
MAX_LAYERS = 8  # in one recurrent layer or transformer, where the file holds hardly any tensors
# Of torch.nn, but no layers.
CONTAINERS = {"Module", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict", "Container",
              "DataParallel", "TransformerEncoder", "TransformerDecoder", "UninitializedParameter"}  # fmt: skip


def decode_graph(data: Mapping[str, Any], tensors: Mapping[str, tuple[torch.Tensor, bool]]) -> fx.GraphModule:
    """Build the module that `encode_graph` described.

    Args:
        data: what `encode_graph` gave.
        tensors: the values of its parameters and buffers, and whether each is a parameter.

    Raises:
        ArtifactError: a call, layer or value that is not on the white list, or tensors that don't fit.
    """
    if not isinstance(data.get("nodes"), list) or not isinstance(data.get("layers"), dict):
        raise ArtifactError("the stored graph has no calls or no layers")
    nodes: list[Any] = data["nodes"]
    if len(nodes) > MAX_NODES:
        raise ArtifactError(f"a stored graph of {len(nodes)} calls; at most {MAX_NODES} are read")
    root = nn.Module()
    for path, layer in data["layers"].items():
        parent, name = _parent(root, str(path))
        parent.add_module(name, _decode_layer(layer, str(path), len(tensors)))
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
    if len(parts) > MAX_DEPTH or not all(part.isidentifier() or (part.isascii() and part.isdigit()) for part in parts):
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


def _decode_layer(layer: Mapping[str, Any], path: str, tensors: int) -> nn.Module:
    """A layer of torch's without values: every tensor of it has to come from the file.

    Args:
        layer: class and arguments.
        path: its name, for errors.
        tensors: how many the file has, and so the most layers that one of several layers can have.
    """
    name = str(layer["class"])
    kind = getattr(nn, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)) or name in CONTAINERS or name.startswith("Lazy"):
        raise ArtifactError(f"the layer {path} is of class {name!r}, which is no layer of torch.nn")
    arguments = {str(k): _decode(v, {}) for k, v in layer["arguments"].items()}
    for key, value in arguments.items():
        if key in ("device", "dtype") or key.startswith("_"):
            raise ArtifactError(f"the layer {path} has the argument {key}, which no stored layer has")
        if "layers" in key and isinstance(value, int) and value > max(tensors, MAX_LAYERS):
            raise ArtifactError(f"the layer {path} has {value} layers, but the file only {tensors} tensors")
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


def _decode(value: Any, made: Mapping[str, fx.Node], depth: int = MAX_DEPTH) -> Any:
    if not depth:
        raise ArtifactError(f"a stored graph has lists within more than {MAX_DEPTH} lists")
    if isinstance(value, list):
        return [_decode(v, made, depth - 1) for v in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = cast("dict[str, Any]", value).items()
    match kind:
        case "node":
            return made[inner]
        case "tuple":
            return tuple(_decode(v, made, depth - 1) for v in inner)
        case "dict":
            return {k: _decode(v, made, depth - 1) for k, v in inner.items()}
        case "slice":
            return slice(*(_decode(v, made, depth - 1) for v in inner))
        case "float" if inner in ("inf", "-inf", "nan"):
            return float(inner)
        case "dtype" | "memory_format":
            found: Any = getattr(torch, str(inner), None)
            if isinstance(found, torch.dtype | torch.memory_format):
                return found
        case "device":
            return torch.device(str(inner))
        case "ellipsis":
            return Ellipsis
        case _:
            pass
    raise ArtifactError(f"{value!r} is no value that a stored graph has")
