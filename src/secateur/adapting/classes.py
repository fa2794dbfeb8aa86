"""The classes of a new task, as its data has them."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from secateur.data.batches import IGNORED, Batches
from secateur.errors import DataError
from secateur.inputs import split_batch


def count_classes(data: Iterable[Any], classes: int | None, *, split: str = "training") -> Tensor:
    """How many samples of each class there are, (classes,), int64.

    Args:
        data: batches with labels. Of secateur's own, labels are known without reading samples.
        classes: how many the new task has; None is as many as the labels name.
        split: of the data, for errors.

    Raises:
        DataError: no batch, no labels, labels that are no classes or lie out of range, more classes than were said, or
            samples of one class only.

    Example:
        >>> count_classes([(torch.zeros(3, 4), torch.tensor([0, 2, 2]))], 4)
        tensor([1, 0, 2, 0])
    """
    if classes is not None and classes < 2:
        raise DataError(f"classes={classes}: a classifier needs at least 2 classes to tell apart")
    found = torch.cat([torch.zeros(0, dtype=torch.int64), *_labels(data, split)])
    found = found[found != IGNORED]
    if not found.numel():
        raise DataError(f"the {split} data holds no label: give it batches (inputs, labels)")
    low, high = int(found.min()), int(found.max())
    if low < 0:
        raise DataError(
            f"the {split} labels go from {low} to {high}, but classes are numbered from 0; {IGNORED} is the label that "
            "does not count"
        )
    if classes is not None and high >= classes:
        kinds = len(found.unique())
        how = "subtract 1 from them" if low == 1 and high == classes else f"say classes={high + 1}"
        raise DataError(
            f"classes={classes}, but the {split} data has {kinds} classes, with labels from {low} to {high}: {how}, or "
            f"take the other samples out"
        )
    if low == high and split == "training":
        raise DataError(
            f"all {len(found)} {split} samples are of class {low}: a classifier needs samples of at least 2 classes"
        )
    return torch.bincount(found, minlength=high + 1 if classes is None else classes)


def _labels(data: Iterable[Any], split: str) -> Iterator[Tensor]:
    if isinstance(data, Batches) and (known := data.labels()) is not None:
        yield known.to(torch.int64)
        return
    for batch in data:
        target = target_of(batch)
        if not isinstance(target, Tensor):
            raise DataError(
                f"a batch of the {split} data has no labels: give pairs (inputs, labels), or mappings with 'labels'"
            )
        if target.is_floating_point() or target.dtype == torch.bool:
            raise DataError(
                f"the labels of the {split} data are {str(target.dtype).removeprefix('torch.')}, but classes are whole "
                "numbers from 0: give labels.long()"
            )
        yield target.detach().flatten().to("cpu", torch.int64)


def target_of(batch: Any) -> Any:
    """The labels of a batch; None where it has none."""
    try:
        _, named, target = split_batch(batch)
    except TypeError as error:
        raise DataError(f"{error}. Let the loader give pairs, with inputs that are several as a tuple") from error
    return named.get("labels") if target is None else target


def unlabelled(batch: Any, count: int = 1) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs of the first samples of a batch, positional and by name, without labels."""
    args, named, _ = split_batch(batch)
    named = {name: value for name, value in named.items() if name != "labels"}
    sizes = [v.shape[0] for v in (*args, *named.values()) if isinstance(v, Tensor) and v.dim()]

    def first(value: Any) -> Any:
        return value[:count] if isinstance(value, Tensor) and value.dim() and value.shape[0] == sizes[0] else value

    return tuple(map(first, args)), {name: first(value) for name, value in named.items()}
