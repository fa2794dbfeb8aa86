"""What one pass over the data found, as sums that grow batch by batch.

Shape letters: F features (all groups), G groups, K features of a group with the window, N outputs of a group, U units.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.calibration.sites import Site
from secateur.calibration.watching import Key
from secateur.graph import Graph
from secateur.places import positions


@dataclass(kw_only=True)
class Inputs:
    """What a use of a weight was given: sums over rows, by feature, (F,) float64.

    Attributes:
        rows: how many, or how much they weigh.
        total, magnitude, square: sums of x, |x| and x^2.
        positive: how many are above 0.
    """

    rows: float
    total: Tensor
    magnitude: Tensor
    square: Tensor
    positive: Tensor

    @staticmethod
    def of(x: Tensor, dim: int) -> "Inputs":
        """Of one activation, whose features lie along a dim."""
        wide = x.float()
        return Inputs(
            rows=x.numel() // max(x.shape[dim], 1),
            total=_sum(wide, dim),
            magnitude=_sum(wide.abs(), dim),
            square=_sum(wide.square(), dim),
            positive=_sum((wide > 0).float(), dim),
        )

    def __add__(self, other: "Inputs") -> "Inputs":
        return Inputs(
            rows=self.rows + other.rows,
            total=self.total + other.total,
            magnitude=self.magnitude + other.magnitude,
            square=self.square + other.square,
            positive=self.positive + other.positive,
        )

    def times(self, factor: float) -> "Inputs":
        """The same with another weight."""
        return Inputs(**{name: value * factor for name, value in vars(self).items()})


def _sum(values: Tensor, dim: int) -> Tensor:
    others = [k for k in range(values.dim()) if k != dim % values.dim()]
    return wide(values.sum(others) if others else values)


def wide(values: Tensor) -> Tensor:
    """As float64, which one kind of device does not have."""
    return values.cpu().double() if values.device.type == "mps" else values.double()


@dataclass(kw_only=True)
class Statistics:
    """What one pass over the data found.

    Attributes:
        sites: every use of a weight, in order.
        needs: what was asked for.
        batches, samples: how many there were.
        inputs: by use: what it was given.
        matrices: by use: the weight as a matrix for each group, (G, K, N), a view of the model's own where it can be.
        windows: by use: positions of the window, so that K is features of a group times window.
        softmax: by axis: mean over rows of the softmax across its units, (U,).
        gate: by axis: mean over samples of the derivative of the loss by a factor on the unit, (U,).
        gate_magnitude, gate_square: the means of their absolute values and of their squares, (U,).
        gradients: by parameter: the mean gradient of the loss.
        grams: by use: mean products of features, (G, K, K) float64; uses with a K above the limit have none.
        means: the same of the features themselves, (G, K), where a constant can be added to the outputs: to a bias, or
            to the batch norm that follows.
        slopes: by use: the factors of a batch norm that follows, (G, N); ones where none does.
        streams: by use: the sum that its output becomes part of, a residual stream; no entry where it is added to
            nothing.
        sensitivity: by use: mean over samples of the sum over rows of the squared derivative of the loss by each
            output, (G, N).
    """

    sites: dict[Key, Site]
    needs: frozenset[str] = frozenset()
    batches: int = 0
    samples: int = 0
    inputs: dict[Key, Inputs] = field(default_factory=dict[Key, Inputs])
    matrices: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])
    windows: dict[Key, int] = field(default_factory=dict[Key, int])
    softmax: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    gate: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    gate_magnitude: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    gate_square: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    gradients: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    grams: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])
    means: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])
    slopes: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])
    streams: dict[Key, "Moments"] = field(default_factory=dict[Key, "Moments"])
    sensitivity: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])

    def uses(self, axis: str) -> list[tuple[Key, Tensor]]:
        """The uses that consume an axis and were seen, and where its units sit in their features, (U, places)."""
        return [(key, at) for key, at in consumers(self.sites, axis) if key in self.matrices]

    def dead(self, graph: Graph) -> dict[str, int]:
        """Axes with units whose inputs were zero throughout, at every use: they are free to remove. How many."""
        found: dict[str, int] = {}
        for axis in graph.axes:
            silent = [
                (self.inputs[key].square[at.to(self.inputs[key].square.device)] == 0).all(1).cpu()
                for key, at in self.uses(axis)
            ]
            count = int(torch.stack(silent).all(0).sum()) if silent else 0
            found |= {axis: count} if count else {}
        return found


@dataclass
class Moments:
    """Sums over rows of a tensor and of its squares, by channel, (C,) float64."""

    rows: float = 0
    total: Tensor | float = 0.0
    square: Tensor | float = 0.0

    def add(self, x: Tensor, dim: int) -> None:
        """Count a tensor in, whose channels lie along a dim."""
        self.total = self.total + _sum(x.float(), dim)
        self.square = self.square + _sum(x.float().square(), dim)
        self.rows += x.numel() // max(x.shape[dim], 1)

    def times(self, factor: float) -> "Moments":
        """The same with another weight."""
        return Moments(self.rows * factor, self.total * factor, self.square * factor)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.rows + other.rows, self.total + other.total, self.square + other.square)

    @property
    def variance(self) -> Tensor:
        """Of each channel, (C,)."""
        return (torch.as_tensor(self.square) / self.rows - (torch.as_tensor(self.total) / self.rows) ** 2).clamp_min(0)


def consumers(sites: dict[Key, Site], axis: str) -> list[tuple[Key, Tensor]]:
    """The uses that contract an axis, and where its units sit in their features, (U, places).

    A grouped product whose groups go with the unit (a depthwise convolution) does not consume it: it only passes it on.
    """
    found: list[tuple[Key, Tensor]] = []
    for key, site in sites.items():
        at = positions(site.features, axis)
        if at and not (site.groups > 1 and positions(site.outputs, axis)):
            found.append((key, torch.cat(at, 1)))
    return found
