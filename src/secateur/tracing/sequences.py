"""Recurrent layers and packed sequences, as Python code calls them."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.modules import Walk
from secateur.tracing.rules.registry import location
from secateur.tracing.sizes import Found, SizeMode, handles, stands_in


@stands_in(torch._pad_packed_sequence)
def unpack(mode: SizeMode, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Steps of a packed sequence, each filled up to the batch, and the length of each sample."""
    data, batch_sizes, batch_first, value, total = args
    counts = [int(n) for n in batch_sizes.tolist()]
    counts += [0] * (int(total) - len(counts))
    steps = data.split([n for n in counts if n])
    steps += (data[:0],) * (len(counts) - len(steps))
    around = [0, 0] * (data.dim() - 1)
    full = [F.pad(step, [*around, 0, counts[0] - step.shape[0]], value=value) for step in steps]
    lengths = [sum(n > k for n in counts) for k in range(counts[0])]
    return torch.stack(full, 0 if not batch_first else 1), torch.tensor(lengths)


@handles(torch._pad_packed_sequence)
def unpacked(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    return iter(())


@stands_in(torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
def taken_apart(mode: SizeMode, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """On a GPU, cuDNN would run the whole layer as one operation."""
    enabled = torch._C._get_cudnn_enabled()
    torch._C._set_cudnn_enabled(False)
    try:
        return func(*args, **kwargs)
    finally:
        torch._C._set_cudnn_enabled(enabled)


@handles(torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
def layer(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    """Returns the last states, which may be the first ones of another call."""
    packed = isinstance(args[3], list | tuple)  # the weights, behind the lengths and the states
    return _carry_on(mode, args[2] if packed else args[1], out[1:])


@handles(torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell)
def cell(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    return _carry_on(mode, args[1], out)


def _carry_on(mode: SizeMode, old: Any, new: Any) -> Iterator[Found]:
    """States before and after are of the same units, also where the example inputs have one step only."""
    olds, news = ([states] if isinstance(states, Tensor) else states for states in (old, new))
    for a, b in zip(olds, news, strict=True):
        first, second = mode.tracer.dims(a)[-1], mode.tracer.dims(b)[-1]
        if not mode.tracer.algebra.unify(first, second):
            for dim in (first, second):
                mode.tracer.algebra.freeze(dim, f"states before and after differ at {location()}")
    return iter(())


def name_units(walk: Walk, mode: SizeMode) -> None:
    """The sums along time in a recurrent layer make no residual stream: its units are hidden ones."""
    starts: list[int] = []

    def enter(module: nn.Module, args: Any) -> None:
        starts.append(len(mode.tracer.hints))

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        start = starts.pop()
        mode.tracer.hints[start:] = [(dim, kind) for dim, kind in mode.tracer.hints[start:] if kind != "residual"]

    for module in walk.modules:
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave)
