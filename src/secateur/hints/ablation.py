"""The truth about units: silence them in a private copy of the model, run the data, put them back bit by bit."""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.calibration.batches import Batch, Batches, Forward, checked
from secateur.errors import DataError, ScoreError
from secateur.graph import Graph
from secateur.inputs import known_length
from secateur.modules import named_tensors
from secateur.objectives import Loss
from secateur.places import positions
from secateur.planning.plan import Plan, PlannedAxis, PlannedTensor
from secateur.proof import HOOKED, normed_by_hook, silenced_call
from secateur.tracing.running import tensors_in
from secateur.tracing.shadow import separate
from secateur.tracing.surroundings import quiet_backends, seed_draws

Truth = Literal["loss", "output"]


@dataclass(frozen=True)
class Removal:
    """Units of one axis that are silenced together, ascending."""

    axis: str
    units: tuple[int, ...]


class Ablation:
    """A private copy of a model in which units can be silenced.

    A unit is silenced as in the proof: its slices of every parameter and buffer are zero, so that after a batch norm,
    too, it gives exactly zero. Where that is not all (the model normalises over the axis, or computes a weight from
    others), the proof's own silencing runs instead, which is slower.

    Args:
        model: the model that was traced; never touched.
        graph: what `trace` found.
        truth: "loss", or "output" for the squared distance of the outputs from the dense ones, by their squared size.
        loss: ``(output, target) -> scalar``; None takes the model's own, else cross-entropy.
        forward: ``(model, batch) -> output``; None calls the model on the batch.
    """

    def __init__(
        self, model: nn.Module, graph: Graph, *, truth: Truth, loss: Loss | None = None, forward: Forward | None = None
    ) -> None:
        self.graph, self.truth, self.loss, self.forward = graph, truth, loss, forward
        self.copy = separate(model)
        self.tensors = named_tensors(self.copy)
        self.dtype = next((t.dtype for t in self.tensors.values() if t.is_floating_point()), torch.float32)
        made = {f"{name}_{part}" for name in normed_by_hook(self.copy) for part in HOOKED}
        self.special = {
            axis
            for axis, info in graph.axes.items()
            if info.normalising or any(n in made or ".parametrizations." in f".{n}" for n, _ in info.members)
        }
        self._places: dict[str, list[tuple[str, int, Tensor]]] = {}

    def batches(self, data: Any) -> Batches:
        """The batches of one pass over the data."""
        return Batches(self.copy, data, self.forward)

    def output(self, removal: Removal, batch: Batch) -> Any:
        """What the model returns on a batch with units silenced."""
        with torch.no_grad():
            if removal.axis not in self.special:
                with self.silenced(removal):
                    return self.run(batch)
            with quiet_backends():
                plan = silencing(self.graph, removal)
                return silenced_call(self.copy, self.graph, plan, partial(self.run, batch), dtype=self.dtype)[0]

    def run(self, batch: Batch, model: nn.Module | None = None) -> Any:
        """The output. Every run draws the same random numbers."""
        seed_draws()
        with torch.no_grad():
            return batch.run(model or self.copy)

    @contextmanager
    def silenced(self, removal: Removal) -> Generator[nn.Module]:
        """The copy with units silenced in place, as long as the context lasts; then its bits are what they were."""
        saved: list[tuple[Tensor, int, Tensor, Tensor]] = []
        try:
            for name, dim, places in self._members(removal.axis):
                tensor = self.tensors[name].detach()
                at = places[list(removal.units)].flatten().to(tensor.device)
                saved.append((tensor, dim, at, tensor.index_select(dim, at)))
                tensor.index_fill_(dim, at, 0)
            yield self.copy
        finally:
            for tensor, dim, at, values in reversed(saved):  # two dims of a tensor share elements
                tensor.index_copy_(dim, at, values)

    def _members(self, axis: str) -> list[tuple[str, int, Tensor]]:
        if axis not in self._places:
            self._places[axis] = [
                (name, dim, torch.cat(positions(self.graph.tensors[name].dims[dim], axis), 1))
                for name, dim in self.graph.axes[axis].members
            ]
        return self._places[axis]


class OnBatch:
    """One batch, and what the dense model makes of it.

    Attributes:
        dense: its loss; 0 for the output's distance from itself; NaN or infinite where the model gives no number.
        samples: in the batch.
    """

    def __init__(self, ablation: Ablation, batch: Batch) -> None:
        self.ablation, self.batch, self.samples = ablation, batch, batch.samples
        output = ablation.run(batch)
        self.reference = [t.detach().clone() for t in tensors_in(output) if t.is_floating_point()]
        self.dense = self._cost(output)

    def rise(self, removal: Removal) -> float:
        """How far the loss rises, or the outputs move, without some units; infinite where that is no number."""
        rise = self._cost(self.ablation.output(removal, self.batch)) - self.dense
        return rise if math.isfinite(rise) else math.inf

    def rise_with(self, small: nn.Module) -> float:
        """How far the loss rises, or the outputs move, with another model in the dense one's place."""
        return self._cost(self.ablation.run(self.batch, small)) - self.dense

    def _cost(self, output: Any) -> float:
        if self.ablation.truth == "output":
            return _distance([t for t in tensors_in(output) if t.is_floating_point()], self.reference)
        try:
            return float(self.batch.losses(output, self.ablation.loss, "truth='loss'").mean())
        except ScoreError as error:
            raise DataError(f"{error} Or take truth='output', which needs no labels.") from error


def silencing(graph: Graph, removal: Removal) -> Plan:
    """A plan that keeps all units but some: for the proof's silencing, never for surgery."""
    info = graph.axes[removal.axis]
    kept = tuple(unit for unit in range(info.size) if unit not in removal.units)
    touched = {name: graph.tensors[name] for name, _ in info.members}
    return Plan(
        axes={removal.axis: PlannedAxis(kind=info.kind, before=info.size, kept=kept)},
        tensors={name: PlannedTensor(names=t.names, dims=t.dims) for name, t in touched.items()},
        model=graph.model,
    )


def _distance(got: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Squared distance from the dense outputs, by their squared size."""
    gap = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(got, reference, strict=True))
    size = sum(float(b.double().square().sum()) for b in reference)
    return gap / size if size else gap


def count_batches(data: Any, use: str) -> int:
    """How many batches there are.

    Raises:
        DataError: there is none, or it is no iterable of batches that can be iterated again.
    """
    batches = checked(data)
    if iter(batches) is batches:
        raise DataError(f"{use} is a {type(data).__name__}, which can be iterated only once: pass a list or a loader")
    known = known_length(batches)
    count = sum(1 for _ in batches) if known is None else known
    if not count:
        raise DataError(f"{use} holds no batch: nothing can be measured")
    return count
