"""Weight normalisation holds a weight as directions and lengths. What loses a part of a direction gets a new length."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm

from secateur.surgery.reindex import take


def lengths(model: nn.Module, kept: Mapping[int, Mapping[int, Tensor]]) -> dict[int, Tensor]:
    """New lengths where they must change, so that the part of a weight that stays is what it was.

    Args:
        model: before surgery.
        kept: positions of each dim that stay, by the id of the tensor.

    Returns:
        The new lengths by the id of the old ones.
    """
    found: dict[int, Tensor] = {}
    for length, direction, dim in _normalised(model):
        at = kept.get(id(direction), {})
        if at.keys() - {dim}:
            exact = torch.promote_types(direction.dtype, torch.float32)
            weight = torch._weight_norm(direction.detach().to(exact), length.detach().to(exact), dim)
            found[id(length)] = torch.norm_except_dim(take(weight, at), 2, dim).to(length.dtype)
    return found


def _normalised(model: nn.Module) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Lengths, directions, and the dim that has a length for each position (-1: one for all)."""
    for module in model.modules():
        if isinstance(module, ParametrizationList) and isinstance(module[0], _WeightNorm):
            computed: Any = module
            yield computed.original0, computed.original1, computed[0].dim
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                yield getattr(module, f"{hook.name}_g"), getattr(module, f"{hook.name}_v"), hook.dim
