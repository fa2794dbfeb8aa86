"""Functions of torch that make tensors from sizes alone: they refuse the stand-ins that `torch.fx` passes for sizes."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

FACTORIES = ("zeros", "ones", "empty", "full", "eye", "arange", "linspace", "rand", "randn")


@contextmanager
def recorded_factories(tracer: Any) -> Generator[None]:
    """While this lasts, a factory that is given a stand-in is recorded as a call of the graph."""
    own = {name: getattr(torch, name) for name in FACTORIES}
    for name, function in own.items():
        setattr(torch, name, _recording(function, tracer))
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(torch, name, function)


def _recording(function: Any, tracer: Any) -> Any:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, fx.Proxy) for value in tree_leaves((args, kwargs))):
            return tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return call
