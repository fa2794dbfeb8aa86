"""What sparsifying gave."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SparsityError
from secateur.modules import Walk, named_parameters
from secateur.reporting import Report
from secateur.tracing.shadow import copied, own_tensor


@dataclass(frozen=True, kw_only=True)
class Sparsified:
    """What `sparsify` gave.

    Attributes:
        model: the sparse model, a new module in the training mode of the original; zeros in tensors of the same shapes.
        masks: by the parameter's first name, a bool tensor of its shape, True = stays; of the weights that were pruned.
        report: a mapping in the form of report.json, which prints as a table.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    report: Report

    def apply(self, model: nn.Module) -> nn.Module:
        """The same masks on a model of the same architecture with other weights, as a new module.

        Raises:
            SparsityError: it has no such weights, or they have other shapes.
        """
        return with_masks(model, self.masks)

    @property
    def sparsity(self) -> float:
        """Share of the weights with a mask that went."""
        total = sum(mask.numel() for mask in self.masks.values())
        return sum(int((~mask).sum()) for mask in self.masks.values()) / max(total, 1)

    def __rich__(self) -> Any:
        return self.report.__rich__()

    def __str__(self) -> str:
        return str(self.report)


def with_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model in which masked weights are zero.

    Args:
        masks: by the parameter's name, bool, True = stays.

    Raises:
        SparsityError: the model has no such weights, or they have other shapes.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> with_masks(net, {"weight": torch.tensor([[True, False]])}).weight[0, 1].item()
        0.0
    """
    have = named_parameters(model)
    odd = [
        f"{name} {tuple(mask.shape)} ({tuple(have[name].shape) if name in have else 'absent'})"
        for name, mask in masks.items()
        if name not in have or have[name].shape != mask.shape
    ]
    if odd:
        raise SparsityError(f"these masks do not fit {type(model).__name__}: {', '.join(odd[:5])}")
    with torch.inference_mode(False), torch.no_grad():  # the result shall train, wherever it is made
        new = copied(Walk(model), own_tensor).model
        for name, parameter in named_parameters(new).items():
            if name in masks:
                parameter.masked_fill_(~masks[name].to(parameter.device), 0.0)
    return new
