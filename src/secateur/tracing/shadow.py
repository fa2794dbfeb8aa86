"""A stand-in for the user's model that can be run and tampered with, so that the model itself never is."""

import copy
import io
import threading
import types
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.conv import _ConvNd

from secateur import objects
from secateur.errors import ModelError
from secateur.modules import Walk, check_original
from secateur.origins import Attribute, Session, SourcedInt
from secateur.tracing.copying import ATOMS, TABLES, copy_module

ORDINARY = ATOMS | TABLES  # most values by far
TAGGED = {int, tuple, list, torch.Size}
# Of a convolution, no widths: what is computed from them speaks of spatial dims, which are whole anyway.
SPATIAL = {"kernel_size", "stride", "padding", "dilation", "output_padding", "_reversed_padding_repeated_twice"}
# These refuse to be copied; a copy of the model holds the same ones.
SHARED = (torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch.library.CustomOpDef, torch.library.Library,
          types.ModuleType, io.IOBase, type(threading.Lock()), type(threading.RLock()))  # fmt: skip
PARALLEL = ("torch.nn.parallel.distributed", "torch.distributed.")


def copy_with(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """A deep copy of the model in which each parameter and buffer is what ``replace`` makes of it.

    Raises:
        ModelError: where the model holds something that can't be copied, or a ``__deepcopy__`` of the user's own made
            a copy without those tensors.
    """
    return copied(Walk(model), replace).model


def copied(walk: Walk, replace: Callable[[Tensor], Tensor]) -> Walk:
    """`copy_with` for a model that was walked through: the walk through the copy.

    Raises:
        ModelError: as `copy_with`.
    """
    model = walk.model
    check_kind(walk)
    values = [v for m in walk.modules for v in vars(m).values() if type(v) not in ORDINARY]
    memo: dict[int, Any] = {id(v): v for v in values if isinstance(v, SHARED)}
    tensors = walk.tensors
    for tensor in tensors.values():
        if id(tensor) not in memo:
            memo[id(tensor)] = replace(tensor)
    for value in values:  # an activation can't be deep-copied
        if isinstance(value, Tensor) and id(value) not in memo:
            memo[id(value)] = value.detach().clone()
    try:
        double = Walk(copy_module(walk, memo))
        _copy_slots(walk.modules, double.modules, memo)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} can't be copied ({type(error).__name__}: {error}), and secateur works on copies. "
            "Remove what copy.deepcopy fails on, or give the class a __deepcopy__."
        ) from error
    copies = double.tensors
    lost = [name for name, tensor in tensors.items() if copies.get(name) is not memo[id(tensor)]]
    if lost:
        raise ModelError(
            f"a copy of {type(model).__name__} has a {lost[0]} of its own: a __deepcopy__ in it does not hand on its "
            "memo. Let it copy its attributes with copy.deepcopy(value, memo)."
        )
    return double


def check_kind(walk: Walk) -> None:
    """Refuse modules that can't be copied or changed: what torch made of the user's own, what is not made yet, and what
    was made for inference alone.

    Raises:
        ModelError: with what to pass in their place.
    """
    check_original(walk)
    seen: dict[type, str] = {}
    for path, module in walk.named:
        seen.setdefault(type(module), path or "the model")
        for name, tensor in module._parameters.items():
            if tensor is not None and type(tensor) is not nn.Parameter and nn.parameter.is_lazy(tensor):
                raise ModelError(
                    f"{f'{path}.{name}'.lstrip('.')} has no shape yet: call the model once on the example inputs first."
                )
    for kind, path in seen.items():
        if issubclass(kind, torch.jit.ScriptModule):
            raise ModelError(
                f"{path} is compiled by torch.jit.script or torch.jit.trace, whose sizes can't be changed. Pass the "
                "model as it was before."
            )
        if kind.__module__.startswith(PARALLEL):
            raise ModelError(
                f"{path} is wrapped in {kind.__name__} for training in parallel. Pass the module inside "
                "(model.module), and wrap the smaller one."
            )


def _copy_slots(originals: list[nn.Module], copies: list[nn.Module], memo: dict[int, Any]) -> None:
    """Attributes in slots, which ``nn.Module`` leaves out of copies."""
    if not any(objects.slots_of(kind) for kind in set(map(type, originals))):
        return
    for old, new in zip(originals, copies, strict=True):
        for name in objects.slots(old):
            if hasattr(old, name) and not hasattr(new, name):
                object.__setattr__(new, name, copy.deepcopy(getattr(old, name), memo))


def evaluating(walk: Walk) -> nn.Module:
    """The model itself, in evaluation mode."""
    return walk.model.eval() if any(module.training for module in walk.modules) else walk.model


def shadow(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares the model's parameters; its buffers, which it may write to, are its own."""
    return evaluating(copied(Walk(model), lambda t: t if isinstance(t, nn.Parameter) else t.detach().clone()))


def separate(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode with tensors of its own, to be run for real: some layers write to their weights."""
    with torch.inference_mode(False):  # gradients can go through it, wherever it is made
        return evaluating(copied(Walk(model), own_tensor))


def own_tensor(tensor: Tensor) -> Tensor:
    """The same values in memory of their own."""
    return of_kind(tensor, tensor.detach().clone())


def fake(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy on fake tensors, in the model's own mode: running it computes nothing and changes nothing."""
    return copy_with(model, to_fake(mode))


def to_fake(mode: FakeTensorMode) -> Callable[[Tensor], Tensor]:
    """What makes tensors fake ones of a mode."""
    return lambda tensor: mode.from_tensor(tensor, static_shapes=True)


def of_kind(old: Tensor, new: Tensor) -> Tensor:
    """The new tensor as a parameter that is trained or not, or as a plain tensor, as the old one is."""
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def tag_attributes(walk: Walk, session: Session, original: Walk) -> None:
    """Make the ints on the modules of a shadow, and on configs that hang on them, remember which attribute they are.

    A config that several modules share is one object, under the path of the first. One that refused to be copied is
    the original's own, and stays as it is.
    """
    for path, module in walk.named:
        held, skipped = vars(module), SPATIAL if isinstance(module, _ConvNd) else ()
        for name, value in [item for item in held.items() if type(item[1]) in TAGGED]:
            tagged = None if name in skipped else _tagged(value, path, name, session)
            if tagged is not None:
                held[name] = tagged
        for name in objects.slots(module):
            tagged = _tagged(getattr(module, name, None), path, name, session)
            if tagged is not None:
                object.__setattr__(module, name, tagged)
    configs = list(objects.on_modules(walk))
    own = {id(held) for _, _, held in objects.on_modules(original)} if configs else set[int]()
    for path, inner, held in configs:
        for step, value in objects.items(held).items() if id(held) not in own else ():
            tagged = _tagged(value, path, f"{inner}.{step}", session)
            if tagged is not None:
                objects.put(held, step, tagged)


def _tagged(value: Any, path: str, name: str, session: Session) -> Any:
    if type(value) is int:
        return SourcedInt(value, Attribute(path, name, None, value), session) if value > 1 else None
    if type(value) not in (tuple, list, torch.Size):
        return None
    items = cast("list[Any]", value)
    if set(map(type, items)) != {int} or max(items) < 2:
        return None
    return type(value)(SourcedInt(v, Attribute(path, name, k, v), session) for k, v in enumerate(items))
