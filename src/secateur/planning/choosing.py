"""Scores and a target become widths: greedy removal, least score per cost first, in closed form, no loop over units.

Letters: A axes, L lanes (an axis, or tied axes that go together), S steps of all lanes in the order of removal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.costs import Costs

SLACK = 0.01  # a budget is met when the cost is within this share below the target


@dataclass(frozen=True, kw_only=True)
class Lane:
    """Axes that lose units together, and the order in which each loses them.

    Attributes:
        axes: names; usually one.
        order: for each axis its units, the first to go first, (size,).
        losses: score that goes with the k-th removal, summed over the axes, each axis's scores adding up to 1, (size,).
        sizes: the widths it may take, descending; the first is the original.
    """

    axes: tuple[str, ...]
    order: tuple[Tensor, ...]
    losses: Tensor
    sizes: tuple[int, ...]


def lane(axes: Sequence[str], scores: Mapping[str, Tensor], size: int, min_units: int, multiple_of: int) -> Lane:
    """Put axes of one size in a lane. Of equal scores the later unit goes first."""
    orders: list[Tensor] = []
    losses = torch.zeros(size, dtype=torch.float64)
    for axis in axes:
        values = scores[axis].double()
        order = size - 1 - torch.argsort(values.flip(0), stable=True)
        values = values[order] - min(0.0, float(values.min()))  # shares need scores that are not negative
        total = float(values.sum())
        losses += values / total if total > 0 else torch.full_like(values, 1 / size)
        orders.append(order)
    return Lane(axes=tuple(axes), order=tuple(orders), losses=losses, sizes=allowed(size, min_units, multiple_of))


def allowed(size: int, min_units: int, multiple_of: int) -> tuple[int, ...]:
    """Widths from the original down to ``min_units``, all but the original multiples of ``multiple_of``."""
    least = max(1, min_units)
    return (size, *(n for n in range(size - 1, least - 1, -1) if n % multiple_of == 0))


@dataclass(frozen=True)
class Steps:
    """Every step of every lane, lane after lane, as vectors (S,)."""

    lane: Tensor  # which lane
    units: Tensor  # units that the step removes
    price: Tensor  # what the step loses a unit, never falling along a lane
    number: Tensor  # which step of its lane, from 1

    @staticmethod
    def of(lanes: Sequence[Lane], scope: str) -> "Steps":
        rows = [_steps(k, ln, scope) for k, ln in enumerate(lanes)]
        return Steps(*(torch.cat(column) for column in zip(*rows, strict=True)))


def _steps(number: int, ln: Lane, scope: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sizes = torch.tensor(ln.sizes, dtype=torch.long)
    units = sizes[:-1] - sizes[1:]
    gone = ln.sizes[0] - sizes
    if scope == "local":
        price = gone[1:].double() / ln.sizes[0]
    else:
        lost = torch.cat([ln.losses.new_zeros(1), ln.losses.cumsum(0)])[gone] / len(ln.axes)
        left = (1 - lost).clamp_min(1e-12)
        price = (left[:-1].log() - left[1:].log()).clamp_min(0) / units
        price = price.cummax(0).values if len(price) else price
    at = torch.arange(1, len(sizes))
    return torch.full_like(at, number), units, price, at


class Greedy:
    """Removes the cheapest loss first until all targets are met.

    Global scope: a unit's loss is the logarithm of the share of its axis's remaining score that goes with it, so an
    axis gets
    dearer as it empties, times what the whole axis costs in the original; its price is that loss by what removing it
    saves now. So
    at first all axes are on a par, whatever their scores' units and their width. Local scope: the price is the share
    of the axis
    that is gone, whatever it saves, so every axis shrinks alike.
    """

    def __init__(self, lanes: Sequence[Lane], costs: Costs, targets: Mapping[str, float], scope: str) -> None:
        self.lanes, self.costs, self.targets, self.scope = lanes, costs, targets, scope
        self.steps = Steps.of(lanes, scope)
        self.at = torch.zeros(len(lanes), dtype=torch.long)  # steps taken, by lane
        sizes = [torch.tensor(ln.sizes, dtype=torch.float64) for ln in lanes]
        self.sizes = torch.nn.utils.rnn.pad_sequence(sizes, batch_first=True, padding_value=0.0)  # (L, most steps)
        pairs = [(costs.order[a], k) for k, ln in enumerate(lanes) for a in ln.axes]
        self.axis_of = torch.tensor([p[0] for p in pairs], dtype=torch.long)
        self.lane_of = torch.tensor([p[1] for p in pairs], dtype=torch.long)
        self.weights = self.savings() * self.sizes[:, 0]  # what each whole lane costs

    def vector(self, at: Tensor) -> Tensor:
        """Axis sizes (A,) after the given number of steps in each lane."""
        vector = self.costs.dense.clone()
        vector[self.axis_of] = self.sizes[self.lane_of, at[self.lane_of]]
        return vector

    def gaps(self, at: Tensor) -> dict[str, float]:
        """How far each cost is above its target, as a share of the target."""
        sizes = self.vector(at)
        costs = {kind: self.costs.kinds[kind].value(sizes).item() for kind in self.targets}
        return {kind: costs[kind] / target - 1 if target else 0.0 for kind, target in self.targets.items()}

    def savings(self) -> Tensor:
        """What a unit of each lane closes of the gaps that are open, to first order, (L,)."""
        sizes = self.vector(self.at)
        total = torch.zeros(len(self.lanes), dtype=torch.float64)
        for kind, gap in self.gaps(self.at).items():
            if gap > 0:
                slopes = self.costs.kinds[kind].slopes(sizes)
                closes = torch.zeros_like(total).index_add_(0, self.lane_of, slopes[self.axis_of])
                total += closes / (self.targets[kind] * gap)
        return total.clamp_min(1e-300)

    def prices(self, savings: Tensor) -> Tensor:
        """Price of every step not yet taken, infinite for the others, (S,)."""
        shift = self.weights / savings if self.scope == "global" else torch.ones_like(savings)
        price = self.steps.price * shift[self.steps.lane]
        price[self.steps.number <= self.at[self.steps.lane]] = torch.inf
        return price

    def run(self) -> Tensor:
        """Steps taken by lane, (L,), when all targets are met (or nothing is left to take)."""
        while max(self.gaps(self.at).values()) > 0 and self._leap():
            pass
        while max(self.gaps(self.at).values()) > 0 and self._step():
            pass
        return self.at

    def _leap(self) -> bool:
        """Take the cheapest steps that together close at most a quarter of the gap. False when a leap is one step or
        less.
        """
        savings = self.savings()
        price = self.prices(savings)
        order = torch.argsort(price, stable=True)
        order = order[torch.isfinite(price[order])]
        closed = (savings[self.steps.lane] * self.steps.units)[order].cumsum(0)
        taken = order[: int((closed <= 0.25).sum())]
        if len(taken) < 2:
            return False
        at = self.at + torch.bincount(self.steps.lane[taken], minlength=len(self.lanes))
        if max(self.gaps(at).values()) < 0:
            return False
        self.at = at
        return True

    def _step(self) -> bool:
        """Take the cheapest single step that does not overshoot; where all do, the one that overshoots least."""
        price = self.prices(self.savings())
        nxt = (self.steps.number == self.at[self.steps.lane] + 1).nonzero().flatten()
        if not len(nxt):
            return False
        best: tuple[float, int] | None = None
        for step in nxt[torch.argsort(price[nxt], stable=True)].tolist():
            at = self.at.clone()
            at[self.steps.lane[step]] += 1
            worst = max(self.gaps(at).values())
            if worst >= -SLACK:
                self.at = at
                return True
            if best is None or worst > best[0]:
                best = worst, step
        assert best is not None
        self.at[self.steps.lane[best[1]]] += 1
        return True
