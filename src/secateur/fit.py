"""Whether a network, its data and the device fit each other; and moving inputs to the device."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.config import TrainingSettings
from secateur.data import Data
from secateur.data.batches import IGNORED, Batches
from secateur.data.checking import first_batches, known_labels, label_problems, remarks, splits, value_problems
from secateur.data.loading import head
from secateur.errors import DataError, SecateurError
from secateur.inputs import run as call_model
from secateur.inputs import split_batch
from secateur.misfits import advice
from secateur.objectives import logits_of


def check_device(device: str) -> None:
    """Raise a SecateurError where the device can't be used."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        if reason.startswith("Expected one of"):  # a list of all that torch was ever built for
            reason = "there is no such kind; the usual ones are cpu, cuda, cuda:1 and mps"
        raise SecateurError(
            f"the device {device!r} can't be used here: {reason}. Give another with --device, such as cpu"
        ) from error


def check_fit(model: nn.Module, data: Data, settings: TrainingSettings) -> list[str]:
    """Compare a network, in evaluation mode, with the first batch of each split, and with all labels that are known.

    Returns:
        What is odd about the data, though it can be used; a sentence each.

    Raises:
        DataError: the network does not run on the data, or its labels or inputs will not do; all offenders at once.
    """
    batches = first_batches(data)
    wrong = value_problems(batches)
    if wrong:
        raise DataError(f"the data {settings.data}: {'; '.join(wrong)}")
    output = _run(model, moved(head(batches.get("validation", batches["train"]), 1), settings.device), settings)
    outputs = output.shape[-1] if isinstance(output, Tensor) and output.dim() == 2 else None
    wrong = label_problems(data)
    if outputs is not None and data.classes is not None and outputs < data.classes:
        least = min((min(labels) for labels in known_labels(data).values() if labels), default=0)
        wrong.append(
            f"the model {settings.model} tells {outputs} classes apart, but the data {settings.data} has "
            f"{data.classes}. "
            + (f"Its labels start at {least}: subtract that. Or give" if least > 0 else "Give")
            + f" the model as many outputs, often with --model-args.num-classes {data.classes}"
        )
    for name, batch in batches.items() if not wrong else ():
        wrong += _label_problems(name, batch, splits(data)[name], output)
    if wrong:
        raise DataError("; ".join(wrong))
    return [*_shape_remarks(model, batches, settings), *remarks(data)]


def _run(model: nn.Module, args: Any, settings: TrainingSettings, split: str = "") -> Any:
    """The model's output on one sample."""
    try:
        with torch.no_grad():
            return call_model(model, args)
    except Exception as error:
        said = advice(model, args)
        raise DataError(
            f"the model {settings.model} does not run on the data {settings.data}, whose first {split}sample is "
            f"{_shapes(args)}: {type(error).__name__}: {' '.join(str(error).split())}. {said + '. ' if said else ''}"
            "Choose data that fits it with --data, --image-size or --data-args"
        ) from error


def _label_problems(name: str, batch: Any, batches: Iterable[Any], output: Any) -> list[str]:
    """What is wrong with the labels of a split, seen from the model's output on one sample.

    Args:
        name: of the split.
        batch: its first batch.
        batches: all of it.
        output: with class scores (1, C, ...); (1, ..., C) for keyword inputs, whose models compute their own loss.
    """
    _, named, target = split_batch(batch)
    scores, own = logits_of(output), target is None
    labels = named.get("labels") if own else target
    if not isinstance(labels, Tensor) or scores is None or scores.dim() < 2:
        return []
    said = f"the labels of the {name} split are {_shapes([labels])}"
    if labels.is_floating_point():
        if own or labels.shape[1:] == scores.shape[1:]:
            return []
        return [f"{said}, but classes are whole numbers from 0: give labels.long()"]
    if not own and labels.shape[1:] != scores.shape[2:]:
        how = (
            "labels.squeeze(-1)" if labels.shape[-1:] == (1,) else "one class for each sample, labels.argmax(1) of rows"
        )
        return [f"{said}, but the model's scores {tuple(scores.shape)} want {_wanted(scores)}: give {how}"]
    if not own and labels.dtype != torch.int64:
        return [f"{said}, but classes are int64: give labels.long()"]
    classes = scores.shape[-1 if own else 1]
    return _range_problems(name, labels, batches, classes) if classes > 1 else []


def _range_problems(name: str, labels: Tensor, batches: Iterable[Any], classes: int) -> list[str]:
    """Labels that name no class of the model; of our own batches all are known, of others those of the first one."""
    counted = labels[labels != IGNORED]
    if not counted.numel():
        return []
    low, high = int(counted.min()), int(counted.max())
    if isinstance(batches, Batches) and (known := batches.label_range()) is not None:
        low, high = min(low, known[0]), max(high, known[1])
    if low >= 0 and high < classes:
        return []
    how = "subtract 1 from them" if low == 1 and high == classes else f"give the model {high + 1} outputs"
    if low < 0:
        how = f"number classes from 0; {IGNORED} is the label that does not count"
    said = f"the labels of the {name} split go from {low} to {high}, but the model tells the classes 0 to {classes - 1}"
    return [f"{said} apart: {how}"]


def _shape_remarks(model: nn.Module, batches: Mapping[str, Any], settings: TrainingSettings) -> list[str]:
    """Splits whose samples have another shape than the training samples; raises where the model does not take them."""
    found: list[str] = []
    shapes: dict[str, str] = {}
    for name, batch in batches.items():
        args = moved(head(batch, 1), settings.device)
        shapes[name] = _shapes(args)
        if shapes[name] != shapes["train"]:
            _run(model, args, settings, f"{name} ")
            if any(isinstance(value, Tensor) and value.dim() == 4 for value in tree_leaves(args)):
                found.append(
                    f"The first training sample is {shapes['train']}, the first {name} sample {shapes[name]}: bring "
                    "all images to one size, if they should have one."
                )
    return found


def _wanted(scores: Tensor) -> str:
    return "(N,)" if scores.dim() == 2 else f"(N, {', '.join(map(str, scores.shape[2:]))})"


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
