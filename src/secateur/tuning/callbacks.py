"""What can take part in a training run: callbacks, and what they see of it."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from torch import nn


class Run(Protocol):
    """What a callback sees of a training run.

    Attributes:
        model: unwrapped, as the user gave it.
        optimizer: with its ``param_groups``.
        step: optimizer steps done so far, of the whole run.
        steps: optimizer steps in all.
        epoch: counted from 1; 0 before the first.
        lr: the learning rate of the first group of parameters.
        device: where the model is.
    """

    @property
    def model(self) -> nn.Module: ...
    @property
    def optimizer(self) -> torch.optim.Optimizer: ...
    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def device(self) -> torch.device: ...


class Callback:
    """Takes part in a training run. Every method does nothing; override those that are needed."""

    def frees(self, model: nn.Module) -> Collection[str]:
        """Names of sparse weights whose zeros may come back while it takes part; asked before training."""
        return ()

    def on_start(self, run: Run) -> None:
        """Training begins, or goes on from a checkpoint: then `load_state_dict` came before."""

    def before_step(self, run: Run) -> None:
        """Gradients are there, clipped; the optimizer's step comes next."""

    def after_step(self, run: Run) -> None:
        """The optimizer has made a step, which ``run.step`` counts already."""

    def before_validation(self, run: Run) -> None:
        """What is to be judged is in the model: the averaged weights, where there are such. It may be changed."""

    def settled(self, run: Run) -> bool:
        """Whether the present state may be the one that training leaves the model in; asked from step 0 on."""
        return True

    def on_epoch(self, run: Run, row: Any) -> None:
        """An epoch is over; ``row`` says what it gave."""

    def on_end(self, run: Run) -> None:
        """Training is over, also after Ctrl-C and errors."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: tensors, numbers, strings, and lists and dicts of these."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
