"""A model as exporters want it: a forward from tensors to plain nests of tensors, and inputs of other sizes."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from secateur.errors import ExportError
from secateur.inputs import fresh
from secateur.tracing.shadow import shadow
from secateur.tracing.surroundings import quiet_backends, seed_draws

Marks = tuple[Mapping[int, str], ...]
"""For each leaf of the inputs, the dims that may have other sizes, and the name of each size: {0: "batch"}."""


@dataclass(frozen=True)
class Call:
    """How a model is called.

    Attributes:
        args, kwargs: inputs with tensors in them; keywords in the order of the model's signature.
        bound: keyword arguments without a tensor, which become a part of the exported program.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    bound: dict[str, Any]

    @property
    def leaves(self) -> list[Any]:
        return tree_leaves((self.args, self.kwargs))

    def of_sizes(self, marks: Marks, sizes: Mapping[str, int]) -> "Call":
        """The same call with marked dims repeated, or cut off, to the given sizes."""
        leaves, spec = tree_flatten((self.args, self.kwargs))
        made = [_of_sizes(leaf, mark, sizes) for leaf, mark in zip(leaves, marks, strict=True)]
        args, kwargs = tree_unflatten(made, spec)
        return Call(args, kwargs, self.bound)


def _of_sizes(leaf: Any, mark: Mapping[int, str], sizes: Mapping[str, int]) -> Any:
    for dim, name in mark.items():
        if name in sizes and leaf.shape[dim] != sizes[name]:
            positions = torch.arange(sizes[name], device=leaf.device) % leaf.shape[dim]
            leaf = leaf.index_select(dim, positions)
    return leaf


def call_of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """Sort the inputs of a model. Caches of earlier tokens are switched off unless the inputs say otherwise."""
    signature = inspect.signature(model.forward)
    try:
        given = signature.bind_partial(*args, **kwargs).arguments
    except TypeError as error:
        raise ExportError(
            f"{type(model).__name__} does not take these inputs: {error}. Give args= and kwargs= as the model is called"
        ) from error
    order = [*(name for name in signature.parameters if name in kwargs), *kwargs]
    keywords = {name: kwargs[name] for name in order}
    bound = {name: value for name, value in keywords.items() if not _has_tensor(value)}
    if "use_cache" in signature.parameters and "use_cache" not in given:
        bound["use_cache"] = False
    return Call(args, {name: value for name, value in keywords.items() if name not in bound}, bound)


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def exportable(model: nn.Module, call: Call) -> nn.Module:
    """A copy in evaluation mode whose forward binds what holds no tensor, and gives out a plain nest of tensors.

    Its parameters are the model's own, and keep their names.
    """
    double = shadow(model)
    inner, bound = double.forward, call.bound

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return plain(inner(*args, **kwargs, **bound))

    double.__dict__["forward"] = forward
    return double


def reference(model: nn.Module, call: Call) -> list[tuple[str, Tensor]]:
    """What the model itself gives, by name.

    Raises:
        ExportError: it does not run, or gives no tensor.
    """
    with quiet_backends():
        seed_draws()
        args, kwargs = fresh((call.args, call.kwargs))
        try:
            output = plain(nn.Module.__call__(shadow(model), *args, **kwargs, **call.bound))
        except Exception as error:
            shapes = ", ".join(str(list(leaf.shape)) for leaf in call.leaves if isinstance(leaf, Tensor))
            raise ExportError(
                f"{type(model).__name__} does not run on inputs of shape {shapes or 'none'}: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
    named = list(_named(output, ())) if output is not None else []
    if not named:
        raise ExportError(f"{type(model).__name__} gives no tensor: nothing would be left of it in a file")
    return named


def plain(value: Any) -> Any:
    """An output as nested dicts and tuples of tensors, that no class is needed for. What holds no tensor goes.

    >>> plain({"a": torch.zeros(2), "b": None, "c": [torch.ones(1), 3]})
    {'a': tensor([0., 0.]), 'c': (tensor([1.]),)}
    """
    if isinstance(value, Tensor):
        return value
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | nn.Module | type):
        return None
    items = _items(value)
    if isinstance(items, dict):
        return {name: item for name, item in ((n, plain(v)) for n, v in items.items()) if item is not None} or None
    return tuple(item for item in map(plain, items) if item is not None) or None


def _items(value: Any) -> dict[str, Any] | list[Any]:
    if isinstance(value, Mapping):
        return {str(name): item for name, item in cast("Mapping[Any, Any]", value).items()}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return dict(cast("Any", value)._asdict())
    if isinstance(value, list | tuple):
        return list(cast("list[Any]", value))
    if "Cache" in type(value).__name__ or callable(value):
        return []
    return dict(getattr(value, "__dict__", {}))


def _named(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield re.sub(r"\W", "_", "_".join(path)) or "output", value
    elif isinstance(value, dict):
        for name, item in cast("dict[str, Any]", value).items():
            yield from _named(item, (*path, name))
    else:
        items = cast("tuple[Any, ...]", value)
        for k, item in enumerate(items):
            number = (str(k),) if len(items) > 1 or path else ()
            yield from _named(item, (*(path or ("output",)), *number))


def first_line(error: BaseException) -> str:
    """The first line of an error's message: those of exporters go on for pages."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
