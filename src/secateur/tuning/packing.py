"""Trees of tensors and plain values as safetensors and JSON, without pickle.

A tensor becomes ``{"$tensor": key}``, and what JSON lacks gets a tag of its own: tuples, keys that are no text,
infinity and NaN.
"""

import math
from collections.abc import Mapping
from itertools import count
from typing import Any, cast

from torch import Tensor

from secateur.errors import ArtifactError


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
        key = _free(path, tensors)
        tensors[key] = tree.detach().to("cpu", copy=True).contiguous()
        return {"$tensor": key}
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
            case "$float":
                return float(items["$float"])
            case "$tuple":
                return tuple(unpack(item, tensors) for item in items["$tuple"])
            case "$pairs":
                return {unpack(key, tensors): unpack(value, tensors) for key, value in items["$pairs"]}
            case _:
                return {key: unpack(value, tensors) for key, value in items.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"not a state that secateur wrote: {type(error).__name__}: {error}") from error


def _free(path: str, tensors: Mapping[str, Tensor]) -> str:
    """A name for a tensor that no other has: paths may be alike, as those of ``{"a.b": x, "a": {"b": y}}``."""
    plain = path.isascii() and path.isprintable() and path not in ("", "__metadata__")  # a name that safetensors takes
    path = path if plain else "tensor"
    return path if path not in tensors else next(key for n in count(2) if (key := f"{path}#{n}") not in tensors)


def _at(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
