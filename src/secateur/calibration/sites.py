"""Where a model uses its weights: what the dims of each use are made of, and what its output is added to.

Found by one run on the example inputs, as plain data by which later runs are watched.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from secateur.axes import Expr
from secateur.calibration.contraction import KINDS, Contraction, owners
from secateur.calibration.watching import UNCOUNTED, Key, Watch, running, written
from secateur.graph import Graph
from secateur.modules import named_parameters, named_tensors
from secateur.tracing.finished import finished, live
from secateur.tracing.rules.registry import Dims, Op, Signature, tensors_among, tensors_of
from secateur.tracing.sizes import SizeMode
from secateur.tracing.surroundings import quiet_backends
from secateur.tracing.tracer import Tracer

VIEWS = {"aten::view", "aten::_unsafe_view", "aten::reshape"}
MOVES = {"aten::transpose", "aten::t", "aten::permute"}
NORMS = {"aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm"}
SUMS = {"aten::add"}


@dataclass(frozen=True, kw_only=True)
class Site:
    """One use of a weight.

    Attributes:
        features: what the contracted dim of the activation is made of, groups included.
        outputs: what the dim of the output that comes of it is made of.
        rows: what the other dims of the activation are made of, where their positions are rows of the product.
        groups: the product is one for each of so many groups of features and outputs.
    """

    features: Expr
    outputs: Expr
    rows: tuple[Expr, ...]
    groups: int


@dataclass(frozen=True, kw_only=True)
class Norm:
    """The batch norm that follows a use, by the names of its tensors; None where it has none."""

    weight: str | None
    bias: str | None
    mean: str
    var: str
    eps: float


@dataclass(frozen=True, kw_only=True)
class Follows:
    """What happens to the output of a use and to nothing else.

    Attributes:
        norm: a batch norm right after it.
        other: the operation, by its number in the run, and which of its outputs, whose result is added, known before
            the use; None where nothing is.
        moves: the dims that are swapped before the addition, as permutations, in order.
        sum: the number of the operation that adds it to a tensor of its shape; None where none does.
        bias: the parameter that is added to each channel by an operation of its own; None where there is none.
    """

    norm: Norm | None = None
    bias: str | None = None
    sum: int | None = None
    other: tuple[int, int] | None = None
    moves: tuple[tuple[int, ...], ...] = ()

    def slope(self, tensors: Mapping[str, Tensor], ones: Tensor) -> Tensor:
        """What the batch norm multiplies each channel with, (channels,); the ones that are given where there is none.

        Args:
            tensors: of the model, by name.
        """
        if self.norm is None:
            return ones
        slope = (tensors[self.norm.var] + self.norm.eps).rsqrt()
        return slope * tensors[self.norm.weight] if self.norm.weight is not None else slope

    def shift(self, tensors: Mapping[str, Tensor], ones: Tensor) -> Tensor:
        """What is added to each channel after that, by the batch norm or, where there is none, by an operation of its
        own, (channels,).

        Args:
            tensors, ones: as for `slope`.
        """
        shift = torch.zeros_like(ones)
        if self.norm is not None:
            shift = shift - tensors[self.norm.mean] * self.slope(tensors, ones)
            shift = shift if self.norm.bias is None else shift + tensors[self.norm.bias]
        return shift if self.bias is None else shift + tensors[self.bias]


Call = Callable[[nn.Module], Any]


def find_sites(model: nn.Module, graph: Graph, call: Call) -> dict[Key, Site]:
    """Every use of a weight in one run of the model, in order, with its dims in terms of the graph's axes.

    Args:
        model: ready to be run, or not; it is copied.
        graph: of the model, or of one with the same architecture.
        call: runs it on example inputs.
    """
    copy, tensors = running(model), named_tensors(model)
    tracer = _Siting(copy)
    axes = {name: tracer.algebra.fresh(info.size, name) for name, info in {**graph.axes, **graph.frozen}.items()}
    first = {id(tensors[name]): name for name in reversed(tensors)}
    for name, tensor in named_tensors(copy).items():
        tracer.introduce(tensor, [live(d, axes, tracer.algebra) for d in graph.tensors[first[id(tensors[name])]].dims])
    with quiet_backends(model), torch.no_grad(), tracer, SizeMode(tracer, tagging=False):
        call(copy)
    return tracer.sites


class _Siting(Tracer):
    """Notes the dims of every use of a weight."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(keeping=False)
        self.owner = owners(named_parameters(model))
        self.uses: dict[str, int] = {}
        self.sites: dict[Key, Site] = {}

    def _settle(self, op: Op, outputs: Sequence[Tensor], results: Sequence[Dims]) -> None:
        kind = KINDS.get(op.name)
        found = kind(op.arguments, self.owner) if kind is not None else None
        if found is not None:
            use = self.uses.get(found.name, 0)
            self.uses[found.name] = use + 1
            dims = self.dims(found.x)
            self.sites[found.name, use] = Site(
                features=finished(dims[found.x_dim]),
                outputs=finished(results[0][found.out_dim]),
                rows=tuple(finished(dims[k]) for k in found.row_dims),
                groups=found.groups,
            )
        super()._settle(op, outputs, results)


# ---------------------------------------------------------------------- what follows a use


@dataclass(frozen=True, kw_only=True)
class Followers:
    """What one run of a model says of its uses of weights.

    Attributes:
        of: for every use, in order, what happens to its output.
        shared: weights that are not for one use alone, with the reason.
        bytes: for every use, of the activations that are alive then.
        alone: vectors that one operation takes in: what is added to them shows nowhere else.
        written: tensors that the run writes to.
    """

    of: dict[Key, Follows]
    shared: dict[str, str]
    bytes: dict[Key, int]
    alone: frozenset[str]
    written: frozenset[str]


def find_followers(model: nn.Module, call: Call) -> Followers:
    """What happens to the output of every use of a weight in one run of the model."""
    copy = running(model)
    watch = Recorder(copy)
    with quiet_backends(model), torch.no_grad(), watch:
        call(copy)
    return Followers(
        of={key: watch.follow(key) for key in watch.at},
        shared=watch.shared(),
        bytes=watch.lives.at(watch.at),
        alone=frozenset(watch.alone()),
        written=written(model, copy),
    )


@dataclass
class _Lives:
    """When memory came into use and was last used, by where it lies."""

    first: dict[int, int] = field(default_factory=dict[int, int])
    last: dict[int, int] = field(default_factory=dict[int, int])
    size: dict[int, int] = field(default_factory=dict[int, int])

    def see(self, tensor: Tensor, number: int) -> None:
        """A tensor takes part in an operation."""
        storage = tensor.untyped_storage()
        at = storage.data_ptr()
        self.first.setdefault(at, number)
        self.last[at], self.size[at] = number, storage.nbytes()

    def at(self, uses: Mapping[Key, int]) -> dict[Key, int]:
        """Bytes in use at each of some operations, given by number."""
        changes: dict[int, int] = {}
        for at, size in self.size.items():
            changes[self.first[at]] = changes.get(self.first[at], 0) + size
            changes[self.last[at] + 1] = changes.get(self.last[at] + 1, 0) - size
        numbers = sorted(changes)
        totals = list(accumulate(changes[number] for number in numbers))
        return {key: totals[bisect_right(numbers, number) - 1] for key, number in uses.items()}


@dataclass
class Done:
    """An operation that ran: the values that it took and gave, by number."""

    said: Signature
    arguments: dict[str, Any]
    took: list[int]
    gave: list[int] = field(default_factory=list[int])


class Recorder(Watch):
    """Records which values every operation took and gave; a tensor that is written to becomes another value."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.tensors = tensors = named_tensors(model)
        self.name = {id(tensors[name]): name for name in reversed(tensors)}
        self.at: dict[Key, int] = {}  # which operation a use is
        self.kinds: dict[Key, type[Contraction]] = {}
        self.done: dict[int, Done] = {}
        self.value: dict[int, int] = {}  # by id of the tensor
        self.maker: dict[int, tuple[int, int]] = {}  # of a value: operation, and which output
        self.users: dict[int, list[int]] = {}
        self.alive: list[Tensor] = []
        self.values = 0
        self.used_at: set[int] = set()
        self.lives = _Lives()
        self.reasons: dict[str, str] = {}
        self.holder = owners(tensors)
        self.takers: dict[str, set[int]] = {}  # by name, the operations that take a tensor of the model in

    def used(self, key: Key, number: int, found: Contraction, compute: Any) -> Tensor:
        self.at[key], self.kinds[key] = number, type(found)
        self.used_at.add(number)
        if key[1]:
            self.reasons[key[0]] = "it is used several times in a run"
        return compute()

    def shared(self) -> dict[str, str]:
        """Weights that are not for one use alone, with the reason."""
        homes: dict[int, list[str]] = {}
        for name, parameter in named_parameters(self.model).items():
            homes.setdefault(parameter.untyped_storage().data_ptr(), []).append(name)
        tied = {names[0]: f"its memory is also that of {names[1]}" for names in homes.values() if len(names) > 1}
        return {**self.reasons, **tied}

    def alone(self) -> set[str]:
        """Vectors of the model that one operation takes in."""
        return {name for name, takers in self.takers.items() if len(takers) == 1 and self.tensors[name].dim() == 1}

    def ran(self, number: int, said: Signature, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        arguments = said.bind(args, kwargs)
        tensors = tensors_among(arguments.values())
        self._see(number, said, [*tensors, *tensors_of(out)])
        taken = [self.value_of(t) for t in tensors]
        if said.name in UNCOUNTED:  # its result is the same value
            for tensor in tensors_of(out):
                self.alive.append(tensor)
                self.value[id(tensor)] = taken[0]
            return
        done = self.done[number] = Done(said, arguments, taken)
        for value in taken:
            self.users.setdefault(value, []).append(number)
        for k, tensor in enumerate(tensors_of(out)):
            value = self._new(tensor)
            done.gave.append(value)
            self.maker[value] = number, k

    def _see(self, number: int, said: Signature, tensors: Sequence[Tensor]) -> None:
        is_use = number in self.used_at
        for tensor in tensors:
            held = self.holder(tensor)
            if held is not None and not said.is_view and said.name not in UNCOUNTED:
                self.takers.setdefault(held, set()).add(number)
            name = self.owner(tensor)
            if name is None:
                self.lives.see(tensor, number)
            elif not is_use and not said.is_view and tensor.dim() > 1:
                self.reasons.setdefault(name, f"{said.name} uses it too")

    def value_of(self, tensor: Tensor) -> int:
        """The number of the value that a tensor holds now."""
        found = self.value.get(id(tensor))
        return self._new(tensor) if found is None else found

    def _new(self, tensor: Tensor) -> int:
        self.alive.append(tensor)
        self.values += 1
        self.value[id(tensor)] = self.values
        return self.values

    def follow(self, key: Key) -> Follows:
        """What happens to the output of a use, up to where it is added to something or has several users."""
        return self.reach(key)[0]

    def reach(self, key: Key) -> tuple[Follows, int]:
        """`follow`, and the value, by number, that comes of it: the sum, where there is one."""
        start = self.at[key]
        value, norm, moves = self.done[start].gave[0], None, list[tuple[int, ...]]()
        bias: str | None = None
        while len(users := self.users.get(value, [])) == 1:
            op = self.done[users[0]]
            name = op.said.plain
            if name in NORMS and norm is None and not moves and not op.arguments["training"]:
                norm = self._norm(op.arguments)
                if norm is None:
                    break
            elif name in SUMS and bias is None and not moves and (found := self._bias(op)) is not None:
                bias = found
            elif name in SUMS and op.arguments["alpha"] == 1 and len(op.took) == 2:
                other = op.took[1] if op.took[0] == value else op.took[0]
                maker = self.maker.get(other)
                if other == value or not self._alike(op):
                    break
                known = maker is not None and maker[0] < start
                added = Follows(norm=norm, bias=bias, other=maker if known else None, moves=tuple(moves), sum=users[0])
                return added, op.gave[0]
            elif name in MOVES:
                moves.append(_permutation(op))
            elif name not in VIEWS or moves:
                break
            value = op.gave[0]
        return Follows(norm=norm, bias=bias), value

    def _bias(self, op: Done) -> str | None:
        """The parameter, one number for each channel, that an addition adds."""
        vectors = [t for t in (op.arguments["self"], op.arguments["other"]) if isinstance(t, Tensor) and t.dim() == 1]
        if op.arguments["alpha"] != 1 or len(vectors) != 1:
            return None
        return self.owner(vectors[0])

    def _alike(self, op: Done) -> bool:
        a, b = op.arguments["self"], op.arguments["other"]
        return isinstance(b, Tensor) and a.shape == b.shape

    def _norm(self, arguments: Mapping[str, Any]) -> Norm | None:
        mean, var = (self.name.get(id(arguments[k])) for k in ("running_mean", "running_var"))
        if mean is None or var is None:
            return None
        given = [k for k in ("weight", "bias") if arguments[k] is not None]
        names = {k: self.name.get(id(arguments[k])) for k in given}
        if None in names.values():
            return None
        weight, bias = names.get("weight"), names.get("bias")
        eps = arguments["eps"] if "eps" in arguments else arguments["epsilon"]
        return Norm(weight=weight, bias=bias, mean=mean, var=var, eps=float(eps))


def _permutation(op: Done) -> tuple[int, ...]:
    """Where each dim of the result comes from."""
    tensor: Tensor = op.arguments["self"]
    order = list(range(tensor.dim()))
    if op.said.plain == "aten::permute":
        return tuple(int(d) % tensor.dim() for d in op.arguments["dims"])
    a, b = (0, 1) if op.said.plain == "aten::t" else (op.arguments["dim0"], op.arguments["dim1"])
    order[a], order[b] = order[b], order[a]
    return tuple(order)
