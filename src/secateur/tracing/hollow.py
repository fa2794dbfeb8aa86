"""Hollow tensors: a shape and a dtype, and no values. An operation on them costs microseconds.

A hollow tensor is an ordinary one whose strides are all 0, so views of it are views. Any other operation is not run:
the shape of its result is worked out, here for the commonest, else by torch's own meta kernels. Tensors that come from
neither inputs nor weights (``arange``, constants) keep their values and are computed with as usual.

Whatever needs a value of a hollow tensor raises `NeedsValues`; the trace then begins again on tensors that know more.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateur.tracing.kernels import call
from secateur.tracing.rules.registry import Op, Signature, signature, tensors_of

Shape = Sequence[int]

# Operations in place that change more than values, and reads of values.
REFUSED = {"aten::resize_", "aten::set_", "aten::_local_scalar_dense", "aten::equal", "aten::as_strided_",
           "aten::resize_as_", "aten::is_nonzero", "aten::_assert_async"}  # fmt: skip
# Operations that change no more than shape and strides.
NATIVE = {"aten::_unsafe_view", "aten::lift_fresh", "aten::_reshape_alias", "aten::transpose_", "aten::t_",
          "aten::swapaxes_", "aten::squeeze_", "aten::unsqueeze_", "aten::detach_"}  # fmt: skip
SAME = {"aten::_softmax", "aten::_log_softmax", "aten::cumsum", "aten::cumprod", "aten::tril", "aten::triu",
        "aten::flip", "aten::roll", "aten::_safe_softmax"}  # fmt: skip


class NeedsValues(Exception):
    """The code, or an operation, depends on values."""


class Unsure(Exception):
    """A case that torch's own kernels know better."""


def hollow(shape: Shape, dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(tuple(shape), (0,) * len(shape), dtype=dtype)


def attend(*args: Any, **kwargs: Any) -> Tensor:
    """Attention as one operation, whatever kernel torch would choose."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
    given = dict(zip(names, args, strict=False)) | kwargs
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    query, key, value = (given[n] for n in names[:3])
    if query.shape[:-2] != key.shape[:-2] or key.shape[:-2] != value.shape[:-2]:
        batch = broadcast([tuple(t.shape[:-2]) for t in (query, key, value)])
        query, key, value = (t.expand(*batch, *t.shape[-2:]) for t in (query, key, value))
    return kernel(query, key, value, attn_mask=given.get("attn_mask"), scale=given.get("scale"))[0]


class Hollow:
    """Keeps apart which tensors of one trace are hollow, and computes with them."""

    def __init__(self) -> None:
        self.known: dict[int, Tensor] = {}  # by id; held, so that ids stay unique

    def like(self, tensor: Tensor) -> Tensor:
        """A hollow tensor for a parameter, a buffer or an input."""
        made = hollow(tensor.shape, tensor.dtype)
        if isinstance(tensor, nn.Parameter):
            made = torch.Tensor._make_subclass(nn.Parameter, made, False)
        self.known[id(made)] = made
        return made

    def holds(self, tensor: Any) -> bool:
        return id(tensor) in self.known

    def compute(self, op: Op, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The result of an operation.

        Raises:
            NeedsValues: it depends on values that are not there.
        """
        said, known = op.said, self.known
        if known.keys().isdisjoint(map(id, op.operands)):
            return op.func(*args, **kwargs)
        if said.name in REFUSED:
            raise NeedsValues(said.name)
        native = said.name in NATIVE
        if said.writes and not native:
            return self._in_place(said, args)
        out = op.func(*args, **kwargs) if said.is_view or native else _worked_out(op, args, kwargs)
        if isinstance(out, Tensor):
            known[id(out)] = out
        else:
            known.update((id(t), t) for t in tensors_of(out))
        return out

    def _in_place(self, said: Signature, args: Sequence[Any]) -> Any:
        """The first argument, left as it is. Values that were there must not be overwritten by ones that are not."""
        if not isinstance(args[0], Tensor) or id(args[0]) not in self.known or said.returns != 1:
            raise NeedsValues(said.name)
        return args[0]


def _worked_out(op: Op, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Hollow results of an operation on hollow tensors."""
    known, first = SHAPES.get(op.name), op.operands[0]
    if known is not None:
        try:
            made = [hollow(s, first.dtype) for s in known(op.arguments)]
        except Unsure:
            return _by_meta(op.func, args, kwargs)
        return made[0] if op.said.returns == 1 else tuple(made)
    if op.said.pointwise or op.name in SAME:
        shape = first.shape if len(op.operands) == 1 else broadcast([tuple(t.shape) for t in op.operands])
        return _dressed(_tiny(op, args, kwargs), shape)
    return _by_meta(op.func, args, kwargs)


def _dressed(out: Any, shape: Shape) -> Any:
    if isinstance(out, Tensor):
        return hollow(shape, out.dtype)
    return type(out)(hollow(shape, t.dtype) if isinstance(t, Tensor) else t for t in out)


def _by_meta(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """By torch's own kernels for tensors without data."""

    def meta(value: Any) -> Any:
        return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value

    given = {
        **tree_map(meta, kwargs),
        **({"device": torch.device("meta")} if kwargs.get("device") is not None else {}),
    }
    try:
        out = call(func, tree_map(meta, args), given)
    except Exception as error:
        raise NeedsValues(f"{signature(func).name}: {error}") from error
    if isinstance(out, Tensor):
        return hollow(out.shape, out.dtype)
    if not isinstance(out, list | tuple):
        raise NeedsValues(signature(func).name)
    return tree_map(lambda t: hollow(t.shape, t.dtype) if isinstance(t, Tensor) else t, out)


def broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a pointwise operation's result.

    Raises:
        NeedsValues: the shapes don't fit; torch shall say so.
    """
    rank = max(map(len, shapes))
    result = [1] * rank
    for shape in shapes:
        for k, size in enumerate(shape, rank - len(shape)):
            if size != 1:
                if result[k] not in (1, size):
                    raise NeedsValues(f"shapes {shapes} can't be broadcast")
                result[k] = size
    return tuple(result)


TINY: dict[Any, Any] = {}  # results for empty tensors, by operation and types


def _tiny(op: Op, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The operation on tensors of the same dtypes and ranks with no elements: its result has the right dtype."""
    plain = [_plain(a) for a in op.arguments.values()]
    key = (op.said.overload, *[(t.dtype, t.dim()) for t in op.operands], *plain)
    if key not in TINY:

        def tiny(value: Any) -> Any:
            return torch.zeros((0,) * value.dim(), dtype=value.dtype) if isinstance(value, Tensor) else value

        TINY[key] = op.func(*tree_map(tiny, args), **tree_map(tiny, kwargs))
    return TINY[key]


def _plain(value: Any) -> Any:
    """An argument that results may differ by, told apart from equal ones of other types: 1, 1.0 and True."""
    kind = type(value)
    return (kind, value) if kind in (int, float, bool) else value if kind is torch.dtype else kind


# ---------------------------------------------------------------------- shapes of the commonest operations

Arguments = dict[str, Any]
SHAPES: dict[str, Callable[[Arguments], Sequence[Shape]]] = {}


def shape_of(*names: str) -> Callable[[Callable[[Arguments], Sequence[Shape]]], Callable[[Arguments], Sequence[Shape]]]:
    def register(function: Callable[[Arguments], Sequence[Shape]]) -> Callable[[Arguments], Sequence[Shape]]:
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


@shape_of("aten::mean", "aten::sum", "aten::amax", "aten::amin")
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
