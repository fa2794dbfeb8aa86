"""The units of a model's axes while it trains: their sizes, and scaling them in place; and who says which of them go.

Shape letters: U units, P places of a unit in a dim.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import TrainingError
from secateur.graph import Graph
from secateur.importance.protocols import Criterion
from secateur.importance.scoring import score
from secateur.modules import named_parameters
from secateur.places import positions
from secateur.planning import Plan, plan

Planner = Callable[[nn.Module], Plan]
"""Says of a model as it is which units would go."""


def planner(
    graph: Graph, importance: str | Criterion = "l2", *, data: Iterable[Any] | None = None, **reach: Any
) -> Planner:
    """What scores a model as it is, and plans by that.

    Args:
        graph: of the model.
        importance, data: as for `secateur.score`.
        reach: settings of `secateur.plan`: exactly one of budget, threshold and keep, and further ones.
    """

    def choose(model: nn.Module) -> Plan:
        return plan(graph, score(model, graph, importance, data), **reach)

    return choose


def pack(chosen: Plan | None) -> str:
    """A plan as text, for checkpoints; empty without one."""
    return "" if chosen is None else json.dumps(chosen.to_dict())


def unpack(text: str) -> Plan | None:
    """What `pack` wrote."""
    return Plan.from_dict(json.loads(text)) if text else None


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Where the units of one axis sit in one dim of a parameter.

    Attributes:
        at: a matrix (U, P) for each occurrence of the axis in the dim.
    """

    name: str
    parameter: nn.Parameter
    dim: int
    at: tuple[Tensor, ...]

    def squares(self) -> Tensor:
        """Sum of the squares of each unit's weights, (U,)."""
        tensor = self.parameter.detach()
        tensor = tensor.abs() if tensor.is_complex() else tensor
        others = [k for k in range(tensor.dim()) if k != self.dim]
        wide = torch.promote_types(tensor.dtype, torch.float32)
        norms = torch.linalg.vector_norm(tensor, dim=others, dtype=wide) if others else tensor.abs().to(wide)
        sums = norms.square()
        return torch.stack([sums[at].sum(1) for at in self.at]).sum(0)

    @property
    def numbers(self) -> int:
        """Weights of each unit."""
        return sum(at.shape[1] for at in self.at) * (self.parameter.numel() // self.parameter.shape[self.dim])

    def scale_(self, factors: Tensor) -> None:
        """Multiply each unit's weights with its factor, (U,), in place."""
        tensor = self.parameter.detach()
        along = torch.ones(tensor.shape[self.dim], dtype=factors.dtype, device=tensor.device)
        for at in self.at:
            along[at] *= factors.to(tensor.device)[:, None]
        shape = [-1 if k == self.dim else 1 for k in range(tensor.dim())]
        tensor.mul_(along.to(tensor.dtype).reshape(shape))


def slices(model: nn.Module, graph: Graph, axes: Iterable[str]) -> dict[str, list[Slices]]:
    """All parameters' slices that go with the units of some axes; weights in two dims of one axis are there twice.

    Raises:
        TrainingError: the model lacks parameters that the graph speaks of, or computes them from others.
    """
    known = named_parameters(model)
    found: dict[str, list[Slices]] = {}
    lost: dict[str, None] = {}
    for axis in axes:
        own = found[axis] = list[Slices]()
        for name, dim in graph.axes[axis].members:
            info = graph.tensors[name]
            if not info.parameter:
                continue
            if name not in known or known[name].shape != info.shape or ".parametrizations." in f".{name}":
                lost[name] = None
                continue
            at = tuple(places.to(known[name].device) for places in positions(info.dims[dim], axis))
            own.append(Slices(name=name, parameter=known[name], dim=dim, at=at))
    if lost:
        raise TrainingError(
            f"{', '.join(list(lost)[:3])}{' ...' * (len(lost) > 3)} of the graph are no plain parameters of this "
            f"{type(model).__name__}, or of other shapes. Trace the model that is trained; leave axes of parametrised "
            "weights out by ignore=; and don't join this with low-rank changes"
        )
    return found


def gone(graph: Graph, chosen: Plan) -> dict[str, Tensor]:
    """Which units of which axes a plan removes, (U,) bool each."""
    masks: dict[str, Tensor] = {}
    for axis, kept in chosen.units.items():
        masks[axis] = torch.ones(graph.axes[axis].size, dtype=torch.bool).index_fill_(0, kept, False)
    return masks


def step_sizes(optimizer: torch.optim.Optimizer) -> Mapping[int, float]:
    """How far a constant gradient of 1 moves each parameter in a step, by id: momentum adds to the rate.

    Methods that divide gradients by their size (Adam) count as if these were 1.
    """
    found: dict[int, float] = {}
    for group in optimizer.param_groups:
        momentum = float(group.get("momentum", 0.0))
        longer = (1 - float(group.get("dampening", 0.0))) / (1 - momentum) if momentum else 1.0
        found |= {id(p): float(group["lr"]) * longer for p in group["params"] if p.requires_grad}
    return found
