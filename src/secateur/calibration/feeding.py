"""Calibration data as batches that a model takes, checked before any work goes into them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.errors import DataError
from secateur.inputs import fresh, split_batch
from secateur.modules import Walk

Forward = Callable[[nn.Module, Any], Any]
"""Runs a model on a batch: ``lambda model, batch: model(batch["pixels"])``."""
MEMORY = 2 * 2**30  # bytes that paused runs over all batches may hold


def run_batch(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """The model's output on a batch."""
    if forward is not None:
        return forward(model, batch)
    args, kwargs, _ = split_batch(batch)
    return model(*fresh(args), **fresh(kwargs))


def batch_size(batch: Any) -> int:
    """Samples in a batch: the size of the first dim of its first tensor; 1 where it holds none."""
    first = next((t for t in tree_leaves(batch) if isinstance(t, Tensor) and t.dim()), None)
    return 1 if first is None else int(first.shape[0])


def load(data: Iterable[Any], model: nn.Module, samples: int | None = None) -> list[Any]:
    """The batches of some data, on the model's device, as many as make up the number of samples.

    Raises:
        DataError: there are none, or one holds NaN; says which.
    """
    device = next((t.device for t in Walk(model).tensors.values()), torch.device("cpu"))
    batches: list[Any] = []
    count = 0
    for number, batch in enumerate(data):
        if samples is not None and count >= samples:
            break
        moved: Any = tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, batch)
        for tensor in tree_leaves(moved):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and bool(tensor.isnan().any()):
                raise DataError(f"batch {number} of the calibration data holds NaN in a tensor of {list(tensor.shape)}")
        if batch_size(moved):
            batches.append(moved)
            count += batch_size(moved)
    if not batches:
        raise DataError(
            "the calibration data holds no batch. Give batches that can be iterated again and again: a list or a "
            "DataLoader, no generator that is used up"
        )
    return batches


def try_out(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """The output on a batch of a model that is ready to be run.

    Raises:
        DataError: the model does not take it, with the model's own words.
    """
    try:
        with torch.no_grad():
            return run_batch(model, batch, forward)
    except Exception as error:
        shapes = [list(t.shape) for t in tree_leaves(batch) if isinstance(t, Tensor)]
        raise DataError(
            f"{type(model).__name__} does not run on a batch of the calibration data, of tensors of shapes {shapes}: "
            f"{type(error).__name__}: {error}. A batch is a tensor, a mapping of keyword inputs, or a pair (inputs, "
            "target); or pass forward=lambda model, batch: ..."
        ) from error


def fitting(batches: Sequence[Any], bytes_each: int, memory: int = MEMORY) -> list[Any]:
    """As many of the batches as can be held at a time, at least one."""
    return list(batches[: max(1, memory // max(bytes_each, 1))])
