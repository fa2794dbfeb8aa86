"""Operations that look at positions as data: the dims that they look along freeze, the others pass."""

from typing import Any

from torch import Tensor

from secateur.axes import Expr
from secateur.tracing.rules.registry import Dims, Op, freeze_everything, rule


@rule(
    "aten::_softmax",
    "aten::_log_softmax",
    "aten::softmax",
    "aten::log_softmax",
    "aten::_safe_softmax",
    "aten::cumsum",
    "aten::cumprod",
    "aten::logcumsumexp",
)
def along(op: Op) -> Dims:
    dims = op.dims("self")
    if dims:
        op.freeze(dims[op.wrap(op["dim"], op["self"])])
    return dims


@rule("aten::topk", "aten::sort", "aten::argsort", "aten::kthvalue", "aten::cummax", "aten::cummin")
def ranked(op: Op) -> list[Dims]:
    dims = op.dims("self")
    at = op.wrap(op["dim"], op["self"])
    op.freeze(dims[at])
    return [_replaced(op, dims, at, t) for t in op.outputs()]


def _replaced(op: Op, dims: Dims, at: int, out: Tensor) -> Dims:
    if out.dim() < len(dims):
        return [*dims[:at], *dims[at + 1 :]]
    return [*dims[:at], op.algebra.fixed(int(out.shape[at]), op.why), *dims[at + 1 :]]


@rule("aten::embedding")
def embedding(op: Op) -> Dims:
    rows, *width = op.dims("weight")
    op.freeze(rows, why=f"rows are looked up by number: {op.why}")
    return [*op.dims("indices"), *width]


@rule("aten::index_select")
def index_select(op: Op) -> Dims:
    dims = op.dims("self")
    if not dims:
        return dims
    at = op.wrap(op["dim"], op["self"])
    op.freeze(dims[at])
    (picked,) = op.dims("index") or [op.algebra.dim(1)]
    return [*dims[:at], picked, *dims[at + 1 :]]


@rule("aten::index", "aten::_unsafe_index")
def index(op: Op) -> Dims | list[Dims]:
    """Advanced indexing with integer tensors: the indexed dims freeze, and the index's own dims take their place."""
    picks: list[Any] = list(op["indices"])
    dims = op.dims("self")
    if any(p is not None and not _is_integer(p) for p in picks):
        return freeze_everything(op)
    at = [k for k, p in enumerate(picks) if p is not None]
    op.freeze(*(dims[k] for k in at))
    rest = [d for k, d in enumerate(dims) if k not in at]
    rank = max(picks[k].dim() for k in at)
    first = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    shape = op.out.shape[first : first + rank]
    return [*rest[:first], *_broadcast(op, [picks[k] for k in at], list(shape)), *rest[first:]]


def _is_integer(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype.itemsize > 1


def _broadcast(op: Op, tensors: list[Tensor], shape: list[int]) -> Dims:
    result: list[Expr] = [op.free(s) for s in shape]
    for tensor in tensors:
        for a, b in zip(reversed(result), reversed(op.dims(tensor)), strict=False):
            if a.size == b.size:
                op.unify(a, b)
    return result


@rule("aten::gather")
def gather(op: Op) -> Dims:
    at = op.wrap(op["dim"], op["self"])
    return _matched(op, at, op.dims("self"), op.dims("index"))


def _matched(op: Op, at: int, dims: Dims, picked: Dims) -> Dims:
    """Unify all dims but one, where sizes agree."""
    for k, (a, b) in enumerate(zip(dims, picked, strict=True)):
        if k == at or a.size != b.size:
            op.freeze(a, b)
        else:
            op.unify(a, b)
    return picked


@rule("aten::scatter", "aten::scatter_add", "aten::scatter_reduce")
def scatter(op: Op) -> Dims:
    dims, at = op.dims("self"), op.wrap(op["dim"], op["self"])
    for name in ("index", "src"):
        if isinstance(op.arguments.get(name), Tensor) and op[name].dim() == len(dims):
            _matched(op, at, dims, op.dims(name))
    op.freeze(dims[at])
    return dims
