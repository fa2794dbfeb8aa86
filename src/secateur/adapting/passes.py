"""Passes over batches that are the same whatever was drawn or read before."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from secateur.fit import moved
from secateur.tuning.randomness import DataDraws


def same_pass(batches: Iterable[Any], seed: int, device: str, count: int | None = None) -> Iterator[Any]:
    """Batches of the pass of epoch 0, on the device.

    Args:
        batches: iterable again and again.
        seed: of what loaders draw.
        count: how many, at most; None is all.
    """
    draws = DataDraws(seed)
    draws.start(0)
    with draws():
        if callable(set_epoch := getattr(batches, "set_epoch", None)):
            set_epoch(0)
        rest = islice(batches, count)
    while True:
        with draws():
            batch = next(rest, None)
        if batch is None:
            return
        yield moved(batch, device)
