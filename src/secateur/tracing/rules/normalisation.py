"""Norms and reductions. Channels unify with the affine parameters; a dim that a mean or a maximum runs over is noted
as normalising: the result changes when a unit of it goes, by design."""

from collections.abc import Sequence
from typing import Any

from secateur.axes import ONE, Expr, product
from secateur.tracing.rules.registry import Dims, Op, freeze_everything, rule


@rule(
    "aten::native_batch_norm",
    "aten::_native_batch_norm_legit",
    "aten::_native_batch_norm_legit_no_training",
    "aten::_batch_norm_with_update",
    "aten::_batch_norm_no_update",
    "aten::cudnn_batch_norm",
    "aten::batch_norm",
)
def batch_norm(op: Op) -> list[Dims]:
    """Input (B, C, ...), statistics and affine parameters (C,). Statistics of the input itself run over all but C."""
    dims = op.dims("input")
    if op.arguments.get("training") or op.arguments.get("running_mean") is None:
        op.normalises(dims[0], *dims[2:])
    for name in ("weight", "bias", "running_mean", "running_var"):
        if op.arguments.get(name) is not None:
            op.unify(dims[1], op.dims(name)[0])
    op.hint("channels", dims[1])
    rest = [[dims[1]] if list(t.shape) == [dims[1].size] else op.fixed(t, "norm statistics") for t in op.outputs()[1:]]
    return [dims, *rest]


@rule("aten::native_layer_norm", "aten::_fused_rms_norm", "aten::layer_norm", "aten::rms_norm")
def layer_norm(op: Op) -> list[Dims]:
    """Normalises the last dims together; the affine parameters have just these dims."""
    dims = op.dims("input")
    normal = dims[len(dims) - len(op["normalized_shape"]) :]
    for name in ("weight", "bias"):
        if op.arguments.get(name) is not None:
            for a, b in zip(normal, op.dims(name), strict=True):
                op.unify(a, b)
    op.normalises(*normal)
    batch = dims[: len(dims) - len(normal)]
    return [dims, *([*batch, *[ONE] * (t.dim() - len(batch))] for t in op.outputs()[1:])]


@rule("aten::native_group_norm", "aten::group_norm")
def group_norm(op: Op) -> list[Dims]:
    """Input (B, (g c), ...): c is normalised, whole groups are free of each other."""
    dims, groups = op.dims("input"), int(op["group"])
    for name in ("weight", "bias"):
        if op.arguments.get(name) is not None:
            op.unify(dims[1], op.dims(name)[0])
    halves = op.algebra.split(dims[1], groups)
    if halves is None:
        return freeze_everything(op)
    op.normalises(halves[1])
    op.hint("groups", halves[0])
    op.hint("channels", halves[1])
    return [[dims[0], product(halves), *dims[2:]], *([dims[0], halves[0]] for _ in op.outputs()[1:])]


@rule("aten::_weight_norm_interface")
def weight_norm(op: Op) -> list[Dims]:
    """Direction v and length g along one dim; silenced units are zeros, which no norm sees."""
    dims, lengths = op.dims("v"), op.dims("g")
    op.unify(dims[op["dim"]], lengths[op["dim"]])
    return [dims, lengths]


# ---------------------------------------------------------------------- reductions


def reduced(op: Op, argument: str = "dim") -> tuple[Dims, Dims]:
    """The dims that a reduction removes, and those of its result."""
    dims = op.dims("self")
    given: Any = op.arguments.get(argument)
    given = range(len(dims)) if given is None or given == [] else [given] if isinstance(given, int) else given
    gone = {op.wrap(int(d), op["self"]) for d in given}
    keep = bool(op.arguments.get("keepdim", False))
    result: list[Expr] = [ONE if k in gone else d for k, d in enumerate(dims) if keep or k not in gone]
    return [d for k, d in enumerate(dims) if k in gone], result


@rule("aten::sum", "aten::nansum")
def total(op: Op) -> Dims:
    """Silenced units arrive as zeros, so a sum does not see them; where they don't, the proof says so."""
    gone, result = reduced(op)
    for k, dim in enumerate(op.dims("self")):
        if any(dim is other for other in gone):
            op.contracted(dim, ("self", k))
    return result


@rule("aten::linalg_vector_norm", "aten::norm")
def vector_norm(op: Op) -> Dims:
    """A norm does not see zeros either."""
    gone, result = reduced(op)
    op.once(*gone)
    return result


@rule("aten::mean", "aten::amax", "aten::amin", "aten::var", "aten::std", "aten::logsumexp", "aten::prod")
def mean(op: Op) -> Dims:
    gone, result = reduced(op)
    op.normalises(*gone)
    return result


@rule("aten::var_mean", "aten::std_mean", "aten::aminmax")
def mean_pair(op: Op) -> list[Dims]:
    gone, result = reduced(op)
    op.normalises(*gone)
    return [result, list(result)]


@rule("aten::max", "aten::min")
def maximum(op: Op) -> Dims | Sequence[Dims]:
    """Of one tensor: values, and perhaps their positions, which are data. Of two: pointwise."""
    if "other" in op:
        from secateur.tracing.rules.pointwise import pointwise

        return pointwise(op)
    gone, result = reduced(op)
    op.normalises(*gone)
    if len(op.outputs()) == 1:
        return result
    op.names(1, *gone)
    return [result, list(result)]


@rule("aten::argmax", "aten::argmin")
def best(op: Op) -> Dims:
    """The position of the largest or least along one dim."""
    gone, result = reduced(op)
    if op.arguments.get("dim") is None or not gone:
        op.freeze(*gone)
    else:
        op.normalises(*gone)
        op.names(0, *gone)
    return result


@rule(
    "aten::all",
    "aten::any",
    "aten::_is_all_true",
    "aten::_is_any_true",
    "aten::median",
    "aten::mode",
)
def positional_reduction(op: Op) -> list[Dims]:
    """Reductions that a silenced unit would change, or whose result names a position."""
    gone, result = reduced(op)
    op.freeze(*gone)
    return [list(result) for _ in op.outputs()]
