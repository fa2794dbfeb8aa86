"""Settings as plain data, as a command line and as a YAML file."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from secateur.plain import parse_scalar
from secateur.settings_files import yaml_module


def plain(value: Any) -> Any:
    """A setting as YAML and JSON hold it."""
    if isinstance(value, Path):
        return str(value)
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value


def command_line(name: str, values: Mapping[str, Any], default: Mapping[str, Any], *, operand: str = "") -> str:
    """The command line of a run: a flag for each setting that is not its default.

    Args:
        name: of the command.
        values, default: plain data, by the names of the settings.
        operand: the setting that stands before the flags, without one of its own; left out where it is None.

    Example:
        >>> command_line("tune", {"result": "half", "lr": 0.1, "seed": 2}, {"lr": 0.1, "seed": 0}, operand="result")
        'secateur tune half --seed 2'
    """
    words = ["secateur", name, *([str(values[operand])] if operand and values[operand] is not None else [])]
    for key, value in values.items():
        if key != operand and value != default[key]:
            words += _flags(f"--{key.replace('_', '-')}", value)
    return shlex.join(words)


def yaml_file(command: str, values: Mapping[str, Any]) -> str:
    """The text of a file that ``--config`` reads."""
    header = (
        f"# Settings of a run of secateur. Repeat it with: secateur {command} --config THIS_FILE --out NEW_DIRECTORY\n"
    )
    return header + yaml_module().safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=None)


def _flags(flag: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return [word for key, item in items for word in (f"{flag}.{key.replace('_', '-')}", _spelled(item))]
    if isinstance(value, list):
        return [word for item in cast("list[str]", value) for word in (flag, item)]
    if isinstance(value, bool):
        return [flag] if value else []
    return [] if value is None else [flag, str(value)]


def _spelled(value: Any) -> str:
    """Text that ``parse_scalar`` reads as the value."""
    return value if isinstance(value, str) and parse_scalar(value) == value else json.dumps(value)
