"""Which batch norm directly follows which layer, seen by running the model once."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from secateur.inputs import as_call, fresh, run
from secateur.modules import named_parts
from secateur.tracing.shadow import shadow


def followers(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Which batch norm a convolution's or linear layer's output goes straight into: the norm's name by the layer's.

    Args:
        args, kwargs: example inputs.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
        >>> followers(net, torch.zeros(1, 1, 8, 8))
        {'0': '1'}
    """
    double = shadow(model).eval()
    made: dict[int, tuple[str, Tensor]] = {}  # holds the tensors, so that no id is used twice
    found: dict[str, str] = {}

    def given(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            layer, tensor = made.get(id(inputs[0]), ("", None)) if inputs else ("", None)
            if tensor is not None:
                found[layer] = name

        return hook

    def gave(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                made[id(output)] = name, output

        return hook

    for name, module in named_parts(double):
        if isinstance(module, _ConvNd | nn.Linear):
            module.register_forward_hook(gave(name))
        elif isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(given(name))
    with torch.no_grad():
        run(double, *fresh(as_call(args, kwargs)))
    return found


def factors(model: nn.Module, follow: Mapping[str, str]) -> dict[str, Tensor]:
    """What each followed layer's outputs are multiplied with, |gamma| / sqrt(running variance + eps), (outputs,).

    Args:
        follow: what `followers` gave.
    """
    parts = dict(named_parts(model))
    found: dict[str, Tensor] = {}
    for layer, name in follow.items():
        norm: Any = parts[name]
        if norm.running_var is None:
            continue
        root = (norm.running_var.detach().float() + norm.eps).sqrt()
        gamma = torch.ones_like(root) if norm.weight is None else norm.weight.detach().float().abs()
        found[f"{layer}.weight"] = gamma / root
    return found
