"""The few clean samples that a defence has: one tensor of inputs, one of labels, and what a model makes of them.

Shape letters: N samples, K classes.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.data.splitting import stratified
from secateur.errors import DataError, PlanError
from secateur.inputs import split_batch
from secateur.modules import kept_modes
from secateur.objectives import logits_of

BATCH = 250  # samples that are judged at once
NEEDED = "give batches (inputs, labels), such as [(images, labels)], with one tensor of inputs and whole numbers (N,)"


@dataclass(frozen=True, kw_only=True)
class Clean:
    """Clean samples.

    Attributes:
        x: inputs, (N, ...), floating point.
        y: their classes, (N,), int64.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def split(self, share: float, seed: int) -> tuple["Clean", "Clean"]:
        """What a defence works on, and what is held out of it to choose by: ``share`` of every class, in (0, 1).

        Raises:
            DataError: one of them would be empty.
        """
        used, held = (torch.tensor(part) for part in stratified(self.y.tolist(), (1 - share,), seed))
        if not len(used) or not len(held):
            raise DataError(f"{len(self)} clean samples can't be split with heldout={share}: give more of them")
        return self.at(used), self.at(held)

    def at(self, positions: Tensor) -> "Clean":
        """Some of the samples."""
        positions = positions.to(self.y.device)
        return Clean(x=self.x[positions], y=self.y[positions])


def gather(data: Iterable[Any] | Clean, device: str | torch.device) -> Clean:
    """All samples of some batches that have a label, on a device; a negative one is none.

    Raises:
        DataError: there are none, a batch has no labels, or its inputs are no single floating-point tensor.
    """
    if isinstance(data, Clean):
        return Clean(x=data.x.to(device), y=data.y.to(device))
    if isinstance(data, Tensor | Mapping | str):
        raise DataError(f"data is a {type(data).__name__}: {NEEDED}")
    parts = [_pair(number, batch) for number, batch in enumerate(data)]
    if not sum(len(y) for _, y in parts):
        raise DataError(f"the clean data is empty: {NEEDED}")
    parts = [_labelled(*part) for part in parts]
    if not sum(len(y) for _, y in parts):
        raise DataError("the clean data hold no sample with a label: labels below 0 are none")
    shapes = {tuple(x.shape[1:]) for x, _ in parts}
    if len(shapes) > 1:
        raise DataError(f"the clean samples have several shapes, {sorted(shapes)}: bring them to one")
    x, y = (torch.cat(column).to(device) for column in zip(*parts, strict=True))
    if not bool(x.isfinite().all()):
        raise DataError("the clean samples hold NaN or infinity: drop or mend them")
    return Clean(x=x, y=y)


def _pair(number: int, batch: Any) -> tuple[Tensor, Tensor]:
    """Inputs and labels of one batch."""
    try:
        args, kwargs, target = split_batch(batch)
    except TypeError as error:
        raise DataError(f"batch {number} of the clean data: {error}; {NEEDED}") from error
    inputs = args[0] if len(args) == 1 and not kwargs else None
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.dim() < 2:
        got = [tuple(a.shape) if isinstance(a, Tensor) else type(a).__name__ for a in (*args, *kwargs.values())]
        raise DataError(f"batch {number} of the clean data has inputs {got}, not one tensor (N, ...): {NEEDED}")
    whole = isinstance(target, Tensor) and not target.is_floating_point() and target.shape == inputs.shape[:1]
    if not whole:
        got = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise DataError(f"batch {number} of the clean data has labels {got}: {NEEDED}")
    return inputs.detach(), target.detach().long()


def _labelled(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The samples that have a label, and their labels."""
    there = y >= 0
    return (x, y) if bool(there.all()) else (x[there.to(x.device)], y[there])


def device_of(model: nn.Module) -> torch.device:
    """Where a model is: the device of its first parameter."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def scores_of(model: nn.Module, x: Tensor) -> Tensor:
    """Class scores (N, K) of a model as it is, with gradients where the inputs have any.

    Raises:
        DataError: it does not run on them, or gives something else.
    """
    try:
        scores = logits_of(model(x))
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"{type(model).__name__} does not run on clean samples {tuple(x.shape)}: {type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0]}. Give them in the form that it takes"
        ) from error
    if scores is None or scores.dim() != 2 or scores.shape[0] != len(x):
        shape = None if scores is None else tuple(scores.shape)
        raise DataError(f"{type(model).__name__} gives {shape} for {len(x)} samples, not class scores (N, classes)")
    return scores


def answers(model: nn.Module, x: Tensor) -> Tensor:
    """The class scores in evaluation mode, without gradients, (N, K); modes are left as they were."""
    with kept_modes(model), torch.no_grad():
        model.eval()
        return torch.cat([scores_of(model, part) for part in x.split(BATCH)])


def classes_of(model: nn.Module, x: Tensor) -> int:
    """How many classes a model tells apart, K, by what it says of the first inputs."""
    return answers(model, x[:2]).shape[1]


def check_labels(clean: Clean, classes: int, name: str) -> None:
    """Raise where samples are of classes that a model does not know.

    Args:
        name: of the argument that they were given as.

    Raises:
        DataError: they are.
    """
    most = int(clean.y.max())
    if most >= classes:
        raise DataError(
            f"the samples of {name} have labels up to {most}, and the model tells {classes} classes apart: "
            "count classes from 0"
        )


def check_target(target: Any, classes: int) -> None:
    """Raise where a trigger can't lead to a target.

    Raises:
        PlanError: it is no class.
    """
    if not _is_whole(target) or not 0 <= target < classes:
        raise PlanError(f"target={target!r} is no class of the model: give a whole number from 0 to {classes - 1}")


def _is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python, NumPy or torch."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def accuracy(model: nn.Module, clean: Clean) -> float:
    """Share of clean samples that are put into their class, in [0, 1]."""
    return float((answers(model, clean.x).argmax(1) == clean.y).double().mean())


def attack_success(model: nn.Module, clean: Clean, trigger: Callable[[Tensor], Tensor], target: int) -> float:
    """Share of samples of other classes that the trigger makes the model call ``target``, in [0, 1].

    Raises:
        DataError: all samples are of the target class, or the trigger changes their shape.
        PlanError: the target is no class of the model.
    """
    check_target(target, classes_of(model, clean.x))
    others = clean.x[clean.y != target]
    if not len(others):
        raise DataError(f"all clean samples are of class {target}: attack success is counted on those of other classes")
    carrying = trigger(others)
    if carrying.shape != others.shape:
        raise DataError(f"the trigger makes {tuple(carrying.shape)} of inputs {tuple(others.shape)}: keep their shape")
    return float((answers(model, carrying).argmax(1) == target).double().mean())


def has_norms(model: nn.Module) -> bool:
    """Whether the model has batch norms, whose running statistics drift while little data trains it."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())
