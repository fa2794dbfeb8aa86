"""The dispatch tracer: runs a model once and turns each ATen operation into equations between dims."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from secateur.axes import Algebra, Expr, resolve
from secateur.errors import TraceError
from secateur.origins import Origin, Shape
from secateur.tracing.hollow import Hollow, NeedsValues
from secateur.tracing.kernels import call
from secateur.tracing.rules import RULES, Dims, Op, Rule, freeze_everything, pointwise
from secateur.tracing.rules.registry import asked_by_user, location, signature

# Queries that dispatch sees but that compute nothing.
QUERIES = {"prim::device", "prim::layout", "aten::is_same_size", "aten::sym_size", "aten::dim", "aten::_assert_async"}
# Copies of a tensor as it is, or in another form: they compute nothing with it.
COPIES = {"aten::clone", "aten::_to_copy", "aten::_unsafe_view", "aten::lift_fresh_copy"}
# Operations that have no result for some numbers, zero among them.
QUOTIENTS = {"aten::div", "aten::reciprocal", "aten::rsqrt", "aten::log", "aten::pow", "aten::_weight_norm_interface"}
# Operations whose output holds values of their one tensor, besides the views of it.
CARRIERS = COPIES | {"aten::contiguous", "aten::repeat", "aten::flip", "aten::roll", "aten::_reshape_alias"}


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
    said = signature(func)
    found = RULES.get(said.name) or RULES.get(said.plain)
    return found or (pointwise if is_pointwise(func) else None)


def _flat(out: Any) -> Iterable[Any]:
    return out if type(out) is tuple and not any(isinstance(v, list) for v in out) else tree_iter(out)


def _created(op: Op, tensor: Tensor) -> Dims:
    """Of a tensor made from nothing: positions may count, where there are any."""
    if not tensor.numel():
        return [op.algebra.dim(int(s)) for s in tensor.shape]
    return op.fixed(tensor, f"created inside forward by {op.why}")


def _results(op: Op, found: Rule) -> Sequence[Dims]:
    """The dims of every output, by the operation's rule."""
    outputs, result = op.outputs(), found(op)
    results = cast("Sequence[Dims]", result) if result and isinstance(result[0], list) else [cast(Dims, result)]
    if not outputs:  # it writes to its arguments
        return []
    if [[d.size for d in dims] for dims in results] != [list(t.shape) for t in outputs]:
        shapes = " and ".join(str(list(t.shape)) for t in outputs)
        raise TraceError(f"the rule of {op.name} gives the dims {list(results)} for an output of shape {shapes}")
    return results


def _can_count(op: Op) -> bool:
    """Whether the type of the output can hold every position exactly."""
    dtype, dim = op.outputs()[0].dtype, op.tracer.positions(next(op.tensors()))
    if dtype.is_floating_point:
        return dim is not None and dim.size * torch.finfo(dtype).eps <= 1
    return dtype is not torch.bool and not dtype.is_complex and (dim is None or dim.size <= torch.iinfo(dtype).max)


class Tracer(TorchDispatchMode):
    """Follows every tensor's dims through the operations of one forward pass.

    Attributes:
        algebra: the equations found so far.
        costs: the factors of the multiply-accumulates of each operation, with its name.
        hints: dims with the kind of axis that they were seen as.
        normalising: dims along which a mean, variance or maximum was taken, with the reason.
        implicit_scales: queries, with the dim whose size attention divides by (the square root of), and the place.
        hollow: how results of hollow tensors come about; None where operations are run.
        made: for each tensor, by id, the operation that made it, and which of its outputs it is.
        numbers: sizes that became floats (a scale, most often), with the place.
        comparisons: pairs of sizes that the code found to be equal, one of a tensor at least, with the place.
        bounds: sizes with the least value for which the code goes the way that it went, and the place.
        adopted: what replaces the result of an operation that normalises: called with the operation, the dims that it
            normalises, and the dims of its outputs (the proof's way to look at kept units alone).
        repaired: what is done in place to results of operations that may divide nothing by nothing.
        originals: names of the tensors of the model that the run is on a copy of, by id.
        unknown: operations without a rule, with their place.
        least: dims with the fewest units that an operation on them can do with (the k of a top-k).
        steps: dims with a number that their size must be a multiple of.
    """

    supports_higher_order_operators = True

    def __init__(self, algebra: Algebra | None = None) -> None:
        super().__init__()
        self.algebra = algebra or Algebra()
        self.costs: list[tuple[str, tuple[Expr | int, ...]]] = []
        self.hints: list[tuple[Expr, str]] = []
        self.normalising: list[tuple[Expr, str]] = []
        self.implicit_scales: list[tuple[Tensor, Expr, str]] = []
        self.numbers: list[tuple[Origin, str]] = []
        self.comparisons: list[tuple[Origin, Origin, str]] = []
        self.bounds: dict[tuple[Origin, int], str] = {}
        self.unknown: list[tuple[str, str]] = []
        self.least: list[tuple[Expr, int]] = []
        self.steps: list[tuple[Expr, int]] = []
        self.adopted: Callable[[Op, Sequence[Expr], Sequence[Dims]], Any] | None = None
        self.repaired: Callable[[Tensor, Dims], None] | None = None
        self.made: dict[int, tuple[Op, int]] = {}
        self.hollow: Hollow | None = None
        self.originals: dict[int, str] = {}
        self._dims: dict[int, Dims] = {}
        self._alive: list[Tensor] = []  # ids stay unique while their tensors live
        self._weights: set[int] = set()
        self.computed: dict[int, Expr] = {}  # dims of weights that an operation computed with, by id
        self._pending: tuple[Expr, ...] = ()
        self._positions: dict[int, Expr] = {}  # tensors whose values are positions, by id, and along which dim

    # ------------------------------------------------------------------ what is known of a tensor

    def dims(self, tensor: Tensor) -> Dims:
        """The resolved dims of a tensor; frozen ones for a constant that nobody introduced."""
        known = self._dims.get(id(tensor))
        if known is None:
            reason = f"{self._unknown(tensor)}, at {location()}"
            known = self.set_dims(tensor, [self.algebra.fixed(s, reason) for s in tensor.shape])
        return [resolve(d) for d in known]

    def _unknown(self, tensor: Tensor) -> str:
        """What a tensor is that nobody introduced."""
        own = self.originals.get(id(tensor))
        if own is not None:
            return f"a function that holds the model itself, whose {own} it uses, and would go on using uncut"
        return "a tensor that is neither a parameter, a buffer nor computed from one"

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

    def positions(self, tensor: Tensor) -> Expr | None:
        """The dim whose positions the tensor's values are, as far as is known."""
        found = self._positions.get(id(tensor))
        return None if found is None else resolve(found)

    def name_positions(self, tensor: Tensor, dim: Expr) -> None:
        """The tensor's values are positions along the dim."""
        self._positions[id(tensor)] = dim

    def freeze_all(self, values: Any, reason: str) -> None:
        """Freeze every dim of every tensor in a nest of values, and the dims whose positions the values are."""
        for value in tree_iter(values):
            if isinstance(value, Tensor):
                for dim in self.dims(value):
                    self.algebra.freeze(dim, reason)
                if id(value) in self._positions:
                    self.algebra.freeze(self._positions[id(value)], f"its units are told apart by number: {reason}")

    # ------------------------------------------------------------------ what rules report

    def normalised(self, op: Op, dims: Sequence[Expr]) -> None:
        reason = op.why
        self.normalising.extend((dim, reason) for dim in dims)
        self._pending = (*self._pending, *dims)

    def compared(self, a: Origin, b: Origin) -> None:
        if a != b and (isinstance(a, Shape) or isinstance(b, Shape)):
            self.comparisons.append((a, b, location()))

    def bounded(self, origin: Origin, least: int) -> None:
        if (origin, least) not in self.bounds and asked_by_user():
            self.bounds[origin, least] = location()

    def escaped(self, origin: Origin) -> None:
        self.numbers.append((origin, location()))

    def add_cost(self, name: str, dims: tuple[Expr | int, ...]) -> None:
        self.costs.append((name, dims))

    # ------------------------------------------------------------------ dispatch

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._opaque(func, args, kwargs)
        said = signature(func)
        name, writes = said.name, said.writes  # an operation may give its result in an argument, and return nothing
        strides = args[0].stride() if name.startswith("aten::as_strided") else ()  # in place, it changes them
        out = self.hollow.compute(func, args, kwargs) if self.hollow else call(func, args, kwargs)
        gives = isinstance(out, Tensor) or writes or any(isinstance(v, Tensor) for v in _flat(out))
        if name in QUERIES or not gives:
            self._freeze_read(func, args, kwargs, out)
            return out
        op = Op(self, func, args, kwargs, out)
        op.strides = strides
        found = find_rule(func)
        self._pending = ()
        if found is None and not any(True for _ in op.tensors()):
            results: Sequence[Dims] = [_created(op, t) for t in op.outputs()]
        elif found is None:
            self.unknown.append((name, location()))
            results = freeze_everything(op)
        else:
            results = self._by_rule(op, found)
        if self._positions:
            self._settle_positions(op)
        if self._pending and self.adopted is not None:
            out = op.out = self.adopted(op, self._pending, results)
        elif self.repaired is not None and said.plain in QUOTIENTS:
            self.repaired(op.outputs()[0], results[0])
        if not (said.is_view or name in COPIES):
            weights = [t for t in op.tensors() if self.is_weight(t)]
            self.computed.update((id(d), d) for t in weights for d in self._dims[id(t)])
        from_weights = all(self.is_weight(t) or id(t) in op.accounted for t in op.tensors())
        for k, (tensor, dims) in enumerate(zip(op.outputs(), results, strict=True)):
            self.set_dims(tensor, dims)
            if not writes:
                self.made[id(tensor)] = op, k
            if from_weights:
                self._weights.add(id(tensor))
            if k in op.named:
                self._positions[id(tensor)] = op.named[k]
        return out

    def _opaque(self, func: HigherOrderOperator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """An operation on functions (``torch.cond``, ``flex_attention``) hides what these do."""
        if self.hollow is not None:
            raise NeedsValues(func.name())
        out = func(*args, **kwargs)
        name, place = func.name(), location()
        reason = f"{name} at {place}"
        self.unknown.append((name, place))
        self.freeze_all((args, kwargs), reason)
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self.set_dims(tensor, [self.algebra.fixed(size, reason) for size in tensor.shape])
        return out

    def _by_rule(self, op: Op, found: Rule) -> Sequence[Dims]:
        """What the rule says. A form of one of torch's operations that its rule does not fit counts as unknown."""
        try:
            return _results(op, found)
        except (LookupError, TypeError, ValueError, AttributeError, TraceError):
            if not op.name.startswith("aten::"):
                raise
        self._pending = ()
        self.unknown.append((op.name, location()))
        return freeze_everything(op)

    def _settle_positions(self, op: Op) -> None:
        """Positions stay positions when they are moved or copied. In an operation that uses them otherwise than its
        rule says they are numbers like others, and what they number must not shift.
        """
        tensors = list(op.tensors())
        if len(tensors) == 1 and (signature(op.func).is_view or op.name in CARRIERS) and _can_count(op):
            op.carry(tensors[0])
        for tensor in tensors:
            if id(tensor) in self._positions and id(tensor) not in op.accounted:
                reason = f"its units are told apart by number: {op.why}"
                self.algebra.freeze(self._positions[id(tensor)], reason)

    def _freeze_read(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        """A value that leaves the tensors (``item``) makes everything that it was computed from count as data."""
        name = func._schema.name
        if name in ("aten::_local_scalar_dense", "aten::equal") or not name.startswith(("aten::", "prim::")):
            self.freeze_all((args, kwargs), f"{name}: its value is read by Python code at {location()}")
