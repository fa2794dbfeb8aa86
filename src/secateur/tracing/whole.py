"""Layers as one operation each, where nothing is computed: torch would take them apart, to the same end."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import maybe_current_level

from secateur.tracing.rules.registry import tensors_among
from secateur.tracing.sizes import SizeMode, StandIn, stands_in

ATEN = torch.ops.aten
Values = dict[str, Any]
CONV = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
TRANSPOSED = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1,
              "dilation": 1}  # fmt: skip


def at_once(*functions: Any, **defaults: Any) -> Callable[[Callable[[Values], tuple[Any, ...] | None]], StandIn]:
    """What stands in for functions on hollow tensors: the operation and its arguments, or None for torch's own way.

    Args:
        defaults: the functions' arguments in order, with their default values.
    """

    def register(one: Callable[[Values], tuple[Any, ...] | None]) -> StandIn:
        @stands_in(*functions)
        def stand_in(mode: SizeMode, func: Any, args: Sequence[Any], kwargs: Values) -> Any:
            hollow = mode.tracer.hollow
            if hollow is None or not args or not hollow.holds(args[0]) or _transformed(args, kwargs):
                return func(*args, **kwargs)
            given = defaults.copy()
            given.update(zip(defaults, args, strict=False))
            given.update(kwargs)
            call = one(given)
            return func(*args, **kwargs) if call is None else mode.tracer.at_once(call[0], call[1:])

        return stand_in

    return register


@at_once(F.linear, input=None, weight=None, bias=None)
def linear(a: Values) -> tuple[Any, ...] | None:
    return (ATEN.linear.default, a["input"], a["weight"], a["bias"]) if a["weight"].dim() == 2 else None


@at_once(torch.conv1d, torch.conv2d, torch.conv3d, **CONV)
def convolution(a: Values) -> tuple[Any, ...] | None:
    return _convolution(a, transposed=False)


@at_once(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, **TRANSPOSED)
def transposed_convolution(a: Values) -> tuple[Any, ...] | None:
    return _convolution(a, transposed=True)


def _convolution(a: Values, *, transposed: bool) -> tuple[Any, ...] | None:
    weight: Tensor = a["weight"]
    rank = weight.dim() - 2
    if a["input"].dim() != rank + 2 or isinstance(a["padding"], str):
        return None
    stride, padding, dilation, more = (
        _each(a.get(n, 0), rank) for n in ("stride", "padding", "dilation", "output_padding")
    )
    groups = int(a["groups"])
    return ATEN.convolution.default, a["input"], weight, a["bias"], stride, padding, dilation, transposed, more, groups


def _transformed(args: Sequence[Any], kwargs: Values) -> bool:
    """Whether more than the operation itself is to happen: a cast, a step of autograd, or one of ``torch.func``."""
    if torch._C._is_any_autocast_enabled() or maybe_current_level() is not None:
        return True
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors_among((*args, *kwargs.values())))


def _each(value: Any, rank: int) -> list[int]:
    """A setting along each spatial dim; one value may stand for all of them."""
    values = [int(value)] if isinstance(value, int) else [int(v) for v in value]
    return values * rank if len(values) == 1 else values


@at_once(F.batch_norm, input=None, running_mean=None, running_var=None, weight=None, bias=None, training=False,
         momentum=0.1, eps=1e-5)  # fmt: skip
def batch_norm(a: Values) -> tuple[Any, ...] | None:
    """By statistics of its own, which it leaves as they are."""
    mean, var = a["running_mean"], a["running_var"]
    if a["training"] or mean is None or var is None:
        return None
    return ATEN.batch_norm.default, a["input"], a["weight"], a["bias"], mean, var, False, a["momentum"], a["eps"], False


@at_once(F.layer_norm, input=None, normalized_shape=None, weight=None, bias=None, eps=1e-5)
def layer_norm(a: Values) -> tuple[Any, ...] | None:
    shape = [int(size) for size in a["normalized_shape"]]
    return ATEN.layer_norm.default, a["input"], shape, a["weight"], a["bias"], a["eps"], False
