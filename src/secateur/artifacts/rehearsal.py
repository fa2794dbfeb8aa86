"""A first run of a loaded model on its probe, under bounds, on a copy: what it would do to this machine shows here."""

import operator
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from secateur.artifacts.bounds import Limits, Meter
from secateur.errors import ArtifactError
from secateur.inputs import fresh
from secateur.tracing.running import bind
from secateur.tracing.shadow import separate
from secateur.tracing.surroundings import quiet_backends

MOST_BITS = 64  # of a whole number
MOST_ITEMS = 100_000  # of lists and tuples in lists and tuples, as plain Python values
SPLITS = {"tensor_split", "hsplit", "vsplit", "dsplit", "chunk", "unsafe_chunk"}
MOST_DIMS = 64  # that a tensor has


def rehearse(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], limits: Limits) -> None:
    """Run a model on example inputs within limits; its tensors stay as they are.

    Args:
        model: a graph that came in a file, every call of which is looked at; or one of the user's classes.
        args, kwargs: example inputs.
        limits: what it may use.

    Raises:
        ArtifactError: it asks for more, or does not run.
    """
    stored = isinstance(model, fx.GraphModule)
    with quiet_backends():
        torch.manual_seed(0)
        positional, keywords = fresh((args, dict(kwargs)))
        double = separate(model)
        try:
            with Meter(limits, strict=stored):
                if isinstance(double, fx.GraphModule):
                    Rehearsal(double).run(*bind(double, positional, keywords))
                else:
                    nn.Module.__call__(double, *positional, **keywords)
        except ArtifactError:
            raise
        except Exception as error:
            raise ArtifactError(f"the loaded model does not run its probe: {type(error).__name__}: {error}") from error


class Rehearsal(fx.Interpreter):
    """Runs a graph call by call, and refuses plain Python values that grow without bounds."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.known: dict[int, int] = {}

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        _check_count((args, kwargs), 10 * MOST_ITEMS)
        if getattr(operator, getattr(target, "__name__", ""), None) is target:
            _check_operands(target.__name__, args)
        _check_parts(getattr(target, "__name__", ""), args, kwargs)
        return _bounded(super().call_function(target, args, kwargs))

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        _check_count((args, kwargs), 10 * MOST_ITEMS)
        _check_parts(str(target), args, kwargs)
        if not (args and isinstance(args[0], Tensor | torch.Size)):
            raise ArtifactError(f"this result's graph calls the method {target} of what is no tensor")
        return _bounded(super().call_method(target, args, kwargs))

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        _check_count((args, kwargs), 10 * MOST_ITEMS)
        return _bounded(super().call_module(target, args, kwargs))

    def output(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        _check_count(args, MOST_ITEMS)
        return super().output(target, args, kwargs)


def _check_parts(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse numbers that make room for as many things before the first operation that a meter sees."""
    numbers = [a for a in (*args, *kwargs.values()) if type(a) is int]
    if name in SPLITS and any(n > MOST_ITEMS for n in numbers):
        raise ArtifactError(f"this result's graph asks for {max(numbers)} parts of a tensor ({name})")
    if name == "tensordot" and any(n > MOST_DIMS for n in numbers):
        raise ArtifactError(f"this result's graph asks for {max(numbers)} dims of a tensor; it has at most {MOST_DIMS}")


def _check_operands(name: str, args: tuple[Any, ...]) -> None:
    """Refuse arithmetic on plain values whose result would be huge."""
    if any(isinstance(a, str | bytes) for a in args) and name not in ("eq", "ne", "getitem", "setitem"):
        raise ArtifactError(f"this result's graph does arithmetic ({name}) on text")
    lists = [cast("list[Any]", a) for a in args if isinstance(a, list | tuple)]
    numbers = [a for a in args if type(a) is int]
    size = sum(map(len, lists))
    if name in ("mul", "imul") and lists and numbers:
        size *= max(numbers)
    if size > MOST_ITEMS:
        raise ArtifactError(f"this result's graph makes a list of {size} items; at most {MOST_ITEMS} are made")
    if name == "pow" and len(numbers) == 2 and abs(numbers[0]) > 1 and numbers[1] * abs(numbers[0]).bit_length() > 128:
        raise ArtifactError(f"this result's graph raises {numbers[0]} to the power of {numbers[1]}")


def _bounded(value: Any) -> Any:
    if type(value) is int and value.bit_length() > MOST_BITS:
        raise ArtifactError(f"this result's graph makes a number of {value.bit_length()} bits")
    if isinstance(value, list | tuple):
        _check_count(value, MOST_ITEMS)
    return value


def _check_count(value: Any, most: int) -> None:
    if _leaves(value, {}) > most:
        raise ArtifactError(f"this result's graph makes lists of more than {most} items")


def _leaves(value: Any, known: dict[int, int]) -> int:
    """Items in lists within lists, counted as often as they are reached; each list is looked at once."""
    if isinstance(value, Tensor) or not isinstance(value, list | tuple | dict):
        return 1
    if id(value) not in known:
        items: Any = cast("dict[Any, Any]", value).values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_leaves(item, known) for item in items)
    return known[id(value)]
