"""Budgets and limits as text: ``macs=0.5,latency=5ms``, ``hidden=64,heads=2``."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from secateur.errors import ConfigError, PlanError
from secateur.plain import parse_scalar
from secateur.planning import Budget

LIMITS = {
    "min_units": ("a whole number from 1", "hidden=64"),
    "multiple_of": ("a whole number from 1", "hidden=64"),
    "max_share": ("a share in (0, 1]", "hidden=0.75"),
}
"""Settings that may differ from axis to axis: what they are, and an example."""


def parse_budget(text: str) -> Budget:
    """A budget from text.

    Raises:
        ConfigError: it has another form, or an amount makes no sense.

    Example:
        >>> parse_budget("macs=50%,latency=5ms")
        Budget(params=None, macs=0.5, bytes=None, latency='5ms')
    """
    known = [item.name for item in fields(Budget)]
    parts: dict[str, float | int | str] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in known or not equals or not value or name in parts:
            raise ConfigError(
                f"budget {text!r}: {part.strip()!r} should be one of {', '.join(known)}, once each, then = "
                f"and an amount: "
                f"macs=0.5"
            )
        parts[name] = _amount(value)
    try:
        return Budget(**parts)
    except PlanError as error:
        raise ConfigError(str(error)) from error


def budget_problems(text: str | None) -> Iterable[str]:
    """What is wrong with a budget; None is none."""
    if text is not None:
        try:
            parse_budget(text)
        except ConfigError as error:
            yield str(error)


def parse_limits(name: str, text: str) -> dict[str, Any]:
    """Numbers by pattern, from text: whole ones from 1, or for ``max_share`` shares in (0, 1].

    Raises:
        ConfigError: it has another form.

    Example:
        >>> parse_limits("multiple_of", "hidden=64, layer1.*=8"), parse_limits("max_share", "heads=0.5")
        ({'hidden': 64, 'layer1.*': 8}, {'heads': 0.5})
    """
    found: dict[str, Any] = {}
    for part in text.split(","):
        pattern, equals, number = (piece.strip() for piece in part.rpartition("="))
        value = parse_scalar(number)
        if not pattern or not equals or not _within(name, value):
            raise ConfigError(
                f"{name} {text!r}: {part.strip()!r} should be a pattern, = and {LIMITS[name][0]}: {LIMITS[name][1]}"
                f"{'. Or give auto alone' if name == 'multiple_of' else ''}"
            )
        found[pattern] = value
    return found


def limit(name: str, value: Any) -> Any:
    """A limit as `plan` takes it.

    Raises:
        ConfigError: it is text of another form.
    """
    if not isinstance(value, str) or (name == "multiple_of" and value == "auto"):
        return value
    return parse_limits(name, value)


def limit_problems(values: Mapping[str, Any]) -> Iterable[str]:
    """What is wrong with limits by their names."""
    for name, given in values.items():
        try:
            value = limit(name, given)
        except ConfigError as error:
            yield str(error)
            continue
        if not isinstance(value, Mapping | str) and not _within(name, value):
            yield f"{name}={value} must be {LIMITS[name][0]}"


def _within(name: str, value: Any) -> bool:
    """Whether a value is one that this limit may have."""
    if name == "max_share":
        return type(value) in (int, float) and 0 < value <= 1
    return type(value) is int and value >= 1


def _amount(value: str) -> float | int | str:
    if value.endswith("%"):
        try:
            return float(value[:-1]) / 100
        except ValueError:
            return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
