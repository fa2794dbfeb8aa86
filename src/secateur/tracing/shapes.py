"""The shapes of the results of the commonest operations; torch's own kernels for tensors without data take longer.

A function gets the arguments of an operation by name, and gives a shape for each result. Results are of the type of the
first operand, but for those that come as `Typed`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

Shape = Sequence[int]


@dataclass(frozen=True, slots=True)
class Typed:
    """A result of another type than the first operand."""

    shape: Shape
    dtype: torch.dtype


class NeedsValues(Exception):
    """The code, or an operation, depends on values."""


class Unsure(Exception):
    """A case that torch's own kernels know better."""


def broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a pointwise operation's result.

    Raises:
        NeedsValues: the shapes don't fit; torch shall say so.
    """
    if all(shape == shapes[0] for shape in shapes):
        return shapes[0]
    rank = max(map(len, shapes))
    result = [1] * rank
    for shape in shapes:
        for k, size in enumerate(shape, rank - len(shape)):
            if size != 1:
                if result[k] not in (1, size):
                    raise NeedsValues(f"shapes {shapes} can't be broadcast")
                result[k] = size
    return tuple(result)


Arguments = dict[str, Any]
RESIZES = [f"aten::{name}" for name in (
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d")]  # fmt: skip
Results = Callable[[Arguments], Sequence[Shape | Typed]]
Function = TypeVar("Function", bound=Results)
SHAPES: dict[str, Results] = {}


def shape_of(*names: str) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        SHAPES.update(dict.fromkeys(names, function))
        return function

    return register


def demand(fits: bool, *tensors: Tensor) -> None:
    """Leave it to torch to say what does not fit; all operands are of one type.

    Raises:
        NeedsValues: they do not fit.
    """
    if not fits or len({t.dtype for t in tensors}) > 1:
        raise NeedsValues("operands do not fit")


@shape_of("aten::convolution")
def convolution(a: Arguments) -> Sequence[Shape]:
    x, weight, rank = a["input"].shape, a["weight"].shape, len(a["weight"].shape) - 2
    if len(x) != rank + 2:
        raise NeedsValues("a convolution without a batch")
    demand(x[1] == (weight[0] if a["transposed"] else weight[1] * a["groups"]), a["input"], a["weight"])

    def each(name: str) -> list[int]:
        values = [int(v) for v in a[name]]
        return values * rank if len(values) == 1 else values

    stride, padding, dilation = each("stride"), each("padding"), each("dilation")
    spatial: list[int] = []
    for k in range(rank):
        reach = dilation[k] * (weight[2 + k] - 1)
        if a["transposed"]:
            spatial.append((x[2 + k] - 1) * stride[k] - 2 * padding[k] + reach + each("output_padding")[k] + 1)
        else:
            spatial.append((x[2 + k] + 2 * padding[k] - reach - 1) // stride[k] + 1)
    demand(all(size > 0 for size in spatial))
    channels = weight[1] * a["groups"] if a["transposed"] else weight[0]
    return [(x[0], channels, *spatial)]


@shape_of("aten::native_batch_norm", "aten::_native_batch_norm_legit_no_training")
def batch_norm(a: Arguments) -> Sequence[Shape]:
    tables = [a[name] for name in ("weight", "bias", "running_mean", "running_var") if a[name] is not None]
    demand(all(tuple(t.shape) == tuple(a["input"].shape[1:2]) for t in tables))
    return [a["input"].shape, (0,), (0,)]


@shape_of("aten::batch_norm")
def whole_batch_norm(a: Arguments) -> Sequence[Shape]:
    return batch_norm(a)[:1]


@shape_of("aten::native_layer_norm")
def layer_norm(a: Arguments) -> Sequence[Shape]:
    shape = tuple(a["input"].shape)
    demand(shape[-len(a["normalized_shape"]) :] == tuple(a["normalized_shape"]), a["input"])
    batch = shape[: len(shape) - len(a["normalized_shape"])]
    side = (*batch, *(1 for _ in a["normalized_shape"]))
    return [shape, side, side]


@shape_of("aten::layer_norm")
def whole_layer_norm(a: Arguments) -> Sequence[Shape]:
    return layer_norm(a)[:1]


@shape_of("aten::linear")
def linear(a: Arguments) -> Sequence[Shape]:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    demand(x.shape[-1:] == weight.shape[1:] and (bias is None or bias.shape == weight.shape[:1]), x, weight,
           x if bias is None else bias)  # fmt: skip
    return [(*x.shape[:-1], weight.shape[0])]


@shape_of("aten::addmm")
def addmm(a: Arguments) -> Sequence[Shape]:
    first, second = a["mat1"], a["mat2"]
    demand(first.shape[1] == second.shape[0] and a["self"].shape[-1] in (1, second.shape[1]), first, second, a["self"])
    return [(a["mat1"].shape[0], a["mat2"].shape[1])]


@shape_of("aten::mm")
def mm(a: Arguments) -> Sequence[Shape]:
    demand(a["self"].shape[1] == a["mat2"].shape[0], a["self"], a["mat2"])
    return [(a["self"].shape[0], a["mat2"].shape[1])]


@shape_of("aten::bmm")
def bmm(a: Arguments) -> Sequence[Shape]:
    first, second = a["self"], a["mat2"]
    demand(first.shape[2] == second.shape[1] and first.shape[0] == second.shape[0], first, second)
    return [(*a["self"].shape[:2], a["mat2"].shape[2])]


@shape_of("aten::_grouped_mm")
def grouped_mm(a: Arguments) -> Sequence[Shape]:
    if (a["self"].dim(), a["mat2"].dim()) != (2, 3):
        raise Unsure
    return [(a["self"].shape[0], a["mat2"].shape[2])]


@shape_of("aten::embedding")
def embedding(a: Arguments) -> Sequence[Shape]:
    demand(a["indices"].dtype in (torch.int32, torch.int64))
    return [(*a["indices"].shape, a["weight"].shape[1])]


@shape_of("aten::mean", "aten::sum", "aten::amax", "aten::amin", "aten::linalg_vector_norm")
def reduced(a: Arguments) -> Sequence[Shape]:
    shape, dim = tuple(a["self"].shape), a.get("dim")
    if a.get("dtype") is not None or (not a["self"].is_floating_point()):
        raise Unsure
    gone = (
        {d % len(shape) for d in ([dim] if isinstance(dim, int) else dim or range(len(shape)))} if shape else set[int]()
    )
    return [[1 if k in gone else s for k, s in enumerate(shape) if k not in gone or a.get("keepdim")]]


@shape_of("aten::cat")
def cat(a: Arguments) -> Sequence[Shape]:
    shapes = [tuple(t.shape) for t in a["tensors"]]
    if len({t.dtype for t in a["tensors"]}) > 1 or any(len(s) != len(shapes[0]) for s in shapes):
        raise Unsure
    at = a["dim"] % len(shapes[0])
    demand(len({(*s[:at], *s[at + 1 :]) for s in shapes}) == 1)
    return [(*shapes[0][:at], sum(s[at] for s in shapes), *shapes[0][at + 1 :])]


@shape_of("aten::_scaled_dot_product_flash_attention_for_cpu")
def attention(a: Arguments) -> Sequence[Shape]:
    query, key, value = (a[name].shape for name in ("query", "key", "value"))
    demand(query[:-2] == key[:-2] == value[:-2] and query[-1] == key[-1] and key[-2] == value[-2])
    return [(*query[:-1], value[-1]), query[:-1]]


@shape_of("aten::gather")
def gathered(a: Arguments) -> Sequence[Shape]:
    return [tuple(a["index"].shape)]


@shape_of("aten::index_select")
def selected(a: Arguments) -> Sequence[Shape]:
    shape, index = list(a["self"].shape), a["index"]
    demand(index.dim() == 1 and bool(shape))
    shape[a["dim"]] = index.shape[0]
    return [shape]


@shape_of("aten::index")
def indexed(a: Arguments) -> Sequence[Shape]:
    """Neighbouring indices stand where the first of them stood, others in front."""
    shape, given = tuple(a["self"].shape), a["indices"]
    at = [k for k, index in enumerate(given) if index is not None]
    if not at or any(given[k].dtype not in (torch.int32, torch.int64) for k in at):
        raise Unsure
    picked = broadcast([tuple(given[k].shape) for k in at])
    rest = [size for k, size in enumerate(shape) if k not in at]
    first = at[0] if all(b == a + 1 for a, b in pairwise(at)) else 0
    return [(*rest[:first], *picked, *rest[first:])]


@shape_of("aten::stack")
def stacked(a: Arguments) -> Sequence[Shape]:
    tensors = a["tensors"]
    shape = tuple(tensors[0].shape)
    demand(all(tuple(t.shape) == shape for t in tensors))
    if len({t.dtype for t in tensors}) > 1:
        raise Unsure
    at = a["dim"] % (len(shape) + 1)
    return [(*shape[:at], len(tensors), *shape[at:])]


@shape_of("aten::_to_copy")
def converted(a: Arguments) -> Sequence[Typed]:
    return [Typed(a["self"].shape, a["dtype"] or a["self"].dtype)]


@shape_of("aten::_prelu_kernel")
def same_shape(a: Arguments) -> Sequence[Shape]:
    return [a["self"].shape]


@shape_of("aten::native_group_norm")
def group_norm(a: Arguments) -> Sequence[Shape]:
    return [a["input"].shape, (a["N"], a["group"]), (a["N"], a["group"])]


# ---------------------------------------------------------------------- windows


@shape_of(*RESIZES)
def resized(a: Arguments) -> Sequence[Shape]:
    size = [int(s) for s in a["output_size"]]
    return [(*a["self"].shape[: -len(size)], *size)]


def max_pool(a: Arguments, rank: int) -> Sequence[Shape | Typed]:
    shape = pooled(a, rank)
    return [shape, Typed(shape, torch.int64)]


def average_pool(a: Arguments, rank: int) -> Sequence[Shape]:
    return [pooled(a, rank)]


for rank in (2, 3):
    SHAPES[f"aten::max_pool{rank}d_with_indices"] = partial(max_pool, rank=rank)
    SHAPES[f"aten::avg_pool{rank}d"] = partial(average_pool, rank=rank)


def pooled(a: Arguments, rank: int) -> Shape:
    """What is left of the last dims, a window in ``ceil_mode`` starting within the input or the padding before it."""
    shape, kernel = tuple(a["self"].shape), a["kernel_size"]
    if len(shape) != rank + 2:
        raise Unsure

    def each(name: str, default: Any) -> list[int]:
        values = [int(v) for v in [a.get(name)] if isinstance(v, int)] or [int(v) for v in a.get(name) or default]
        return values * rank if len(values) == 1 else values

    window = each("kernel_size", [])
    stride, padding, dilation = each("stride", kernel), each("padding", [0]), each("dilation", [1])
    out: list[int] = []
    for k, size in enumerate(shape[2:]):
        room = size + 2 * padding[k] - dilation[k] * (window[k] - 1) - 1
        number = (-(-room // stride[k]) if a["ceil_mode"] else room // stride[k]) + 1
        if a["ceil_mode"] and (number - 1) * stride[k] >= size + padding[k]:
            number -= 1
        out.append(number)
    demand(all(number > 0 for number in out) and all(2 * p <= w for p, w in zip(padding, window, strict=True)))
    return (*shape[:2], *out)
