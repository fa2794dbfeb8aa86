"""Hollow tensors: a shape and a dtype, and no values. An operation on them costs microseconds.

A hollow tensor is an ordinary one whose strides are all 0, so views of it are views. Any other operation is not run:
the shape of its result is worked out, here for the commonest, else by torch's own meta kernels. Tensors that come from
neither inputs nor weights (``arange``, constants) keep their values and are computed with as usual.

Whatever needs a value of a hollow tensor raises `NeedsValues`; the trace then begins again on tensors that know more.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateur.tracing.kernels import call
from secateur.tracing.rules.registry import Op, Signature, signature, tensors_of
from secateur.tracing.shapes import SHAPES, NeedsValues, Shape, Typed, Unsure, broadcast

# Operations in place that change more than values, and reads of values.
REFUSED = {"aten::resize_", "aten::set_", "aten::_local_scalar_dense", "aten::equal", "aten::as_strided_",
           "aten::resize_as_", "aten::is_nonzero", "aten::_assert_async"}  # fmt: skip
# Operations that change no more than shape and strides.
NATIVE = {"aten::_unsafe_view", "aten::lift_fresh", "aten::_reshape_alias", "aten::transpose_", "aten::t_",
          "aten::swapaxes_", "aten::squeeze_", "aten::unsqueeze_", "aten::detach_"}  # fmt: skip
SAME = {"aten::_softmax", "aten::_log_softmax", "aten::cumsum", "aten::cumprod", "aten::tril", "aten::triu",
        "aten::flip", "aten::roll", "aten::_safe_softmax"}  # fmt: skip


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
            made = [
                hollow(s.shape, s.dtype) if isinstance(s, Typed) else hollow(s, first.dtype)
                for s in known(op.arguments)
            ]
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
