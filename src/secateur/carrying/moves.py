"""What became of each parameter: the one that takes its place, the positions that it keeps, and its factor."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from secateur.axes import size_of
from secateur.errors import RemapError
from secateur.surgery.apply import factor
from secateur.surgery.reindex import take
from secateur.surgery.splits import along, gradients, shares

if TYPE_CHECKING:
    from secateur.planning.plan import Plan


class Unmappable(RemapError):
    """Values of which nobody can say what becomes of them; caught, and told as a warning."""


@dataclass(frozen=True, kw_only=True)
class Move:
    """One parameter of the dense model, and what took its place.

    Attributes:
        name: qualified.
        old, new: the parameters; ``new`` is None where the smaller model has none of that name.
        kept: positions of each dim that stay, repeated ones repeatedly.
        factor: what the weights that stay were multiplied by, float64, to be broadcast; None for 1.
        gradient: what their gradients are of the old ones, likewise: 1/f where weights are multiplied by f, and 1/m
            where a unit has m copies, unless it is the unit's consumers that were divided.
    """

    name: str
    old: Tensor
    new: Tensor | None
    kept: Mapping[int, Tensor]
    factor: Tensor | None
    gradient: Tensor | None

    @property
    def changed(self) -> bool:
        """Whether values of the old shape must be re-indexed or multiplied."""
        return bool(self.kept) or self.factor is not None or self.gradient is not None

    def take(self, values: Tensor, power: int) -> Tensor:
        """What stays of values that belong to the weights one by one.

        Args:
            values: of the old parameter's shape, or with dims of 1.
            power: with which power of the gradient they grow: 1 for gradients, -1 for what grows as weights do.

        Raises:
            Unmappable: values with a dim of 1 that stand for weights of different factors.
        """
        at = {dim: kept for dim, kept in self.kept.items() if values.shape[dim] != 1 or self.old.shape[dim] == 1}
        out = take(values, at) if at else values
        per = self.gradient if power > 0 else self.factor
        if per is None or power == 0:
            return out
        by = per.to(out.device) ** abs(power)
        if any(a > 1 and b == 1 for a, b in zip(by.shape, out.shape, strict=True)):  # a mean over that dim
            if bool((by != by.flatten()[0]).any()):
                raise Unmappable("it holds means over weights that are multiplied by different factors")
            by = by.flatten()[0]
        return (out * by).to(values.dtype)


def moves(plan: "Plan", old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[int, Move]:
    """What became of the parameters, by the id of the old ones.

    Raises:
        RemapError: a parameter has another shape than the plan says.
    """
    found: dict[int, Move] = {}
    wrong: list[str] = []
    factors = _factors(plan, old)
    first = {alias: name for name, tensor in plan.tensors.items() for alias in tensor.names}
    for name, tensor in old.items():
        if id(tensor) in found and found[id(tensor)].new is not None:
            continue
        kept = plan.kept.get(name, {})
        found[id(tensor)] = Move(
            name=name,
            old=tensor,
            new=new.get(name),
            kept=kept,
            factor=times(factors.get(id(tensor)), _parts(plan, first.get(name), tensor.shape)),
            gradient=times(_inverse(factors.get(id(tensor))), gradients(first.get(name), plan, tensor.shape)),
        )
        wrong += _misfits(plan, found[id(tensor)])
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise RemapError(
            f"{'; '.join(wrong[:3])}{more}. Give the parameters from before and after this plan was carried out: "
            "old = dict(model.named_parameters()), taken before plan.apply_(model)."
        )
    return found


def _misfits(plan: "Plan", move: Move) -> Iterable[str]:
    planned = plan.dims.get(move.name)
    if planned is not None and tuple(move.old.shape) != (wanted := tuple(d.size for d in planned)):
        yield f"the old {move.name} is {list(move.old.shape)}, planned for {list(wanted)}"
    if move.new is not None:
        after = tuple(move.old.shape) if planned is None else tuple(size_of(d, plan.sizes) for d in planned)
        if tuple(move.new.shape) != after:
            yield f"the new {move.name} is {list(move.new.shape)}, and should be {list(after)}"


def times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The product of two factors, either of which may be missing."""
    return b if a is None else a if b is None else a * b


def _inverse(factor: Tensor | None) -> Tensor | None:
    return None if factor is None else 1 / factor


def _parts(plan: "Plan", name: str | None, shape: Sequence[int]) -> Tensor | None:
    """What weights that are divided among copies are multiplied by."""
    found: Tensor | None = None
    for split in (s for s in plan.splits if s.tensor == name):
        found = times(found, along(shares(split, plan), split.dim, len(shape)))
    return found


def _factors(plan: "Plan", old: Mapping[str, Tensor]) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for scale in plan.scales:
        names = plan.tensors[scale.tensor].names if scale.tensor in plan.tensors else (scale.tensor,)
        for tensor in {id(old[name]): old[name] for name in names if name in old}.values():
            one = factor(scale, tensor.shape, plan.kept.get(scale.tensor, {}))
            found[id(tensor)] = found[id(tensor)] * one if id(tensor) in found else one
    return found
