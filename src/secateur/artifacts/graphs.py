"""A captured graph as JSON: white-listed operations only, so that a file can hold no code.

Standard layers are stored as their class name in ``torch.nn`` and their constructor's arguments; functions by name,
among those that torch lists as working on tensors; sizes and flags as plain values.
"""

import inspect
from typing import Any, cast

import torch
from torch import fx, nn

from secateur.artifacts.whitelist import functions, methods
from secateur.errors import ArtifactError


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
