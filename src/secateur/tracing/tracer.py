"""The dispatch tracer: runs a model once and turns each ATen operation into equations between dims."""

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from secateur.axes import Algebra, Axis, Expr, resolve
from secateur.errors import TraceError
from secateur.modules import named_tensors
from secateur.origins import Origin, Shape
from secateur.tracing.hollow import Hollow, NeedsValues
from secateur.tracing.kernels import call
from secateur.tracing.rules import RULES, Dims, Op, Rule, freeze_everything, pointwise
from secateur.tracing.rules.registry import Signature, asked_by_user, location

# Queries that dispatch sees but that compute nothing.
QUERIES = {"prim::device", "prim::layout", "aten::is_same_size", "aten::sym_size", "aten::dim", "aten::_assert_async"}
# Copies of a tensor as it is, or in another form: they compute nothing with it.
COPIES = {"aten::clone", "aten::_to_copy", "aten::_unsafe_view", "aten::lift_fresh_copy"}
STRIDED = {"aten::as_strided", "aten::as_strided_", "aten::as_strided_scatter", "aten::as_strided_copy"}
# Operations that have no result for some numbers, zero among them.
QUOTIENTS = {"aten::div", "aten::reciprocal", "aten::rsqrt", "aten::log", "aten::pow", "aten::_weight_norm_interface"}
# Operations whose output holds values of their one tensor, besides the views of it.
CARRIERS = COPIES | {"aten::contiguous", "aten::repeat", "aten::flip", "aten::roll", "aten::_reshape_alias"}


def find_rule(said: Signature) -> Rule | None:
    """The rule of an operation: its own, its functional twin's, the pointwise one, or None."""
    found = RULES.get(said.name) or RULES.get(said.plain)
    return found or (pointwise if said.pointwise else None)


def _created(op: Op, tensor: Tensor) -> Dims:
    """Of a tensor made from nothing: positions may count, where there are any."""
    if not tensor.numel():
        return [op.algebra.dim(int(s)) for s in tensor.shape]
    return op.fixed(tensor, f"created inside forward by {op.why}")


def _results(op: Op, found: Rule, outputs: Sequence[Tensor]) -> Sequence[Dims]:
    """The dims of every output, by the operation's rule."""
    result: Any = found(op)
    results: Sequence[Dims] = result if result and isinstance(result[0], list) else [result]
    if not outputs:  # it writes to its arguments
        return []
    if len(results) != len(outputs) or not all(map(_fit, results, outputs)):
        shapes = " and ".join(str(list(t.shape)) for t in outputs)
        raise TraceError(f"the rule of {op.name} gives the dims {list(results)} for an output of shape {shapes}")
    return results


def _fit(dims: Dims, tensor: Tensor) -> bool:
    return [d.size for d in dims] == list(tensor.shape)


def _forget(at: int, known: Sequence[dict[int, Any]], weights: set[int], _: Any) -> None:
    """What is known of a tensor goes with it. This holds no tracer, or the tracer would wait for the collector."""
    for found in known:
        found.pop(at, None)
    weights.discard(at)


def _can_count(op: Op) -> bool:
    """Whether the type of the output can hold every position exactly."""
    dtype, dim = op.outputs()[0].dtype, op.tracer.positions(next(op.tensors()))
    if dtype.is_floating_point:
        return dim is not None and dim.size * torch.finfo(dtype).eps <= 1
    return dtype is not torch.bool and not dtype.is_complex and (dim is None or dim.size <= torch.iinfo(dtype).max)


Contracted = tuple[Op, Expr, list[tuple[Tensor, int]], str]


class Tracer(TorchDispatchMode):
    """Follows every tensor's dims through the operations of one forward pass.

    Args:
        algebra: where the equations go.
        keeping: hold every tensor, so that how each came about can be asked afterwards. Otherwise what is known of a
            tensor goes when it does, and the run takes no more memory than the model alone.

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
        noted: is told of every operation that computes something, with the dims of its outputs.
        original: the model that the run is on a copy of.
        unknown: operations without a rule, with their place.
        least: dims with the fewest units that an operation on them can do with (the k of a top-k).
        steps: dims with a number that their size must be a multiple of.
        contractions: sums of products over a dim: the operation, the dim, the tensors with the dims that it lies in,
            and the place.
        once: dims whose units can't be repeated, with the reason.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled, and torch's way of saying so takes a second to import."""
        return False

    def __init__(self, algebra: Algebra | None = None, *, keeping: bool = True) -> None:
        super().__init__()
        self.keeping = keeping
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
        self.contractions: list[Contracted] = []
        self.once: list[tuple[Expr, str]] = []
        self.adopted: Callable[[Op, Sequence[Expr], Sequence[Dims]], Any] | None = None
        self.repaired: Callable[[Tensor, Dims], None] | None = None
        self.noted: Callable[[Op, Sequence[Dims]], None] | None = None
        self.made: dict[int, tuple[Op, int]] = {}
        self.hollow: Hollow | None = None
        self.original: nn.Module | None = None
        self._dims: dict[int, Dims] = {}
        self._alive: list[Tensor] = []  # ids stay unique while their tensors live
        self._refs: dict[int, weakref.ref[Tensor]] = {}
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
        return [d if type(d) is Axis and d.bound is None else resolve(d) for d in known]

    def _unknown(self, tensor: Tensor) -> str:
        """What a tensor is that nobody introduced."""
        known = named_tensors(self.original) if self.original is not None else {}
        own = next((name for name, held in known.items() if held is tensor), None)
        if own is not None:
            return f"a function that holds the model itself, whose {own} it uses, and would go on using uncut"
        return "a tensor that is neither a parameter, a buffer nor computed from one"

    def set_dims(self, tensor: Tensor, dims: Dims) -> Dims:
        if not _fit(dims, tensor):
            raise AssertionError(f"dims {dims} don't fit a tensor of shape {tuple(tensor.shape)}")
        self._know(tensor, dims)
        return dims

    def _know(self, tensor: Tensor, dims: Dims) -> None:
        """Take down the tensor's dims by its id, which stays its own for as long as anything is known by it."""
        at = id(tensor)
        if at not in self._dims:
            if self.keeping:
                self._alive.append(tensor)
            else:
                known = (self._refs, self._dims, self._positions)
                self._refs[at] = weakref.ref(tensor, partial(_forget, at, known, self._weights))
        self._dims[at] = dims

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

    def contracted(self, op: Op, dim: Expr, ends: list[tuple[Tensor, int]]) -> None:
        if self.keeping:
            self.contractions.append((op, dim, ends, location()))

    def compared(self, a: Origin, b: Origin) -> None:
        if a != b and (isinstance(a, Shape) or isinstance(b, Shape)):
            self.comparisons.append((a, b, location()))

    def bounded(self, origin: Origin, least: int) -> None:
        if (origin, least) not in self.bounds and asked_by_user():
            self.bounds[origin, least] = location()

    def forget(self) -> None:
        """Let go of the operations, which hold the tracer in turn: nothing is left for the garbage collector."""
        self.made.clear()
        self.contractions.clear()

    def escaped(self, origin: Origin) -> None:
        self.numbers.append((origin, location()))

    def add_cost(self, name: str, dims: tuple[Expr | int, ...]) -> None:
        self.costs.append((name, dims))

    # ------------------------------------------------------------------ dispatch

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._opaque(func, args, kwargs)
        op = Op(self, func, args, kwargs)
        name, said = op.name, op.said
        if name in STRIDED:
            op.strides = args[0].stride()  # in place, it changes them
        op.out = self.hollow.compute(op, args, kwargs) if self.hollow is not None else call(func, args, kwargs)
        outputs = op.outputs()  # none where it gives its result in an argument
        if name in QUERIES or not (outputs or said.writes):
            self._freeze_read(name, args, kwargs)
            return op.out
        found = find_rule(said)
        self._pending = ()
        if found is None and not op.operands:
            results: Sequence[Dims] = [_created(op, t) for t in outputs]
        elif found is None:
            self.unknown.append((name, location()))
            results = freeze_everything(op)
        else:
            results = self._by_rule(op, found, outputs)
        if self._positions:
            self._settle_positions(op)
        if self._pending and self.adopted is not None:
            op.out = self.adopted(op, self._pending, results)
            outputs = op.outputs()
        elif self.repaired is not None and said.plain in QUOTIENTS:
            self.repaired(outputs[0], results[0])
        self._settle(op, outputs, results)
        if self.noted is not None:
            self.noted(op, results)
        return op.out

    def at_once(self, func: Any, args: Sequence[Any]) -> Any:
        """Trace an operation that nobody has dispatched: one that stands for several of torch's."""
        with torch._C._DisableTorchDispatch():
            return self.__torch_dispatch__(func, (), args)

    def _settle(self, op: Op, outputs: Sequence[Tensor], results: Sequence[Dims]) -> None:
        """Take down what came out of an operation, and what it read."""
        weights = [t for t in op.operands if id(t) in self._weights]
        if weights and not (op.said.is_view or op.name in COPIES):
            self.computed.update((id(d), d) for t in weights for d in self._dims[id(t)])
        others = () if len(weights) == len(op.operands) else op.operands
        from_weights = all(id(t) in self._weights or id(t) in op.accounted for t in others)
        for k, (tensor, dims) in enumerate(zip(outputs, results, strict=True)):
            self._know(tensor, dims)
            if self.keeping and not op.said.writes:
                self.made[id(tensor)] = op, k
            if from_weights:
                self._weights.add(id(tensor))
            if k in op.named:
                self._positions[id(tensor)] = op.named[k]

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

    def _by_rule(self, op: Op, found: Rule, outputs: Sequence[Tensor]) -> Sequence[Dims]:
        """What the rule says. A form of one of torch's operations that its rule does not fit counts as unknown."""
        try:
            return _results(op, found, outputs)
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
        if len(op.operands) == 1 and (op.said.is_view or op.name in CARRIERS) and _can_count(op):
            op.carry(op.operands[0])
        for tensor in op.operands:
            if id(tensor) in self._positions and id(tensor) not in op.accounted:
                reason = f"its units are told apart by number: {op.why}"
                self.algebra.freeze(self._positions[id(tensor)], reason)

    def _freeze_read(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """A value that leaves the tensors (``item``) makes everything that it was computed from count as data."""
        if name in ("aten::_local_scalar_dense", "aten::equal") or not name.startswith(("aten::", "prim::")):
            self.freeze_all((args, kwargs), f"{name}: its value is read by Python code at {location()}")
