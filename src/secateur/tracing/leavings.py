"""Tensors without values that a trace left outside the model: in caches and globals of the user's code.

A copy of the model takes what ``forward`` writes to the model. What it writes to its class, to its Python module, or to
a cache of one of its helper functions is looked for where the model's classes are defined, and where the functions that
they import come from, and once more from there within the same package.
"""

import functools
import operator
import types
from collections import OrderedDict, defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from sys import modules as loaded
from sys import stdlib_module_names
from typing import Any

from torch import Tensor, nn

from secateur.modules import parts

FOREIGN = (stdlib_module_names | {"torch", "numpy", "secateur"}) - {"__main__"}
LONGEST = 10_000  # entries of a dict or list that is looked through
PYTHONS = {"__builtins__", "__path__", "__all__", "__annotations__", "__dict__", "__doc__"}  # names in every namespace
SEQUENCES = {list, tuple}
CONTAINERS = {dict, OrderedDict, defaultdict, *SEQUENCES}


class _MayHold(dict[type, bool]):
    """Whether values of a type are tensors or may hold some."""

    def __missing__(self, kind: type) -> bool:
        self[kind] = kind in CONTAINERS or issubclass(kind, Tensor)
        return self[kind]


MAY_HOLD = _MayHold()
Cached = functools._lru_cache_wrapper
CODE = {types.FunctionType, Cached}
CACHES = {Cached, staticmethod, classmethod}


@contextmanager
def nothing_left(model: nn.Module) -> Generator[None]:
    """Afterwards, the user's globals, classes and caches hold no tensor that they did not hold before."""
    before = [(place, dict(vars(place))) for place in _places(model)]
    held = [_worth_a_look(names) for _, names in before]
    known = {id(t) for entries in held for _, value in entries for t in _tensors(value)}
    misses = [(cache, cache.cache_info().misses) for cache in _caches(before)]
    try:
        yield
    finally:
        for cache, count in misses:
            if cache.cache_info().misses != count:
                cache.cache_clear()  # it may hold tensors deep inside; it fills again
        for (place, old), entries in zip(before, held, strict=True):
            now = vars(place)
            same = len(now) == len(old) and all(map(operator.is_, now.values(), old.values()))
            _put_back(place, old, entries if same else _worth_a_look(now), known)


def _places(model: nn.Module) -> Iterator[Any]:
    """The user's classes in the model, the Python modules that define them, and those of their helper functions."""
    kinds = {type(part): None for part in parts(model)}
    classes = {cls: None for kind in kinds for cls in kind.__mro__ if _is_users(cls.__module__)}
    yield from classes
    names = dict.fromkeys(cls.__module__ for cls in classes)
    packages = {name.partition(".")[0] for name in names}
    names.update(dict.fromkeys(_helpers(names)))
    names.update(dict.fromkeys(n for n in _helpers(names) if n.partition(".")[0] in packages))
    yield from (loaded[name] for name in names)


def _helpers(names: Iterable[str]) -> Iterator[str]:
    """The users' modules that the functions in the given ones come from."""
    found = dict.fromkeys(home for name in names for home in _homes(name, len(vars(loaded[name]))))
    return filter(_is_users, found)


@functools.lru_cache(maxsize=4096)
def _homes(name: str, size: int) -> list[str]:
    """The modules that the functions in a module come from, as long as it holds so many names."""
    values = [value for value in list(vars(loaded[name]).values()) if type(value) in CODE]
    return list(dict.fromkeys(value.__module__ for value in values if isinstance(value.__module__, str)))


def _is_users(module: str) -> bool:
    return module.partition(".")[0] not in FOREIGN and module in loaded


def _caches(places: list[tuple[Any, dict[str, Any]]]) -> Iterator[Any]:
    held = [names.values() for _, names in places]
    values = [v for names in held if not CACHES.isdisjoint(map(type, names)) for v in names if type(v) in CACHES]
    for value in values:
        inner = value if type(value) is Cached else value.__func__
        if type(inner) is Cached:
            yield inner


def _put_back(place: Any, old: Mapping[str, Any], entries: list[tuple[str, Any]], known: set[int]) -> None:
    """Undo what put a tensor in a namespace, or in a dict or list that stands in it."""
    for name, value in entries:
        if all(id(t) in known for t in _tensors(value)):
            continue
        if name not in old:
            delattr(place, name)
        elif value is not old[name]:
            setattr(place, name, old[name])
        else:
            for key in [k for k, v in reversed(_worth_a_look(value)) if any(id(t) not in known for t in _tensors(v))]:
                del value[key]


def _worth_a_look(held: "Mapping[Any, Any] | list[Any] | tuple[Any, ...]") -> list[tuple[Any, Any]]:
    """The entries of a namespace, dict, list or tuple that are tensors or may hold some."""
    if len(held) > LONGEST:
        return []
    values = _values(held)
    kinds = {kind for kind in set(map(type, values)) if MAY_HOLD[kind]}
    if not kinds:
        return []
    entries = enumerate(values) if type(held) in SEQUENCES else list(held.items())
    return [(key, value) for key, value in entries if type(value) in kinds and key not in PYTHONS]


def _tensors(value: Any) -> list[Tensor]:
    """A tensor itself, or those in a dict, list or tuple and in those within it."""
    if isinstance(value, Tensor):
        return [value]
    if type(value) not in CONTAINERS:
        return []
    entries = [entry for _, entry in _worth_a_look(value)]
    found = [entry for entry in entries if isinstance(entry, Tensor)]
    inner = entries if not found else [entry for entry in entries if not isinstance(entry, Tensor)]
    rows = [held if type(held) in SEQUENCES else held.values() for held in inner if len(held) <= LONGEST]
    if any(map(_is_tensor, set(map(type, chain.from_iterable(rows))))):
        found += (v for row in rows for v in row if isinstance(v, Tensor))
    return found


def _values(held: Any) -> "Iterable[Any]":
    return held if type(held) in SEQUENCES else held.values()


def _is_tensor(kind: type) -> bool:
    return MAY_HOLD[kind] and issubclass(kind, Tensor)
