"""Choices between equals: two models that compute the same up to rounding may sort equal scores in another order.

The proof compares outputs. Where a model picks by value (top-k, sorting, thresholds: all detection models do), a
difference in the last bit can swap two detections. So what one run picked is noted, and the other run is made to pick
the same, wherever its own values leave that choice open.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.tracing.rules.registry import signature

COMPARISONS = {"aten::gt", "aten::lt", "aten::ge", "aten::le"}
RANKINGS = {"aten::sort", "aten::topk", "aten::argsort", "aten::argmax", "aten::argmin", "aten::max", "aten::min"}


@dataclass(frozen=True)
class Choice:
    """One operation that picked: its name, the shape that it picked from, and what it gave."""

    name: str
    shape: tuple[int, ...]
    result: Tensor


class Note(TorchDispatchMode):
    """Notes every choice of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.choices: list[Choice] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (picked := _picked(func, args, out)) is not None:
            self.choices.append(Choice(signature(func).name, tuple(args[0].shape), picked))
        return out


class Follow(TorchDispatchMode):
    """Repeats noted choices where the run's own values are equal to within a tolerance.

    Args:
        choices: of the run to follow, in order.
        tolerance: largest difference between equals, as a share of the largest value.
    """

    def __init__(self, choices: Sequence[Choice], tolerance: float) -> None:
        super().__init__()
        self.choices, self.tolerance = list(choices), tolerance
        self.at = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        picked = _picked(func, args, out)
        if picked is None:
            return out
        choice = self.choices[self.at] if self.at < len(self.choices) else None
        self.at += 1
        if choice is None or (choice.name, choice.shape) != (signature(func).name, tuple(args[0].shape)):
            return out
        if choice.result.shape != picked.shape or torch.equal(choice.result, picked):
            return out
        if choice.name in COMPARISONS:
            return _compare(args, out, choice.result, self.tolerance)
        given = signature(func).bind(args, kwargs or {})["dim"]
        dim = None if given is None else int(given) % max(args[0].dim(), 1)
        return _rank(args[0], dim, out, choice.result, self.tolerance)


def _picked(func: Any, args: Sequence[Any], out: Any) -> Tensor | None:
    """The choice that an operation made: positions, or a mask."""
    name = signature(func).name
    if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return None
    if name in COMPARISONS:
        return cast(Tensor, out)
    if name in RANKINGS:
        last = out if isinstance(out, Tensor) else out[-1]
        return last if last.dtype == torch.int64 else None
    return None


def _close(a: Tensor, b: Tensor, scale: Tensor, tolerance: float) -> Tensor:
    finite = scale[scale.isfinite()].abs()
    return ((a - b).abs() <= tolerance * (finite.max() if finite.numel() else 1.0)) | (a == b)


def _compare(args: Sequence[Any], out: Tensor, noted: Tensor, tolerance: float) -> Tensor:
    other = torch.as_tensor(args[1], dtype=args[0].dtype, device=args[0].device)
    return torch.where(_close(args[0], other, args[0], tolerance), noted, out)


def _rank(values: Tensor, dim: int | None, out: Any, noted: Tensor, tolerance: float) -> Any:
    own = out if isinstance(out, Tensor) else out[-1]
    if dim is None:  # of the flattened tensor
        values, dim, keep = values.flatten(), 0, False
    else:
        keep = own.dim() == values.dim()
    at = [t if keep else t.reshape(*t.shape[:dim], 1, *t.shape[dim:]) for t in (own, noted)]
    mine, theirs = (values.gather(dim, t) for t in at)
    if not bool(_close(mine, theirs, values, tolerance).all()):
        return out
    return noted if isinstance(out, Tensor) else (theirs if keep else theirs.squeeze(dim), noted)
