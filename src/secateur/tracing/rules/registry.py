"""How a rule sees one ATen operation, and where rules are kept."""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, cast

from torch import Tensor

from secateur.axes import Algebra, Expr, resolve

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


@cache
def argument_names(func: Any) -> tuple[tuple[str, Any], ...]:
    """Names and defaults of an operation's arguments, in order."""
    return tuple((a.name, a.default_value if a.has_default_value() else None) for a in func._schema.arguments)


INTERNAL = ("/torch/", "/secateur/tracing/", "importlib", "<eval_with_key", "<string>", "/contextlib.py")
CALLERS = ("/secateur/tracing/trace.py", "/secateur/proof.py")  # no user's code lies between these and the model


def location() -> str:
    """File and line of the user's code that is being run, or, in a model of torch's layers alone, of the layer."""
    frame = sys._getframe(1)
    layer = ""
    while frame is not None and not frame.f_code.co_filename.endswith(CALLERS):
        name = frame.f_code.co_filename
        if not any(part in name for part in INTERNAL):
            return f"{name}:{frame.f_lineno}"
        if not layer and "/torch/nn/modules/" in name and not name.endswith(("/module.py", "/container.py")):
            layer = f"{name}:{frame.f_lineno}"
        frame = cast(Any, frame.f_back)
    return layer or "unknown place"


class Op:
    """One call of an ATen operation, as a rule sees it.

    Attributes:
        out: what the operation returned.
        func: the overload that ran.
    """

    def __init__(self, tracer: Any, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        self.tracer, self.func, self.out = tracer, func, out
        self.algebra: Algebra = tracer.algebra
        names = argument_names(func)
        self.arguments: dict[str, Any] = dict(names)
        self.arguments.update(zip((n for n, _ in names), args, strict=False))
        self.arguments.update(kwargs)

    @property
    def name(self) -> str:
        return str(self.func._schema.name)

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    def __contains__(self, argument: str) -> bool:
        return argument in self.arguments

    @property
    def why(self) -> str:
        """The operation and where it stands, as the reason of a freeze."""
        return f"{self.name} at {location()}"

    def dims(self, tensor: Tensor | str) -> Dims:
        """The dims of a tensor argument, resolved."""
        return cast(Dims, self.tracer.dims(self[tensor] if isinstance(tensor, str) else tensor))

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor among the arguments, those in lists included."""
        for value in self.arguments.values():
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, list | tuple):
                yield from (v for v in cast("list[Any]", value) if isinstance(v, Tensor))

    def outputs(self) -> list[Tensor]:
        """Every tensor among the outputs."""
        if isinstance(self.out, Tensor):
            return [self.out]
        return [v for v in self.out if isinstance(v, Tensor)] if isinstance(self.out, list | tuple) else []

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
        """The dims after a reshape; frozen where it can't be followed."""
        out = self.algebra.regroup(dims, [int(s) for s in sizes])
        if out is None:
            self.freeze(*dims)
            return [self.algebra.fixed(int(s), self.why) for s in sizes]
        return out

    def pieces(self, dim: Expr, sizes: Sequence[int]) -> Dims:
        """The parts of a dim; frozen where it can't be followed."""
        out = self.algebra.pieces(dim, [int(s) for s in sizes])
        if out is None:
            self.freeze(dim)
            return [self.algebra.fixed(int(s), self.why) for s in sizes]
        return out

    def free(self, size: int) -> Expr:
        return self.algebra.dim(int(size))

    def normalises(self, *dims: Expr) -> None:
        """The result at every position depends on all of these dims together (mean, variance, maximum)."""
        self.tracer.normalised(self, dims)

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
    return [resolve(d) for d in op.dims(tensor)]
