"""The whole state of a module: its state dict, and the buffers that this leaves out."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Any]


def whole(model: nn.Module) -> State:
    """The state dict, and the buffers that are not persistent by the same kind of name; not copied."""
    return {**model.state_dict(), **left_out(model)}


def left_out(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that no state dict holds."""
    return {name: buffer for name, owner, key in _places(model) if (buffer := owner._buffers[key]) is not None}


def load(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Put back what `whole` gave.

    Raises:
        RuntimeError: it is of another model.
    """
    places = {name: (owner, key) for name, owner, key in _places(model)}
    model.load_state_dict({name: value for name, value in state.items() if name not in places})
    load_left_out(model, state)


@torch.no_grad()
def load_left_out(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Put back the buffers that no state dict holds, in place where their shapes are what they were."""
    for name, owner, key in _places(model):
        if name not in state:
            continue
        present, value = owner._buffers[key], state[name]
        if present is not None and present.shape == value.shape and present.dtype == value.dtype:
            present.copy_(value)
        else:  # a table that forward makes as long as it must be
            owner._buffers[key] = value.clone() if present is None else value.to(present.device, copy=True)


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for path, module in model.named_modules():
        for key in sorted(module._non_persistent_buffers_set & module._buffers.keys()):
            yield f"{path}.{key}".removeprefix(".").replace("_fsdp_wrapped_module.", ""), module, key
