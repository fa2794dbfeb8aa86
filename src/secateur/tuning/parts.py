"""Parts of a batch: for processes that share it, and for memory that can't hold all of it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

from secateur.calibration.batches import batch_size
from secateur.inputs import split_batch


@dataclass(frozen=True)
class Part:
    """Some samples of a batch.

    Attributes:
        batch: in the form that the batch had.
        samples: how many are in it.
        counts: whether they count; a process for which nothing is left goes along with samples of others.
    """

    batch: Any
    samples: int
    counts: bool = True


def size_of(batch: Any) -> int:
    """How many samples a batch holds: the length of its first input."""
    args, kwargs, _ = split_batch(batch)
    return batch_size(args[0] if args else kwargs)


def share(batch: Any, rank: int, processes: int) -> Part:
    """What one process takes of a batch, as many samples as every other or one less.

    Args:
        rank: of the process, in [0, processes).
    """
    size = size_of(batch)
    if processes == 1:
        return Part(batch, size)
    start, stop = (size * r // processes for r in (rank, rank + 1))
    if start == stop:
        return Part(sliced(batch, 0, 1, size), 1, counts=False)
    return Part(sliced(batch, start, stop, size), stop - start)


def pieces(part: Part, count: int) -> list[Part]:
    """The same in so many pieces, or as many as it has samples."""
    count = min(count, part.samples)
    if count <= 1:
        return [part]
    bounds = [part.samples * k // count for k in range(count + 1)]
    return [
        Part(sliced(part.batch, start, stop, part.samples), stop - start, part.counts)
        for start, stop in pairwise(bounds)
    ]


def sliced(batch: Any, start: int, stop: int, size: int) -> Any:
    """Samples [start, stop) of a batch: of every tensor whose first dim are the samples."""
    return tree_map_only(
        Tensor, lambda tensor: tensor[start:stop] if tensor.dim() and tensor.shape[0] == size else tensor, batch
    )


def groups(batches: Iterable[Any], count: int) -> Iterator[Sequence[Any]]:
    """So many batches at a time; the last group may be smaller."""
    iterator = iter(batches)
    while group := list(islice(iterator, count)):
        yield group
