"""Tensors made inside ``forward``. What holds one value everywhere may take any size; all else is frozen."""

from secateur.tracing.rules.registry import Dims, Op, rule, same


@rule(
    "aten::zeros_like",
    "aten::ones_like",
    "aten::full_like",
    "aten::empty_like",
    "aten::rand_like",
    "aten::randn_like",
    "aten::fill",
    "aten::zero",
    "aten::uniform",
    "aten::normal",
    "aten::exponential",
)
def like(op: Op) -> Dims:
    return same(op)


@rule("aten::new_zeros", "aten::new_ones", "aten::new_full", "aten::new_empty", "aten::new_empty_strided")
def new(op: Op) -> Dims:
    """Made by torch itself, in the middle of another operation: a dim like that of the given tensor follows it."""
    fixed, given = op.fixed(op.out, f"created inside forward by {op.why}"), op["self"].shape
    alike = [len(given) == len(fixed) and dim.size == given[k] for k, dim in enumerate(fixed)]
    return [op.free(dim.size) if same_size else dim for dim, same_size in zip(fixed, alike, strict=True)]
