"""Trees of tensors and plain values as safetensors and JSON, without pickle.

A tensor becomes ``{"$tensor": key}``, and what JSON lacks gets a tag of its own: tuples, keys that are no text,
infinity and NaN.
"""

import math
from collections.abc import Mapping
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor

from secateur.errors import ArtifactError

WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
PARTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
HELD = frozenset((*WHOLE, *PARTS))
"""The dtypes that safetensors has; complex numbers go in as pairs."""


def pack(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """JSON data, and the tensors that it speaks of.

    Args:
        tree: None, truth values, numbers, text, tensors, and lists, tuples and mappings of these.

    Raises:
        ArtifactError: it holds anything else.

    Example:
        >>> import torch
        >>> pack({"step": 3, "momenta": (torch.zeros(2),)})
        ({'step': 3, 'momenta': {'$tuple': [{'$tensor': 'momenta.0'}]}}, {'momenta.0': tensor([0., 0.])})
    """
    tensors: dict[str, Tensor] = {}
    return _pack(tree, "", tensors), tensors


def _pack(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return _pack_tensor(tree.detach(), path, tensors)
    if isinstance(tree, float) and not math.isfinite(tree):
        return {"$float": str(tree)}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, list):
        return [_pack(item, _at(path, k), tensors) for k, item in enumerate(cast("list[Any]", tree))]
    if isinstance(tree, tuple):
        return {"$tuple": [_pack(item, _at(path, k), tensors) for k, item in enumerate(cast("tuple[Any, ...]", tree))]}
    if isinstance(tree, Mapping):
        items = cast("Mapping[Any, Any]", tree)
        if all(isinstance(key, str) and not key.startswith("$") for key in items):
            return {key: _pack(item, _at(path, key), tensors) for key, item in items.items()}
        pairs = [[_pack(k, _at(path, "key"), tensors), _pack(v, _at(path, k), tensors)] for k, v in items.items()]
        return {"$pairs": pairs}
    raise ArtifactError(
        f"{path or 'the state'} is a {type(tree).__name__}, which a checkpoint can't hold: let state_dict() give "
        f"tensors, numbers, text, and lists and dicts of these"
    )


def _pack_tensor(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> Any:
    if tensor.layout == torch.strided and tensor.is_complex():
        return {"$complex": _pack_tensor(torch.view_as_real(tensor.resolve_conj()), path, tensors)["$tensor"]}
    if tensor.layout != torch.strided or tensor.dtype not in HELD:
        kind = "sparse" if tensor.layout != torch.strided else tensor.dtype
        raise ArtifactError(f"{path or 'the state'} is a {kind} tensor, which a checkpoint can't hold")
    key = _free(path, tensors)
    tensors[key] = tensor.to("cpu", copy=True).contiguous()
    return {"$tensor": key}


def unpack(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `pack` took apart.

    Raises:
        ArtifactError: the data is not what `pack` gives.
    """
    if isinstance(data, list):
        return [unpack(item, tensors) for item in cast("list[Any]", data)]
    if not isinstance(data, dict):
        return data
    items = cast("dict[str, Any]", data)
    try:
        match next(iter(items), ""):
            case "$tensor":
                return tensors[items["$tensor"]]
            case "$complex":
                return torch.view_as_complex(tensors[items["$complex"]])
            case "$float":
                return float(items["$float"])
            case "$tuple":
                return tuple(unpack(item, tensors) for item in items["$tuple"])
            case "$pairs":
                return {unpack(key, tensors): unpack(value, tensors) for key, value in items["$pairs"]}
            case str(tag) if tag.startswith("$"):
                raise ValueError(f"unknown tag {tag}")
            case _:
                return {key: unpack(value, tensors) for key, value in items.items()}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"not a state that secateur wrote: {type(error).__name__}: {error}") from error


def _free(path: str, tensors: Mapping[str, Tensor]) -> str:
    """A name for a tensor that no other has: paths may be alike, as those of ``{"a.b": x, "a": {"b": y}}``."""
    plain = path.isascii() and path.isprintable() and path not in ("", "__metadata__")  # a name that safetensors takes
    path = path if plain else "tensor"
    return path if path not in tensors else next(key for n in count(2) if (key := f"{path}#{n}") not in tensors)


def _at(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
