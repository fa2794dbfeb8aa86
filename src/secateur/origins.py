"""Ints that remember where they came from.

While a model is traced, ints on its modules, and sizes read from tensor shapes, are `SourcedInt`: ordinary ints that
carry an `Origin` and keep it through arithmetic. When one reaches ``view`` or ``split``, secateur knows which attribute
or which expression the size came from. A size that went through a float has lost its origin, as a literal has none.
"""

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from secateur.axes import Expr, size_of

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}


@dataclass(frozen=True, slots=True)
class Literal:
    """A number in the code, or one that lost its origin."""

    value: int


@dataclass(slots=True, unsafe_hash=True)  # never changed; a frozen one takes three times as long to make
class Attribute:
    """An int on a module: ``module.name``, or ``module.name[index]`` where it sits in a tuple or list.

    On a config object that hangs on the module, ``name`` is the path from the module: ``config.hidden_size``. A value
    of 0 means that nothing is set there yet.
    """

    module: str
    name: str
    index: int | None = None
    value: int = 0

    def __str__(self) -> str:
        path = f"{self.module}.{self.name}" if self.module else self.name
        return path if self.index is None else f"{path}[{self.index}]"


@dataclass(frozen=True, slots=True)
class NodeArgument:
    """An argument of a node of a captured graph; ``path`` leads to it from ``(args, kwargs)``."""

    node: str
    path: tuple[int | str, ...]
    value: int = 0

    def __str__(self) -> str:
        return f"{self.node}{list(self.path)}"


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a tensor's dim."""

    dim: Expr


@dataclass(frozen=True, slots=True)
class Operation:
    """Arithmetic on sizes."""

    symbol: str
    left: "Origin"
    right: "Origin"


Site = Attribute | NodeArgument
Origin = Literal | Attribute | NodeArgument | Shape | Operation


def evaluate(origin: Origin, sizes: Mapping[str, int], settings: Mapping[Site, int]) -> int:
    """The value of a size when axes have the given sizes and sites the given settings."""
    match origin:
        case Literal():
            return origin.value
        case Attribute() | NodeArgument():
            return settings.get(origin, origin.value)
        case Shape():
            return size_of(origin.dim, sizes)
        case Operation():
            left, right = evaluate(origin.left, sizes, settings), evaluate(origin.right, sizes, settings)
            return OPERATORS[origin.symbol](left, right) if right or origin.symbol not in ("//", "%") else -1


def atoms(origin: Origin) -> Iterator[Literal | Attribute | NodeArgument | Shape]:
    """The operands at the bottom of an origin."""
    if isinstance(origin, Operation):
        yield from atoms(origin.left)
        yield from atoms(origin.right)
    else:
        yield origin


class Session(Protocol):
    """The trace that sizes belong to."""

    def escaped(self, origin: Origin) -> None:
        """A size became a float: from there on it counts as a number, not only as a size."""

    def compared(self, a: Origin, b: Origin) -> None:
        """Two sizes were compared, and were equal."""

    def bounded(self, origin: Origin, least: int) -> None:
        """The code took the way of a size that is at least so large."""


class SourcedInt(int):
    """An int with an origin, for as long as the trace that made it (``session``) runs."""

    origin: Origin
    session: Session

    def __new__(cls, value: int, origin: Origin, session: Session) -> "SourcedInt":
        self = int.__new__(cls, value)
        self.origin, self.session = origin, session
        return self

    def _apply(self, symbol: str, other: Any, *, reflected: bool = False) -> Any:
        if not isinstance(other, int) or isinstance(other, bool):
            if isinstance(other, float):
                self.session.escaped(self.origin)
            return NotImplemented
        a, b = (int(other), int(self)) if reflected else (int(self), int(other))
        mine, theirs = self.origin, origin_of(other, self.session)
        left, right = (theirs, mine) if reflected else (mine, theirs)
        return SourcedInt(OPERATORS[symbol](a, b), Operation(symbol, left, right), self.session)

    def __add__(self, other: Any) -> Any:
        return self._apply("+", other)

    def __radd__(self, other: Any) -> Any:
        return self._apply("+", other, reflected=True)

    def __sub__(self, other: Any) -> Any:
        return self._apply("-", other)

    def __rsub__(self, other: Any) -> Any:
        return self._apply("-", other, reflected=True)

    def __mul__(self, other: Any) -> Any:
        return self._apply("*", other)

    def __rmul__(self, other: Any) -> Any:
        return self._apply("*", other, reflected=True)

    def __floordiv__(self, other: Any) -> Any:
        return self._apply("//", other)

    def __rfloordiv__(self, other: Any) -> Any:
        return self._apply("//", other, reflected=True)

    def __mod__(self, other: Any) -> Any:
        return self._apply("%", other)

    def __rmod__(self, other: Any) -> Any:
        return self._apply("%", other, reflected=True)

    def __eq__(self, other: object) -> bool:
        equal = int.__eq__(self, other)  # type: ignore[operator]
        if equal is True and isinstance(other, SourcedInt) and other.session is self.session:
            self.session.compared(self.origin, other.origin)
        elif equal is False and type(other) is int and other == 1:
            self._bound(2)
        return equal

    def __ne__(self, other: object) -> bool:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    __hash__ = int.__hash__

    def _bound(self, least: int) -> None:
        """Sizes only shrink, so what the code does for larger ones needs so many units."""
        if 1 < least <= int(self) and isinstance(self.origin, Attribute | Shape):
            self.session.bounded(self.origin, least)

    def __gt__(self, other: Any) -> bool:
        if type(other) is int:
            self._bound(other + 1)
        return int.__gt__(self, other)

    def __ge__(self, other: Any) -> bool:
        if type(other) is int:
            self._bound(other)
        return int.__ge__(self, other)

    def __lt__(self, other: Any) -> bool:
        if type(other) is int:
            self._bound(other)
        return int.__lt__(self, other)

    def __le__(self, other: Any) -> bool:
        if type(other) is int:
            self._bound(other + 1)
        return int.__le__(self, other)

    def __float__(self) -> float:
        self.session.escaped(self.origin)
        return float(int(self))

    def __truediv__(self, other: Any) -> Any:
        self.session.escaped(self.origin)
        return int(self) / other

    def __rtruediv__(self, other: Any) -> Any:
        self.session.escaped(self.origin)
        return other / int(self)

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        if type(other) is int and 1 <= other <= 4 and modulus is None:
            return math.prod([self] * other, start=1)
        self.session.escaped(self.origin)
        return pow(int(self), other, modulus)

    def __neg__(self) -> Any:
        return SourcedInt(-int(self), Operation("-", Literal(0), self.origin), self.session)

    def __pos__(self) -> Any:
        return self

    def __index__(self) -> int:
        return int(self)

    def __int__(self) -> int:
        return int.__int__(self)

    def __reduce__(self) -> Any:  # copies made by the model are plain
        return int, (int(self),)


def origin_of(value: int, session: Session) -> Origin:
    """Where an int came from; a plain one, or one of an earlier trace, is a literal."""
    if isinstance(value, SourcedInt) and value.session is session:
        return value.origin
    return Literal(int(value))
