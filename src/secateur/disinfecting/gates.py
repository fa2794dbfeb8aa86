"""A factor on every unit of a model, by which gradients can flow: where its units are made, not where they are used.

Shape letters: U units, P places of a unit.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.graph import Graph
from secateur.importance.members import Weights


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One parameter that makes the units of an axis.

    Attributes:
        axis: name of the axis.
        tensor, dim: the parameter and its dim.
        at: where each unit sits in the dim, (U, P).
        shift: whether it is added to what the units hold (a bias), not multiplied with it.
    """

    axis: str
    tensor: str
    dim: int
    at: Tensor
    shift: bool

    def along(self, factor: Tensor, weight: Tensor) -> Tensor:
        """A factor for each unit, (U,), in the form that broadcasts to the parameter."""
        at = self.at.to(factor.device)
        whole = factor.new_ones(weight.shape[self.dim]).index_put((at,), factor[:, None].expand(at.shape))
        return whole.reshape([-1 if k == self.dim else 1 for k in range(weight.dim())])


def gates(model: nn.Module, graph: Graph, followed: Collection[str], axes: Collection[str]) -> list[Gate]:
    """The parameters that make the units of some axes, where they leave them: of a layer that a batch norm follows, the
    norm's.

    Args:
        followed: names of layers that a batch norm follows.
        axes: names of axes.
    """
    weights = Weights.of(model)
    used = {(c.tensor, c.dim, axis) for c in graph.consumers for axis in c.axes}
    return [
        Gate(
            axis=axis,
            tensor=name,
            dim=dim,
            at=weights.places(graph.tensors[name].dims[dim], axis),
            shift=name.rpartition(".")[2] == "bias",
        )
        for axis in axes
        for name, dim in graph.axes[axis].members
        if graph.tensors[name].parameter and (name, dim, axis) not in used and name.rpartition(".")[0] not in followed
    ]


def gated(
    weights: Mapping[str, Tensor],
    gates: Sequence[Gate],
    masks: Mapping[str, Tensor],
    moves: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Parameters with their units multiplied: w (mask + move), and of a bias b mask (1 + move); dtypes stay.

    Args:
        weights: all parameters by name.
        masks: a factor for each unit, (U,), by axis.
        moves: a perturbation for each unit of each gate, (U,).
    """
    new = dict(weights)
    for k, gate in enumerate(gates):
        factor = masks[gate.axis]
        if moves is not None:
            factor = factor * (1 + moves[k]) if gate.shift else factor + moves[k]
        weight = new[gate.tensor]
        new[gate.tensor] = (weight * gate.along(factor, weight)).to(weight.dtype)
    return new


def ones(graph: Graph, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """A factor of 1 for every unit, by axis."""
    return {name: torch.ones(info.size, device=device) for name, info in graph.axes.items()}
