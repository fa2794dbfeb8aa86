"""How many steps an epoch has."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from secateur.errors import TrainingError
from secateur.inputs import known_length


def check_again(loader: Any, name: str = "the loader") -> None:
    """See whether batches can be read again and again.

    Raises:
        TrainingError: they can't.
    """
    if isinstance(loader, Iterator):
        raise TrainingError(
            f"{name} is a {type(loader).__name__}, which can be read only once: give one that starts again with each "
            f"epoch, such as a list or a DataLoader"
        )
    if not isinstance(loader, Iterable) or isinstance(loader, Tensor | Mapping | str):
        raise TrainingError(
            f"{name} is a {type(loader).__name__}: give batches, such as [(inputs, labels)] or a DataLoader"
        )


def steps_per_epoch(loader: Iterable[Any], accumulate: int = 1, *, several: bool = False) -> int:
    """How many steps one pass over the batches makes.

    Args:
        several: whether several processes share each batch.

    Raises:
        TrainingError: there is no batch, or the loader can't be read so.
    """
    check_again(loader)
    if several and isinstance(getattr(loader, "sampler", None), DistributedSampler):
        raise TrainingError(
            "the loader's DistributedSampler gives each process samples of its own, but here every batch is split "
            "among the processes: give an ordinary sampler, and batches as large as all processes together take"
        )
    known = known_length(loader)
    count = sum(1 for _ in loader) if known is None else known
    if not count:
        raise TrainingError("nothing to train on: the loader holds no batch")
    return -(-count // accumulate)
