"""Tables that are read, and tensors that are written, at positions given by number: the dims that these count along
freeze, the others unify with what is written.
"""

from torch import Tensor

from secateur.tracing.rules.registry import Dims, Op, freeze_everything, rule


@rule("aten::_embedding_bag", "aten::_embedding_bag_forward_only")
def embedding_bag(op: Op) -> list[Dims]:
    """Sums, means or maxima of rows; with them, which row a maximum came from."""
    rows, width = op.dims("weight")
    op.freeze(rows, why=f"rows are looked up by number: {op.why}")
    bags, *others = op.outputs()
    result = [op.algebra.fixed(int(bags.shape[0]), op.why), width]
    return [result, *(result if t.shape == bags.shape else op.fixed(t) for t in others)]


@rule("aten::embedding_renorm")
def embedding_renorm(op: Op) -> Dims:
    """Rows are scaled to a largest norm, which zeros do not change."""
    rows, width = op.dims("self")
    op.freeze(rows, why=f"rows are looked up by number: {op.why}")
    return [rows, width]


@rule("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount", "aten::histc")
def census(op: Op) -> list[Dims]:
    """Which values there are, and how often: every one of them counts."""
    return freeze_everything(op)


@rule("aten::_pack_padded_sequence")
def pack(op: Op) -> list[Dims]:
    """(steps, batch, ...) or (batch, steps, ...) becomes (steps of all samples, ...)."""
    first, second, *rest = op.dims("input")
    op.freeze(first, second)
    data, counts = op.outputs()
    return [[op.algebra.fixed(int(data.shape[0]), op.why), *rest], op.fixed(counts)]


@rule("aten::bucketize")
def bucketize(op: Op) -> Dims | list[Dims]:
    """In which interval each number lies."""
    if not isinstance(op["self"], Tensor):
        return freeze_everything(op)
    op.freeze(*op.dims("boundaries"))
    return op.dims("self")


@rule("aten::isin")
def contained(op: Op) -> Dims | list[Dims]:
    """Whether each number is among some others."""
    if not isinstance(op.arguments.get("elements"), Tensor):
        return freeze_everything(op)
    if isinstance(op.arguments.get("test_elements"), Tensor):
        op.freeze(*op.dims("test_elements"))
    return op.dims("elements")


@rule("aten::searchsorted")
def searchsorted(op: Op) -> Dims | list[Dims]:
    """The same, with intervals of their own for each row where there are rows of these, (..., M)."""
    if not isinstance(op["self"], Tensor):
        return freeze_everything(op)
    (*batch, bounds), dims = op.dims("sorted_sequence"), op.dims("self")
    op.freeze(bounds)
    for a, b in zip(batch, dims, strict=False):
        op.unify(a, b)
    return dims


@rule("aten::index_add", "aten::index_copy", "aten::index_reduce")
def write_along(op: Op) -> Dims:
    """Rows of ``source`` go to the numbered rows of ``self``."""
    dims, source = op.dims("self"), op.dims("source")
    if len(dims) != len(source):
        return freeze_everything(op)[0]
    at = op.wrap(op["dim"], op["self"])
    op.look_up(op["index"], dims[at])
    for k, (a, b) in enumerate(zip(dims, source, strict=True)):
        if k != at:
            op.unify(a, b)
    if op.dims("index"):
        op.unify(source[at], op.dims("index")[0])
    return dims


@rule("aten::index_fill")
def fill_along(op: Op) -> Dims:
    dims = op.dims("self")
    if dims:
        op.look_up(op["index"], dims[op.wrap(op["dim"], op["self"])])
    return dims


@rule("aten::index_put", "aten::_unsafe_index_put", "aten::_index_put_impl")
def write(op: Op) -> Dims:
    """``self[indices] = values``, with the values broadcast to what ``self[indices]`` would be."""
    dims = op.dims("self")
    picks: list[Tensor | None] = list(op["indices"])
    if any(p is not None and is_mask(p) for p in picks):
        return _write_masked(op, dims, picks)
    at = [k for k, p in enumerate(picks) if p is not None]
    for k in at:
        op.look_up(picks[k], dims[k])  # type: ignore[arg-type]
    rest = [d for k, d in enumerate(dims) if k not in at]
    index = op.broadcast([op.dims(p) for p in picks if p is not None])
    first = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    broadcast_to(op, [*rest[:first], *index, *rest[first:]], op.dims("values"))
    return dims


def _write_masked(op: Op, dims: Dims, picks: "list[Tensor | None]") -> Dims:
    """One mask over the first dims. It counts rows for the values, unless these are a single one."""
    mask = picks[0]
    if mask is None or len([p for p in picks if p is not None]) > 1:
        return freeze_everything(op)[0]
    for a, b in zip(dims, op.dims(mask), strict=False):
        op.unify(a, b)
    if op["values"].numel() > 1:
        op.freeze(*op.dims(mask))
        rest, written = dims[mask.dim() :], op.dims("values")
        broadcast_to(op, rest, written[max(len(written) - len(rest), 0) :])  # leading dims of size 1 may be missing
    return dims


def is_mask(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype.itemsize == 1


def broadcast_to(op: Op, target: Dims, dims: Dims) -> None:
    """Unify dims with those that they broadcast to, aligned at the right."""
    for a, b in zip(reversed(target), reversed(dims), strict=False):
        if b.size > 1:
            op.unify(a, b)
