"""Which sizes the code hands to torch, and which dims they fix.

`SizeMode` sees the Python-level calls: it makes tensor shapes remember where they come from, and notes for each
``view``,
``split``, ``expand``, ``conv2d(groups=)`` ... a `Use`: this argument, of this origin, must be the size of this dim.
"""

import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from secateur.axes import Expr, concat, product, resolve
from secateur.origins import Literal, NodeArgument, Operation, Origin, Shape, SourcedInt, origin_of
from secateur.tracing.hollow import NeedsValues, attend
from secateur.tracing.rules.registry import location
from secateur.tracing.tracer import Tracer

Path = tuple[int | str, ...]
Found = tuple[int, Expr, Path]  # value, the dim whose size it must be, where among (args, kwargs) it stands


@dataclass(frozen=True, slots=True)
class Use:
    """A size in the code: ``origin`` must equal the size of ``target``.

    Attributes:
        function: the torch function that was given the size.
        where: file and line.
        site: the argument in a captured graph, where one was captured.
    """

    origin: Origin
    target: Expr
    function: str
    where: str
    site: NodeArgument | None = None


class SizeMode(TorchFunctionMode):
    """Notes every use of a size while a model is traced.

    Args:
        tagging: False leaves sizes as plain ints, for a run that only has to keep structure visible.
    """

    def __init__(self, tracer: Tracer, *, tagging: bool = True) -> None:
        super().__init__()
        self.tracer, self.tagging = tracer, tagging
        self.uses: list[Use] = []
        self.node: str | None = None  # the node of a captured graph that is being run, and its line
        self.place: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        stand_in, handler = STAND_INS.get(func), HANDLERS.get(func)
        out = func(*args, **kwargs) if stand_in is None else stand_in(self, func, args, kwargs)
        if handler is not None:
            for value, target, path in handler(self, out, args, kwargs):
                self.note(func, value, target, path)
        return out

    def tag(self, value: int, dim: Expr) -> int:
        """The size of a dim, as an int that remembers it."""
        return SourcedInt(value, Shape(dim), self.tracer) if value > 1 and self.tagging else value

    def note(self, func: Any, value: int, target: Expr, path: Path) -> None:
        if value < 0 or target.size < 2:
            return
        origin = origin_of(value, self.tracer)
        if isinstance(origin, Shape) and resolve(origin.dim) == resolve(target):
            return
        name = getattr(func, "__name__", str(func))
        site = NodeArgument(self.node, path, int(value)) if self.node and path else None
        self.uses.append(Use(origin, target, name, self.place or location(), site))


Handler = Callable[[SizeMode, Any, Sequence[Any], dict[str, Any]], Iterable[Found]]
HANDLERS: dict[Any, Handler] = {}  # the sizes that a call, its output known, hands to torch
StandIn = Callable[[SizeMode, Any, Sequence[Any], dict[str, Any]], Any]
STAND_INS: dict[Any, StandIn] = {}  # what runs in the place of a function: the same, with more to see


def handles(*functions: Any) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


def stands_in(*functions: Any) -> Callable[[StandIn], StandIn]:
    def register(stand_in: StandIn) -> StandIn:
        STAND_INS.update(dict.fromkeys(functions, stand_in))
        return stand_in

    return register


def argument(args: Sequence[Any], kwargs: dict[str, Any], position: int, *names: str) -> tuple[Any, Path]:
    """An argument by position or name, and the path to it."""
    if position < len(args):
        return args[position], (0, position)
    for name in names:
        if name in kwargs:
            return kwargs[name], (1, name)
    return None, ()


def spread(args: Sequence[Any], kwargs: dict[str, Any], position: int, *names: str) -> tuple[Sequence[Any], list[Path]]:
    """A size that may come as separate ints or as one sequence: the values and their paths."""
    value, path = argument(args, kwargs, position, *names)
    if isinstance(value, int):
        rest = args[position:]
        return rest, [(0, position + k) for k in range(len(rest))]
    if isinstance(value, list | tuple):
        values = cast("Sequence[Any]", value)
        return values, [(*path, k) for k in range(len(values))]
    return (), []


# ---------------------------------------------------------------------- what runs in the place of a function


@stands_in(torch.Tensor.shape.__get__)  # type: ignore[attr-defined]
def shape(mode: SizeMode, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Size:
    dims = mode.tracer.dims(args[0])
    return torch.Size([mode.tag(int(size), dim) for size, dim in zip(func(*args), dims, strict=True)])


@stands_in(torch.Tensor.size)
def size(mode: SizeMode, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    out, dims = func(*args, **kwargs), mode.tracer.dims(args[0])
    dim, _ = argument(args, kwargs, 1, "dim")
    if dim is not None:
        return mode.tag(out, dims[dim])
    return torch.Size([mode.tag(int(size), dim) for size, dim in zip(out, dims, strict=True)])


@stands_in(torch.numel, torch.Tensor.numel)
def elements(mode: SizeMode, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    return mode.tag(func(*args), product(mode.tracer.dims(args[0])))


# The Python code of torch's own multi-head attention, which else would be one call that splits its heads unseen.
_multi_head_attention = types.FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda relevant: False},  # pyright: ignore[reportUnknownLambdaType]
    argdefs=F.multi_head_attention_forward.__defaults__,
)


@stands_in(F.multi_head_attention_forward)
def multi_head_attention(mode: SizeMode, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Torch's own code, run with its sizes known as arguments of the call."""
    node, sizes = mode.node, args[3:5]  # embed_dim_to_check, num_heads
    if node is not None:
        sites = [NodeArgument(node, (0, 3 + k), int(size)) for k, size in enumerate(sizes)]
        sizes = [SourcedInt(site.value, site, mode.tracer) for site in sites]
    mode.node = None  # no size within is an argument of the call itself
    try:
        mode.note(func, sizes[0], mode.tracer.dims(args[0])[-1], ())  # compared
        with mode:
            return _multi_head_attention(*args[:3], *sizes, *args[5:], **kwargs)
    finally:
        mode.node = node


@stands_in(F.scaled_dot_product_attention)
def attention(mode: SizeMode, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """With as many keys as queries where queries share keys; on hollow tensors as one operation, as on every device."""
    if kwargs.get("enable_gqa") and len(args) == 3:
        query, key, value = args
        repeats = query.shape[-3] // key.shape[-3]
        args = (query, _repeat_heads(key, repeats), _repeat_heads(value, repeats))
        kwargs = {**kwargs, "enable_gqa": False}
    if mode.tracer.hollow is not None and args and args[0].dim() == 4:
        return attend(*args, **kwargs)
    return cast(Tensor, func(*args, **kwargs))


def _repeat_heads(tensor: Tensor, repeats: int) -> Tensor:
    *batch, heads, length, width = tensor.shape
    wide = tensor.unsqueeze(-3).expand(*batch, heads, int(repeats), length, width)
    return wide.reshape(*batch, heads * int(repeats), length, width)


READS = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.data_ptr)  # values leave torch


@stands_in(*READS)
def hollow_read(mode: SizeMode, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if mode.tracer.hollow is not None and mode.tracer.hollow.holds(args[0]):
        raise NeedsValues(func.__name__)
    return func(*args, **kwargs)


# ---------------------------------------------------------------------- handlers, one for each family of functions


@handles(torch.Tensor.view, torch.Tensor.reshape, torch.reshape, torch.Tensor.expand, torch.broadcast_to,
         torch.Tensor.broadcast_to)  # fmt: skip
def shaped(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    """Each int is the size of a dim of the output."""
    at = 0 if not args or not isinstance(args[0], Tensor) else 1
    values, paths = spread(args, kwargs, at, "shape", "size")
    if isinstance(out, Tensor) and len(values) == out.dim():
        for value, dim, path in zip(values, mode.tracer.dims(out), paths, strict=True):
            if isinstance(value, int):
                yield value, dim, path


@handles(torch.Tensor.unflatten, torch.unflatten)
def unflattened(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    dim, _ = argument(args, kwargs, 1, "dim")
    values, paths = spread(args, kwargs, 2, "sizes")
    at = dim % args[0].dim()
    yield from zip(values, mode.tracer.dims(out)[at:], paths, strict=False)


@handles(torch.Tensor.split, torch.split, torch.split_with_sizes, torch.Tensor.split_with_sizes)
def cut_up(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    """A list names every part; an int names every part but the last, which must not be larger."""
    sizes, path = argument(args, kwargs, 1, "split_size_or_sections", "split_size", "split_sizes")
    dim, _ = argument(args, kwargs, 2, "dim")
    parts = [mode.tracer.dims(part)[dim or 0] for part in out]
    if isinstance(sizes, int):
        for part in parts:
            if part.size == sizes:
                yield sizes, part, path
    else:
        for k, (size, part) in enumerate(zip(sizes, parts, strict=True)):
            yield size, part, (*path, k)


@handles(torch.Tensor.chunk, torch.chunk, torch.Tensor.tensor_split, torch.tensor_split)
def equal_parts(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    """Every part is the whole divided by the count."""
    dim, _ = argument(args, kwargs, 2, "dim")
    parts = [mode.tracer.dims(part)[dim or 0] for part in out]
    if len({p.size for p in parts}) == 1 and len(parts) > 1:
        whole = Operation("//", Shape(concat(resolve(p) for p in parts)), Literal(len(parts)))
        for part in parts:
            yield SourcedInt(part.size, whole, mode.tracer), part, ()


@handles(torch.Tensor.narrow, torch.narrow)
def narrowed(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    dim, _ = argument(args, kwargs, 1, "dim")
    start, path = argument(args, kwargs, 2, "start")
    length, length_path = argument(args, kwargs, 3, "length")
    target = mode.tracer.dims(out)[dim]
    if isinstance(start, int):
        yield from _boundary(mode, mode.tracer.dims(argument(args, kwargs, 0, "input")[0])[dim], start, path)
    yield length, target, length_path


def _boundary(mode: SizeMode, dim: Expr, at: int, path: Path) -> Iterator[Found]:
    """An index into a dim counts the positions before it, or behind it where it is negative."""
    if 0 < at < dim.size:
        halves = mode.tracer.algebra.cut(dim, int(at))
        if halves is not None:
            yield at, halves[0], path
    elif -dim.size < at < 0:
        halves = mode.tracer.algebra.cut(dim, dim.size + int(at))
        if halves is not None:
            yield -at, halves[1], ()
    elif at == dim.size:
        yield at, dim, path


@handles(torch.Tensor.__getitem__, torch.Tensor.__setitem__)
def sliced(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    """The ends of slices. Only plain slices are followed here; anything else freezes at dispatch."""
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    if any(isinstance(i, Tensor | list) for i in index):
        return
    dims = mode.tracer.dims(args[0])
    taken = sum(i is not None and i is not Ellipsis for i in index)
    at = 0
    for k, item in enumerate(index):
        if item is Ellipsis:
            at += len(dims) - taken
        elif item is not None:
            if isinstance(item, slice) and item.step in (None, 1):
                for end, name in ((item.start, "start"), (item.stop, "stop")):
                    if isinstance(end, int) and not isinstance(end, bool):
                        path = (0, 1, k, name) if isinstance(args[1], tuple) else (0, 1, name)
                        yield from _boundary(mode, resolve(dims[at]), end, path)
            at += 1


@handles(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)
def grouped(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    groups, path = argument(args, kwargs, 6, "groups")
    yield from _groups(mode, args, kwargs, groups, path)


@handles(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
         torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)  # fmt: skip
def grouped_transposed(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    groups, path = argument(args, kwargs, 6, "groups")
    yield from _groups(mode, args, kwargs, groups, path)


def _groups(mode: SizeMode, args: Sequence[Any], kwargs: dict[str, Any], groups: Any, path: Path) -> Iterator[Found]:
    if isinstance(groups, int) and groups > 1:
        weight, _ = argument(args, kwargs, 1, "weight")
        halves = mode.tracer.algebra.split(mode.tracer.dims(weight)[0], int(groups))
        if halves is not None:
            yield groups, halves[0], path


@handles(F.group_norm, torch.group_norm)
def group_normed(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    groups, path = argument(args, kwargs, 1, "num_groups")
    halves = mode.tracer.algebra.split(mode.tracer.dims(out)[1], int(groups))
    if halves is not None:
        yield groups, halves[0], path


@handles(F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm)
def normed(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    values, paths = spread(args, kwargs, 1, "normalized_shape")
    dims = mode.tracer.dims(out)[out.dim() - len(values) :]
    yield from zip(values, dims, paths, strict=True)


@handles(F.scaled_dot_product_attention)
def attended(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    """Without ``scale``, attention divides by the square root of the current head size: that size then means
    something.
    """
    query, _ = argument(args, kwargs, 0, "query")
    if kwargs.get("scale") is None and mode.tracer.keeping:
        mode.tracer.implicit_scales.append((query, mode.tracer.dims(query)[-1], location()))
    return iter(())


@handles(torch.Tensor.__add__, torch.Tensor.__sub__, torch.Tensor.__mul__, torch.Tensor.__truediv__,
         torch.Tensor.__rsub__, torch.Tensor.__rtruediv__, torch.Tensor.__pow__, torch.Tensor.__rpow__,
         torch.Tensor.add, torch.Tensor.sub, torch.Tensor.mul, torch.Tensor.div, torch.Tensor.pow,
         torch.Tensor.add_, torch.Tensor.sub_, torch.Tensor.mul_, torch.Tensor.div_,
         torch.add, torch.sub, torch.mul, torch.div, torch.pow, torch.tensor, torch.as_tensor)  # fmt: skip
def calculated(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    """A size that takes part in arithmetic on tensors is a number."""
    for value in args:
        if isinstance(value, SourcedInt):
            mode.tracer.escaped(value.origin)
    return iter(())


@handles(*READS)
def read(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    """What Python code reads counts as data."""
    mode.tracer.freeze_all(args[0], f"its value is read by Python code at {location()}")
    return iter(())


@handles(torch.channel_shuffle, F.channel_shuffle)
def shuffled(mode: SizeMode, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Found]:
    """(g c) becomes (c g): the count of groups is the last factor."""
    groups, path = argument(args, kwargs, 1, "groups")
    dim = mode.tracer.dims(out)[1]
    halves = mode.tracer.algebra.split(dim, dim.size // int(groups))
    if halves is not None:
        yield groups, halves[1], path
