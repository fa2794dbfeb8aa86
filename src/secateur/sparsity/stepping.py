"""Being told of every step of any optimizer that moves certain parameters, in whatever loop."""

import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

Closure = Callable[[], Any]
"""What ``optimizer.step(closure)`` is given: it runs the model, and the gradients are there."""


class Stepped(Protocol):
    """What is told: before and after a step, of the optimizer and of the names of the parameters that it holds.

    ``before`` is given the step's closure, None in most loops, and returns what the optimizer is to run in its place.
    """

    @property
    def weights(self) -> Mapping[str, nn.Parameter]: ...
    def before(self, optimizer: torch.optim.Optimizer, names: list[str], closure: Closure | None) -> Closure | None: ...
    def after(self, optimizer: torch.optim.Optimizer, names: list[str]) -> None: ...


_LISTENING: "weakref.WeakValueDictionary[int, Stepped]" = weakref.WeakValueDictionary()
_HOOKS: list[RemovableHandle] = []
"""Two for the whole process, from the first `listen` on. Torch iterates over its hooks in a step, and garbage may be
collected in any step: taking a hook away when what listens dies would break that iteration."""


def listen(to_tell: Stepped) -> RemovableHandle:
    """Tell an object of steps until the handle is removed, or nobody holds the object any more.

    The hooks are on all optimizers of the process, so that it does not matter when one is made, what wraps it
    (Accelerate, a gradient scaler), and how many there are.
    """
    if not _HOOKS:
        _HOOKS.append(register_optimizer_step_pre_hook(_before))
        _HOOKS.append(register_optimizer_step_post_hook(_after))
    handle = RemovableHandle(_LISTENING)
    _LISTENING[handle.id] = to_tell
    return handle


@torch.no_grad()
def _before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
    closure = given = _closure(args, kwargs)
    for listening in list(_LISTENING.values()):
        if names := _held(optimizer, listening.weights):
            closure = listening.before(optimizer, names, closure)
    if closure is given:
        return None
    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), kwargs


@torch.no_grad()
def _after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for listening in list(_LISTENING.values()):
        if names := _held(optimizer, listening.weights):
            listening.after(optimizer, names)


def _closure(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Closure | None:
    """The closure among a step's arguments, of which the first is the optimizer."""
    found = kwargs["closure"] if "closure" in kwargs else args[1] if len(args) > 1 else None
    return found if callable(found) else None


def _held(optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]) -> list[str]:
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [name for name, weight in weights.items() if id(weight) in own]
