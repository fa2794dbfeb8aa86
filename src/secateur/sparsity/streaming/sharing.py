"""All processes of a run: each has its share of the calibration data, and sums over data are added up over all."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import distributed

from secateur.sparsity.statistics import Statistics

_begun = count()  # groups that this process has begun; as many in each process


class Group:
    """What this process is of: alone, or one of those that ``torchrun`` started.

    Sums are float64, in which the order of adding can change the last of 16 digits only.

    Attributes:
        count, rank: how many there are, and the number of this one.
    """

    def __init__(self) -> None:
        known = distributed.is_available() and distributed.is_initialized()
        self.count = distributed.get_world_size() if known else 1
        self.rank = distributed.get_rank() if known else 0

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and shows."""
        return self.rank == 0

    def add_up(self, found: Statistics) -> None:
        """Sums over all processes, in place, on each of them."""
        if self.count == 1:
            return
        numbers = torch.tensor([found.rows, found.samples])
        for value in (numbers, found.square, found.gram):
            if value is not None:
                distributed.all_reduce(value)
        found.rows, found.samples = (int(number) for number in numbers)

    def gathered(self, value: Any) -> list[Any]:
        """Plain data of all processes, in order."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def group() -> Generator[Group]:
    """The group of this process; begun over gloo where ``torchrun`` started several and nobody has, and ended then."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ
    begin = several and distributed.is_available() and not distributed.is_initialized()
    if begin:
        store, rank, number = next(distributed.rendezvous("env://"))
        own = distributed.PrefixStore(f"secateur-{next(_begun)}", store)  # what an earlier group left there is not ours
        distributed.init_process_group("gloo", store=own, rank=rank, world_size=number)
    try:
        yield Group()
    finally:
        if begin:
            distributed.destroy_process_group()
