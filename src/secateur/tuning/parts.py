"""Parts of a batch: for processes that share it, and for memory that can't hold all of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, cast

from torch import Tensor

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


IGNORED = -100
"""The label that cross-entropy, and the losses of Hugging Face's models, pass over."""


def labels_of(batch: Any, *, shifted: bool = False) -> int:
    """How many labels cross-entropy takes its mean over; samples, where targets are no classes.

    Args:
        shifted: the first label of each row is none, as in causal language models.
    """
    _, kwargs, target = split_batch(batch)
    target = kwargs.get("labels") if target is None else target
    if not isinstance(target, Tensor) or target.is_floating_point() or not target.dim():
        return size_of(batch)
    target = target[:, 1:] if shifted and target.dim() == 2 else target
    return int((target != IGNORED).sum())


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
    """Samples [start, stop) of a batch: of every tensor whose first dim are the samples, and of lists with one item for
    each of them, such as images of several sizes."""
    if isinstance(batch, tuple | list):  # the pair itself is no list of samples
        return tuple(_cut(item, start, stop, size) for item in cast("Sequence[Any]", batch))
    return _cut(batch, start, stop, size)


def _cut(value: Any, start: int, stop: int, size: int) -> Any:
    if isinstance(value, Tensor):
        return value[start:stop] if value.dim() and value.shape[0] == size else value
    if isinstance(value, Mapping):
        return {key: _cut(item, start, stop, size) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list) and len(items := cast("list[Any]", value)) == size and not _inputs(items, size):
        return items[start:stop]
    if isinstance(value, tuple | list):
        parts = [_cut(item, start, stop, size) for item in cast("Sequence[Any]", value)]
        return parts if isinstance(value, list) else tuple(parts)
    return value


def _inputs(items: Sequence[Any], size: int) -> bool:
    """Whether a list holds inputs, each with all samples, though it is as long as there are samples."""
    return all(
        isinstance(item, Tensor) and item.dim() not in (0, 3) and item.shape[0] == size
        for item in items  # 3 dims: an image
    )


def groups(batches: Iterable[Any], count: int) -> Iterator[Sequence[Any]]:
    """So many batches at a time; the last group may be smaller."""
    iterator = iter(batches)
    while group := list(islice(iterator, count)):
        yield group
