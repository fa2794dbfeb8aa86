"""Batches that can be iterated again and again, in an order that the seed and the epoch fix."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Self

import torch
from torch import Tensor

from secateur.errors import DataError

Augment = Callable[[Tensor, Tensor], Tensor]
"""From inputs (batch, ...) and one random whole number a sample, (batch,), to changed inputs."""

DRAWS = 2**62  # random numbers for augmentation lie below this
IGNORED = -100  # the label that torch's cross-entropy passes over
CHEAP = 2**29  # bytes of a split that a check before the first step may read


class Source(ABC):
    """Samples that can be fetched by their positions.

    Attributes:
        labels: (samples,), the class of each sample; None where samples have no class, or several.
        label_range: least and greatest label where ``labels`` is None but they are known; -100 left out.
    """

    labels: Tensor | None = None
    label_range: tuple[int, int] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fetch(self, positions: Sequence[int], draws: Tensor) -> Any:
        """The samples at these positions as one batch.

        Args:
            positions: which samples.
            draws: (len(positions),), a random whole number in [0, 2^62) for each sample, from which its augmentation
                takes all of its chance.
        """

    def plain(self) -> Self:
        """The same samples as they are, without augmentation."""
        return self

    def labels_at(self, positions: Sequence[int]) -> Tensor:
        """The classes of some samples of a source that has them."""
        assert self.labels is not None
        return self.labels[torch.as_tensor(positions)]

    def fingerprints(self, positions: Sequence[int]) -> list[bytes] | None:
        """A short hash of each sample's inputs; None where that would take long."""
        return None


class TensorSource(Source):
    """Samples that lie in memory.

    Args:
        inputs: (samples, ...).
        labels: (samples,), integers.
        augment: changes a batch of inputs at random.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, augment: Augment | None = None) -> None:
        self.inputs, self.labels, self.augment = inputs, labels, augment

    def __len__(self) -> int:
        return len(self.inputs)

    def plain(self) -> Self:
        made = copy.copy(self)
        made.augment = None
        return made

    def fetch(self, positions: Sequence[int], draws: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self.inputs[torch.as_tensor(positions)]
        return (self.augment(inputs, draws) if self.augment else inputs), self.labels_at(positions)

    def fingerprints(self, positions: Sequence[int]) -> list[bytes] | None:
        if self.inputs.nbytes > CHEAP:
            return None
        return [fingerprint(self.inputs[i].numpy().tobytes()) for i in positions]


def fingerprint(sample: bytes) -> bytes:
    """A short hash."""
    return blake2b(sample, digest_size=12).digest()


class Batches:
    """Batches over some samples of a source; in most cases pairs ``(inputs, labels)``.

    Every pass over shuffled batches has an order, and an augmentation, of its own. ``set_epoch`` says which. The order
    hangs on (seed, epoch) alone, what augmentation does to a sample on (seed, epoch, place in ``positions``) alone: not
    on what was iterated before, on threads, on the batch size, or on whether earlier batches were skipped.

    Args:
        source: where the samples come from.
        positions: which samples of it.
        batch_size: samples in a batch; the last batch may hold fewer.
        shuffle: whether the order differs from pass to pass.
        seed: of the order and the augmentation.

    Example:
        >>> batches = Batches(TensorSource(torch.arange(5.0), torch.zeros(5)), range(5), batch_size=2)
        >>> [inputs.tolist() for inputs, _ in batches.skip(1)]
        [[2.0, 3.0], [4.0]]
    """

    def __init__(
        self, source: Source, positions: Sequence[int], *, batch_size: int, shuffle: bool = False, seed: int = 0
    ) -> None:
        self.source, self.positions = source, list(positions)
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.positions) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the one of this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        return self._pass(0)

    def skip(self, count: int) -> Iterator[Any]:
        """The next pass without its first batches, which are not read.

        Args:
            count: how many batches to leave out, from 0 to all of them.
        """
        if not 0 <= count <= len(self):
            raise DataError(f"can't skip {count} batches: an epoch has {len(self)}. Was the batch size another one?")
        return self._pass(count)

    def plain(self) -> "Batches":
        """The same samples in the same order, from the first epoch on, without augmentation."""
        made = copy.copy(self)
        made.source, made.epoch = self.source.plain(), 0
        return made

    def labels(self) -> Tensor | None:
        """The class of each sample, in the order of the positions; None where there is none."""
        return None if self.source.labels is None else self.source.labels_at(self.positions)

    def label_range(self) -> tuple[int, int] | None:
        """Least and greatest label, -100 left out; None where they are not known."""
        labels = self.labels()
        if labels is None:
            return self.source.label_range
        counted = labels[labels != IGNORED]
        return (int(counted.min()), int(counted.max())) if len(counted) else None

    def _pass(self, skipped: int) -> Iterator[Any]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        self.epoch += 1
        count = len(self.positions)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        draws = torch.randint(DRAWS, (count,), generator=generator)
        for places in order.split(self.batch_size)[skipped:]:
            yield self.source.fetch([self.positions[i] for i in places.tolist()], draws[places])
