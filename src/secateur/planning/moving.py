"""Where width is worth most: units go where they matter least for their cost, and come where they matter most.

Letters: L lanes (an axis, or tied axes that change together).
"""

import heapq
from bisect import bisect_left, bisect_right
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
FAR = 24  # steps that a lane goes up or down to make room in another, where single units are dear


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
        self.ladders = [
            sorted({*ln.sizes, *range(ln.sizes[0], most + 1)}) for ln, most in zip(self.lanes, self.most, strict=True)
        ]
        self.worths = [
            _worths(ln, least, ladder) for ln, least, ladder in zip(self.lanes, self.least, self.ladders, strict=True)
        ]
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
        self._settle()
        return self.widths

    @property
    def reach(self) -> tuple[float, float]:
        """What the narrowest and the widest that all lanes may be cost."""
        return self._cost([ladder[0] for ladder in self.ladders]), self._cost([ladder[-1] for ladder in self.ladders])

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
        return self._cost(self._with({k: self.widths[k] + 1})) <= self.target

    # ------------------------------------------------------------------ coming near the target

    def _settle(self) -> None:
        """Come to within 1 % of the target, from below, where changes of one lane or two get there."""
        while self.cost > self.target and (narrower := self._narrower()) is not None:
            self.widths = narrower
        while self.cost < FULL * self.target and (wider := self._wider()) is not None:
            self.widths = wider
        while self.cost < NEAR * self.target and (nearer := self._nearer()) is not None:
            self.widths = nearer

    def _narrower(self) -> list[int] | None:
        """The next widths down of which the least is lost for what they save, in lanes that grew, too."""
        below = [(k, at - 1) for k, at in enumerate(self._places()) if at > 0]
        return self._best([self._with({k: self.ladders[k][at]}) for k, at in below])

    def _wider(self) -> list[int] | None:
        """The next widths up that are worth most for what they cost, of those that the target leaves room for."""
        above = [(k, at + 1) for k, at in enumerate(self._places()) if at + 1 < len(self.ladders[k])]
        found = [self._with({k: self.ladders[k][at]}) for k, at in above]
        return self._best([widths for widths in found if self._cost(widths) <= self.target])

    def _best(self, found: Sequence[list[int]]) -> list[int] | None:
        """The widths that are worth most by what they cost more, or that lose least by what they save."""
        now, worth = self.cost, self._worth(self.widths)

        def rate(widths: list[int]) -> float:
            return (self._worth(widths) - worth) / max(abs(self._cost(widths) - now), 1e-9)

        return max(found, key=rate, default=None)

    def _nearer(self) -> list[int] | None:
        """Widths nearer to the target, below it: one lane changes by some steps, and another as far as that leaves
        room. Of those that are near enough, the ones that are worth most. None where there are no nearer ones.
        """
        found: list[list[int]] = []
        for k, at in enumerate(self._places()):
            for width in self.ladders[k][max(0, at - FAR) : at + FAR + 1]:
                found += [self._filled({k: width}, j) for j in range(len(self.lanes)) if j != k]
                found.append(self._with({k: width}))
        costs = [self._cost(widths) for widths in found]
        nearer = [(c, w) for c, w in zip(costs, found, strict=True) if self.cost < c <= self.target]
        near = [widths for cost, widths in nearer if cost >= NEAR * self.target]
        return max(near, key=self._worth) if near else max(nearer, default=(0.0, None))[1]

    def _filled(self, changed: Mapping[int, int], k: int) -> list[int]:
        """Widths with those of some lanes changed, and of another the widest that the target leaves room for."""
        ladder = self.ladders[k]
        at = bisect_right(ladder, self.target, key=lambda width: self._cost(self._with({**changed, k: width})))
        return self._with({**changed, k: ladder[max(at - 1, 0)]})

    def _with(self, changed: Mapping[int, int]) -> list[int]:
        return [changed.get(k, width) for k, width in enumerate(self.widths)]

    def _places(self) -> list[int]:
        """Where each lane's width is among those that it may have, (L,)."""
        return [bisect_left(ladder, width) for ladder, width in zip(self.ladders, self.widths, strict=True)]

    def _worth(self, widths: Sequence[int]) -> float:
        """How much less the loss is than at the original widths."""
        return sum(worth[width] for worth, width in zip(self.worths, widths, strict=True))


def _worths(ln: Lane, least: float, ladder: Sequence[int]) -> dict[int, float]:
    """What a lane is worth at each width that it may have, 0 at its own.

    Args:
        least: what one more unit would be worth, but that it is less the more come.
        ladder: the widths.
    """
    size = ln.sizes[0]
    lost = torch.cat([ln.costs.new_zeros(1), ln.costs.cumsum(0)])  # by how many units fewer
    more = torch.arange(size + 1, max(ladder[-1], size) + 1, dtype=torch.float64).reciprocal().cumsum(0)  # or more
    won = [0.0, *(least * size * more).tolist()]
    return {w: -float(lost[size - w]) if w < size else won[w - size] for w in ladder}


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
