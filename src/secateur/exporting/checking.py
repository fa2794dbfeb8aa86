"""How far the outputs of a file are from those of the model."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from secateur.artifacts.probe import TOLERANCE
from secateur.errors import ExportError

EXACT = 0.0  # what whole numbers and truth values may differ by


@dataclass(frozen=True)
class Difference:
    """The largest difference of one output.

    Attributes:
        name: of the output.
        largest: in the output's unit; infinite where one side is finite and the other is not.
        scale: the largest finite absolute value of the model's own output.
        allowed: the largest share of the scale that will do.
    """

    name: str
    largest: float
    scale: float
    allowed: float

    @property
    def share(self) -> float:
        """Of the scale."""
        return self.largest / max(self.scale, 1e-30) if self.largest else 0.0

    @property
    def fits(self) -> bool:
        return self.share <= self.allowed


def difference(name: str, expected: Tensor, got: Tensor) -> Difference:
    """Compare one output.

    >>> import torch
    >>> difference("y", torch.tensor([0.0, -4.0]), torch.tensor([1.0, -4.0])).share
    0.25
    """
    allowed = TOLERANCE.get(expected.dtype, EXACT)
    ours, theirs = expected.detach().cpu().double(), got.detach().cpu().double()
    finite = ours.isfinite()
    same = finite.equal(theirs.isfinite()) and bool(
        ours[~finite].nan_to_num(1.0, 2.0, 3.0).equal(theirs[~finite].nan_to_num(1.0, 2.0, 3.0))
    )
    scale = ours[finite].abs().max().item() if finite.any() else 0.0
    if not same:
        return Difference(name, float("inf"), scale, allowed)
    largest = (ours[finite] - theirs[finite]).abs().max().item() if finite.any() else 0.0
    return Difference(name, largest, scale, allowed)


def compare(expected: Sequence[tuple[str, Tensor]], got: Sequence[Tensor], where: str) -> Difference:
    """The difference of all outputs that is largest beside what is allowed.

    Raises:
        ExportError: an output is missing, or of another shape or type, or one differs by more than is allowed.
    """
    shapes = [(list(t.shape), t.dtype) for _, t in expected], [(list(t.shape), t.dtype) for t in got]
    if shapes[0] != shapes[1]:
        raise ExportError(
            f"{where} gives outputs of other shapes or types than the model: "
            f"{_listed(got)} instead of {_listed([t for _, t in expected])}"
        )
    found = [difference(name, tensor, other) for (name, tensor), other in zip(expected, got, strict=True)]
    wrong = [d for d in found if not d.fits]
    if wrong:
        told = "; ".join(f"{d.name} by {d.largest:.3g} at a scale of {d.scale:.3g}" for d in wrong)
        raise ExportError(
            f"{where} computes something else than the model: {told}, where {wrong[0].allowed:g} of the scale is "
            "allowed"
        )
    return max(found, key=lambda d: d.share)


def _listed(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in tensors) or "none"
