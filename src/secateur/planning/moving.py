"""Where width is worth most: units go where they matter least for their cost, and come where they matter most.

Letters: L lanes (an axis, or tied axes that change together).
"""

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.costs import Cost, Costs
from secateur.planning.choosing import Lane

DEAD = 0.01  # of its axis's mean score: a unit below it is replaced where the axis grows
LEAST = 0.25  # share of an axis's units, the least, whose mean score says what one more would be worth
STEP = 0.02  # share of a lane that changes at once
NEAR = 0.99  # share of the budget that is to be used
FULL = 0.995  # share of the budget at which nothing more is looked for


@dataclass
class Move:
    """Widths of lanes that change by and by, at a cost that stays within a target.

    A unit's score is what the loss would rise by without it. Removing it loses that. One that is added is worth no more
    than the least of those that are there: the mean of the least quarter, and less the more are added, in proportion
    to the new width. Both count per cost saved or spent, as it is at the present widths. Units move as long as the best
    gain is larger than the least loss.

    Args:
        lanes: with the scores in a unit that all share.
        costs: of the model.
        kind: which of them is held.
        target: what the result may cost.
        most: the largest width of each lane, (L,).
    """

    lanes: Sequence[Lane]
    costs: Costs
    kind: str
    target: float
    most: Sequence[int]
    widths: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.widths = [ln.sizes[0] for ln in self.lanes]
        self.least = [float(ln.costs[: max(1, int(LEAST * len(ln.costs)))].clamp_min(0).mean()) for ln in self.lanes]
        self.steps = [max(1, int(STEP * ln.sizes[0])) for ln in self.lanes]

    def run(self) -> list[int]:
        """The new width of each lane."""
        for _ in range(100_000):
            gain, loss = self._best_gain(), self._least_loss()
            if self.cost > self.target:
                if loss is None:
                    break
                self._shrink(loss[1])
            elif (
                gain is None or (loss is not None and gain[0] <= loss[0]) or (loss is None and not self._fits(gain[1]))
            ):
                break
            else:
                self.widths[gain[1]] = min(self.widths[gain[1]] + self.steps[gain[1]], self.most[gain[1]])
        self._fill()
        self._nudge()
        return self.widths

    @property
    def cost(self) -> float:
        """At the present widths."""
        return self._cost(self.widths)

    def _cost(self, widths: Sequence[int]) -> float:
        sizes = {
            a: w * s for ln, w in zip(self.lanes, widths, strict=True) for a, s in zip(ln.axes, ln.shares, strict=True)
        }
        return float(self._held.value(self.costs.vector(sizes)))

    @property
    def _held(self) -> Cost:
        return self.costs.kinds[self.kind]

    def _slopes(self) -> list[float]:
        """What one unit of each lane costs at the present widths, (L,)."""
        sizes = {
            a: w * s
            for ln, w in zip(self.lanes, self.widths, strict=True)
            for a, s in zip(ln.axes, ln.shares, strict=True)
        }
        found = self._held.slopes(self.costs.vector(sizes))
        return [
            max(float(sum(found[self.costs.order[a]] * s for a, s in zip(ln.axes, ln.shares, strict=True))), 1e-9)
            for ln in self.lanes
        ]

    def _gain(self, k: int, slope: float) -> float:
        """Of one more unit of a lane, per cost."""
        ln, width = self.lanes[k], self.widths[k]
        if width < ln.sizes[0]:  # one that went comes back
            return float(ln.costs[ln.sizes[0] - width - 1]) / slope
        return self.least[k] * ln.sizes[0] / (width + 1) / slope

    def _best_gain(self) -> tuple[float, int] | None:
        found = [(self._gain(k, slope), k) for k, slope in enumerate(self._slopes()) if self._grows(k)]
        return max(found, default=None)

    def _grows(self, k: int) -> bool:
        return self.lanes[k].sizes[0] <= self.widths[k] < self.most[k]

    def _least_loss(self) -> tuple[float, int] | None:
        found = list[tuple[float, int]]()
        for k, slope in enumerate(self._slopes()):
            ln, width = self.lanes[k], self.widths[k]
            if len(ln.sizes) > 1 and ln.sizes[-1] < width <= ln.sizes[0]:
                found.append((float(ln.costs[ln.sizes[0] - width]) / slope, k))
        return min(found, default=None)

    def _shrink(self, k: int) -> None:
        """To the next allowed width, or one step below."""
        below = [size for size in self.lanes[k].sizes if size < self.widths[k]]
        self.widths[k] = next((s for s in below if self.widths[k] - s >= self.steps[k]), below[-1])

    def _fits(self, k: int) -> bool:
        return self._cost([w + (j == k) for j, w in enumerate(self.widths)]) <= self.target

    def _fill(self) -> None:
        """Spend what is left of the budget, unit by unit, where it is worth most."""
        while self.cost < FULL * self.target:
            slopes = self._slopes()
            more = [k for k in range(len(self.lanes)) if self._comes(k) and self._fits(k)]
            if not more:
                return
            self.widths[max(more, key=lambda k: self._gain(k, slopes[k]))] += 1

    def _nudge(self) -> None:
        """Where single units are dear, a few units more of one lane and fewer of another to come near the target."""
        if self.cost >= NEAR * self.target:
            return
        slopes, best = self._slopes(), (float("-inf"), self.widths)
        for i, j in itertools.permutations(range(len(self.lanes)), 2):
            for more, fewer in itertools.product(range(1, 7), range(7)):
                widths = list(self.widths)
                widths[i], widths[j] = widths[i] + more, widths[j] - fewer
                if not (self._allowed(i, widths[i]) and self._allowed(j, widths[j])):
                    continue
                if NEAR * self.target <= self._cost(widths) <= self.target:
                    worth = more * self._gain(i, slopes[i]) * slopes[i] - fewer * self._gain(j, slopes[j]) * slopes[j]
                    best = max(best, (worth, widths))
        self.widths = best[1]

    def _allowed(self, k: int, width: int) -> bool:
        return width in self.lanes[k].sizes if width <= self.lanes[k].sizes[0] else width <= self.most[k]

    def _comes(self, k: int) -> bool:
        """Whether a lane may have one unit more."""
        return self._allowed(k, self.widths[k] + 1)


def units(lanes: Sequence[Lane], widths: Sequence[int], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The units of each axis that changes: the best ones of those that get narrower, with copies of the best of those
    that get wider.
    """
    found: dict[str, Tensor] = {}
    for ln, width in zip(lanes, widths, strict=True):
        for axis, order, share in zip(ln.axes, ln.order, ln.shares, strict=True):
            size = ln.sizes[0]
            if width < size:
                found[axis] = order[(size - width) * share :].sort().values
            elif width > size:
                found[axis] = shared(scores[axis], width * share)
    return found


def shared(scores: Tensor, width: int) -> Tensor:
    """Which units an axis has when it grows, (width,), ascending: the next copy is always of the unit whose copies have
    the largest score each, and dead units are replaced by copies.

    Example:
        >>> shared(torch.tensor([6.0, 1.0, 4.0, 0.0]), 6)
        tensor([0, 0, 0, 1, 2, 2])
    """
    alive = (scores > DEAD * scores.mean()).nonzero().flatten().tolist() or list(range(len(scores)))
    heap = [(-float(scores[u]) / 2, u, 1) for u in alive]
    heapq.heapify(heap)
    found = list(alive)
    while len(found) < width:
        _, unit, times = heapq.heappop(heap)
        found.append(unit)
        heapq.heappush(heap, (-float(scores[unit]) / (times + 2), unit, times + 1))
    return torch.tensor(sorted(found[:width]), dtype=torch.long)
