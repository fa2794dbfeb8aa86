"""Clocks that never look at the time."""

from collections.abc import Sequence

from secateur.timing.operations import CONTRACTIONS, Operation
from secateur.timing.stopwatch import Timer


def by_work(operation: Operation, sizes: Sequence[int]) -> float:
    """A nanosecond for each number read or written."""
    return 1e-9 * operation.elements(sizes)


def in_blocks(step: int, penalty: float = 0.0) -> Timer:
    """Products take time by blocks of units, and more where a block is not full; all else takes next to none."""

    def timer(operation: Operation, sizes: Sequence[int]) -> float:
        if operation.name not in CONTRACTIONS:
            return 1e-12 * operation.elements(sizes)
        seconds = 1e-6
        for size in sizes:
            seconds *= -(-size // step) * step * (1 + penalty * (size % step != 0))
        return seconds

    return timer
