"""Operations that sum products over a dim: contracted dims unify, the rest pass through.

Shape letters: M rows, K contracted, N columns, B batch, O output channels, I input channels, G groups.
"""

from torch import Tensor

from secateur.axes import ONE, Expr, product, resolve
from secateur.tracing.rules.registry import Dims, Op, freeze_everything, rule


def is_weight(op: Op, tensor: Tensor) -> bool:
    """Whether the tensor is a parameter or a view of one, as opposed to an activation."""
    return op.tracer.is_weight(tensor)


@rule("aten::mm")
def mm(op: Op) -> Dims:
    """(M, K) @ (K, N)."""
    (m, k), (_, n) = op.dims("self"), op.dims("mat2")
    op.contract(("mat2", 0), ("self", 1))
    op.macs(m, k, n)
    op.hint("hidden", k, n)
    return [m, n]


@rule("aten::addmm")
def addmm(op: Op) -> Dims:
    """(M, K) @ (K, N), plus something that broadcasts to (M, N)."""
    (m, k), (_, n) = op.dims("mat1"), op.dims("mat2")
    op.contract(("mat2", 0), ("mat1", 1))
    op.macs(m, k, n)
    op.hint("hidden", k, n)
    _add(op, op.dims("self"), [m, n])
    return [m, n]


@rule("aten::bmm", "aten::baddbmm")
def bmm(op: Op) -> Dims:
    """(B, M, K) @ (B, K, N), plus perhaps something that broadcasts."""
    left, right = ("batch1", "batch2") if "batch1" in op else ("self", "mat2")
    (b, m, k), (b2, _, n) = op.dims(left), op.dims(right)
    op.unify(b, b2)
    op.contract((left, 2), (right, 1))
    op.macs(b, m, k, n)
    if not (is_weight(op, op[left]) or is_weight(op, op[right])):
        op.hint("heads", b)
        op.hint("head_dim", k, n)
    if "batch1" in op:
        _add(op, op.dims("self"), [b, m, n])
    return [b, m, n]


@rule("aten::mv")
def mv(op: Op) -> Dims:
    """(M, K) @ (K,)."""
    m, _ = op.dims("self")
    op.contract(("self", 1), ("vec", 0))
    return [m]


@rule("aten::addmv")
def addmv(op: Op) -> Dims:
    """(M, K) @ (K,), plus something that broadcasts to (M,)."""
    m, _ = op.dims("mat")
    op.contract(("mat", 1), ("vec", 0))
    _add(op, op.dims("self"), [m])
    return [m]


@rule("aten::dot", "aten::vdot")
def dot(op: Op) -> Dims:
    """(K,) @ (K,)."""
    op.contract(("self", 0), ("other" if "other" in op else "tensor", 0))
    return []


def _add(op: Op, summand: Dims, result: Dims) -> None:
    for a, b in zip(reversed(summand), reversed(result), strict=False):
        if a.size == b.size:
            op.unify(a, b)


@rule("aten::convolution")
def convolution(op: Op) -> Dims:
    """Input (B, G*I, ...), weight (G*O, I, ...) or, transposed, (G*I, O, ...)."""
    batch, channels, *_ = x = op.dims("input")
    weight, groups, transposed = op.dims("weight"), int(op["groups"]), bool(op["transposed"])
    halves = op.algebra.split(weight[0], groups)
    if halves is None or len(x) != op["input"].dim():
        return freeze_everything(op)[0]
    g, inside = halves
    op.unify(channels, product((g, inside if transposed else weight[1])))
    op.contracted(inside if transposed else weight[1], ("weight", 0 if transposed else 1), ("input", 1))
    out_channels = product((g, weight[1])) if transposed else weight[0]
    if op["bias"] is not None:
        op.unify(op.dims("bias")[0], out_channels)
    if groups > 1:
        op.hint("groups", g)
    op.hint("channels", channels, out_channels)
    spatial = _window_dims(op, x[2:], weight[2:])
    op.macs(batch, *(x[2:] if transposed else spatial), *weight)
    return [batch, out_channels, *spatial]


def _window_dims(op: Op, before: Dims, window: Dims) -> Dims:
    """A window moves along a spatial dim, so both freeze. One that is as wide as the dim is summed over with it, and
    one of a single position leaves the dim as it is.
    """
    after: Dims = []
    for k, (dim, width, size) in enumerate(zip(before, window, op.out.shape[2:], strict=True)):
        if width.size == 1 and _setting(op, "stride", k) == 1 and dim.size == size > 1:
            after.append(dim)
            continue
        if size == 1 and _covers(op, k, dim, width):
            op.contract(("weight", k + 2), ("input", k + 2))
        else:
            op.freeze(dim, why="a spatial dim of a convolution")
            op.freeze(width, why="the window of a convolution")
        after.append(op.algebra.fixed(int(size), "a spatial dim of a convolution"))
    return after


def _setting(op: Op, name: str, k: int) -> int:
    """Stride or padding along a spatial dim; one value may stand for all of them."""
    values = op[name]
    return int(values[k if len(values) > 1 else 0])


def _covers(op: Op, k: int, dim: Expr, width: Expr) -> bool:
    """Whether a window takes in a whole dim that may still change: the embedding of each word, say."""
    whole = dim.size == width.size > 1 and not op["transposed"] and not _setting(op, "padding", k)
    return whole and not any(resolve(e) == dim for e, _ in op.algebra.frozen)


@rule(
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "aten::_scaled_dot_product_attention_math",
    "aten::_scaled_dot_product_attention_math_for_mps",
)
def attention(op: Op) -> list[Dims]:
    """Query (B, H, M, K), key (B, H, N, K), value (B, H, N, D)."""
    (*qb, m, k), (*kb, n, _), (*vb, n2, d) = op.dims("query"), op.dims("key"), op.dims("value")
    op.contract(("query", len(qb) + 1), ("key", len(kb) + 1))
    op.unify(n, n2)
    for a, b, c in zip(qb, kb, vb, strict=True):
        op.unify(a, b)
        op.unify(a, c)
    op.freeze(n, why="softmax over positions")
    mask = next((op[a] for a in ("attn_mask", "attn_bias") if a in op and op[a] is not None), None)
    result = [*qb, m, d]
    if mask is not None:
        _add(op, op.dims(mask), [*qb, m, n])
    op.macs(*qb, m, k, n)
    op.macs(*qb, m, n, d)
    op.hint("heads", *qb[1:])
    op.hint("head_dim", k, d)
    rest = [_like_attention(op, t, [*qb, m]) for t in op.outputs()[1:]]
    return [result, *rest]


def _like_attention(op: Op, tensor: Tensor, dims: Dims) -> Dims:
    """Side outputs of attention kernels (log-sum-exp, RNG state): followed where their shape says what they are."""
    if list(tensor.shape) == [d.size for d in dims]:
        return dims
    return op.fixed(tensor, "a side output of attention")


@rule("aten::linear")
def linear(op: Op) -> Dims:
    """(..., K) with weight (N, K)."""
    *batch, k = op.dims("input")
    n, _ = op.dims("weight")
    op.contract(("weight", 1), ("input", len(batch)))
    if op["bias"] is not None:
        op.unify(op.dims("bias")[0], n)
    op.macs(*batch, k, n)
    op.hint("hidden", k, n)
    return [*batch, n]


@rule("aten::_trilinear")
def trilinear(op: Op) -> Dims:
    """The product of three tensors, each given size-1 dims to broadcast along, summed over some dims."""
    rows = [op.dims(name) for name in ("i1", "i2", "i3")]
    for row, name in zip(rows, ("expand1", "expand2", "expand3"), strict=True):
        for at in sorted(op[name]):
            row.insert(at, ONE)
    wide = op.broadcast(rows)
    op.macs(*wide)
    for dim in op["sumdim"]:
        held = [(name, k) for name in ("i2", "i1", "i3") if (k := _own(op, name, dim)) is not None]
        op.contracted(wide[dim], *held)
    return [d for k, d in enumerate(wide) if k not in op["sumdim"]]


def _own(op: Op, name: str, dim: int) -> int | None:
    """Which of a tensor's own dims one of the widened dims of `trilinear` is; None where it is a new one."""
    new = op[f"expand{name[1]}"]
    return None if dim in new else dim - sum(other < dim for other in new)


@rule("aten::_cdist_forward", "aten::_euclidean_dist")
def distances(op: Op) -> Dims:
    """(..., M, K) and (..., N, K): a unit that is zero in both adds nothing to a distance."""
    (*batch, m, k), (*batch2, n, k2) = op.dims("x1"), op.dims("x2")
    op.unify(k, k2)
    op.once(k)
    op.macs(*op.broadcast([batch, batch2]), m, n, k)
    return [*op.broadcast([batch, batch2]), m, n]


@rule("aten::outer", "aten::ger")
def outer(op: Op) -> Dims:
    """(M,) by (N,)."""
    return [*op.dims("self"), *op.dims("vec2")]


@rule("aten::_grouped_mm")
def grouped_mm(op: Op) -> Dims | list[Dims]:
    """Rows sorted by group (S, K), a matrix for each group (G, K, N), and where each group's rows end, (G,)."""
    x, w, ends = op["self"], op["mat2"], op["offs"]
    if (x.dim(), w.dim()) != (2, 3) or ends is None or op["bias"] is not None:
        return freeze_everything(op)
    (s, k), (g, _, n), (g2,) = op.dims(x), op.dims(w), op.dims(ends)
    op.unify(g, g2)
    op.contract((w, 1), (x, 1))
    op.hint("experts", g)
    op.hint("chosen", g)
    op.hint("hidden", k, n)
    op.macs(s, k, n)
    aligned = 16 // min(x.itemsize, 2)  # kernels want rows that start at multiples of 16 bytes, in half precision too
    op.in_steps(k, aligned)
    if w.stride(-1) in (0, 1):  # 0: hollow, it could be either
        op.in_steps(n, aligned)
    return [s, n]
