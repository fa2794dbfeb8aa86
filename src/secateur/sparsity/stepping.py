"""Being told of every step of any optimizer that moves certain parameters, in whatever loop."""

import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle


class Stepped(Protocol):
    """What is told: before and after a step, of the optimizer and of the names of the parameters that it holds."""

    @property
    def weights(self) -> Mapping[str, nn.Parameter]: ...
    def before(self, optimizer: torch.optim.Optimizer, names: list[str]) -> None: ...
    def after(self, optimizer: torch.optim.Optimizer, names: list[str]) -> None: ...


def listen(to_tell: Stepped) -> list[RemovableHandle]:
    """Tell an object of steps until the handles are removed, or nobody holds the object any more.

    The hooks are on all optimizers of the process, so that it does not matter when one is made, what wraps it
    (Accelerate, a gradient scaler), and how many there are.
    """
    known = weakref.ref(to_tell)
    handles: list[RemovableHandle] = []

    def hook(tell: Callable[[Stepped], Callable[[torch.optim.Optimizer, list[str]], None]]) -> Any:
        def told(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            alive = known()
            if alive is None:
                for handle in handles:
                    handle.remove()
            elif names := _held(optimizer, alive.weights):
                with torch.no_grad():
                    tell(alive)(optimizer, names)

        return told

    handles.append(register_optimizer_step_pre_hook(hook(lambda alive: alive.before)))
    handles.append(register_optimizer_step_post_hook(hook(lambda alive: alive.after)))
    return handles


def _held(optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]) -> list[str]:
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [name for name, weight in weights.items() if id(weight) in own]
