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

from torch import Tensor

from secateur.modules import Walk

FOREIGN = (stdlib_module_names | {"torch", "numpy", "secateur"}) - {"__main__"}
LONGEST = 10_000  # entries of a dict or list that is looked through
PYTHONS = {"__builtins__", "__path__", "__all__", "__annotations__", "__dict__", "__doc__"}  # names in every namespace
SEQUENCES = {list, tuple}
CONTAINERS = {dict, OrderedDict, defaultdict, *SEQUENCES}


class _OfInterest(dict[type, bool]):
    """Whether values of a type are tensors, may hold some, or are caches of functions."""

    def __missing__(self, kind: type) -> bool:
        self[kind] = kind in CONTAINERS or kind in CACHES or issubclass(kind, Tensor)
        return self[kind]


Cached = functools._lru_cache_wrapper
CODE = {types.FunctionType, Cached}
CACHES = {Cached, staticmethod, classmethod}
OF_INTEREST = _OfInterest()


@contextmanager
def nothing_left(walk: Walk) -> Generator[None]:
    """Afterwards, the user's globals, classes and caches hold no tensor that they did not hold before."""
    before = [Namespace(place) for place in _places(walk)]
    caches = {id(cache): cache for space in before for cache in space.caches}  # imported into several, mostly
    misses = [(cache, cache.cache_info().misses) for cache in caches.values()]
    known = {id(tensor) for space in before for tensor in space.tensors}
    try:
        yield
    finally:
        for cache, count in misses:
            if cache.cache_info().misses != count:
                cache.cache_clear()  # it may hold tensors deep inside; it fills again
        for space in before:
            space.put_back(known)


class Namespace:
    """What a class or a Python module held when it was looked at.

    Attributes:
        names: what its names stood for.
        tensors: those among them, and in the containers among them.
        caches: of functions.
    """

    def __init__(self, place: Any) -> None:
        self.place, self.names = place, dict(vars(place))
        self.entries = _entries(self.names)
        self.tensors = [tensor for _, value in self.entries for tensor in _tensors(value)]
        self.caches = list(_caches(value for _, value in self.entries if type(value) in CACHES))

    def put_back(self, known: set[int]) -> None:
        """Undo what put a tensor in it, or in a dict or list that stands in it.

        Args:
            known: ids of the tensors that were there before.
        """
        names = vars(self.place)
        same = len(names) == len(self.names) and all(map(operator.is_, names.values(), self.names.values()))
        for name, value in self.entries if same else _entries(names):
            if not _is_new(value, known):
                continue
            if name not in self.names:
                delattr(self.place, name)
            elif value is not self.names[name]:
                setattr(self.place, name, self.names[name])
            elif isinstance(value, dict | list):
                entries = enumerate(value) if isinstance(value, list) else value.items()
                for key in reversed([key for key, entry in entries if _is_new(entry, known)]):
                    del value[key]


def _entries(names: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The names of a namespace that stand for something of interest."""
    own = dict(names)
    for name in PYTHONS:
        own.pop(name, None)
    kinds = {kind for kind in set(map(type, own.values())) if OF_INTEREST[kind]}
    return [(name, value) for name, value in own.items() if type(value) in kinds] if kinds else []


def _tensors(value: Any) -> list[Tensor]:
    """A tensor itself, or those in a container and in the containers within it."""
    if isinstance(value, Tensor):
        return [value]
    if type(value) not in CONTAINERS or len(value) > LONGEST:
        return []
    row = _values(value)
    kinds = set(map(type, row))
    found = [entry for entry in row if isinstance(entry, Tensor)] if any(map(_is_tensor, kinds)) else []
    if not CONTAINERS.isdisjoint(kinds):
        rows = [_values(entry) for entry in row if type(entry) in CONTAINERS and len(entry) <= LONGEST]
        if any(map(_is_tensor, set(map(type, chain.from_iterable(rows))))):
            found += [entry for row in rows for entry in row if isinstance(entry, Tensor)]
    return found


def _values(container: Any) -> "Iterable[Any]":
    return container if type(container) in SEQUENCES else container.values()


def _is_tensor(kind: type) -> bool:
    return OF_INTEREST[kind] and issubclass(kind, Tensor)


def _is_new(value: Any, known: set[int]) -> bool:
    """Whether a value is, or holds, a tensor that was not there before."""
    return any(id(tensor) not in known for tensor in _tensors(value))


def _caches(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        inner = value if type(value) is Cached else value.__func__
        if type(inner) is Cached:
            yield inner


def _places(walk: Walk) -> Iterator[Any]:
    """The user's classes in the model, the Python modules that define them, and those of their helper functions."""
    kinds = {type(part): None for part in walk.modules}
    classes = {cls: None for kind in kinds for cls in kind.__mro__ if _is_users(cls.__module__)}
    yield from classes
    names = dict.fromkeys(cls.__module__ for cls in classes)
    packages = {name.partition(".")[0] for name in names}
    names.update(dict.fromkeys(_helpers(names)))
    names.update(dict.fromkeys(n for n in _helpers(names) if n.partition(".")[0] in packages))
    yield from (loaded[name] for name in names)


def _helpers(names: Iterable[str]) -> Iterator[str]:
    """The users' modules that the functions in the given ones come from."""
    held = [value for name in names for value in list(vars(loaded[name]).values()) if type(value) in CODE]
    homes = dict.fromkeys(value.__module__ for value in held)
    return (home for home in homes if isinstance(home, str) and _is_users(home))


def _is_users(module: str) -> bool:
    return module.partition(".")[0] not in FOREIGN and module in loaded
