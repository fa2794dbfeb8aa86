"""Importance of single weights: a criterion sees a weight as a matrix, with what data said of it, and scores each.

Higher = kept longer. A criterion is any callable from a `WeightView` to scores of its shape. What looks at data says
what it ``needs``, see `secateur.sparsity.statistics.NEEDS`; one whose scores are to be compared within the rows of the
matrix only says ``within_rows = True``.

Shape letters: O outputs, C columns.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from secateur.errors import ScoreError, UnknownImportance
from secateur.sparsity.statistics import NEEDS, Statistics, spread


@dataclass(frozen=True, kw_only=True)
class WeightView:
    """One weight, as a criterion sees it.

    Attributes:
        name: the parameter's.
        weight: (O, C) float32 or float64.
        groups: of a convolution: the rows of each have inputs, and so columns, of their own.
        statistics: what data said of it.
    """

    name: str
    weight: Tensor
    groups: int = 1
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def input_norm(self) -> Tensor:
        """Root of the mean square of the input that each weight is multiplied with: (1, C), or (O, C) with groups."""
        return (self._asked("square") / max(self.statistics.rows, 1)).sqrt().to(self.weight.dtype)

    @property
    def gradient(self) -> Tensor:
        """Mean gradient of a sample's loss, (O, C)."""
        return (self._asked("gradient") / max(self.statistics.samples, 1)).to(self.weight.dtype)

    @property
    def fisher(self) -> Tensor:
        """Mean over samples of the squared gradient of a sample's loss, (O, C)."""
        return (self._asked("fisher") / max(self.statistics.samples, 1)).to(self.weight.dtype)

    def _asked(self, what: str) -> Tensor:
        found = getattr(self.statistics, what)
        if found is None:
            need = {"square": "inputs", "gradient": "gradients", "fisher": "fisher"}[what]
            raise ScoreError(
                f"no {need} of {self.name}: a criterion that reads them says needs = frozenset({{{need!r}}})"
            )
        return found if what != "square" else spread(found, len(self.weight))


@runtime_checkable
class WeightCriterion(Protocol):
    """Any callable that scores the numbers of one weight."""

    def __call__(self, view: WeightView, /) -> Tensor:
        """Score a weight, -> (O, C)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """|w|.

    LeCun et al. 1989 begin with it as what everybody does; Han et al. 2015, "Learning both Weights and Connections for
    Efficient Neural Networks", arXiv:1506.02626.
    """

    def __call__(self, view: WeightView) -> Tensor:
        """Score a weight, -> (O, C)."""
        return view.weight.abs()


@dataclass(frozen=True, kw_only=True)
class Wanda:
    """|w| times the norm of the input that it is multiplied with, compared within a row: among the inputs of an output.

    Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695.
    Differs: the root of the mean square in place of the norm, so that the score does not grow with the data.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"inputs"})
    within_rows: ClassVar[bool] = True

    def __call__(self, view: WeightView) -> Tensor:
        """Score a weight, -> (O, C)."""
        return view.weight.abs().mul_(view.input_norm)  # in place: weights may be large


@dataclass(frozen=True, kw_only=True)
class Ria:
    """|w| as a share of its row plus as a share of its column, times the norm of its input to a power.

    Zhang et al. 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models", ICLR.
    Differs: the root of the mean square in place of the norm; columns of a grouped convolution are those of a group.

    Args:
        power: of the input's norm.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"inputs"})
    power: float = 0.5

    def __call__(self, view: WeightView) -> Tensor:
        """Score a weight, -> (O, C)."""
        size = view.weight.abs()
        groups = size.unflatten(0, (view.groups, -1))
        column = groups.sum(1, keepdim=True).expand_as(groups).flatten(0, 1)
        share = _share(size, size.sum(1, keepdim=True)) + _share(size, column)
        return share * view.input_norm.pow(self.power)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.clamp_min(torch.finfo(part.dtype).tiny)


@dataclass(frozen=True, kw_only=True)
class Taylor:
    """|w dL/dw|, L the mean loss: its change to first order when the weight goes.

    Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", arXiv:1906.10771 (units; no square);
    on single weights Lee et al. 2019, "SNIP", arXiv:1810.02340.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradients"})

    def __call__(self, view: WeightView) -> Tensor:
        """Score a weight, -> (O, C)."""
        return (view.weight * view.gradient).abs()


@dataclass(frozen=True, kw_only=True)
class Fisher:
    """w^2 / 2 times the mean over samples of (dL/dw)^2, L a sample's loss: its change to second order.

    LeCun et al. 1989, "Optimal Brain Damage", with the diagonal of Fisher's information in place of the Hessian's, as
    Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", arXiv:1801.05787.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"fisher"})

    def __call__(self, view: WeightView) -> Tensor:
        """Score a weight, -> (O, C)."""
        return view.weight.square() * view.fisher / 2


@dataclass(frozen=True, kw_only=True)
class Random:
    """Uniform noise in [0, 1): the control that every criterion must beat.

    Args:
        seed: of the noise; the same seed gives the same scores for the same name.
    """

    seed: int = 0

    def __call__(self, view: WeightView) -> Tensor:
        """Score a weight, -> (O, C)."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {view.name}".encode()))
        return torch.rand(view.weight.shape, generator=generator).to(view.weight.device)


NAMED: dict[str, Callable[[int], WeightCriterion]] = {
    "magnitude": lambda seed: Magnitude(),
    "wanda": lambda seed: Wanda(),
    "ria": lambda seed: Ria(),
    "taylor": lambda seed: Taylor(),
    "fisher": lambda seed: Fisher(),
    "random": lambda seed: Random(seed=seed),
}


def names() -> list[str]:
    """Names that ``importance=`` of `secateur.sparsify` knows, besides "auto"."""
    return list(NAMED)


def criterion(importance: str | WeightCriterion, seed: int = 0) -> WeightCriterion:
    """The criterion that a name or an object stands for.

    Raises:
        UnknownImportance: nobody knows the name, or it is nothing that can be called.
    """
    if isinstance(importance, str):
        if importance not in NAMED:
            raise UnknownImportance(f"importance={importance!r}: give 'auto', one of {', '.join(NAMED)}, or a callable")
        return NAMED[importance](seed)
    if not callable(importance):
        raise UnknownImportance(f"importance={importance!r} is no name and can't be called with a WeightView")
    if unknown := needs(importance) - set(NEEDS):
        raise ScoreError(f"{importance!r} needs {', '.join(sorted(unknown))}; what data can give is {', '.join(NEEDS)}")
    return importance


def needs(rate: Any) -> frozenset[str]:
    """What a criterion needs of the data, a subset of `NEEDS`; nothing where it doesn't say."""
    return frozenset(getattr(rate, "needs", ()))


def within_rows(rate: Any) -> bool:
    """Whether scores are compared within the rows of a weight only."""
    return bool(getattr(rate, "within_rows", False))


def scored(rate: WeightCriterion, view: WeightView) -> Tensor:
    """The scores of a weight, checked: a user's own function may give anything.

    Raises:
        ScoreError: they are no finite floats of the weight's shape, or the weight itself was changed on the way.
    """
    version = view.weight._version  # torch counts changes in place; there is no public name for it
    given: Any = rate(view)
    if view.weight._version != version:
        raise ScoreError(f"{rate!r} changed the weights of {view.name} in place: work on a copy, such as weight.abs()")
    if not isinstance(given, Tensor) or given.shape != view.weight.shape or not given.is_floating_point():
        got = f"{given.dtype} of shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        wanted = tuple(view.weight.shape)
        raise ScoreError(f"{rate!r} gave {got} for {view.name}; scores are a float tensor of shape {wanted}")
    if given.numel() and not all(bool(end.isfinite()) for end in given.aminmax()):  # no copies, and NaN spreads
        raise ScoreError(f"{rate!r} gave NaN or infinite scores for {view.name}")
    return given.detach()
