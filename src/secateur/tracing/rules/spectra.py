"""Fourier transforms and complex numbers: the transformed dims mix all their positions and freeze, the others pass."""

from secateur.tracing.rules.registry import Dims, Op, rule


@rule("aten::_fft_r2c", "aten::_fft_c2r", "aten::_fft_c2c")
def transformed(op: Op) -> Dims:
    dims = op.dims("self")
    at = {op.wrap(int(d), op["self"]) for d in op["dim"]}
    op.freeze(*(dims[k] for k in at))
    return [op.algebra.fixed(int(s), op.why) if k in at else dims[k] for k, s in enumerate(op.out.shape)]


@rule("aten::view_as_real", "aten::_view_as_real_physical")
def view_as_real(op: Op) -> Dims:
    return [*op.dims("self"), op.algebra.fixed(2, "real and imaginary part")]


@rule("aten::view_as_complex")
def view_as_complex(op: Op) -> Dims:
    *dims, pair = op.dims("self")
    op.freeze(pair)
    return dims
