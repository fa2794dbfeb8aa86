"""What became of each parameter: the one that takes its place, the positions that it keeps, and its factor."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from secateur.axes import size_of
from secateur.errors import RemapError
from secateur.surgery.apply import factor
from secateur.surgery.reindex import take

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
        kept: positions of each dim that stay.
        factor: what the weights that stay were multiplied by, float64, to be broadcast; None for 1.
    """

    name: str
    old: Tensor
    new: Tensor | None
    kept: Mapping[int, Tensor]
    factor: Tensor | None

    @property
    def changed(self) -> bool:
        """Whether values of the old shape must be re-indexed or multiplied."""
        return bool(self.kept) or self.factor is not None

    def take(self, values: Tensor, power: int) -> Tensor:
        """What stays of values that belong to the weights one by one.

        Args:
            values: of the old parameter's shape, or with dims of 1.
            power: by which power of the factor they are divided; 1 for gradients.

        Raises:
            Unmappable: values with a dim of 1 that stand for weights of different factors.
        """
        at = {dim: kept for dim, kept in self.kept.items() if values.shape[dim] != 1 or self.old.shape[dim] == 1}
        out = take(values, at) if at else values
        if self.factor is None or power == 0:
            return out
        by = self.factor.to(out.device) ** -power
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
    for name, tensor in old.items():
        if id(tensor) in found and found[id(tensor)].new is not None:
            continue
        kept = plan.kept.get(name, {})
        found[id(tensor)] = Move(name=name, old=tensor, new=new.get(name), kept=kept, factor=factors.get(id(tensor)))
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


def _factors(plan: "Plan", old: Mapping[str, Tensor]) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for scale in plan.scales:
        names = plan.tensors[scale.tensor].names if scale.tensor in plan.tensors else (scale.tensor,)
        for tensor in {id(old[name]): old[name] for name in names if name in old}.values():
            one = factor(scale, tensor.shape, plan.kept.get(scale.tensor, {}))
            found[id(tensor)] = found[id(tensor)] * one if id(tensor) in found else one
    return found
