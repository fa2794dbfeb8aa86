"""Which sizes of the inputs may differ from call to call, and at which ones an export is tried."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.exporting.calls import Call, Marks

WHOLE = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
BATCH, SEQUENCE = "batch", "sequence"


def ladder(call: Call) -> Iterator[Marks]:
    """Marks for ever fewer sizes: batch and sequence of tokens, the batch alone, nothing."""
    leaves = call.leaves
    batches = tuple({0: BATCH} if _has(leaf, 0, _batch(leaves)) else dict[int, str]() for leaf in leaves)
    length = _length(leaves)
    both = tuple(
        {**mark, 1: SEQUENCE} if mark and _has(leaf, 1, length) and not leaf.is_floating_point() else mark
        for mark, leaf in zip(batches, leaves, strict=True)
    )
    if both != batches:
        yield both
    if any(batches):
        yield batches
    yield tuple({} for _ in leaves)


def _batch(leaves: Sequence[Any]) -> int | None:
    """The first size of the first tensor that has one."""
    return next((int(leaf.shape[0]) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), None)


def _length(leaves: Sequence[Any]) -> int | None:
    """How many tokens the first tensor holds for each sample, if it is one of tokens."""
    first = next((leaf for leaf in leaves if isinstance(leaf, Tensor)), None)
    if first is None or first.dtype not in WHOLE or first.dim() != 2 or first.shape[1] < 2:
        return None
    return int(first.shape[1])


def _has(leaf: Any, dim: int, size: int | None) -> bool:
    return size is not None and isinstance(leaf, Tensor) and leaf.dim() > dim and leaf.shape[dim] == size


def names(marks: Marks) -> tuple[str, ...]:
    """The names of the sizes that are marked."""
    return tuple(dict.fromkeys(name for mark in marks for name in mark.values()))


def captured_at(call: Call, marks: Marks) -> dict[str, int]:
    """The sizes to capture at. A batch of 1, or as large as another dim, would be taken for a constant or for that."""
    if BATCH not in names(marks):
        return {}
    own = _batch(call.leaves) or 1
    others = {
        int(size)
        for leaf, mark in zip(call.leaves, marks, strict=True)
        if isinstance(leaf, Tensor)
        for dim, size in enumerate(leaf.shape)
        if mark.get(dim) != BATCH
    }
    return {BATCH: next(size for size in range(max(own, 2), 10**6) if size not in others)}


def checked_at(call: Call, marks: Marks) -> list[dict[str, int]]:
    """Further sizes at which the export is compared: a single sample, and one more than it was captured with."""
    if BATCH not in names(marks):
        return []
    own, length = _batch(call.leaves) or 1, _length(call.leaves)
    batches = sorted({1, captured_at(call, marks)[BATCH] + 1} - {own})
    if SEQUENCE not in names(marks) or length is None:
        return [{BATCH: batch} for batch in batches]
    other = length - 1 if length > 2 else length + 1  # a longer one may be more than the model's positions
    return [{BATCH: batch, SEQUENCE: other if k == 0 else length} for k, batch in enumerate(batches)]
