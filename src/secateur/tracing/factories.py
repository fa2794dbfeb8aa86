"""Functions of torch that work on sizes and types alone: they refuse the stand-ins that `torch.fx` passes for these."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

UNIFORM = ("zeros", "ones", "empty", "full", "eye", "rand", "randn")  # right in any size, or drawn anew in each call
FACTORIES = (*UNIFORM, "arange", "linspace", "tensor", "finfo", "iinfo")


@contextmanager
def recorded_factories(tracer: Any) -> Generator[None]:
    """While this lasts, a factory that is given a stand-in is recorded as a call of the graph; those whose results a
    constant could not stand for are recorded always.
    """
    own = {name: getattr(torch, name) for name in FACTORIES}
    for name, function in own.items():
        setattr(torch, name, _recording(name, function, tracer))
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(torch, name, function)


def _recording(name: str, function: Any, tracer: Any) -> Any:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, fx.Proxy) for value in tree_leaves((args, kwargs))):
            return tracer.create_proxy("call_function", function, args, kwargs)
        made = function(*args, **kwargs)
        if name in UNIFORM and not tracer.running and "out" not in kwargs and made.dim():
            return tracer.create_proxy("call_function", function, args, kwargs)
        return made

    return call
