"""Operations that look at positions as data: the dims that they look along freeze, the others pass."""

from typing import Any

from torch import Tensor

from secateur.axes import Expr
from secateur.tracing.rules.registry import Dims, Op, freeze_everything, rule


@rule(
    "aten::cumprod",
    "aten::logcumsumexp",
    "aten::sort",
    "aten::argsort",
    "aten::kthvalue",
    "aten::cummax",
    "aten::cummin",
)
def along(op: Op) -> list[Dims]:
    """The whole of a dim, in its order, decides every element."""
    dims = op.dims("self")
    at = op.wrap(op["dim"], op["self"])
    op.freeze(*dims[at : at + 1])
    if op.name in ("aten::sort", "aten::kthvalue", "aten::cummax", "aten::cummin"):
        op.carry(op["self"])  # the values; the other output counts along the dim, which is frozen
        op.named.pop(1, None)
    return [_replaced(op, dims, at, t) for t in op.outputs()]


def _replaced(op: Op, dims: Dims, at: int, out: Tensor) -> Dims:
    if out.dim() < len(dims):
        return [*dims[:at], *dims[at + 1 :]]
    return list(dims)


@rule("aten::_softmax", "aten::softmax", "aten::_safe_softmax", "aten::_log_softmax", "aten::log_softmax")
def softmax(op: Op) -> Dims:
    """Shares of a whole: when a unit goes, those of the others grow."""
    dims = op.dims("self")
    op.normalises(*dims[op.wrap(op["dim"], op["self"]) :][:1])
    return dims


@rule("aten::cumsum")
def running_total(op: Op) -> Dims:
    """As with a sum, silenced units arrive as zeros, and the kept ones do not see them."""
    return op.dims("self")


@rule("aten::_unique", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive")
def distinct(op: Op) -> list[Dims]:
    """As many as the values say."""
    return freeze_everything(op)


@rule("aten::embedding")
def embedding(op: Op) -> Dims:
    rows, *width = op.dims("weight")
    if op.tracer.positions(op["indices"]) is None:
        op.freeze(rows, why=f"rows are looked up by number: {op.why}")
    else:
        op.look_up(op["indices"], rows)
    return [*op.dims("indices"), *width]


@rule("aten::index_select")
def index_select(op: Op) -> Dims:
    dims = op.dims("self")
    if not dims:
        return dims
    at = op.wrap(op["dim"], op["self"])
    op.look_up(op["index"], dims[at])
    op.carry(op["self"])
    (picked,) = op.dims("index") or [op.algebra.dim(1)]
    return [*dims[:at], picked, *dims[at + 1 :]]


@rule("aten::index", "aten::_unsafe_index")
def index(op: Op) -> Dims | list[Dims]:
    """Advanced indexing with integer tensors: the indexed dims freeze, unless the integers are known as positions along
    them, and the index's own dims take their place.
    """
    picks: list[Any] = list(op["indices"])
    dims = op.dims("self")
    if any(p is not None and not _is_integer(p) for p in picks):
        return _masked(op, dims, picks)
    at = [k for k, p in enumerate(picks) if p is not None]
    for k in at:
        op.look_up(picks[k], dims[k])
    op.carry(op["self"])
    rest = [d for k, d in enumerate(dims) if k not in at]
    rank = max(picks[k].dim() for k in at)
    first = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    shape = op.out.shape[first : first + rank]
    return [*rest[:first], *_broadcast(op, [picks[k] for k in at], list(shape)), *rest[first:]]


def _masked(op: Op, dims: Dims, picks: list[Any]) -> Dims | list[Dims]:
    """The rows that one mask chooses: as many as it says, so what it runs over freezes."""
    at = [k for k, p in enumerate(picks) if p is not None]
    if len(at) > 1 or picks[at[0]].is_floating_point():
        return freeze_everything(op)
    first, mask = at[0], picks[at[0]]
    chosen = dims[first : first + mask.dim()]
    for a, b in zip(chosen, op.dims(mask), strict=True):
        op.unify(a, b)
    op.freeze(*chosen)
    op.carry(op["self"])
    return [*dims[:first], op.algebra.fixed(int(op.out.shape[first]), op.why), *dims[first + mask.dim() :]]


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
    dims, picked = op.dims("self"), op.dims("index")
    at = op.wrap(op["dim"], op["self"])
    if dims:
        if op.look_up(op["index"], dims[at]) is None:
            op.freeze(picked[at])
        op.carry(op["self"])
        _match(op, at, dims, picked)
    return picked


def _match(op: Op, at: int, dims: Dims, picked: Dims) -> None:
    """Unify all dims but one, where sizes agree."""
    for k, (a, b) in enumerate(zip(dims, picked, strict=True)):
        if k != at and a.size == b.size:
            op.unify(a, b)
        elif k != at:
            op.freeze(a, b)


@rule("aten::scatter", "aten::scatter_add", "aten::scatter_reduce")
def scatter(op: Op) -> Dims:
    """What is written at positions along a dim: a mask of the chosen units, a count of each."""
    dims, picked = op.dims("self"), op.dims("index")
    if not dims:
        return freeze_everything(op)[0]
    at = op.wrap(op["dim"], op["self"])
    _match(op, at, dims, picked)
    source = op.arguments.get("src")
    if isinstance(source, Tensor) and source.dim() == len(dims):
        _match(op, at, picked, op.dims(source))
        op.freeze(op.dims(source)[at])
    op.freeze(picked[at])
    op.look_up(op["index"], dims[at])
    return dims
