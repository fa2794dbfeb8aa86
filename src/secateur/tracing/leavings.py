"""Tensors without values that a trace left outside the model: in caches and globals of the user's code.

A copy of the model takes what ``forward`` writes to the model. What it writes to its class, to its Python module, or to
a cache of one of its helper functions is looked for where the model's classes are defined, and where the functions that
they import come from, and once more from there within the same package.
"""

import functools
import types
from collections import OrderedDict, defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from sys import modules as loaded
from sys import stdlib_module_names
from typing import Any

from torch import Tensor, nn

from secateur.modules import parts

FOREIGN = (stdlib_module_names | {"torch", "numpy", "secateur"}) - {"__main__"}
LONGEST = 10_000  # entries of a dict or list that is looked through
HARMLESS = {int, float, bool, str, bytes, type(None), type, types.FunctionType, types.ModuleType, property,
            types.BuiltinFunctionType, types.GenericAlias, types.UnionType, classmethod, staticmethod}  # fmt: skip
PYTHONS = {"__builtins__", "__path__", "__all__", "__annotations__", "__dict__", "__doc__"}  # names in every namespace
CONTAINERS = (dict, list, tuple, OrderedDict, defaultdict)
Cached = functools._lru_cache_wrapper
CODE = {types.FunctionType, Cached}
CACHES = {Cached, staticmethod, classmethod}


@contextmanager
def nothing_left(model: nn.Module) -> Generator[None]:
    """Afterwards, the user's globals, classes and caches hold no tensor that they did not hold before."""
    places = list(_places(model))
    before = [(place, dict(vars(place))) for place in places]
    known = _known(before)
    misses = [(cache, cache.cache_info().misses) for cache in _caches(before)]
    try:
        yield
    finally:
        for cache, count in misses:
            if cache.cache_info().misses != count:
                cache.cache_clear()  # it may hold tensors deep inside; it fills again
        for place, old in before:
            _put_back(place, old, known)


def _places(model: nn.Module) -> Iterator[Any]:
    """The user's classes in the model, the Python modules that define them, and those of their helper functions."""
    classes = {cls: None for part in parts(model) for cls in type(part).__mro__ if _is_users(cls.__module__)}
    yield from classes
    names = dict.fromkeys(cls.__module__ for cls in classes)
    packages = {name.partition(".")[0] for name in names}
    names.update(dict.fromkeys(_helpers(names)))
    names.update(dict.fromkeys(n for n in _helpers(names) if n.partition(".")[0] in packages))
    yield from (loaded[name] for name in names)


def _helpers(names: Iterable[str]) -> list[str]:
    """The users' modules that the functions in the given ones come from."""
    values = [value for name in names for value in list(vars(loaded[name]).values()) if type(value) in CODE]
    found = dict.fromkeys(value.__module__ for value in values)
    return [name for name in found if isinstance(name, str) and _is_users(name)]


def _is_users(module: str) -> bool:
    return module.partition(".")[0] not in FOREIGN and module in loaded


def _caches(places: list[tuple[Any, dict[str, Any]]]) -> Iterator[Any]:
    values = [value for _, held in places for value in held.values() if type(value) in CACHES]
    for value in values:
        inner = value if type(value) is Cached else value.__func__
        if type(inner) is Cached:
            yield inner


def _known(places: Iterable[tuple[Any, Mapping[str, Any]]]) -> set[int]:
    """The tensors that are there already."""
    return {id(t) for _, held in places for _, value in _worth_a_look(held) for t in _tensors(value)}


def _put_back(place: Any, old: Mapping[str, Any], known: set[int]) -> None:
    """Undo what put a tensor in a namespace, or in a dict or list that stands in it."""
    for name, value in _worth_a_look(vars(place)):
        if all(id(t) in known for t in _tensors(value)):
            continue
        if name not in old:
            delattr(place, name)
        elif value is not old[name]:
            setattr(place, name, old[name])
        else:
            for key in [k for k, v in reversed(_worth_a_look(value)) if any(id(t) not in known for t in _tensors(v))]:
                del value[key]


def _worth_a_look(held: "Mapping[Any, Any] | list[Any]") -> list[tuple[Any, Any]]:
    """The entries of a namespace, dict or list that are tensors or may hold some."""
    values = held if isinstance(held, list) else held.values()
    if len(held) > LONGEST or set(map(type, values)) <= HARMLESS:
        return []
    entries = enumerate(held) if isinstance(held, list) else list(held.items())
    found = [(key, value) for key, value in entries if type(value) not in HARMLESS and _may_hold(type(value))]
    return [(key, value) for key, value in found if key not in PYTHONS]


@functools.cache
def _may_hold(kind: type) -> bool:
    return kind in CONTAINERS or issubclass(kind, Tensor)


def _tensors(value: Any, depth: int = 2) -> Iterator[Tensor]:
    """A tensor itself, or those in a dict, list or tuple and in those within it."""
    if isinstance(value, Tensor):
        yield value
    elif depth and type(value) in CONTAINERS:
        for _, entry in _worth_a_look(list(value) if isinstance(value, tuple) else value):
            yield from _tensors(entry, depth - 1)
