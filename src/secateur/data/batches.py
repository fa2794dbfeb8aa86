"""Batches that can be iterated again and again, in an order that the seed and the epoch fix."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

Augment = Callable[[Tensor, torch.Generator], Tensor]


class Source(Protocol):
    """Samples that can be fetched by their positions."""

    def __len__(self) -> int: ...

    def fetch(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and class labels of the samples at these positions, as one batch each."""
        ...


class TensorSource:
    """Samples that lie in memory.

    Args:
        inputs: (samples, ...).
        labels: (samples,), integers.
    """

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(positions)
        return self.inputs[chosen], self.labels[chosen]


class Batches:
    """Pairs ``(inputs, labels)`` over some samples of a source.

    Every pass over shuffled batches has an order, and an augmentation, of its own. ``set_epoch`` says which, so that a
    training run sees the same batches whatever was iterated before it.

    Args:
        source: where the samples come from.
        positions: which samples of it.
        batch_size: samples in a batch; the last batch may hold fewer.
        shuffle: whether the order differs from pass to pass.
        augment: changes a batch of inputs at random.
        seed: of the order and the augmentation.
    """

    def __init__(
        self,
        source: Source,
        positions: Sequence[int],
        *,
        batch_size: int,
        shuffle: bool = False,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        self.source, self.positions = source, list(positions)
        self.batch_size, self.shuffle, self.augment, self.seed = batch_size, shuffle, augment, seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.positions) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the one of this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        self.epoch += 1
        count = len(self.positions)
        order = torch.randperm(count, generator=generator).tolist() if self.shuffle else range(count)
        chosen = [self.positions[i] for i in order]
        for start in range(0, count, self.batch_size):
            inputs, labels = self.source.fetch(chosen[start : start + self.batch_size])
            yield (self.augment(inputs, generator) if self.augment else inputs), labels


def stratified(labels: Sequence[int], fractions: Sequence[float], seed: int) -> list[list[int]]:
    """Split positions at random into parts that hold the same share of every class.

    Args:
        labels: the class of each sample.
        fractions: size of each part but the last, as a fraction of all samples; the last part gets the rest.
        seed: of the choice.

    Returns:
        The positions of each part, in ascending order.

    Example:
        >>> [len(part) for part in stratified([0, 0, 0, 0, 1, 1, 1, 1], (0.5, 0.25), seed=0)]
        [4, 2, 2]
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[int]] = [[] for _ in range(len(fractions) + 1)]
    bounds = [sum(fractions[: i + 1]) for i in range(len(fractions))]
    for label in sorted(set(labels)):
        members = [i for i, other in enumerate(labels) if other == label]
        order = torch.randperm(len(members), generator=generator).tolist()
        shuffled = [members[i] for i in order]
        cuts = [0, *(round(bound * len(members)) for bound in bounds), len(members)]
        for part, start, end in zip(parts, cuts[:-1], cuts[1:], strict=True):
            part.extend(shuffled[start:end])
    return [sorted(part) for part in parts]
