"""How long one operation takes alone, on real tensors of any sizes."""

import time
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from secateur.timing.operations import Operand, Operation

Timer = Callable[[Operation, Sequence[int]], float]
"""Seconds that an operation takes when its variables have the given sizes; NaN where it can't be run so."""

SHORTEST = 4e-4  # seconds that a stretch of repeated calls takes at least: a clock's own noise is a thousandth of it
STRETCHES = 3  # the fastest counts: what else the machine does only ever adds time


def seconds(operation: Operation, sizes: Sequence[int]) -> float:
    """Time it. The tensors hold ones: what they hold changes nothing but for numbers too small to be normal."""
    try:
        with torch.no_grad():
            call = prepared(operation, sizes)
            call()
            return _fastest(call, operation.device)
    except (RuntimeError, ValueError, TypeError, IndexError):  # no such form of the operation
        return float("nan")


def _fastest(call: Callable[[], Any], device: str) -> float:
    wait, now = waiter(device), clock(device)

    def stretch(times: int) -> float:
        wait()
        start = now()
        for _ in range(times):
            call()
        wait()
        return now() - start

    times = max(1, min(200, int(SHORTEST / max(stretch(1), 1e-9))))
    return min(stretch(times) for _ in range(STRETCHES)) / times


def clock(device: str) -> Callable[[], float]:
    """Seconds. Of a single thread its own time counts, which stands still while other processes run on its core."""
    return time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def waiter(device: str) -> Callable[[], None]:
    """What waits until a device has done all that it was given."""
    module = None if device == "cpu" else getattr(torch, device, None)
    wait: Callable[[], None] = getattr(module, "synchronize", lambda: None)
    return wait


def prepared(operation: Operation, sizes: Sequence[int]) -> Callable[[], Any]:
    """The operation on tensors of the given sizes, ready to be called repeatedly."""
    space, _, rest = operation.overload.partition("::")
    name, _, overload = rest.partition(".")
    func = getattr(getattr(getattr(torch.ops, space), name), overload or "default")
    shapes = {name: value.shape(sizes) for name, value in operation.arguments if isinstance(value, Operand)}
    outputs = operation.results(sizes)
    arguments = {name: _made(value, sizes, operation.device) for name, value in operation.arguments}
    arguments |= _settings(operation.name, arguments, shapes, outputs)
    keywords = {a.name for a in func._schema.arguments if a.kwarg_only}
    positional = [value for name, value in arguments.items() if name not in keywords]
    named = {name: value for name, value in arguments.items() if name in keywords}
    return lambda: func(*positional, **named)


def _made(value: Any, sizes: Sequence[int], device: str) -> Any:
    if isinstance(value, Operand):
        return _tensor(value, sizes, device)
    if isinstance(value, tuple):
        return [_made(item, sizes, device) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def _tensor(operand: Operand, sizes: Sequence[int], device: str) -> Tensor:
    """Ones, or zeros for what may be positions, in the order in memory that the model has them in."""
    dtype: torch.dtype = getattr(torch, operand.dtype)
    shape = operand.shape(sizes)
    value = 1 if dtype.is_floating_point or dtype.is_complex or dtype is torch.bool else 0
    flat = torch.full((prod(shape),), value, dtype=dtype, device=device)
    laid = flat.view([shape[k] for k in operand.order])
    back = [operand.order.index(k) for k in range(len(shape))]
    return laid.permute(back)


def _settings(
    name: str,
    arguments: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    outputs: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Arguments that are sizes themselves, made to fit."""
    if name == "aten::convolution":
        if arguments["transposed"]:
            return {"groups": outputs[0][1] // shapes["weight"][1]}
        return {"groups": shapes["input"][1] // shapes["weight"][1]}
    if "normalized_shape" in arguments:
        return {"normalized_shape": list(shapes["input"][-len(arguments["normalized_shape"]) :])}
    if "HxW" in arguments:
        return {"C": shapes["input"][1]}
    return {}
