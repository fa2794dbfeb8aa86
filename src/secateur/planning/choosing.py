"""Scores and a target become widths: greedy removal, least score per cost first, in closed form, no loop over units.

Letters: A axes, L lanes (an axis, or tied axes that go together), S steps of all lanes in the order of removal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd, lcm

import torch
from torch import Tensor

from secateur.costs import Costs

LEAPS = tuple(4.0**-k for k in range(1, 8))  # shares of a gap that may be closed at once, without looking
SLACK = 0.01  # a budget is met when the cost is within this share below the target


@dataclass(frozen=True, kw_only=True)
class Lane:
    """Axes that lose units together, in equal shares, and the order in which each loses them.

    Attributes:
        axes: names; usually one.
        shares: units of each axis that one unit of the lane stands for; 1 where the axes are of equal size.
        order: for each axis its units, the first to go first, (size,).
        losses: score that goes with the k-th unit of the lane, summed over the axes, each axis's scores adding up to
            1, (units of the lane,).
        costs: the same of the scores as they are, in a unit that all axes share, (units of the lane,).
        values: the scores themselves, averaged over the axes, ascending, (units of the lane,).
        sizes: the widths in units of the lane that it may take, descending; the first is the original.
        family: number of the family of like lanes that it is ranked with.
    """

    axes: tuple[str, ...]
    shares: tuple[int, ...]
    order: tuple[Tensor, ...]
    losses: Tensor
    costs: Tensor
    values: Tensor
    sizes: tuple[int, ...]
    family: int


def lane(
    axes: Mapping[str, int],
    scores: Mapping[str, Tensor],
    least: Sequence[int],
    steps: Sequence[int],
    family: int,
) -> Lane:
    """Put axes of the given sizes in a lane, which leaves each at least so many units and a multiple of its step.

    Of equal scores the later unit goes first.
    """
    units = gcd(*axes.values())
    orders: list[Tensor] = []
    losses = torch.zeros(units, dtype=torch.float64)
    means = torch.zeros(units, dtype=torch.float64)
    costs = torch.zeros(units, dtype=torch.float64)
    for axis, size in axes.items():
        values = scores[axis].double()
        order = removal_order(values)
        means += values[order].reshape(units, -1).mean(1) / len(axes)
        costs += values[order].reshape(units, -1).sum(1)
        values = values[order] - min(0.0, float(values.min()))  # shares need scores that are not negative
        total = float(values.sum())
        values = values / total if total > 0 else torch.full_like(values, 1 / size)
        losses += values.reshape(units, -1).sum(1)
        orders.append(order)
    shares = tuple(size // units for size in axes.values())
    return Lane(
        axes=tuple(axes),
        shares=shares,
        order=tuple(orders),
        losses=losses,
        costs=costs,
        values=means,
        sizes=allowed(units, shares, least, steps),
        family=family,
    )


def removal_order(scores: Tensor) -> Tensor:
    """The units of an axis, the first to go first, (size,)."""
    return len(scores) - 1 - torch.argsort(scores.flip(0), stable=True)


def allowed(units: int, shares: Sequence[int], least: Sequence[int], steps: Sequence[int]) -> tuple[int, ...]:
    """Widths from the original down that leave every axis its least number of units, and a multiple of its step."""
    stride = lcm(*(step // gcd(step, share) for share, step in zip(shares, steps, strict=True)))
    fewest = max(1, *(-(-count // share) for share, count in zip(shares, least, strict=True)))
    return (units, *range((units - 1) // stride * stride, fewest - 1, -stride))


@dataclass(frozen=True)
class Steps:
    """Every step of every lane, lane after lane, as vectors (S,)."""

    lane: Tensor  # which lane
    units: Tensor  # units that the step removes
    price: Tensor  # what the step loses a unit, never falling along a lane
    number: Tensor  # which step of its lane, from 1

    @staticmethod
    def of(lanes: Sequence[Lane], scope: str) -> "Steps":
        ranks = ranked(lanes) if scope == "isomorphic" else [None] * len(lanes)
        rows = [_steps(k, ln, scope, rank) for k, (ln, rank) in enumerate(zip(lanes, ranks, strict=True))]
        return Steps(*(torch.cat(column) for column in zip(*rows, strict=True)))


def ranked(lanes: Sequence[Lane]) -> list[Tensor]:
    """For every unit of each lane, in the order of removal, the share of its family's units that go no later.

    Fang et al. 2024, "Isomorphic Pruning for Vision Models", arXiv:2407.04616: scores are only compared within a
    family of like structures, and every family loses the same share.
    """
    ranks: list[Tensor] = [ln.values for ln in lanes]
    for family in dict.fromkeys(ln.family for ln in lanes):
        members = [k for k, ln in enumerate(lanes) if ln.family == family]
        pool = torch.cat([lanes[k].values for k in members])
        rank = torch.empty_like(pool)
        rank[torch.argsort(pool, stable=True)] = torch.arange(1, len(pool) + 1, dtype=pool.dtype) / len(pool)
        for k, part in zip(members, rank.split([len(lanes[k].values) for k in members]), strict=True):
            ranks[k] = part
    return ranks


def _steps(number: int, ln: Lane, scope: str, rank: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sizes = torch.tensor(ln.sizes, dtype=torch.long)
    units = sizes[:-1] - sizes[1:]
    gone = ln.sizes[0] - sizes
    if scope == "local":
        price = gone[1:].double() / ln.sizes[0]
    elif rank is not None:
        price = rank[gone[1:] - 1]
    elif scope == "comparable":
        lost = torch.cat([ln.costs.new_zeros(1), ln.costs.cumsum(0)])[gone]
        price = (lost[1:] - lost[:-1]) / units
        price = price.cummax(0).values if len(price) else price
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
    axis gets dearer as it empties, times what the whole axis costs in the original; its price is that loss by what
    removing it saves now. So at first all axes are on a par, whatever their scores' units and their width. Where scores
    of all axes have one unit (scope "comparable"), the loss is the score itself. Local scope: the price is the share
    of the axis that is gone, whatever it saves, so every axis shrinks alike. Isomorphic scope: the price is the unit's
    rank within its family, whatever it saves, so every family shrinks alike.
    """

    def __init__(
        self, lanes: Sequence[Lane], costs: Costs, targets: Mapping[str, float], scope: str, start: Tensor | None = None
    ) -> None:
        self.lanes, self.costs, self.targets, self.scope = lanes, costs, targets, scope
        self.steps = Steps.of(lanes, scope)
        self.at = torch.zeros(len(lanes), dtype=torch.long)  # steps taken, by lane
        self.bumpy = "latency" in targets  # no polynomial, and steps of very different widths side by side
        sizes = [torch.tensor(ln.sizes, dtype=torch.float64) for ln in lanes]
        self.sizes = torch.nn.utils.rnn.pad_sequence(sizes, batch_first=True, padding_value=0.0)  # (L, most steps)
        pairs = [(costs.order[a], k) for k, ln in enumerate(lanes) for a in ln.axes]
        self.axis_of = torch.tensor([p[0] for p in pairs], dtype=torch.long)
        self.lane_of = torch.tensor([p[1] for p in pairs], dtype=torch.long)
        self.shares = torch.tensor([share for ln in lanes for share in ln.shares], dtype=torch.float64)
        # What each whole lane costs.
        self.weights = self._worths() if self.bumpy else self.savings() * self.sizes[:, 0]
        if start is not None:
            self.at = start

    def _worths(self) -> Tensor:
        """What narrowing each lane to its least closes of the open gaps, (L,): slopes at one width may be noise."""
        dense = self.gaps(self.at)
        found: list[float] = []
        for k, ln in enumerate(self.lanes):
            at = self.at.clone()
            at[k] = len(ln.sizes) - 1
            narrow = self.gaps(at)
            closed = sum((gap - narrow[kind]) / gap for kind, gap in dense.items() if gap > 0)
            found.append(closed * ln.sizes[0] / max(ln.sizes[0] - ln.sizes[-1], 1))
        return torch.tensor(found, dtype=torch.float64).clamp_min(1e-300)

    def vector(self, at: Tensor) -> Tensor:
        """Axis sizes (A,) after the given number of steps in each lane."""
        vector = self.costs.dense.clone()
        vector[self.axis_of] = self.sizes[self.lane_of, at[self.lane_of]] * self.shares
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
                closes = torch.zeros_like(total).index_add_(0, self.lane_of, slopes[self.axis_of] * self.shares)
                total += closes / (self.targets[kind] * gap)
        return total.clamp_min(1e-300)

    def prices(self, savings: Tensor) -> Tensor:
        """Price of every step not yet taken, infinite for the others, (S,)."""
        shifts = {"global": self.weights / savings, "comparable": 1 / savings}
        shift = shifts.get(self.scope, torch.ones_like(savings))
        price = self.steps.price * shift[self.steps.lane]
        price[self.steps.number <= self.at[self.steps.lane]] = torch.inf
        return price

    def run(self) -> Tensor:
        """Steps taken by lane, (L,), when all targets are met (or nothing is left to take)."""
        while max(self.gaps(self.at).values()) > 0 and self._leap():
            pass
        while max(self.gaps(self.at).values()) > 0 and ((self.bumpy and self._leap()) or self._step()):
            pass
        return self.at

    def _leap(self) -> bool:
        """Take the cheapest steps that together close at most a quarter of the gap; less where they close more than the
        first order says, as measured times may. False when a leap is one step or less.
        """
        savings = self.savings()
        price = self.prices(savings)
        order = torch.argsort(price, stable=True)
        closes = savings[self.steps.lane] * self.steps.units
        order = order[torch.isfinite(price)[order]]
        if self.bumpy:  # steps that would overshoot keep no others back
            order = order[self._before(closes > 1 + SLACK)[order]]
        closed = closes[order].cumsum(0)
        for part in LEAPS if self.bumpy else LEAPS[:1]:
            taken = order[: int((closed <= part).sum())]
            if len(taken) < 2:
                return False
            at = self.at + torch.bincount(self.steps.lane[taken], minlength=len(self.lanes))
            if max(self.gaps(at).values()) >= 0:
                self.at = at
                return True
        return False

    def _before(self, wide: Tensor) -> Tensor:
        """The steps that come before the first wide one of their lane that is left to take, (S,), bool."""
        left = wide & (self.steps.number > self.at[self.steps.lane])
        number = torch.where(left, self.steps.number, torch.iinfo(torch.long).max)
        first = torch.full_like(self.at, torch.iinfo(torch.long).max)
        first.scatter_reduce_(0, self.steps.lane, number, "amin")
        return self.steps.number < first[self.steps.lane]

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
