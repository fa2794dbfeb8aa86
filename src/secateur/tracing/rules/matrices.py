"""Linear algebra on matrices as wholes: both dims of a matrix freeze, batches of matrices pass."""

from secateur.tracing.rules.registry import Dims, Op, freeze_everything, rule


@rule(
    "aten::_linalg_det",
    "aten::_linalg_eigh",
    "aten::_linalg_slogdet",
    "aten::_linalg_solve_ex",
    "aten::_linalg_svd",
    "aten::linalg_cholesky_ex",
    "aten::linalg_eig",
    "aten::linalg_householder_product",
    "aten::linalg_inv_ex",
    "aten::linalg_lu",
    "aten::linalg_lu_factor_ex",
    "aten::linalg_matrix_exp",
    "aten::linalg_pinv",
    "aten::linalg_qr",
    "aten::linalg_solve_triangular",
)
def matrices(op: Op) -> list[Dims]:
    """Arguments (..., M, N), or (..., N) for vectors; results with as many batch dims before them."""
    first, *others = (op.dims(t) for t in op.tensors())
    batch = first[:-2]
    op.freeze(*first[-2:])
    for dims in others:
        op.freeze(*dims[len(batch) :])
        for a, b in zip(batch, dims, strict=False):
            op.unify(a, b)
    return [[*batch, *op.fixed(t)[len(batch) :]] for t in op.outputs()]


@rule("aten::linalg_cross")
def cross(op: Op) -> Dims:
    """Vectors of three along one dim."""
    dims = op.broadcast([op.dims("self"), op.dims("other")])
    op.freeze(dims[int(op["dim"]) % len(dims)])
    return dims


@rule("aten::block_diag")
def blocks(op: Op) -> Dims | list[Dims]:
    """Matrices along the diagonal: rows and columns are those of one after the other."""
    rows = [op.dims(t) for t in op["tensors"]]
    if any(len(row) != 2 for row in rows):
        return freeze_everything(op)
    return [op.algebra.concat([row[k] for row in rows]) for k in (0, 1)]
