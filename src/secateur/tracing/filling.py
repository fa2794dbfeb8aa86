"""Sizes that the code hands to torch where something is made or filled up: constants, padding, repeats.

What holds one value everywhere may take any size, so its dims are free, and the ints that it is made with follow. All
other tensors made inside ``forward`` stay frozen.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.axes import EMPTY, Expr, resolve
from secateur.origins import Literal, origin_of
from secateur.tracing.rules.registry import location
from secateur.tracing.sizes import Found, SizeMode, argument, handles, shaped, spread


@handles(torch.zeros, torch.ones, torch.empty, torch.full, torch.Tensor.new_zeros, torch.Tensor.new_ones,
         torch.Tensor.new_empty, torch.Tensor.new_full)  # fmt: skip
def filled(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    """One value everywhere: any size will do, where the ints that it is made with can follow."""
    values, _ = spread(args, kwargs, 1 if args and isinstance(args[0], Tensor) else 0, "size", "shape")
    if len(values) == out.dim() and "out" not in kwargs:
        fixed, algebra = mode.tracer.dims(out), mode.tracer.algebra
        free = [algebra.dim(v) if isinstance(v, int) else d for v, d in zip(values, fixed, strict=True)]
        mode.tracer.set_dims(out, free)
        yield from shaped(mode, out, args, kwargs)


@handles(F.pad)
def padded(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    """Each int is the size of a part before or behind a dim; computed ones may follow the dim, literal ones stay."""
    pads, path = argument(args, kwargs, 1, "pad")
    how, _ = argument(args, kwargs, 2, "mode")
    if how not in (None, "constant") or any(p < 0 for p in pads):
        return
    before = mode.tracer.dims(argument(args, kwargs, 0, "input")[0])
    dims, algebra = mode.tracer.dims(out), mode.tracer.algebra
    for k in range(0, len(pads), 2):
        at = len(dims) - 1 - k // 2
        sizes = {k: int(pads[k]), k + 1: int(pads[k + 1])}
        if not any(_computed(mode, pads[j]) for j in sizes):
            continue
        parts: dict[int, Expr] = {j: algebra.fresh(n) for j, n in sizes.items() if n}
        for j, part in parts.items():
            if not _computed(mode, pads[j]):
                algebra.freeze(part, f"padding at {location()}")
            yield pads[j], part, (*path, j)
        front, back = parts.get(k, EMPTY), parts.get(k + 1, EMPTY)
        dims[at] = algebra.concat([front, before[at], back])
    mode.tracer.set_dims(out, dims)


def _computed(mode: SizeMode, value: int) -> bool:
    return not isinstance(origin_of(value, mode.tracer), Literal)


@handles(torch.eye)
def identity(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    """A square one is the same for whatever units are left."""
    if out.shape[0] != out.shape[1] or "out" in kwargs:
        return
    dim = mode.tracer.algebra.dim(int(out.shape[0]))
    mode.tracer.set_dims(out, [dim, dim])
    for position, name in enumerate(("n", "m")):
        value, path = argument(args, kwargs, position, name)
        if isinstance(value, int):
            yield value, dim, path


@handles(torch.Tensor.repeat, torch.Tensor.tile, torch.tile)
def repeated(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    """The last dims become (repeat dim): the ints are the outer factors."""
    values, paths = spread(args, kwargs, 1, "repeats", "dims")
    dims = mode.tracer.dims(out)
    for value, dim, path in zip(values, dims[len(dims) - len(values) :], paths, strict=True):
        halves = mode.tracer.algebra.split(dim, int(value))
        if halves is not None:
            yield value, halves[0], path


@handles(torch.repeat_interleave, torch.Tensor.repeat_interleave)
def interleaved(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    """A dim becomes (dim repeat): the int is the inner factor. A literal one stays."""
    repeats, path = argument(args, kwargs, 1, "repeats")
    dim, _ = argument(args, kwargs, 2, "dim")
    if not isinstance(repeats, int):
        return
    whole = mode.tracer.dims(out)[dim or 0]
    halves = mode.tracer.algebra.split(whole, whole.size // int(repeats))
    if halves is None:
        return
    if not _computed(mode, repeats):
        mode.tracer.algebra.freeze(halves[1], f"repeat_interleave({repeats}) at {location()}")
    yield repeats, resolve(halves[1]), path
