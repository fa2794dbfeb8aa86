"""Plain objects that hang on modules: configs of all kinds, and how a value on one is read and set by a dotted path.

A step of a path is an attribute, a key of a dict or a place in a list: ``config.text_config.hidden_size``. Values are
set behind the object's back, so that frozen dataclasses and classes that check what they are given take them too.
"""

import argparse
import sys
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, cast

from torch import Tensor, nn

from secateur.modules import Walk

DEPTH = 4  # objects within objects that are looked into
LONGEST = 1000  # items of a list or dict that is looked into: longer ones are data
FOREIGN = (sys.stdlib_module_names | {"torch", "numpy"}) - {"__main__"}
BARE = (types.SimpleNamespace, argparse.Namespace)


def is_plain(value: Any) -> bool:
    """Whether a value is an object that only holds other values: no module, tensor, function, nor a thing of Python's
    own or torch's.
    """
    if isinstance(value, BARE):
        return True
    if _foreign(type(value)):
        return False
    if isinstance(value, nn.Module | Tensor | type | Enum | int | float | complex | str | bytes) or callable(value):
        return False
    return _holds(value)


@lru_cache(maxsize=4096)
def _foreign(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in FOREIGN


class _MayBePlain(dict[type, bool]):
    """Whether values of a type may be plain objects, or dicts that hold some: hardly any on a module are."""

    def __missing__(self, kind: type) -> bool:
        self[kind] = kind is dict or issubclass(kind, BARE) or not _foreign(kind)
        return self[kind]


MAY_BE_PLAIN = _MayBePlain()


def _holds(value: Any) -> bool:
    return type(value).__dictoffset__ != 0 or bool(slots(value))


def slots(value: Any) -> tuple[str, ...]:
    """Names of the attributes that the classes of an object keep outside its ``__dict__``."""
    return slots_of(type(value))


@lru_cache(maxsize=4096)
def slots_of(kind: type) -> tuple[str, ...]:
    """Names of the attributes that a class, and those that it inherits from, keep outside an ``__dict__``."""
    return tuple(_named_slots(kind))


def _named_slots(kind: type) -> Iterator[str]:
    for cls in kind.__mro__:
        found: Any = cls.__dict__.get("__slots__", ())
        names: Any = (found,) if isinstance(found, str) else found
        yield from (name for name in names if name not in ("__dict__", "__weakref__"))


def items(value: Any) -> dict[str, Any]:
    """What an object, a dict with names as keys, or a list holds, by the step of a path that leads there."""
    if isinstance(value, dict | list | tuple) and len(cast("list[Any]", value)) > LONGEST:
        return {}
    if isinstance(value, dict):
        return {k: v for k, v in cast("dict[Any, Any]", value).items() if isinstance(k, str) and k.isidentifier()}
    if isinstance(value, list | tuple):
        return {str(k): v for k, v in enumerate(cast("list[Any]", value))}
    found = dict(getattr(value, "__dict__", {}))
    for name in slots(value):
        if hasattr(value, name):
            found[name] = getattr(value, name)
    return {k: v for k, v in found.items() if k.isidentifier()}


def walk(root: Any, path: str = "", seen: set[int] | None = None, depth: int = DEPTH) -> Iterator[tuple[str, Any]]:
    """Every plain object (or dict) from the given one down, each once, with the path to it."""
    seen = set() if seen is None else seen
    if id(root) in seen or depth == 0:
        return
    seen.add(id(root))
    if not isinstance(root, list | tuple):
        yield path, root
    for step, value in items(root).items():
        if is_plain(value) or (type(value) in (dict, list, tuple) and not _simple(value)):
            yield from walk(value, f"{path}.{step}".lstrip("."), seen, depth - 1)


def _simple(value: Any) -> bool:
    """A list of ints and the like, which holds no further objects."""
    return isinstance(value, list | tuple) and all(
        isinstance(v, int | float | str | bytes | None) for v in cast("list[Any]", value)[:LONGEST]
    )


def on_modules(model: Walk) -> Iterator[tuple[str, str, Any]]:
    """Every plain object that hangs on a module, once: path of the first module that holds it, path to it, itself."""
    seen: set[int] = set()
    for path, module in model.named:
        for name, value in list(vars(module).items()):
            if not MAY_BE_PLAIN[type(value)] or name.startswith("_"):
                continue
            if not (is_plain(value) or (type(value) is dict and value)):
                continue
            for inner, found in walk(value, name, seen):
                yield path, inner, found


def get(root: Any, path: str) -> Any:
    """What the dotted path leads to.

    Raises:
        AttributeError, KeyError, IndexError: nothing is there.
    """
    for step in path.split("."):
        if isinstance(root, Mapping):
            root = cast("Mapping[str, Any]", root)[step]
        elif isinstance(root, list | tuple):
            root = cast("list[Any]", root)[int(step)]
        else:
            root = getattr(root, step)
    return root


def put(root: Any, path: str, value: Any) -> None:
    """Set what the dotted path leads to, also on a frozen object."""
    owner, _, step = path.rpartition(".")
    holder = get(root, owner) if owner else root
    if isinstance(holder, dict):
        holder[step] = value
    elif step in getattr(holder, "__dict__", {}):
        vars(holder)[step] = value
    else:
        object.__setattr__(holder, step, value)
