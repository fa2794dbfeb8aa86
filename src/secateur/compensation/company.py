"""The runs of both models over all batches, side by side, as many at a time as there is memory for.

Early in a network activations are large and each sample gives many rows; late they are small and it gives few. So runs
join where there is room for them, straight from the inputs through what is refitted already, and leave where there is
none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from secateur.calibration.batches import Batch
from secateur.calibration.lockstep import Pause, Run
from secateur.calibration.watching import Key
from secateur.compensation.matching import Match, Matching

MEMORY = 2 * 2**30  # bytes of activations that waiting runs may hold, about
THREADS = 2048  # of the operating system: each run has one, and torch gives each of these its own team
PAIRS = 64  # that may run whatever that takes


@dataclass
class Pair:
    """The two models on one batch.

    Attributes:
        batch: what they run on.
        dense, small: the run of the original, which waits after uses of weights, and that of the smaller model, which
            waits before them.
        matching: which use in the original each one in the smaller model is fitted to.
        pause: where the smaller model waits; None when it is through.
    """

    batch: Batch
    dense: Run
    small: Run
    matching: Matching
    pause: Pause | None = None

    def advance(self) -> None:
        """Let the smaller model go on to its next use of a weight."""
        self.pause = self.small.advance()

    def meet(self) -> tuple[Pause, Pause] | None:
        """The smaller model at the use where it waits, and the original at the one that this is fitted to; None where
        the original does not come there, or there is none.
        """
        here = self.pause
        assert here is not None
        match = self.matching.get(here.key)
        while isinstance(match, Match) and (pause := self.dense.advance()) is not None:
            if pause.key == match.key:
                return pause, here
        return None

    def stop(self) -> None:
        """End both runs."""
        self.dense.stop()
        self.small.stop()


class Company:
    """All pairs, led from use to use.

    Args:
        batches: at least one.
        start: makes the pair of a batch.
        order: uses of weights, in the order of the example's run, with the bytes that a pair holds while it waits.
        memory: bytes that all pairs may hold.

    Attributes:
        samples: samples at the use where most took part.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        start: Callable[[Batch], Pair],
        order: Mapping[Key, int],
        memory: int = MEMORY,
    ) -> None:
        self.reserve, self.start, self.memory = list(batches), start, memory
        self.place = {key: k for k, key in enumerate(order)}
        held = [*order.values(), 0]
        self.held = {key: max(held[k], held[k + 1], 1) for key, k in self.place.items()}
        self.pairs: list[Pair] = []
        self.most = max(PAIRS, THREADS // (2 * torch.get_num_threads()))
        self.samples = 0

    def __iter__(self) -> Iterator[tuple[Key, list[tuple[Pause, Pause]]]]:
        """Every use of a weight, with both models' pauses on each batch that takes part; changes of weights that are
        made meanwhile are seen by all.
        """
        self._join(None)
        while at := [pair.pause.key for pair in self.pairs if pair.pause is not None]:
            key = min(at, key=self._place)
            self._make_room(key)
            here = [pair for pair in self.pairs if pair.pause is not None and pair.pause.key == key]
            met = [both for pair in here if (both := pair.meet()) is not None]
            self.samples = max(self.samples, sum(pair.batch.samples for pair in here))
            yield key, met
            for pair in here:
                pair.advance()

    def stop(self) -> None:
        """End all runs."""
        for pair in self.pairs:
            pair.stop()

    def _place(self, key: Key) -> int:
        return self.place.get(key, -1)

    def _make_room(self, key: Key) -> None:
        """Send home the pairs for which there is no memory, or let others join."""
        most = min(max(1, self.memory // self.held.get(key, 1)), self.most)
        while len(self.pairs) > most:
            pair = self.pairs.pop()
            pair.stop()
            self.reserve.insert(0, pair.batch)
        while self.reserve and len(self.pairs) < most:
            self._join(key)

    def _join(self, key: Key | None) -> None:
        """A pair more, led to a use, or to its first."""
        pair = self.start(self.reserve.pop(0))
        self.pairs.append(pair)
        pair.advance()
        while key is not None and pair.pause is not None and self._place(pair.pause.key) < self._place(key):
            pair.advance()
