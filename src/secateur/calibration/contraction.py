"""A weight's use, whatever operation it is, as one matrix product: outputs = rows @ matrix, for each group.

Shape letters: G groups, R rows, K contracted features of a group, N outputs of a group, B batch, O and I channels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ELEMENTS = 2**24  # numbers of rows that are looked at in one batch, at most: 64 MB


@dataclass(frozen=True, kw_only=True)
class Contraction:
    """One call of an operation that contracts an activation with a weight.

    Attributes:
        name: the parameter that the weight is a view of.
        x, weight, bias: the operands; the weight is a view of the parameter's memory.
        x_dim, out_dim: the dim of ``x`` that is contracted (with all groups), and that of the output that comes of it.
        row_dims: the dims of ``x`` that are rows and stay as they are; the spatial ones of a convolution left out.
        groups: G.
    """

    name: str
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    x_dim: int
    out_dim: int
    row_dims: tuple[int, ...]
    groups: int = 1

    def count(self, out: Tensor | None = None) -> int:
        """How many rows there are."""
        raise NotImplementedError

    def rows(self, pick: Tensor | None = None) -> Tensor:
        """The contracted features, (R, G, K), of all rows or of those picked."""
        raise NotImplementedError

    def outputs(self, out: Tensor, pick: Tensor | None = None) -> Tensor:
        """An output of the operation, or a tensor of its shape, as (R, G, N)."""
        raise NotImplementedError

    def matrix(self) -> Tensor:
        """The weight as (G, K, N)."""
        raise NotImplementedError

    def put(self, matrix: Tensor) -> None:
        """Write a matrix (G, K, N) into the parameter; not where the weight repeats its numbers."""
        raise NotImplementedError

    def pick(self, most: int, seed: int) -> Tensor | None:
        """Rows to look at, in order, no more than fit in memory; None for all.

        Args:
            most: how many, at most.
            seed: of the choice.
        """
        return sample(self.count(), most, self.matrix().shape[:2].numel(), seed, self.x.device)

    @property
    def repeats(self) -> bool:
        """Whether the weight repeats numbers of the parameter, as ``expand`` does, so that it can't be written to."""
        return any(step == 0 and size > 1 for step, size in zip(self.weight.stride(), self.weight.shape, strict=True))

    @property
    def window(self) -> int:
        """Positions of the window for each unit of the contracted dim: K is units times window."""
        return 1


class Product(Contraction):
    """``x`` (..., K) with ``weight`` (K, N)."""

    def count(self, out: Tensor | None = None) -> int:
        return math.prod(self.x.shape[:-1])

    def rows(self, pick: Tensor | None = None) -> Tensor:
        return _picked(self.x, self.x.shape[:-1], pick)[:, None]

    def outputs(self, out: Tensor, pick: Tensor | None = None) -> Tensor:
        return _picked(out, out.shape[:-1], pick)[:, None]

    def matrix(self) -> Tensor:
        return self.weight[None]

    def put(self, matrix: Tensor) -> None:
        self.weight.copy_(matrix[0])


class Batched(Contraction):
    """``x`` (G, R, K) with ``weight`` (G, K, N): experts, or whatever has a matrix of its own."""

    def count(self, out: Tensor | None = None) -> int:
        return self.x.shape[1]

    def rows(self, pick: Tensor | None = None) -> Tensor:
        rows = self.x.transpose(0, 1)
        return rows if pick is None else rows[pick]

    def outputs(self, out: Tensor, pick: Tensor | None = None) -> Tensor:
        rows = out.transpose(0, 1)
        return rows if pick is None else rows[pick]

    def matrix(self) -> Tensor:
        return self.weight

    def put(self, matrix: Tensor) -> None:
        self.weight.copy_(matrix)


@dataclass(frozen=True, kw_only=True)
class Convolution(Contraction):
    """``x`` (B, G*I, ...) with ``weight`` (G*O, I, ...), one row for each place of the window."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    @property
    def window(self) -> int:
        return math.prod(self.kernel)

    @property
    def places(self) -> tuple[int, ...]:
        """Sizes of the output's spatial dims."""
        settings = zip(self.x.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple(
            (size + 2 * pad - dilate * (width - 1) - 1) // step + 1 for size, width, step, pad, dilate in settings
        )

    def count(self, out: Tensor | None = None) -> int:
        return self.x.shape[0] * math.prod(self.places)

    def rows(self, pick: Tensor | None = None) -> Tensor:
        padded = F.pad(self.x, [amount for pad in reversed(self.padding) for amount in (pad, pad)])
        last = padded.movedim(1, -1).contiguous()  # so that all channels of a place lie together
        steps = [stride // last.shape[-1] for stride in last.stride()[:-1]]  # in places
        first = _grid((self.x.shape[0], *self.places), [steps[0], *_times(steps[1:], self.stride)], last.device)
        window = _grid(self.kernel, _times(steps[1:], self.dilation), last.device)
        flat, first = last.reshape(-1, last.shape[-1]), first if pick is None else first[pick]
        patches = torch.stack(
            [flat.index_select(0, first + shift) for shift in window.tolist()], -1
        )  # (R, G*I, window)
        return patches.unflatten(1, (self.groups, -1)).flatten(2)

    def outputs(self, out: Tensor, pick: Tensor | None = None) -> Tensor:
        last = out.movedim(1, -1)
        return _picked(last, last.shape[:-1], pick).unflatten(1, (self.groups, -1))

    def matrix(self) -> Tensor:
        return self.weight.reshape(self.groups, -1, math.prod(self.weight.shape[1:])).transpose(1, 2)

    def put(self, matrix: Tensor) -> None:
        self.weight.copy_(matrix.transpose(1, 2).reshape(self.weight.shape))


def _grid(sizes: Sequence[int], steps: Sequence[int], device: torch.device) -> Tensor:
    """Where the places of a grid lie, in the order of its dims, when one step along each is so many places."""
    at = torch.zeros(1, dtype=torch.long, device=device)
    for size, step in zip(sizes, steps, strict=True):
        at = (at[:, None] + step * torch.arange(size, device=device)).flatten()
    return at


def _times(steps: Sequence[int], factors: Sequence[int]) -> list[int]:
    return [step * factor for step, factor in zip(steps, factors, strict=True)]


def sample(count: int, most: int, width: int, seed: int, device: torch.device) -> Tensor | None:
    """Rows to look at, in order; None for all.

    Args:
        count: how many there are.
        most: how many to look at, at most.
        width: numbers in a row; of wide rows fewer are looked at, so that they fit in memory.
        seed: of the choice.
    """
    most = min(most, max(ELEMENTS // max(width, 1), 1))
    if count <= most:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:most].sort().values.to(device)


def _picked(view: Tensor, lead: Sequence[int], pick: Tensor | None) -> Tensor:
    """The leading dims as one, whole or at the picked positions."""
    if pick is None:
        return view.reshape(math.prod(lead), *view.shape[len(lead) :])
    return view[torch.unravel_index(pick, tuple(lead))]


Owners = Callable[[Tensor], str | None]
Arguments = Mapping[str, Any]


def owners(tensors: Mapping[str, Tensor]) -> Owners:
    """A function from a tensor to the parameter whose memory it is a view of."""
    known: dict[int, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            known.setdefault(tensor.untyped_storage().data_ptr(), name)
    return lambda tensor: known.get(tensor.untyped_storage().data_ptr())


def _product(x: str, weight: str, bias: str | None, transposed: bool, args: Arguments, owner: Owners) -> Any:
    name = _weight_of(args[weight], args[x], owner)
    if name is None:
        return None
    matrix, dims = args[weight], args[x].dim()
    return Product(
        name=name,
        x=args[x],
        weight=matrix.t() if transposed else matrix,
        bias=args[bias] if bias else None,
        x_dim=dims - 1,
        out_dim=dims - 1,
        row_dims=tuple(range(dims - 1)),
    )


def _batched(x: str, weight: str, args: Arguments, owner: Owners) -> Any:
    name = _weight_of(args[weight], args[x], owner)
    if name is None:
        return None
    rows, matrix = args[x], args[weight]
    if matrix.stride(0) == 0:  # one matrix for the whole batch
        return Product(name=name, x=rows, weight=matrix[0], bias=None, x_dim=2, out_dim=2, row_dims=(0, 1))
    groups = rows.shape[0]
    return Batched(name=name, x=rows, weight=matrix, bias=None, x_dim=2, out_dim=2, row_dims=(0, 1), groups=groups)


def _convolution(args: Arguments, owner: Owners) -> Any:
    name = _weight_of(args["weight"], args["input"], owner)
    spatial = args["weight"].dim() - 2
    if name is None or args["transposed"] or args["input"].dim() != spatial + 2:
        return None

    def each(setting: str) -> tuple[int, ...]:
        values = tuple(int(v) for v in args[setting])
        return values * spatial if len(values) == 1 else values

    return Convolution(
        name=name,
        x=args["input"],
        weight=args["weight"],
        bias=args["bias"],
        x_dim=1,
        out_dim=1,
        row_dims=(0,),
        groups=int(args["groups"]),
        stride=each("stride"),
        padding=each("padding"),
        dilation=each("dilation"),
    )


def _weight_of(weight: Tensor, x: Tensor, owner: Owners) -> str | None:
    """The parameter that a weight is a view of; None where it is none, or not of real numbers, or ``x`` is one."""
    return owner(weight) if weight.is_floating_point() and owner(x) is None else None


KINDS: dict[str, Callable[[Arguments, Owners], Contraction | None]] = {
    "aten::mm": lambda args, owner: _product("self", "mat2", None, False, args, owner),
    "aten::addmm": lambda args, owner: _addmm(args, owner),
    "aten::linear": lambda args, owner: _product("input", "weight", "bias", True, args, owner),
    "aten::bmm": lambda args, owner: _batched("self", "mat2", args, owner),
    "aten::convolution": _convolution,
}


def _addmm(args: Arguments, owner: Owners) -> Any:
    """A bias that is no vector is not one of a layer's."""
    if args["beta"] != 1 or args["alpha"] != 1 or args["self"].dim() != 1:
        return None
    return _product("mat1", "mat2", "self", False, args, owner)
