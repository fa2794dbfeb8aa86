"""Settings from plain data: YAML files and flags, brought to the types of the fields of a dataclass."""

import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from secateur.errors import ConfigError
from secateur.settings_files import read_settings

Made = TypeVar("Made")
CHOICES = ("threshold", "budget", "keep", "max_drop", "max_loss_increase")
"""Settings of which at most one may be given."""
SPELLED = ("eps", "attack_step")
"""Settings that are text, such as 8/255, and may be a number in a file."""
TEXTS = ("budget", "min_units", "multiple_of", "max_share")
"""Settings that a file may spell as names with values, and a flag as text: macs=0.5,params=10000."""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; `checked` looks at what is in it.

    Raises:
        ConfigError: the file is missing, isn't YAML, asks for more than values, or doesn't hold a mapping of names to
            them.
        MissingExtra: PyYAML is not installed.
    """
    values = read_settings(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{str(path)!r} holds a {type(values).__name__}: write a line for each setting, such as 'threshold: 0.8'"
        )
    return {str(name).replace("-", "_"): value for name, value in cast("dict[Any, Any]", values).items()}


def checked(cls: type[Any], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Values brought to the types of the fields of a dataclass. A dash in a name counts as an underscore.

    Raises:
        ConfigError: unknown names, each with the nearest known one, and values of the wrong type; all of them at once.
    """
    hints = typing.get_type_hints(cls)
    known = [item.name for item in fields(cls)]
    good: dict[str, Any] = {}
    problems: list[str] = []
    for given, value in values.items():
        name = str(given).replace("-", "_")
        if name not in known:
            problems.append(f"unknown setting {given!r}{_nearest(name, known)}")
            continue
        try:
            good[name] = _typed(value, hints[name], name)
        except (TypeError, ValueError):
            problems.append(f"{name} is {value!r}, but must be {_described(hints[name])}")
    if problems:
        raise ConfigError(f"{source}: {'; '.join(problems)}")
    return good


def merged(
    cls: type[Made], flags: Mapping[str, Any], given: Iterable[str], file: Mapping[str, Any], source: str
) -> Made:
    """Settings in which flags that were given win over a file, and the file over the defaults.

    `CHOICES` exclude each other: one of them as a flag puts aside those in the file.

    Args:
        cls: which settings.
        flags: the value of every flag, given or not.
        given: names of the flags that were given.
        file: what the file holds.
        source: name of the file, for errors.
    """
    names = set(given)
    if names & set(CHOICES):
        names |= set(CHOICES)
    return cls(**{**flags, **{name: value for name, value in checked(cls, file, source).items() if name not in names}})


def _typed(value: Any, hint: Any, name: str) -> Any:
    """A value from a file or a flag as its field's type; raises TypeError or ValueError where it can't be."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        if value is None:
            return None
        return _first(value, [part for part in parts if part is not type(None)], name)
    if origin is Literal:
        if value not in parts:
            raise ValueError
        return value
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in cast("list[Any]", items)):
            raise TypeError
        return tuple(cast("list[str]", items))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise TypeError
        return {str(key).replace("-", "_"): item for key, item in cast("Mapping[Any, Any]", value).items()}
    if name in TEXTS and hint is str and isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in cast("Mapping[Any, Any]", value).items())
    if name in SPELLED and hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return float(value)  # YAML 1.1 reads 3e-4 as text
    if isinstance(value, bool) is not (hint is bool) or not isinstance(value, hint):
        raise TypeError
    return value


def _first(value: Any, hints: Iterable[Any], name: str) -> Any:
    """A value as the first of several types that it can be."""
    failure: Exception = TypeError()
    for hint in hints:
        try:
            return _typed(value, hint, name)
        except (TypeError, ValueError) as error:
            failure = error
    raise failure


def parse_scalar(value: Any) -> Any:
    """Text as the JSON value that it spells, else as it is: "2" is 2, "true" is True, "resnet" is "resnet"."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(value, value)


def _described(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        return " or ".join("nothing" if part is type(None) else _described(part) for part in parts)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    words = {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        Path: "a path",
        tuple: "a list of texts",
    }
    return words.get(origin or hint, "names with values")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else f" (known are {', '.join(known)})"
