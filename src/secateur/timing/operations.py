"""One operation of a model as plain data: what it takes to run it alone, at widths other than the model's own.

An operation's *variables* are the parts of its tensors' dims that pruning can change, each a size of its own: of a
convolution its input and output channels. Dims that are made of the same axes, such as ``(heads head_dim)``, are one
variable; where another dim holds a part of them, each axis is one.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

from secateur.axes import Expr, Leaf, Prod, Sum, concat, leaves, product, size_of

Sizes = tuple[int, ...]  # of an operation's variables, in their order

# Operations whose time depends on each of their widths, not on how many numbers they read and write.
CONTRACTIONS = {
    "aten::convolution", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::_grouped_mm",
    "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable", "aten::_scaled_dot_product_attention_math",
}  # fmt: skip
MOST = 3  # variables for which a grid of sizes is timed


@dataclass(frozen=True)
class Operand:
    """A tensor among the arguments.

    Attributes:
        dims: in leaves that are named by variables: ``v0``, ``v1``.
        dtype: "float32".
        order: of its dims in memory, the slowest first.
    """

    dims: tuple[Expr, ...]
    dtype: str
    order: tuple[int, ...]

    def shape(self, sizes: Sequence[int]) -> tuple[int, ...]:
        named = _named(sizes)
        return tuple(size_of(d, named) for d in self.dims)

    def __repr__(self) -> str:
        return f"{self.dtype}{list(self.dims)}{'' if self.order == tuple(sorted(self.order)) else self.order}"


@dataclass(frozen=True)
class Operation:
    """An operation to be timed.

    Attributes:
        overload: ``aten::convolution``, with the overload where it has one.
        arguments: by name, tensors as operands.
        outputs: the dims of its results.
        dense: the sizes that its variables have in the model.
        device: where it runs.
    """

    overload: str
    arguments: tuple[tuple[str, Any], ...]
    outputs: tuple[tuple[Expr, ...], ...]
    dense: Sizes
    device: str = "cpu"

    @property
    def name(self) -> str:
        return self.overload.partition(".")[0]

    @property
    def key(self) -> str:
        """The operation in one line of text: alike for those that take the same time at the same sizes."""
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments)
        return f"{self.overload}({arguments})"

    @property
    def gridded(self) -> bool:
        """Whether its time depends on each variable by itself; else on the number of elements alone."""
        return self.name in CONTRACTIONS and 0 < len(self.dense) <= MOST

    def operands(self) -> list[Operand]:
        return [value for _, argument in self.arguments for value in _flat(argument) if isinstance(value, Operand)]

    def tensors(self) -> list[tuple[Expr, ...]]:
        """The dims of everything that it reads and writes."""
        return [*(operand.dims for operand in self.operands()), *self.outputs]

    def results(self, sizes: Sequence[int]) -> list[tuple[int, ...]]:
        """The shapes of its outputs."""
        named = _named(sizes)
        return [tuple(size_of(d, named) for d in dims) for dims in self.outputs]

    def elements(self, sizes: Sequence[int]) -> int:
        """How many numbers it reads and writes."""
        named = _named(sizes)
        return sum(prod(size_of(d, named) for d in dims) for dims in self.tensors())


@dataclass(frozen=True)
class Call:
    """An operation at its place in the model: what each of its variables is made of."""

    operation: Operation
    variables: tuple[Expr, ...]


def _named(sizes: Sequence[int]) -> dict[str, int]:
    return {f"v{k}": size for k, size in enumerate(sizes)}


def _flat(value: Any) -> Iterable[Any]:
    if isinstance(value, tuple):
        for item in cast("tuple[Any, ...]", value):
            yield from _flat(item)
    else:
        yield value


def as_call(
    overload: str,
    arguments: Iterable[tuple[str, Any]],
    outputs: Iterable[Sequence[Expr]],
    prunable: Collection[str],
    device: str = "cpu",
) -> Call:
    """An operation whose tensors have dims in the model's axes, in a form that is the same wherever it stands.

    Args:
        arguments: by name; tensors as `Operand`, in tuples where there are several.
        prunable: names of the axes that may change.
    """
    given, results = list(arguments), [tuple(dims) for dims in outputs]
    operands = [v for _, a in given for v in _flat(a) if isinstance(v, Operand)]
    found = variables([d for dims in [*(o.dims for o in operands), *results] for d in dims], prunable)
    numbers = {variable: Leaf(f"v{k}", variable.size) for k, variable in enumerate(found)}

    def named(value: Any) -> Any:
        if isinstance(value, Operand):
            return Operand(tuple(_numbered(d, numbers, prunable) for d in value.dims), value.dtype, value.order)
        return tuple(map(named, value)) if isinstance(value, tuple) else value

    operation = Operation(
        overload=overload,
        arguments=tuple((name, named(value)) for name, value in given),
        outputs=tuple(tuple(_numbered(d, numbers, prunable) for d in dims) for dims in results),
        dense=tuple(v.size for v in found),
        device=device,
    )
    return Call(operation, tuple(found))


def variables(dims: Iterable[Expr], prunable: Collection[str]) -> list[Expr]:
    """What changes in the dims, in parts that share no axis.

    >>> a, b = Leaf("a", 4), Leaf("b", 8)
    >>> variables([product([a, b, Leaf(None, 49)]), Leaf(None, 3)], ["a", "b"])
    [(a b)]
    >>> variables([product([a, b]), b], ["a", "b"])
    [a, b]
    """
    found = list(dict.fromkeys(part for d in dims for part in [_changing(d, prunable)] if part is not None))
    while clash := next((e for e in found if _parts(e) and any(e != f and _share(e, f) for f in found)), None):
        at = found.index(clash)
        inner = [part for p in _parts(clash) for part in [_changing(p, prunable)] if part is not None]
        found = list(dict.fromkeys([*found[:at], *inner, *found[at + 1 :]]))
    return found


def _changing(expr: Expr, prunable: Collection[str]) -> Expr | None:
    """The part of a dim that changes: without the constant factors of a product; None where nothing does."""
    if not any(leaf.name in prunable for leaf in leaves(expr)):
        return None
    if isinstance(expr, Prod):
        return product(part for f in expr.factors for part in [_changing(f, prunable)] if part is not None)
    return expr


def _parts(expr: Expr) -> tuple[Expr, ...]:
    return expr.factors if isinstance(expr, Prod) else expr.parts if isinstance(expr, Sum) else ()


def _share(a: Expr, b: Expr) -> bool:
    names = {leaf.name for leaf in leaves(a)} - {None}
    return any(leaf.name in names for leaf in leaves(b))


def _numbered(expr: Expr, numbers: dict[Expr, Leaf], prunable: Collection[str]) -> Expr:
    """The dim in numbered variables and constants. Only its size counts, so factors may change places."""
    changing = _changing(expr, prunable)
    if changing is None:
        return Leaf(None, expr.size)
    if changing in numbers:
        constant = expr.size // changing.size
        return numbers[changing] if constant == 1 else product([numbers[changing], Leaf(None, constant)])
    inside: Callable[[Iterable[Expr]], Expr] = product if isinstance(expr, Prod) else concat
    return inside(_numbered(part, numbers, prunable) for part in _parts(expr))
