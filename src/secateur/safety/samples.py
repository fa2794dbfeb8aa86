"""The samples that a network is attacked on: one tensor of inputs and its labels, and the network as class scores.

Shape letters: N samples, C classes or channels.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.batches import checked
from secateur.errors import DataError
from secateur.inputs import split_batch
from secateur.objectives import logits_of
from secateur.safety.hunt import Scores

Forward = Callable[[nn.Module, Tensor], Any]
_FORM = "An attack changes one tensor of floating-point numbers"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What is attacked.

    Attributes:
        inputs: (N, ...), scaled as the network wants them.
        labels: (N,), classes from 0.
        name: of the keyword that the inputs are given by; None where they are positional.
        rows: (N,), which of the samples of the data they are: those without a label (below 0) are left out.
    """

    inputs: Tensor
    labels: Tensor
    name: str | None
    rows: Tensor

    @property
    def images(self) -> bool:
        """Whether an input is (C, H, W)."""
        return self.inputs.dim() == 4


def gather(data: Any, count: int | None, device: torch.device) -> Samples:
    """The first samples of the data.

    Args:
        data: batches with labels.
        count: how many at most; None is all.
        device: where they are to lie.

    Raises:
        DataError: there are none, or they are not what an attack needs.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    name, seen, kept = None, 0, 0
    for number, batch in enumerate(checked(data)):
        inputs, labels, name = _one(number, batch)
        rows = (labels >= 0).nonzero()[:, 0]
        rows = rows[: len(rows) if count is None else count - kept]
        parts.append((inputs[rows].to(device), labels[rows].to(device), rows + seen))
        seen, kept = seen + len(inputs), kept + len(rows)
        if count is not None and kept >= count:
            break
    if not kept:
        raise DataError("the data hold no sample with a label: give batches (inputs, labels), such as a DataLoader")
    if len({tuple(inputs.shape[1:]) for inputs, _, _ in parts}) > 1:
        raise DataError("the samples of the data differ in shape: bring them to one")
    inputs, labels, rows = (torch.cat(column) for column in zip(*parts, strict=True))
    return Samples(inputs=inputs, labels=labels, name=name, rows=rows)


def _one(number: int, batch: Any) -> tuple[Tensor, Tensor, str | None]:
    """Inputs and labels of one batch, and the keyword of the inputs."""
    try:
        args, kwargs, target = split_batch(batch)
    except TypeError as error:
        raise DataError(f"batch {number}: {error}") from error
    target = kwargs.get("labels") if target is None else target
    given: list[tuple[str | None, Any]] = [(None, value) for value in args]
    given += [(name, value) for name, value in kwargs.items() if name != "labels"]
    if len(given) != 1 or not isinstance(given[0][1], Tensor) or not given[0][1].is_floating_point():
        shown = ", ".join(f"{name or 'an input'}: {_kind(value)}" for name, value in given) or "nothing"
        raise DataError(
            f"{_FORM}; batch {number} gives the model {shown}. Give batches of one such tensor and labels, and "
            "forward=lambda model, inputs: ... for what else the model wants"
        )
    name, inputs = given[0]
    if not isinstance(target, Tensor) or target.is_floating_point() or target.shape != inputs.shape[:1]:
        raise DataError(
            f"batch {number} has {_kind(target)} for labels: attacks need one class a sample, int64 "
            f"({len(inputs)},), as in [(inputs, labels)]"
        )
    if not bool(inputs.isfinite().all()):
        raise DataError(f"batch {number} holds NaN or infinity: drop or mend it")
    return inputs.detach(), target.long(), name


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def as_scores(model: nn.Module, name: str | None, forward: Forward | None) -> Scores:
    """The network as a function from inputs (N, ...) to class scores (N, C)."""

    def scores(inputs: Tensor) -> Tensor:
        if forward is not None:
            said = forward(model, inputs)
        else:
            said = model(inputs) if name is None else model(**{name: inputs})
        found = logits_of(said)
        if found is None or found.dim() != 2:
            shape = type(said).__name__ if found is None else f"scores {tuple(found.shape)}"
            raise DataError(
                f"{type(model).__name__} returns {shape}: attacks need class scores (N, C); give "
                "forward=lambda model, inputs: ... that returns them"
            )
        return found

    return scores


def check_classes(scores: Scores, samples: Samples, model: nn.Module) -> int:
    """How many classes a network tells apart, once it is seen to run on the samples.

    Raises:
        DataError: it does not run, or there are labels that it has no score for.
    """
    try:
        with torch.no_grad():
            said = scores(samples.inputs[:1])
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{type(model).__name__} does not run on inputs {tuple(samples.inputs.shape)}: {type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0]}"
        ) from error
    most = int(samples.labels.max())
    if most >= said.shape[1]:
        raise DataError(f"{type(model).__name__} tells {said.shape[1]} classes apart, but the labels go up to {most}")
    return said.shape[1]


def groups_of(given: Any, samples: Samples, labels: Tensor, names: Iterable[str] | None) -> dict[str, Tensor]:
    """Which samples belong together, as masks (N,) by name.

    Args:
        given: None takes the classes; a mapping from names to masks over the samples of the data; or one value for
            each sample of the data, such as a region or a camera.
        samples: what is attacked.
        labels: the classes.
        names: of the classes, from 0.

    Raises:
        DataError: it says nothing of some samples.
    """
    if given is None:
        titles = list(names or ())
        classes: list[int] = labels.unique().tolist()
        return {titles[k] if k < len(titles) else f"class {k}": labels == k for k in classes}
    if isinstance(given, Mapping):
        masks = {str(name): torch.as_tensor(mask).bool() for name, mask in given.items()}
    else:
        values: list[Any] = given.tolist() if isinstance(given, Tensor) else list(given)
        masks = {str(value): torch.tensor([other == value for other in values]) for value in dict.fromkeys(values)}
    needed = int(samples.rows.max()) + 1
    short = [f"{name}: {len(mask)}" for name, mask in masks.items() if len(mask) < needed]
    if short or not masks:
        raise DataError(f"groups= must say something of each of the first {needed} samples, got {short or 'nothing'}")
    return {name: mask.to(labels.device)[samples.rows.to(labels.device)] for name, mask in masks.items()}
