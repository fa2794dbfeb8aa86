"""What is removed, and what each batch says of it.

One pass over the data: on each batch the dense model runs, then the model without each of the sampled units, and
without what each hint would remove. So every removal is measured on the same samples, in whatever order they come, and
what Ctrl-C leaves is all units on fewer samples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.errors import MeasureError
from secateur.graph import Graph
from secateur.hints.ablation import Ablation, OnBatch, Removal
from secateur.hints.ranks import FEWEST, agreement, reliability
from secateur.hints.result import CheckedAxis, HintCheck
from secateur.planning.choosing import removal_order
from secateur.planning.planning import choose_axes

Scores = dict[str, Mapping[str, Tensor]]
DRAWS = 4  # choices at random that the hints' choices are compared with


@dataclass
class _Batch:
    """What one batch gave: (removals,)."""

    dense: float
    samples: int
    rises: Tensor


class Work:
    """All removals, and what each batch says of them."""

    def __init__(
        self, graph: Graph, sample: Mapping[str, Sequence[int]], scores: Scores, shares: Sequence[float], seed: int
    ) -> None:
        self.graph, self.sample, self.scores = graph, sample, scores
        self.shares = tuple(sorted(shares))
        self.chosen = {axis: _choices(graph.axes[axis].size, axis, scores, self.shares, seed) for axis in sample}
        removals = [Removal(axis, (unit,)) for axis, units in sample.items() for unit in units]
        removals += [r for axis in sample for found in self.chosen[axis].values() for rs in found.values() for r in rs]
        self.at = {removal: k for k, removal in enumerate(dict.fromkeys(removals))}
        self.batches: list[_Batch] = []

    def run(self, ablation: Ablation, data: Any, count: int, tell: Callable[[int], None]) -> str:
        """Measure everything, batch by batch; what Ctrl-C cut short, in words."""
        try:
            for number, batch in enumerate(ablation.batches(data)):
                on, rises = OnBatch(ablation, batch), torch.empty(len(self.at), dtype=torch.float64)
                if not abs(on.dense) < torch.inf:
                    raise MeasureError(
                        f"the dense model's {ablation.truth} is {on.dense} on batch {number}: nothing can be compared "
                        "with that. Look for NaN in the weights and in the data."
                    )
                for removal, k in self.at.items():
                    rises[k] = on.rise(removal)
                    tell(number * len(self.at) + k + 1)
                self.batches.append(_Batch(on.dense, on.samples, rises))
        except KeyboardInterrupt:
            if not self.batches:
                raise
            return f"{len(self.batches)} of {count} batches were measured"
        return ""

    def result(self, model: str, truth: str, skipped: Mapping[str, str], seed: int) -> HintCheck:
        """The figures."""
        rises, samples = self._mean(self.batches), sum(batch.samples for batch in self.batches)
        dense = sum(batch.dense * batch.samples for batch in self.batches) / samples
        real = {axis: self._units(axis, rises) for axis in self.sample}
        found = {
            name: agreement(
                list(real.values()),
                [values[axis][list(units)] for axis, units in self.sample.items()],
                [float(values[axis].double().sum()) for axis in self.sample],
                seed,
            )
            for name, values in self.scores.items()
        }
        return HintCheck(
            model=model,
            truth=truth,
            dense=dense,
            samples=samples,
            batches=len(self.batches),
            axes=tuple(self._axis(axis, rises) for axis in self.sample),
            agreement=found,
            reliability=self._reliability(),
            skipped=skipped,
            seed=seed,
        )

    def _reliability(self) -> float | None:
        halves = [self._mean(half) for half in (self.batches[::2], self.batches[1::2]) if half]
        if len(halves) < 2:
            return None
        first, second = ([self._units(axis, half) for axis in self.sample] for half in halves)
        return reliability(first, second)

    def _axis(self, axis: str, rises: Tensor) -> CheckedAxis:
        info, units = self.graph.axes[axis], list(self.sample[axis])
        means = {
            share: {name: float(rises[[self.at[r] for r in rs]].mean()) for name, rs in found.items()}
            for share, found in self.chosen[axis].items()
        }
        return CheckedAxis(
            name=axis,
            kind=info.kind,
            size=info.size,
            units=tuple(units),
            truth=tuple(self._units(axis, rises).tolist()),
            scores={name: tuple(values[axis][units].tolist()) for name, values in self.scores.items()},
            removed={share: {n: v for n, v in found.items() if n} for share, found in means.items()},
            random={share: found[""] for share, found in means.items()},
        )

    def _units(self, axis: str, rises: Tensor) -> Tensor:
        return rises[[self.at[Removal(axis, (unit,))] for unit in self.sample[axis]]]

    def _mean(self, batches: Sequence[_Batch]) -> Tensor:
        """Mean over samples, (removals,)."""
        weights = torch.tensor([batch.samples for batch in batches], dtype=torch.float64)
        return (torch.stack([batch.rises for batch in batches]) * weights[:, None]).sum(0) / weights.sum()


def _choices(
    size: int, axis: str, scores: Scores, shares: Sequence[float], seed: int
) -> dict[float, dict[str, list[Removal]]]:
    """For each share and hint what the hint removes; under the empty name, several choices at random."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(size, generator=generator) for _ in range(DRAWS)]
    orders = {name: [removal_order(values[axis].double())] for name, values in scores.items()} | {"": drawn}
    return {
        share: {
            name: [Removal(axis, tuple(sorted(order[:count].tolist()))) for order in found]
            for name, found in orders.items()
        }
        for share in shares
        if 0 < (count := round(share * size)) < size
    }


def sample(
    graph: Graph,
    only: Iterable[str],
    ignore: Iterable[str],
    units_per_axis: int | None,
    max_units: int | None,
    seed: int,
) -> dict[str, list[int]]:
    """The units that are tried, by axis."""
    blank = {name: torch.zeros(info.size) for name, info in graph.axes.items()}
    axes = choose_axes(graph, blank, only, ignore, keep_class=False)
    generator = torch.Generator().manual_seed(seed)
    sizes = {axis: min(graph.axes[axis].size, units_per_axis or graph.axes[axis].size) for axis in axes}
    if max_units is not None:
        fitting = max(1, max_units // FEWEST)
        if len(axes) > fitting:
            lucky = set(torch.randperm(len(axes), generator=generator)[:fitting].tolist())
            axes = [axis for k, axis in enumerate(axes) if k in lucky]
        sizes = {axis: min(sizes[axis], max(FEWEST, max_units // len(axes))) for axis in axes}
    return {
        axis: sorted(torch.randperm(graph.axes[axis].size, generator=generator)[: sizes[axis]].tolist())
        for axis in axes
    }
