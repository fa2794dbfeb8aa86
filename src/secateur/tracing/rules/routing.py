"""Operations that choose units by number, and those that say which were chosen: the routing of experts.

The numbers are positions along a dim. As long as they are only compared with others along it, counted, or used to pick
from it, it does not matter which number a unit has, so the units may go (`Op.names`, `Op.look_up`).
"""

from collections.abc import Sequence

from secateur.axes import ONE, Expr, Sum, resolve
from secateur.tracing.rules.pointwise import pointwise
from secateur.tracing.rules.registry import Dims, Op, freeze_everything, rule


@rule("aten::topk")
def topk(op: Op) -> list[Dims]:
    """Values and positions of the k largest: over the kept units alone where some are removed."""
    dims = op.dims("self")
    at = op.wrap(op["dim"], op["self"])
    op.normalises(*dims[at : at + 1])
    op.carry(op["self"])
    if dims:
        op.names(1, dims[at])
        op.at_least(dims[at], int(op["k"]))
    return [[op.algebra.fixed(int(s), op.why) if k == at else dims[k] for k, s in enumerate(t.shape)]
            for t in op.outputs()]  # fmt: skip


@rule("aten::eq", "aten::ne", "aten::lt", "aten::le", "aten::gt", "aten::ge")
def compare(op: Op) -> Dims | Sequence[Dims]:
    """Positions along one dim keep their order; a number that no unit has stays without one."""
    found = op.tracer.positions(op["self"])
    other = op["other"]
    if found is not None and isinstance(other, int) and not isinstance(other, bool):
        if _is_outside(op.name, found, other):
            op.accounted.add(id(op["self"]))
    elif found is not None and (theirs := op.tracer.positions(other)) is not None:
        inner, outer = sorted((found, theirs), key=lambda d: d.size)
        halves = op.algebra.cut(outer, inner.size) if outer.size > inner.size else (outer, ONE)
        if halves is not None:
            op.unify(halves[0], inner)
            op.hint("experts", inner)
            op.accounted |= {id(op["self"]), id(other)}
    return pointwise(op)


def _is_outside(name: str, dim: Expr, number: int) -> bool:
    """Whether no unit can lie at the number, or only one behind a boundary that the size of what is before it gives
    (`positions.compared`).
    """
    if not 0 <= number < dim.size:
        return True
    return number in dict(boundaries(dim)) and name in ("aten::eq", "aten::ne")


def boundaries(dim: Expr) -> list[tuple[int, Expr]]:
    """Where single units stand behind others in a concatenation, and the dim before each."""
    dim = resolve(dim)
    if not isinstance(dim, Sum):
        return []
    starts = [sum(p.size for p in dim.parts[:k]) for k in range(len(dim.parts))]
    return [(s, Sum(dim.parts[:k], s) if k > 1 else dim.parts[0])
            for k, (s, part) in enumerate(zip(starts, dim.parts, strict=True)) if k and part == ONE]  # fmt: skip


@rule("aten::remainder", "aten::clamp", "aten::clamp_max", "aten::clamp_min")
def bounded(op: Op) -> Dims | Sequence[Dims]:
    """Bounds that no position reaches leave positions as they are, fewer ones too."""
    found = op.tracer.positions(op["self"])
    numbers = [op.arguments.get(n) for n in ("other", "min", "max")]
    if found is not None and all(n is None or isinstance(n, int) for n in numbers):
        divisor, low, high = numbers
        last = found.size - 1
        if (divisor is None or divisor > last) and (low is None or low <= 0) and (high is None or high >= last):
            op.carry(op["self"])
    return pointwise(op)


@rule("aten::histc")
def count(op: Op) -> Dims:
    """How often each position occurs."""
    bins, low, high = int(op["bins"]), float(op["min"]), float(op["max"])
    return _counted(op, bins) if (low, high) == (0, bins - 1) else freeze_everything(op)[0]


@rule("aten::bincount")
def bincount(op: Op) -> Dims:
    bins = int(op["minlength"])
    return _counted(op, bins) if list(op.out.shape) == [bins] else freeze_everything(op)[0]


def _counted(op: Op, bins: int) -> Dims:
    dim = op.free(bins)
    return freeze_everything(op)[0] if op.look_up(op["self"], dim) is None else [dim]


@rule("aten::nonzero")
def nonzero(op: Op) -> Dims:
    """The positions of what is not zero: silenced units are not among them."""
    dims = op.dims("self")
    if len(dims) == 1:
        op.names(0, dims[0])
    else:
        op.freeze(*dims)
    return [op.algebra.fixed(int(op.out.shape[0]), f"as many as there are nonzeros: {op.why}"), op.free(len(dims))]
