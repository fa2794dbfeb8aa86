"""Seconds of several calls, in turns; what is far slower than the rest is not timed at length."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from secateur.measuring import median_seconds

Calls = Mapping[str, Callable[[], Any]]
Stopwatch = Callable[[Calls], Mapping[str, float]]
FAR = 2.5  # times the fastest: such a call is timed once, for it won't be chosen


def in_turns(calls: Calls, *, seconds: float = 0.05) -> dict[str, float]:
    """Median seconds of each call, after each was called twice.

    Args:
        calls: by name.
        seconds: to spend on each at length.
    """
    once = {name: _once(call) for name, call in calls.items()}
    fastest = min(once.values(), default=0.0)
    near = {name: call for name, call in calls.items() if once[name] <= FAR * fastest}
    return once | median_seconds(near, torch.get_num_threads(), seconds)


def _once(call: Callable[[], Any]) -> float:
    call()  # warms it up
    _wait()
    start = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
