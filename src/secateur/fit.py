"""Whether a network, its data and the device fit each other; and moving inputs to the device."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.config import TrainingSettings
from secateur.data import Data
from secateur.errors import DataError, SecateurError
from secateur.inputs import run as call_model


def check_device(device: str) -> None:
    """Raise a SecateurError where the device can't be used."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SecateurError(
            f"the device {device!r} can't be used here: {str(error).splitlines()[0]}. Give another with --device, "
            f"such as cpu"
        ) from error


def check_fit(model: nn.Module, data: Data, settings: TrainingSettings) -> None:
    """Run the network once on the data's first sample, and raise a DataError if that fails."""
    args = example(data, settings.device)
    try:
        with torch.no_grad():
            output = call_model(model, args)
    except Exception as error:
        raise DataError(
            f"the model {settings.model} does not run on the data {settings.data}, whose first sample is "
            f"{_shapes(args)}: "
            f"{type(error).__name__}: {' '.join(str(error).split())}. Choose data that fits it with --data, "
            f"--image-size or --data-args"
        ) from error
    outputs = output.shape[-1] if isinstance(output, Tensor) and output.dim() == 2 else None
    if outputs is not None and data.classes is not None and outputs < data.classes:
        raise DataError(
            f"the model {settings.model} tells {outputs} classes apart, but the data {settings.data} has "
            f"{data.classes}. "
            f"Give it as many outputs, often with --model-args.num-classes {data.classes}"
        )


def example(data: Data, device: str) -> Any:
    """The inputs of one sample, on the device."""
    return moved(data.example(), device)


def moved(value: Any, device: str) -> Any:
    """Tensors in nested tuples, lists and mappings, on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: moved(item, device) for name, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, tuple | list):
        items = [moved(item, device) for item in cast("list[Any]", value)]
        return tuple(items) if isinstance(value, tuple) else items
    return value


class Moved:
    """Batches on the device, iterable again and again."""

    def __init__(self, batches: Iterable[Any], device: str) -> None:
        self.batches, self.device = batches, device

    def __iter__(self) -> Iterator[Any]:
        return (moved(batch, self.device) for batch in self.batches)


def _shapes(args: Any) -> str:
    values = args.values() if isinstance(args, dict) else args
    return ", ".join(
        f"{value.dtype} {tuple(value.shape)}".removeprefix("torch.")
        if isinstance(value, Tensor)
        else type(value).__name__
        for value in values
    )
