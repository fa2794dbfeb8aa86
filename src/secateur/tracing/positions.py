"""Positions as values, as Python code sees them: which sizes go with them, and what hides them from the dispatcher."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.axes import Expr
from secateur.origins import Shape, origin_of
from secateur.tracing.rules.routing import boundaries
from secateur.tracing.sizes import Found, SizeMode, argument, handles, stands_in

# ---------------------------------------------------------------------- calls that must keep their structure visible


@stands_in(F.one_hot)
def one_hot(mode: SizeMode, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Of positions: a comparison with the number of each unit."""
    index = args[0]
    classes, _ = argument(args, kwargs, 1, "num_classes")
    dim = mode.tracer.positions(index)
    if dim is None or not isinstance(classes, int) or classes < dim.size:
        return func(*args, **kwargs)
    spare = int(classes) - dim.size
    whole = mode.tracer.algebra.concat([dim, mode.tracer.algebra.fixed(spare, "classes that no unit has")])
    units = torch.arange(int(classes), device=index.device)
    mode.tracer.set_dims(units, [whole if spare else dim])
    mode.tracer.name_positions(units, whole if spare else dim)
    return (index.unsqueeze(-1) == units).to(torch.long)


@stands_in(torch.Tensor.__getitem__)
def picked(mode: SizeMode, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A single position as an index: torch would read its value first."""
    tensor, index = args
    parts: tuple[Any, ...] = index if isinstance(index, tuple) and index else (index,)
    first, *rest = parts
    if not (isinstance(first, Tensor) and first.dim() == 0 and mode.tracer.positions(first) is not None):
        return func(*args, **kwargs)
    one = tensor.index_select(0, first.reshape(1)).squeeze(0)
    return one[tuple(rest)] if rest else one


# ---------------------------------------------------------------------- sizes that go with positions


@handles(F.one_hot)
def classes(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    number, path = argument(args, kwargs, 1, "num_classes")
    if isinstance(number, int) and mode.tracer.positions(args[0]) is not None:
        yield number, mode.tracer.dims(out)[-1], path


@handles(torch.arange)
def counted(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    """Whole numbers from 0: the positions of a dim of their own, or of the one whose size they count to."""
    start, end = (0, args[0]) if len(args) == 1 else (args[0], args[1]) if len(args) == 2 else (None, None)
    if "step" in kwargs or not (isinstance(end, int) and end > 1 and isinstance(start, int) and start == 0):
        return
    if out.dtype not in (torch.int64, torch.int32):
        return
    origin = origin_of(end, mode.tracer)
    dim: Expr = origin.dim if isinstance(origin, Shape) else mode.tracer.algebra.dim(int(end))
    mode.tracer.set_dims(out, [dim])
    mode.tracer.name_positions(out, dim)
    yield end, dim, (0, len(args) - 1)


@handles(torch.histc, torch.Tensor.histc)
def bins(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    """As many bins as units, the last of them at the last unit."""
    if mode.tracer.positions(args[0]) is not None and out.shape[0] > 1:
        (dim,) = mode.tracer.dims(out)
        number, path = argument(args, kwargs, 1, "bins")
        last, _ = argument(args, kwargs, 3, "max")
        yield number, dim, path
        if isinstance(last, int):
            yield last + 1, dim, ()


@handles(torch.bincount, torch.Tensor.bincount)
def lengths(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    number, path = argument(args, kwargs, 2, "minlength")
    if mode.tracer.positions(args[0]) is not None and isinstance(number, int) and number == out.shape[0]:
        yield number, mode.tracer.dims(out)[0], path


@handles(torch.eq, torch.ne, torch.Tensor.eq, torch.Tensor.ne, torch.Tensor.__eq__, torch.Tensor.__ne__)
def compared(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    """The number of a single unit behind others counts those."""
    number, path = argument(args, kwargs, 1, "other")
    dim = mode.tracer.positions(args[0]) if isinstance(args[0], Tensor) else None
    if dim is not None and isinstance(number, int):
        for at, ahead in boundaries(dim):
            if at == number:
                yield number, ahead, path
