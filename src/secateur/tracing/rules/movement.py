"""Operations that move positions and compute nothing: reshapes merge and split products, cat and slices build and cut
sums.
"""

from typing import Any

from secateur.axes import ONE, Expr, product, resolve
from secateur.tracing.rules.registry import Dims, Op, freeze_everything, rule, same


@rule("aten::view", "aten::_unsafe_view", "aten::reshape", "aten::_reshape_alias", "aten::unflatten", "aten::flatten")
def reshape(op: Op) -> Dims | list[Dims]:
    if "dtype" in op and op["self"].element_size() != op.out.element_size():
        return freeze_everything(op)  # the same bytes, read as numbers of another size
    if list(op.out.shape) == list(op["self"].shape):
        return same(op)
    return op.regroup(op.dims("self"), op.out.shape)


@rule("aten::view_as", "aten::expand_as")
def like_other(op: Op) -> list[Dims]:
    return freeze_everything(op)


@rule("aten::as_strided")
def restrided(op: Op) -> list[Dims]:
    """Strides of size-1 dims may be anything; any other new stride puts elements elsewhere."""
    dims = op.dims("self")
    same_shape = list(op["size"]) == [d.size for d in dims]
    wide = [k for k, d in enumerate(dims) if d.size > 1]
    if same_shape and op["storage_offset"] is None and all(op["stride"][k] == op.strides[k] for k in wide):
        return [dims]
    return freeze_everything(op)


@rule("aten::permute")
def permute(op: Op) -> Dims:
    dims = op.dims("self")
    return [dims[d] for d in op["dims"]]


@rule("aten::transpose", "aten::swapaxes")
def transpose(op: Op) -> Dims:
    dims = op.dims("self")
    if dims:
        a, b = op.wrap(op["dim0"], op["self"]), op.wrap(op["dim1"], op["self"])
        dims[a], dims[b] = dims[b], dims[a]
    return dims


@rule("aten::t", "aten::numpy_T", "aten::mT", "aten::adjoint")
def swap_last(op: Op) -> Dims:
    dims = op.dims("self")
    return dims if len(dims) < 2 else [*dims[:-2], dims[-1], dims[-2]]


@rule("aten::unsqueeze", "aten::squeeze")
def size_one(op: Op) -> Dims:
    """Size-1 dims come and go: every other dim passes, in order."""
    wide = iter(d for d in op.dims("self") if d.size != 1)
    return [ONE if size == 1 else next(wide) for size in op.out.shape]


@rule("aten::expand", "aten::broadcast_to")
def expand(op: Op) -> Dims:
    """A size-1 dim becomes a new axis, free until something pins it (the repeat of grouped-query attention)."""
    dims = op.dims("self")
    dims = [ONE] * (op.out.dim() - len(dims)) + dims
    return [d if d.size == size else op.free(int(size)) for d, size in zip(dims, op.out.shape, strict=True)]


@rule("aten::repeat", "aten::tile")
def repeat(op: Op) -> Dims:
    """Each dim becomes (repeat dim)."""
    dims = op.dims("self")
    dims = [ONE] * (op.out.dim() - len(dims)) + dims
    return [product((op.free(int(n) // d.size), d)) for d, n in zip(dims, op.out.shape, strict=True)]


@rule("aten::cat", "aten::concat", "aten::concatenate")
def cat(op: Op) -> Dims:
    tensors = [t for t in op["tensors"] if t.dim() > 1 or t.numel()]
    at = op.wrap(op["dim"], op.out)
    rows = [op.dims(t) for t in tensors]
    op.carry(*tensors)
    for row in rows[1:]:
        for k, dim in enumerate(row):
            if k != at:
                op.unify(rows[0][k], dim)
    return [op.algebra.concat([row[at] for row in rows]) if k == at else dim for k, dim in enumerate(rows[0])]


@rule("aten::stack")
def stack(op: Op) -> Dims:
    rows = [op.dims(t) for t in op["tensors"]]
    op.carry(*op["tensors"])
    for row in rows[1:]:
        for a, b in zip(rows[0], row, strict=True):
            op.unify(a, b)
    at = op.wrap(op["dim"], op.out)
    return [*rows[0][:at], op.algebra.fixed(len(rows), "the new dim of a stack"), *rows[0][at:]]


@rule("aten::split", "aten::split_with_sizes", "aten::chunk", "aten::unsafe_split", "aten::unsafe_split_with_sizes",
      "aten::unsafe_chunk", "aten::split_copy", "aten::split_with_sizes_copy", "aten::tensor_split")  # fmt: skip
def split(op: Op) -> list[Dims]:
    at = op.wrap(op["dim"], op["self"])
    dims = op.dims("self")
    parts = op.pieces(dims[at], [t.shape[at] for t in op.outputs()])
    return [[*dims[:at], part, *dims[at + 1 :]] for part in parts]


@rule("aten::slice", "aten::narrow", "aten::narrow_copy")
def slice_(op: Op) -> Dims:
    dims, before, after = op.dims("self"), op["self"].shape, op.out.shape
    at = op.wrap(op["dim"], op["self"])
    if before[at] == after[at]:
        return dims
    start, step = _clamp(op["start"], int(before[at])), int(op.arguments.get("step", 1))
    if step != 1:
        return [*dims[:at], _every(op, dims[at], step, int(after[at])), *dims[at + 1 :]]
    sizes = [start, int(after[at]), int(before[at]) - start - int(after[at])]
    return [*dims[:at], op.pieces(dims[at], sizes)[1], *dims[at + 1 :]]


def _every(op: Op, dim: Expr, step: int, count: int) -> Expr:
    """Every so-manieth position: the outer factor of (outer step), where the dim has that form."""
    if count * step == dim.size:
        outer, inner = op.regroup([dim], [count, step])
        op.freeze(inner)
        return outer
    op.freeze(dim)
    return op.algebra.fixed(count, op.why)


def _clamp(index: Any, size: int) -> int:
    start = int(index or 0)
    return min(max(start + size if start < 0 else start, 0), size)


@rule("aten::select", "aten::select_copy")
def select(op: Op) -> Dims:
    """One position is picked by number, so the positions count."""
    dims = op.dims("self")
    at = op.wrap(op["dim"], op["self"])
    op.freeze(dims[at])
    return [*dims[:at], *dims[at + 1 :]]


@rule("aten::unbind")
def unbind(op: Op) -> list[Dims]:
    dims = op.dims("self")
    at = op.wrap(op["dim"], op["self"])
    op.freeze(dims[at])
    return [[*dims[:at], *dims[at + 1 :]] for _ in op.outputs()]


@rule("aten::constant_pad_nd", "aten::pad")
def pad(op: Op) -> Dims:
    """Padding along a dim makes a sum: {front + dim + back}, the pads fixed."""
    dims = op.dims("self")
    pads = [int(p) for p in op["pad"]]
    for k in range(len(pads) // 2):
        at, front, back = len(dims) - 1 - k, pads[2 * k], pads[2 * k + 1]
        if front or back:
            dims[at] = _padded(op, at, front, back)
    return dims


def _padded(op: Op, at: int, front: int, back: int) -> Any:
    dim = op.dims("self")[at]
    if front < 0 or back < 0:
        op.freeze(dim)
        return op.algebra.fixed(int(op.out.shape[at]), op.why)
    fixed = [op.algebra.fixed(n, f"padding: {op.why}") if n > 1 else ONE for n in (front, back)]
    parts = [part for part, n in zip((fixed[0], dim, fixed[1]), (front, 1, back), strict=True) if n]
    return op.algebra.concat(parts)


@rule("aten::flip", "aten::roll")
def reorder(op: Op) -> Dims:
    dims = op.dims("self")
    moved = op["dims"] or range(len(dims))
    op.freeze(*(dims[op.wrap(d, op["self"])] for d in moved))
    return dims


@rule("aten::rot90")
def rotate(op: Op) -> Dims:
    dims = op.dims("self")
    a, b = (op.wrap(d, op["self"]) for d in op["dims"])
    op.freeze(dims[a], dims[b])
    if int(op["k"]) % 2:
        dims[a], dims[b] = dims[b], dims[a]
    return dims


@rule("aten::diag_embed")
def diagonal_matrix(op: Op) -> Dims | list[Dims]:
    """A vector (..., N) becomes a matrix with N as both of its dims."""
    if op["offset"]:
        return freeze_everything(op)
    *rest, n = op.dims("self")
    at = {op.wrap(op[name], op.out) for name in ("dim1", "dim2")}
    others = iter(rest)
    return [n if k in at else next(others) for k in range(op.out.dim())]


@rule("aten::diagonal", "aten::diagonal_copy")
def diagonal(op: Op) -> Dims | list[Dims]:
    dims = op.dims("self")
    a, b = (op.wrap(op[name], op["self"]) for name in ("dim1", "dim2"))
    if op["offset"] or dims[a].size != dims[b].size:
        return freeze_everything(op)
    op.unify(dims[a], dims[b])
    return [*(d for k, d in enumerate(dims) if k not in (a, b)), resolve(dims[a])]


@rule("aten::pixel_shuffle")
def pixel_shuffle(op: Op) -> Dims:
    """(..., (c r r), H, W) becomes (..., c, H r, W r)."""
    *batch, channels, h, w = op.dims("self")
    r = int(op["upscale_factor"])
    c, *window = op.regroup([channels], [channels.size // (r * r), r, r])
    op.freeze(h, w, *window)
    return [*batch, c, *(op.algebra.fixed(int(s), op.why) for s in op.out.shape[-2:])]


@rule("aten::pixel_unshuffle")
def pixel_unshuffle(op: Op) -> Dims:
    """(..., c, H r, W r) becomes (..., (c r r), H, W)."""
    *batch, channels, h, w = op.dims("self")
    op.freeze(h, w)
    window = op.algebra.fixed(int(op["downscale_factor"]) ** 2, op.why)
    return [*batch, product((channels, window)), *(op.algebra.fixed(int(s), op.why) for s in op.out.shape[-2:])]


@rule("aten::channel_shuffle", "aten::native_channel_shuffle")
def channel_shuffle(op: Op) -> Dims:
    """(B, (g c), ...) becomes (B, (c g), ...)."""
    batch, channels, *rest = op.dims("self")
    groups = int(op["groups"])
    g, c = op.regroup([channels], [groups, channels.size // groups])
    return [batch, product((c, g)), *rest]


@rule("aten::tril", "aten::triu")
def triangle(op: Op) -> Dims:
    dims = op.dims("self")
    op.freeze(*dims[-2:])
    return dims
