"""How a rule sees one ATen operation, and where rules are kept."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.fx.immutable_collections import immutable_list

from secateur.axes import ONE, Algebra, Expr, resolve
from secateur.errors import TraceError

Dims = list[Expr]
Rule = Callable[["Op"], "Dims | Sequence[Dims]"]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the equations of operations, by name without overload: ``@rule("aten::mm")``.

    The rule gets an `Op`, states equations through ``op.unify`` and its like, and returns the dims of the output (a
    list of expressions), or a list of those for several outputs.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


@dataclass(frozen=True, slots=True)
class Signature:
    """What torch says of an operation, looked up once.

    Attributes:
        func: the operation.
        name: ``aten::relu_``.
        plain: the name without the mark of operations in place, ``aten::relu``.
        overload: ``aten::add.Tensor``.
        is_view: the result is a view of an argument.
        writes: it changes an argument.
        pointwise: it works on each position alone.
        returns: number of results.
        defaults: of the arguments, by name, in order; None where there is none.
        keywords: the arguments that are passed by name.
    """

    func: Any
    name: str
    plain: str
    overload: str
    is_view: bool
    writes: bool
    pointwise: bool
    returns: int
    defaults: dict[str, Any]
    keywords: frozenset[str]

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, in order, defaults filled in."""
        bound = self.defaults.copy()
        bound.update(zip(self.defaults, args, strict=False))
        bound.update(kwargs)
        return bound


SIGNATURES: dict[int, Signature] = {}  # by id: an operation's own hash takes longer than all the rest


def signature(func: Any) -> Signature:
    """The signature of an operation."""
    found = SIGNATURES.get(id(func))
    if found is None or found.func is not func:
        found = SIGNATURES[id(func)] = _look_up(func)
    return found


def _look_up(func: Any) -> Signature:
    schema = func._schema
    return Signature(
        func=func,
        name=schema.name,
        plain=schema.name.rstrip("_"),
        overload=func.name(),
        is_view=bool(func.is_view),
        writes=bool(schema.is_mutable),
        pointwise=_is_pointwise(func),
        returns=len(schema.returns),
        defaults={a.name: a.default_value if a.has_default_value() else None for a in schema.arguments},
        keywords=frozenset(a.name for a in schema.arguments if a.kwarg_only),
    )


def _is_pointwise(func: Any) -> bool:
    """Whether torch tags the operation, or the functional twin of an in-place one, as pointwise."""
    if torch.Tag.pointwise in func.tags:
        return True
    name = func._schema.name.split("::")[1]
    if not name.endswith("_") or not func._schema.name.startswith("aten::"):
        return False
    twin = getattr(torch.ops.aten, name.rstrip("_"), None)
    return twin is not None and any(torch.Tag.pointwise in getattr(twin, o).tags for o in twin.overloads())


TORCH = f"{Path(torch.__file__).parent}/"
HERE = f"{Path(__file__).parents[2]}/"
INTERNAL = (TORCH, f"{HERE}tracing/", f"{HERE}origins.py", "<eval_with_key", "<string>", "<frozen ")
OWN = (f"{HERE}origins.py", f"{HERE}tracing/tracer.py", f"{HERE}tracing/rules/registry.py")
CALLERS = (f"{HERE}tracing/trace.py", f"{HERE}proof.py")  # no user's code lies between these and the model


@cache
def _owner(filename: str) -> str:
    """Whose code a file holds: "ours" where it calls the model, a "layer" of torch's, something "internal", else the
    "user"'s.
    """
    if filename in CALLERS:
        return "ours"
    if filename.startswith(f"{TORCH}nn/modules/") and not filename.endswith(("/module.py", "/container.py")):
        return "layer"
    internal = filename.startswith(INTERNAL) or filename.endswith(("/contextlib.py", "/importlib/__init__.py"))
    return "internal" if internal else "user"


def location() -> str:
    """File and line of the user's code that is being run, or, in a model of torch's layers alone, of the layer."""
    frame: FrameType | None = sys._getframe(1)
    layer = ""
    while frame is not None:
        name = frame.f_code.co_filename
        owner = _owner(name)
        if owner == "user":
            return f"{name}:{frame.f_lineno}"
        if owner == "ours":
            break
        if owner == "layer" and not layer:
            layer = f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return layer or "unknown place"


def asked_by_user() -> bool:
    """Whether the code that deals with a size just now is the user's, neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in OWN:
        frame = frame.f_back
    return frame is not None and _owner(frame.f_code.co_filename) == "user"


def raised_at(error: BaseException) -> str:
    """File and line of the last of the user's code that an error came through, or of the last of torch's layers."""
    place = layer = ""
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        owner = _owner(name)
        if owner == "user":
            place = f"{name}:{trace.tb_lineno}"
        elif owner == "layer":
            layer = f"{name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place or layer or "unknown place"


SEQUENCES = {list, tuple, immutable_list}


def tensors_among(values: Iterable[Any]) -> list[Tensor]:
    """Every tensor of a call's arguments, those in lists included."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif type(value) in SEQUENCES:
            found += (v for v in value if isinstance(v, Tensor))
    return found


def tensors_of(result: Any) -> list[Tensor]:
    """Every tensor of what an operation returned."""
    if isinstance(result, Tensor):
        return [result]
    return tensors_among(result) if isinstance(result, list | tuple) else []


class Op:
    """One call of an ATen operation, as a rule sees it.

    Attributes:
        out: what the operation returned.
        func: the overload that ran.
        said: its signature.
        name: of the operation, without overload.
        arguments: of the call, by name, in order.
        strides: those that the first tensor had before an operation that may change them.
    """

    out: Any = None
    strides: Sequence[int] = ()

    def __init__(self, tracer: Any, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.tracer, self.func = tracer, func
        self.algebra: Algebra = tracer.algebra
        self.said = said = signature(func)
        self.name = said.name
        self.arguments = said.bind(args, kwargs)
        self.operands = tensors_among(self.arguments.values())
        self.named: dict[int, Expr] = {}  # outputs whose values are positions, by number, and along which dim
        self.accounted: set[int] = set()  # ids of operands whose values are positions, and used as such

    def __getitem__(self, argument: str) -> Any:
        if argument not in self.arguments:
            raise TraceError(f"{self.name} has no argument {argument!r}; it has {', '.join(self.arguments)}")
        return self.arguments[argument]

    def __contains__(self, argument: str) -> bool:
        return argument in self.arguments

    @property
    def why(self) -> str:
        """The operation and where it stands, as the reason of a freeze."""
        return f"{self.name} at {location()}"

    def dims(self, tensor: Tensor | str) -> Dims:
        """The dims of a tensor argument, resolved."""
        found: Dims = self.tracer.dims(self[tensor] if isinstance(tensor, str) else tensor)
        return found

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor among the arguments, those in lists included."""
        return iter(self.operands)

    def outputs(self) -> list[Tensor]:
        """Every tensor among the outputs, those in lists included."""
        return tensors_of(self.out)

    # ------------------------------------------------------------------ statements

    def unify(self, a: Expr, b: Expr) -> None:
        if not self.algebra.unify(a, b):
            self.freeze(a, b)

    def freeze(self, *dims: Expr, why: str | None = None) -> None:
        reason = why or self.why
        for dim in dims:
            self.algebra.freeze(dim, reason)

    def fixed(self, tensor: Tensor, why: str | None = None) -> Dims:
        """Frozen dims for an output."""
        reason = why or self.why
        return [self.algebra.fixed(size, reason) for size in tensor.shape]

    def regroup(self, dims: Dims, sizes: Sequence[int]) -> Dims:
        """The dims after a reshape; those that can't be followed freeze, the others pass."""
        return self.algebra.reshape(dims, [int(s) for s in sizes], lambda: self.why)

    def pieces(self, dim: Expr, sizes: Sequence[int]) -> Dims:
        """The parts of a dim; frozen where it can't be followed."""
        out = self.algebra.pieces(dim, [int(s) for s in sizes])
        if out is None:
            self.freeze(dim)
            return [self.algebra.fixed(int(s), self.why) for s in sizes]
        return out

    def broadcast(self, rows: Sequence[Dims]) -> Dims:
        """The dims of tensors, aligned at the right, where equal ones unify and size-1 dims give way."""
        result: Dims = [ONE] * max(map(len, rows))
        for row in rows:
            for k, dim in enumerate(reversed(row), 1):
                if dim.size > 1 and result[-k].size > 1:
                    self.unify(result[-k], dim)
                elif dim.size > 1:
                    result[-k] = dim
        return result

    def free(self, size: int) -> Expr:
        return self.algebra.dim(int(size))

    def normalises(self, *dims: Expr) -> None:
        """The result at every position depends on all of these dims together (mean, variance, maximum)."""
        self.tracer.normalised(self, dims)

    def names(self, output: int, dim: Expr) -> None:
        """The values of an output are positions along the dim: what a top-k or an argmax gives."""
        self.named[output] = dim
        self.hint("chosen", dim)

    def look_up(self, index: Tensor, dim: Expr) -> Expr | None:
        """The values of ``index`` pick positions of the dim. Where they are known to count along it, its units may go.

        Returns:
            The part of the dim that can be picked; None, and the dim frozen, where nobody knows what the values are.
        """
        found: Expr | None = self.tracer.positions(index)
        dim = resolve(dim)
        if found is None:
            self.freeze(dim)
            return None
        self.accounted.add(id(index))
        self.hint("experts", dim)
        if found.size == dim.size:
            self.unify(found, dim)
            return resolve(dim)
        inner, outer = sorted((found, dim), key=lambda d: d.size)
        halves = self.algebra.cut(outer, inner.size)
        if halves is None:
            self.freeze(found, dim)
            return None
        self.unify(halves[0], inner)
        if outer is dim:
            self.freeze(halves[1], why=f"positions that the example inputs do not reach: {self.why}")
        return resolve(inner)

    def carry(self, *tensors: Tensor) -> None:
        """The outputs hold values of the tensors: if these are all positions along one dim, so are those."""
        found = [self.tracer.positions(t) for t in tensors]
        if found and None not in found and all(self.algebra.unify(found[0], other) for other in found[1:]):
            self.accounted |= {id(t) for t in tensors}
            self.named.update((k, found[0]) for k in range(len(self.outputs())))

    def contract(self, *ends: tuple[Tensor | str, int]) -> None:
        """Dims of arguments meet in a sum of products: they are the same, and units that are repeated count repeatedly.

        Args:
            ends: arguments, each with its dim; the one whose weights would rather be divided then first.
        """
        dims = [self.dims(tensor)[dim] for tensor, dim in ends]
        for other in dims[1:]:
            self.unify(dims[0], other)
        self.contracted(dims[0], *ends)

    def contracted(self, dim: Expr, *ends: tuple[Tensor | str, int]) -> None:
        """The operation sums over a dim, which lies in these dims of arguments: see `contract`."""
        held = [(self[tensor] if isinstance(tensor, str) else tensor, k) for tensor, k in ends]
        self.tracer.contracted(self, dim, held)

    def once(self, *dims: Expr) -> None:
        """The result would change if units of the dims were repeated, in a way that no weights make up for."""
        if not all(self.tracer.is_weight(t) for t in self.operands):
            self.tracer.once.extend((dim, self.why) for dim in dims)

    def at_least(self, dim: Expr, units: int) -> None:
        """The operation needs so many units of the dim."""
        self.tracer.least.append((dim, units))

    def in_steps(self, dim: Expr, multiple: int) -> None:
        """The operation only takes dims whose size is a multiple."""
        self.tracer.steps.append((dim, multiple))

    def macs(self, *dims: Expr | int) -> None:
        """Multiply-accumulates of the operation: the product of the sizes."""
        self.tracer.add_cost(self.name, dims)

    def hint(self, kind: str, *dims: Expr) -> None:
        """What kind of axis the dims are: for names only."""
        self.tracer.hints.extend((dim, kind) for dim in dims)

    def wrap(self, dim: int, tensor: Tensor) -> int:
        return dim % max(tensor.dim(), 1)


def freeze_everything(op: Op) -> list[Dims]:
    """What an operation without a rule does: all that it touches keeps its size."""
    why = op.why
    for tensor in op.tensors():
        op.freeze(*op.dims(tensor), why=why)
    return [op.fixed(out, why) for out in op.outputs()]


def same(op: Op, tensor: Tensor | str = "self") -> Dims:
    return op.dims(tensor)
