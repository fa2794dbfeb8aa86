"""Optimizers by name."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from secateur.errors import TrainingError

MakeOptimizer = Callable[..., torch.optim.Optimizer]


def adamw(parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Loshchilov & Hutter 2019, arXiv:1711.05101."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)


def adam(parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Kingma & Ba 2015, arXiv:1412.6980."""
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)


def sgd(parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """With Nesterov momentum 0.9."""
    return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=0.9, nesterov=True)


NAMED: dict[str, MakeOptimizer] = {"adamw": adamw, "adam": adam, "sgd": sgd}
RATES: Mapping[str, float] = {"adamw": 3e-4, "adam": 3e-4, "sgd": 1e-2}
"""Highest learning rates that keep what a trained network of any kind knows."""


def make_optimizer(choice: str | MakeOptimizer, model: nn.Module, *, lr: float, weight_decay: float) -> Any:
    """An optimizer of the parameters that train.

    Raises:
        TrainingError: none trains, or nobody knows the name.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise TrainingError("nothing to train: no parameter of the model has requires_grad=True")
    if callable(choice):
        made: Any = choice(parameters, lr=lr, weight_decay=weight_decay)
        if not isinstance(made, torch.optim.Optimizer):
            raise TrainingError(
                f"optimizer {getattr(choice, '__name__', choice)!r} gave a {type(made).__name__}: it must give a "
                f"torch.optim.Optimizer from (parameters, lr=, weight_decay=)"
            )
        return made
    if choice not in NAMED:
        near = difflib.get_close_matches(str(choice), NAMED, 1)
        raise TrainingError(
            f"unknown optimizer {choice!r}: it is {', '.join(map(repr, NAMED))}, or a callable "
            f"(parameters, lr=, weight_decay=)." + (f" Did you mean {near[0]!r}?" if near else "")
        )
    return NAMED[choice](parameters, lr=lr, weight_decay=weight_decay)
