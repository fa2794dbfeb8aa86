"""Operations over windows of spatial dims: the spatial dims freeze, batch and channels pass."""

from secateur.axes import product
from secateur.tracing.rules.registry import Dims, Op, rule

POOLS = ("max_pool{}_with_indices", "avg_pool{}", "adaptive_avg_pool{}", "_adaptive_avg_pool{}", "adaptive_max_pool{}",
         "reflection_pad{}", "replication_pad{}", "fractional_max_pool{}", "max_pool{}")  # fmt: skip
RESIZES = {1: ("nearest1d", "linear1d"), 3: ("nearest3d", "trilinear3d"),
           2: ("nearest2d", "bilinear2d", "bicubic2d", "bilinear2d_aa", "bicubic2d_aa")}  # fmt: skip
RANK = {
    **{f"aten::{name.format(f'{rank}d')}": rank for name in POOLS for rank in (1, 2, 3)},
    **{
        f"aten::{prefix}upsample_{name}": rank
        for prefix in ("", "_")
        for rank, names in RESIZES.items()
        for name in names
    },
    **{f"aten::_upsample_nearest_exact{rank}d": rank for rank in (1, 2, 3)},
}


@rule(*RANK)
def window(op: Op) -> list[Dims]:
    dims, rank = op.dims("self" if "self" in op else "input"), RANK[op.name]
    keep = len(dims) - rank
    op.freeze(*dims[keep:])
    return [[*dims[:keep], *(op.algebra.fixed(int(s), "a spatial dim") for s in t.shape[keep:])] for t in op.outputs()]


@rule("aten::grid_sampler_2d", "aten::grid_sampler_3d", "aten::grid_sampler", "aten::_grid_sampler_2d_cpu_fallback")
def grid_sample(op: Op) -> Dims:
    """Input (B, C, ...), grid (B, ..., coordinates)."""
    (batch, channels, *spatial), (batch2, *grid) = op.dims("input"), op.dims("grid")
    op.unify(batch, batch2)
    op.freeze(*spatial, *grid)
    return [batch, channels, *(op.algebra.fixed(int(s), op.why) for s in op.out.shape[2:])]


@rule("aten::max_unpool2d", "aten::max_unpool3d")
def unpool(op: Op) -> Dims:
    """The spatial positions that a pooling kept go back to where they were."""
    rank = 2 if "2d" in op.name else 3
    dims, indices = op.dims("self"), op.dims("indices")
    for a, b in zip(dims, indices, strict=True):
        op.unify(a, b)
    op.freeze(*dims[-rank:])
    return [*dims[:-rank], *(op.algebra.fixed(int(s), "a spatial dim") for s in op.out.shape[-rank:])]


@rule("aten::affine_grid_generator")
def affine_grid(op: Op) -> Dims:
    """A matrix (B, 2, 3) for each sample becomes a grid (B, H, W, 2)."""
    batch, *matrix = op.dims("theta")
    op.freeze(*matrix)
    return [batch, *(op.algebra.fixed(int(s), op.why) for s in op.out.shape[1:])]


@rule("aten::unfold")
def unfold(op: Op) -> Dims:
    """Windows of one dim, their positions last. Windows that tile the dim make a product, {windows positions}."""
    dims, at, size = op.dims("self"), op.wrap(op["dimension"], op["self"]), int(op["size"])
    if size == op["step"] and dims[at].size % size == 0:
        places, inner = op.regroup([dims[at]], [dims[at].size // size, size])
        op.freeze(inner)
    else:
        op.freeze(dims[at])
        places, inner = (op.algebra.fixed(int(s), op.why) for s in (op.out.shape[at], size))
    return [*dims[:at], places, *dims[at + 1 :], inner]


@rule("aten::unfold_backward")
def overlap_add(op: Op) -> Dims:
    """Windows of one dim, their positions last, are added up where they overlap."""
    *dims, inner = op.dims("grad_in")
    at = int(op["dim"]) % len(dims)
    op.freeze(dims[at], inner)
    return [*dims[:at], op.algebra.fixed(int(op.out.shape[at]), op.why), *dims[at + 1 :]]


@rule("aten::im2col")
def im2col(op: Op) -> Dims:
    """(B, C, H, W) becomes (B, (C window), places)."""
    batch, channels, *spatial = op.dims("self")
    op.freeze(*spatial)
    k = op["kernel_size"]
    inner = op.algebra.fixed(int(k[0]) * int(k[1]), op.why)
    return [batch, product((channels, inner)), op.algebra.fixed(int(op.out.shape[-1]), op.why)]


@rule("aten::col2im")
def col2im(op: Op) -> Dims:
    """(B, (C window), places) becomes (B, C, H, W)."""
    batch, columns, places = op.dims("self")
    k = op["kernel_size"]
    window_size = int(k[0]) * int(k[1])
    channels, inner = op.regroup([columns], [columns.size // window_size, window_size])
    op.freeze(inner, places)
    return [batch, channels, *(op.algebra.fixed(int(s), op.why) for s in op.out.shape[2:])]
