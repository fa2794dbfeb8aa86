"""The dispatch tracer: runs a model once and turns each ATen operation into equations between dims."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from secateur.axes import Algebra, Expr, resolve
from secateur.tracing.rules import RULES, Dims, Op, Rule, freeze_everything, pointwise
from secateur.tracing.rules.registry import location

# Queries that dispatch sees but that compute nothing.
QUERIES = {"prim::device", "prim::layout", "aten::is_same_size", "aten::sym_size", "aten::dim", "aten::_assert_async"}
# Copies of a tensor as it is, or in another form: they compute nothing with it.
COPIES = {"aten::clone", "aten::_to_copy", "aten::_unsafe_view", "aten::lift_fresh_copy"}


@cache
def is_pointwise(func: Any) -> bool:
    """Whether torch tags the operation, or the functional twin of an in-place one, as pointwise."""
    if torch.Tag.pointwise in func.tags:
        return True
    name = func._schema.name.split("::")[1]
    if not name.endswith("_") or not func._schema.name.startswith("aten::"):
        return False
    twin = getattr(torch.ops.aten, name.rstrip("_"), None)
    return twin is not None and any(torch.Tag.pointwise in getattr(twin, o).tags for o in twin.overloads())


def find_rule(func: Any) -> Rule | None:
    """The rule of an operation: its own, its functional twin's, the pointwise one, or None."""
    name = func._schema.name
    found = RULES.get(name) or RULES.get(name.rstrip("_"))
    return found or (pointwise if is_pointwise(func) else None)


class Tracer(TorchDispatchMode):
    """Follows every tensor's dims through the operations of one forward pass.

    Attributes:
        algebra: the equations found so far.
        costs: the factors of the multiply-accumulates of each operation, with its name.
        hints: dims with the kind of axis that they were seen as.
        normalising: dims along which a mean, variance or maximum was taken, with the reason.
        implicit_scales: dims of queries whose size attention divides by (the square root of), with the place.
        adopted: what replaces the result of an operation that normalises: called with the operation, the dims that it
            normalises, and the dims of its outputs (the proof's way to look at kept units alone).
        unknown: operations without a rule, with their place.
    """

    def __init__(self, algebra: Algebra | None = None) -> None:
        super().__init__()
        self.algebra = algebra or Algebra()
        self.costs: list[tuple[str, tuple[Expr | int, ...]]] = []
        self.hints: list[tuple[Expr, str]] = []
        self.normalising: list[tuple[Expr, str]] = []
        self.implicit_scales: list[tuple[Expr, str]] = []
        self.unknown: list[tuple[str, str]] = []
        self.adopted: Callable[[Op, Sequence[Expr], Sequence[Dims]], Any] | None = None
        self._dims: dict[int, Dims] = {}
        self._alive: list[Tensor] = []  # ids stay unique while their tensors live
        self._weights: set[int] = set()
        self.computed: dict[int, Expr] = {}  # dims of weights that an operation computed with, by id
        self._pending: tuple[Expr, ...] = ()

    # ------------------------------------------------------------------ what is known of a tensor

    def dims(self, tensor: Tensor) -> Dims:
        """The resolved dims of a tensor; frozen ones for a constant that nobody introduced."""
        known = self._dims.get(id(tensor))
        if known is None:
            reason = "a tensor that is neither a parameter, a buffer nor computed from one"
            known = self.set_dims(tensor, [self.algebra.fixed(s, reason) for s in tensor.shape])
        return [resolve(d) for d in known]

    def set_dims(self, tensor: Tensor, dims: Dims) -> Dims:
        if [d.size for d in dims] != list(tensor.shape):
            raise AssertionError(f"dims {dims} don't fit a tensor of shape {tuple(tensor.shape)}")
        if id(tensor) not in self._dims:
            self._alive.append(tensor)
        self._dims[id(tensor)] = dims
        return dims

    def introduce(self, tensor: Tensor, dims: Dims) -> None:
        """A parameter or buffer enters."""
        self.set_dims(tensor, dims)
        self._weights.add(id(tensor))

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether the tensor is computed from parameters and buffers alone."""
        return id(tensor) in self._weights

    def freeze_all(self, values: Any, reason: str) -> None:
        """Freeze every dim of every tensor in a nest of values."""
        for value in tree_iter(values):
            if isinstance(value, Tensor):
                for dim in self.dims(value):
                    self.algebra.freeze(dim, reason)

    # ------------------------------------------------------------------ what rules report

    def normalised(self, op: Op, dims: Sequence[Expr]) -> None:
        reason = op.why
        self.normalising.extend((dim, reason) for dim in dims)
        self._pending = (*self._pending, *dims)

    def add_cost(self, name: str, dims: tuple[Expr | int, ...]) -> None:
        self.costs.append((name, dims))

    # ------------------------------------------------------------------ dispatch

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name
        if name in QUERIES or not any(isinstance(v, Tensor) for v in tree_iter(out)):
            self._freeze_read(func, args, kwargs, out)
            return out
        op = Op(self, func, args, kwargs, out)
        found = find_rule(func)
        self._pending = ()
        if found is None and not any(True for _ in op.tensors()):
            results: Sequence[Dims] = [op.fixed(t, f"created inside forward by {op.why}") for t in op.outputs()]
        elif found is None:
            self.unknown.append((name, location()))
            results = freeze_everything(op)
        else:
            result = found(op)
            results = cast("Sequence[Dims]", result) if result and isinstance(result[0], list) else [cast(Dims, result)]
        if self._pending and self.adopted is not None:
            out = op.out = self.adopted(op, self._pending, results)
        if not (func.is_view or name in COPIES):
            weights = [t for t in op.tensors() if self.is_weight(t)]
            self.computed.update((id(d), d) for t in weights for d in self._dims[id(t)])
        from_weights = all(self.is_weight(t) for t in op.tensors())
        for tensor, dims in zip(op.outputs(), results, strict=True):
            self.set_dims(tensor, dims)
            if from_weights:
                self._weights.add(id(tensor))
        return out

    def _freeze_read(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        """A value that leaves the tensors (``item``) makes everything that it was computed from count as data."""
        if func._schema.name in ("aten::_local_scalar_dense", "aten::equal"):
            self.freeze_all((args, kwargs), f"{func._schema.name}: its value is read by Python code")
