"""Operations that work on each position alone: equal dims unify, size-1 dims broadcast."""

from torch import Tensor

from secateur.axes import ONE, Expr
from secateur.tracing.rules.registry import Dims, Op, rule

# Pointwise by nature, though torch does not tag them so.
UNTAGGED = (
    "aten::alias",
    "aten::clone",
    "aten::contiguous",
    "aten::copy_",
    "aten::detach",
    "aten::dropout",
    "aten::floor_divide",
    "aten::lift_fresh",
    "aten::lift_fresh_copy",
    "aten::native_dropout",
    "aten::masked_fill",
    "aten::where",
    "aten::_to_copy",
    "aten::to",
    "aten::bernoulli",
    "aten::hardswish",
    "aten::rsub",
    "aten::special_ndtr",
    "aten::isreal",
    "aten::rrelu_with_noise",
    "aten::_prelu_kernel",
    "aten::hardtanh_",
    "aten::relu6",
    "aten::silu_",
    "aten::mish_",
    "aten::resolve_conj",
    "aten::resolve_neg",
    "aten::_conj",
    "aten::real",
    "aten::imag",
    "aten::complex",
    "aten::polar",
    "aten::renorm",
)


@rule(*UNTAGGED)
def pointwise(op: Op) -> Dims | list[Dims]:
    """Unify the dims of all operands, aligned at the right."""
    outputs, operands = op.outputs(), list(op.tensors())
    dims = broadcast(op, outputs[0] if outputs else max(operands, key=Tensor.numel), operands)
    return [list(dims) for _ in outputs] if len(outputs) > 1 else dims


@rule("aten::log_sigmoid_forward")
def with_buffer(op: Op) -> list[Dims]:
    """A second output helps the backward pass; some devices leave it empty."""
    dims = op.dims("self")
    return [dims if t.shape == op["self"].shape else op.fixed(t) for t in op.outputs()]


@rule("aten::glu")
def gated(op: Op) -> Dims:
    """The second half of a dim gates the first."""
    dims, at = op.dims("self"), op.wrap(op["dim"], op["self"])
    first, second = op.pieces(dims[at], [dims[at].size // 2] * 2)
    op.unify(first, second)
    return [*dims[:at], first, *dims[at + 1 :]]


def broadcast(op: Op, out: Tensor, operands: list[Tensor]) -> Dims:
    shape = out.shape
    rank = len(shape)
    known = [op.dims(t) for t in operands]
    if len(known) == 1 and [d.size for d in known[0]] == list(shape):
        return [ONE if d.size == 1 else d for d in known[0]]
    result: Dims = []
    for k, size in enumerate(shape):
        if size == 1:
            result.append(ONE)
            continue
        places = ((dims, k - rank + len(dims)) for dims in known)
        parts: list[Expr] = [dims[j] for dims, j in places if j >= 0 and dims[j].size == size]
        for other in parts[1:]:
            op.unify(parts[0], other)
        result.append(parts[0] if parts else op.free(int(size)))
    if op.name in ("aten::add", "aten::add_") and sum(_is_activation(op, t, rank) for t in operands) > 1:
        op.hint("residual", *result[1:])
    return result


def _is_activation(op: Op, tensor: Tensor, rank: int) -> bool:
    return tensor.dim() == rank > 1 and tensor.is_floating_point() and not op.tracer.is_weight(tensor)
