"""What criteria see of a whole axis: its members, the uses of weights that consume it, and what data say of its units.

Shape letters: U units, P places of a unit, W positions of a window, G groups, K features of a group with the window, N
outputs of a group.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateur.calibration.found import Inputs, Statistics
from secateur.errors import ScoreError
from secateur.graph import Graph
from secateur.importance.members import Member, Weights, members


@dataclass(frozen=True, kw_only=True)
class Use:
    """One use of a weight that consumes an axis: outputs = inputs @ weight.

    Attributes:
        name: the parameter.
        at: where each unit sits among the features, (U, P).
        matrix: the weight of each group, (G, K, N).
        inputs: what it was given, by feature.
        window: W, positions of a convolution's window.
        gram: mean products of features, (G, K, K) float64; None where nobody asked, or K is too large.
        centre: mean of the features, (G, K) float64; None where no bias and no norm can make up for a constant.
        slope: what a batch norm that follows multiplies each output with, (G, N); ones where none does.
        stream: variance, summed over channels, of the residual stream that the output is added to; None where it is
            added to nothing.
        sensitivity: mean square of the derivative of the loss by an output, summed over a sample's rows, (G, N);
            None where nobody asked, or no derivative came.
    """

    name: str
    at: Tensor
    matrix: Tensor
    inputs: Inputs
    window: int = 1
    gram: Tensor | None = None
    centre: Tensor | None = None
    slope: Tensor | None = None
    stream: float | None = None
    sensitivity: Tensor | None = None

    @property
    def rows_of(self) -> Tensor:
        """Which rows of the matrices, one below the other, belong to each place of a unit.

        (U, P, W); or (U, P, G), where all groups see the same features.
        """
        groups, width, _ = self.matrix.shape
        if len(self.inputs.total) * self.window == groups * width:
            return self.at[:, :, None] * self.window + torch.arange(self.window)
        return self.at[:, :, None] + torch.arange(groups) * width

    @property
    def weight(self) -> Tensor:
        """All weights that a unit is multiplied with, (U, P, rest) float32."""
        rows = self.matrix.float().flatten(0, 1)  # (G*K, N)
        return rows[self.rows_of.to(rows.device)].flatten(2).to(self.inputs.total.device)

    @property
    def mean(self) -> Tensor:
        """Mean of the inputs, (U, P) float32."""
        return self._mean(self.inputs.total)

    @property
    def magnitude(self) -> Tensor:
        """Mean of the inputs' absolute values, (U, P)."""
        return self._mean(self.inputs.magnitude)

    @property
    def square(self) -> Tensor:
        """Mean of the inputs' squares, (U, P)."""
        return self._mean(self.inputs.square)

    @property
    def variance(self) -> Tensor:
        """Variance of the inputs, (U, P): squared deviations over their number less one."""
        seen = self.inputs
        deviations = seen.square - seen.total.square() / seen.rows
        return (deviations.clamp_min(0) / max(seen.rows - 1, 1))[self.at.to(deviations.device)].float()

    @property
    def positive(self) -> Tensor:
        """Share of the inputs that are above 0, (U, P)."""
        return self._mean(self.inputs.positive)

    def _mean(self, sums: Tensor) -> Tensor:
        return (sums / self.inputs.rows)[self.at.to(sums.device)].float()


@dataclass(frozen=True, kw_only=True)
class AxisView:
    """One axis and all that was found of it.

    Attributes:
        name, size: of the axis; U is the size.
        members: its parameters.
        asked: the needs that were collected.
        consumers: the uses of weights that consume it.
        found: what data say of the whole axis, by need.
    """

    name: str
    size: int
    members: Sequence[Member]
    asked: frozenset[str] = frozenset()
    consumers: Sequence[Use] = ()
    found: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def uses(self) -> Sequence[Use]:
        """The uses of weights that consume the axis; none for, say, the head size of queries and keys.

        Raises:
            ScoreError: the criterion declares no need that they come with.
        """
        if not self.asked:
            raise ScoreError("axis.uses is there for criteria that need data: needs = frozenset({'inputs'})")
        return self.consumers

    @property
    def softmax(self) -> Tensor | None:
        """Mean over the data of the softmax across units, (U,); None where nothing consumes the axis."""
        return self._of("softmax", "softmax")

    @property
    def gate(self) -> Tensor | None:
        """Mean over samples of the derivative of the loss by a factor on each unit, (U,)."""
        return self._of("gate", "gates")

    @property
    def gate_magnitude(self) -> Tensor | None:
        """Mean over samples of the absolute values of each sample's derivative, (U,)."""
        return self._of("gate_magnitude", "gates")

    @property
    def gate_square(self) -> Tensor | None:
        """Mean over samples of the squares of each sample's derivative, (U,)."""
        return self._of("gate_square", "gates")

    def _of(self, name: str, need: str) -> Tensor | None:
        if need not in self.asked:
            raise ScoreError(f"axis.{name} is there for criteria that declare it: needs = frozenset({{{need!r}}})")
        return self.found.get(name)

    def sum(self, values: Iterable[Tensor]) -> Tensor | None:
        """The sum of one vector (U,) for each member or use; None where there is none."""
        total: Tensor | None = None
        for value in values:
            value = value.detach().float().cpu()
            total = value if total is None else total + value
        return total


def view(
    model: nn.Module, graph: Graph, axis: str, weights: Weights | None = None, found: Statistics | None = None
) -> AxisView:
    """An axis as criteria see it.

    Args:
        weights: the model's, where several axes are looked at.
        found: what a pass over data found.
    """
    gradients = found.gradients if found is not None and "gradients" in found.needs else None
    own = list(members(model, graph, axis, weights, gradients))
    if found is None:
        return AxisView(name=axis, size=graph.axes[axis].size, members=own)
    tables = {
        "softmax": found.softmax,
        "gate": found.gate,
        "gate_magnitude": found.gate_magnitude,
        "gate_square": found.gate_square,
    }
    return AxisView(
        name=axis,
        size=graph.axes[axis].size,
        members=own,
        asked=found.needs,
        consumers=[
            Use(
                name=key[0],
                at=at,
                matrix=found.matrices[key],
                inputs=found.inputs[key],
                window=found.windows[key],
                gram=found.grams.get(key),
                centre=found.means.get(key),
                slope=found.slopes.get(key),
                stream=float(found.streams[key].variance.sum()) if key in found.streams else None,
                sensitivity=found.sensitivity.get(key),
            )
            for key, at in found.uses(axis)
        ],
        found={name: table[axis].float().cpu() for name, table in tables.items() if axis in table},
    )
