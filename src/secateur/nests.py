"""Inputs of a model, nested as they come, as JSON, in which a name or a shape stands for each tensor."""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor


def encode(value: Any, tensor: Callable[[Tensor], Any]) -> Any:
    """A nest of tensors and plain values as JSON; ``tensor`` says what stands for a tensor.

    Raises:
        TypeError: something is neither a tensor nor plain data.
    """
    if isinstance(value, Tensor):
        return {"tensor": tensor(value)}
    if isinstance(value, list):
        return {"list": [encode(v, tensor) for v in cast("list[Any]", value)]}
    if isinstance(value, tuple):
        return {"tuple": [encode(v, tensor) for v in cast("tuple[Any, ...]", value)]}
    if isinstance(value, Mapping):
        return {"dict": {str(k): encode(v, tensor) for k, v in cast("Mapping[Any, Any]", value).items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"an example input of type {type(value).__name__} can't be stored; pass tensors and plain values")


def decode(node: Any, tensor: Callable[[Any], Tensor]) -> Any:
    """What `encode` described; ``tensor`` makes a tensor of what stands for it.

    Raises:
        ValueError: it is no description of inputs.
    """
    if not isinstance(node, dict) or len(cast("dict[str, Any]", node)) != 1:
        raise ValueError(f"{node!r} describes no input")
    ((kind, inner),) = cast("dict[str, Any]", node).items()
    match kind:
        case "tensor":
            return tensor(inner)
        case "list":
            return [decode(v, tensor) for v in inner]
        case "tuple":
            return tuple(decode(v, tensor) for v in inner)
        case "dict":
            return {str(k): decode(v, tensor) for k, v in inner.items()}
        case "value":
            return inner
        case _:
            raise ValueError(f"{kind!r} is no kind of input")


def describe(value: Any) -> Any:
    """A nest as JSON in which shape and dtype stand for a tensor."""
    return encode(value, lambda t: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")})


def imitate(node: Any) -> Any:
    """A nest like the one that `describe` saw, with tensors on the meta device."""

    def tensor(data: Any) -> Tensor:
        dtype: Any = getattr(torch, str(data["dtype"]), None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{data['dtype']!r} is no dtype")
        return torch.empty([int(s) for s in data["shape"]], dtype=dtype, device="meta")

    return decode(node, tensor)


def plain(value: Any) -> Any:
    """A deep copy of JSON data: tuples become lists, and numbers that JSON does not have None.

    Raises:
        TypeError: something is no JSON data.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in cast("list[Any]", value)]
    if isinstance(value, bool | int | str | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(f"{value!r} of type {type(value).__name__} is no JSON data")
