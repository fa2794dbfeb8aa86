"""What to train on a new task, and what stays as it is: the choice, and the training that it rests on."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from secateur.adapting.features import Features
from secateur.adapting.head import Head
from secateur.errors import TrainingError
from secateur.modules import named_tensors
from secateur.tuning import History, evaluate
from secateur.tuning.trainable import NAMES

FEW = 50  # samples of a class; with fewer, a head alone is trained where no validation data can tell
HEAD_EPOCHS = 100  # on features that are computed once
SLOW_EPOCHS = 10  # of a head behind which the whole network has to run


class Trainer(Protocol):
    """Trains a model in place, as `secateur.tune` does."""

    def __call__(
        self,
        model: nn.Module,
        train: Iterable[Any],
        validate: Iterable[Any] | None,
        *,
        stage: str,
        epochs: int,
        rate: bool,
        train_only: Any,
        teacher: nn.Module | None,
        freeze_statistics: bool,
    ) -> History:
        """Train.

        Args:
            stage: its name, "adapted" or "tuned", with "-head" where only the head trains.
            epochs: passes over the data.
            rate: whether the learning rate is the one asked for; else it is found by a range test.
            train_only, teacher, freeze_statistics: as for `secateur.tune`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """A new task: what it is learnt from, and by.

    Attributes:
        train: batches with labels.
        validate: batches that choices are made by; None where there are none.
        counts: training samples of each class.
        seed: of everything random.
        device: where it is trained.
    """

    train: Iterable[Any]
    validate: Iterable[Any] | None
    counts: Tensor
    seed: int
    device: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was trained, and why.

    Attributes:
        trained: "head", "all", or what the user named.
        frozen: what stayed as it was, in words.
        why: in a sentence.
        candidates: results of what was tried on the validation data: "trained", "loss", and "accuracy" in [0, 1].
    """

    trained: str
    frozen: str
    why: str
    candidates: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {**asdict(self), "candidates": [dict(row) for row in self.candidates]}


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A model after training on the task, with what was chosen, and the training by stage."""

    model: nn.Module
    choice: Choice
    histories: dict[str, History] = field(default_factory=dict[str, History])

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended a training."""
        return any(history.interrupted for history in self.histories.values())


def fit(
    model: nn.Module,
    head: Head,
    task: Task,
    trainer: Trainer,
    *,
    stage: str,
    train_only: Any,
    epochs: int,
    head_epochs: int | None = None,
    teacher: nn.Module | None = None,
) -> Fitted:
    """Train the head, and then more if that is asked for, or pays.

    Args:
        model: left as it is.
        head: the change that gave it its head.
        train_only: "head"; "auto", which decides between "head" and "all" by validation, or without validation data by
            the amount of data; else what `secateur.tuning.trainable` takes.
        epochs: of the training of more than the head; 0 leaves that out.
        head_epochs: of the head's training; None is many where the network need not run for it.
        teacher: for the training of more than the head.
    """
    model = copy.deepcopy(model)
    histories = {f"{stage}-head": train_head(model, head, task, trainer, stage=f"{stage}-head", epochs=head_epochs)}
    what, why = _asked(train_only, task, epochs)
    if what == "head" or histories[f"{stage}-head"].interrupted:
        rows = () if task.validate is None else (_row("head", model, task),)
        return Fitted(model=model, choice=_choice("head", why, rows), histories=histories)
    whole = copy.deepcopy(model)
    kind = "all" if what == "auto" else what
    histories[stage] = trainer(
        whole,
        task.train,
        task.validate,
        stage=stage,
        epochs=epochs,
        rate=True,
        train_only=kind,
        teacher=teacher,
        freeze_statistics=False,
    )
    if task.validate is None:
        return Fitted(model=whole, choice=_choice(kind, why, ()), histories=histories)
    rows = (_row("head", model, task), _row(str(kind), whole, task))
    if what != "auto" or histories[stage].interrupted:
        return Fitted(model=whole, choice=_choice(kind, why, rows), histories=histories)
    winner, why = better(rows[0], rows[1], _size(task.validate))
    return Fitted(model=model if winner == "head" else whole, choice=_choice(winner, why, rows), histories=histories)


def train_head(
    model: nn.Module, head: Head, task: Task, trainer: Trainer, *, stage: str, epochs: int | None = None
) -> History:
    """Train the head alone, in place. Where it is the model's last layer, on features that are computed once."""
    fast = _features(model, head, task)
    if fast is not None:
        train, validate = fast
        layer = model.get_submodule(head.layers[0])
        trained = copy.deepcopy(layer)  # a hook on the model's own would see it
        history = _head_run(trainer, trained, train, validate, stage, epochs or HEAD_EPOCHS, "all")
        layer.load_state_dict(trained.state_dict())
        return history
    names = [name for name in head.names if isinstance(named_tensors(model)[name], nn.Parameter)]
    return _head_run(trainer, model, task.train, task.validate, stage, epochs or SLOW_EPOCHS, names)


def _head_run(
    trainer: Trainer, model: nn.Module, train: Any, validate: Any, stage: str, epochs: int, what: Any
) -> History:
    return trainer(
        model,
        train,
        validate,
        stage=stage,
        epochs=epochs,
        rate=False,
        train_only=what,
        teacher=None,
        freeze_statistics=True,
    )


def _features(model: nn.Module, head: Head, task: Task) -> tuple[Any, Any] | None:
    """Features of the training and the validation data; None where the head can't be trained by itself."""
    if len(head.layers) != 1 or not isinstance(model.get_submodule(head.layers[0]), nn.Linear):
        return None
    features = Features(model, head.layers[0])
    train = features.of(task.train, seed=task.seed, device=task.device, shuffle=True)
    if train is None or task.validate is None:
        return None if train is None else (train, None)
    validate = features.of(task.validate, seed=task.seed, device=task.device, shuffle=False)
    return None if validate is None else (train, validate)


def _asked(train_only: Any, task: Task, epochs: int) -> tuple[Any, str]:
    """What to train, "auto" where that is still to be found out, and why."""
    if not epochs:
        return "head", "no epochs are left for more than the head"
    if train_only != "auto":
        return train_only, "as asked for"
    if task.validate is not None:
        return "auto", ""
    least = int(task.counts[task.counts > 0].min())
    if least < FEW:
        return "head", f"the smallest class has {least} samples, fewer than {FEW}, and there is no validation data"
    return "all", f"every class has at least {FEW} samples (the smallest {least}), and there is no validation data"


def better(head: Mapping[str, Any], whole: Mapping[str, Any], samples: int) -> tuple[str, str]:
    """Which of two trainings to keep, "head" or what else was trained, and why.

    The more accurate one; where they lie within one standard error of each other, which validation samples can't tell
    apart, the one of lower loss.

    Args:
        head, whole: their results: "trained", "loss", "accuracy".
        samples: how many they are of.

    Example:
        >>> better({"trained": "head", "loss": 0.3, "accuracy": 0.9},
        ...        {"trained": "all", "loss": 0.2, "accuracy": 0.91}, 100)[0]
        'all'
    """
    first, second = head["accuracy"], whole["accuracy"]
    top = max(first, second)
    error = (top * (1 - top) / samples) ** 0.5
    said = f"validation accuracy {first:.1%} with the head alone, {second:.1%} with {whole['trained']}"
    if abs(first - second) > error:
        return ("head" if first > second else whole["trained"]), said
    lower = "head" if head["loss"] <= whole["loss"] else whole["trained"]
    return lower, (
        f"{said}, the same within one standard error of {samples} samples; validation loss {head['loss']:.3g} against "
        f"{whole['loss']:.3g}"
    )


def _choice(trained: Any, why: str, rows: tuple[Mapping[str, Any], ...]) -> Choice:
    frozen = {"head": "everything but the head", "all": "nothing"}.get(str(trained), f"everything but {trained}")
    return Choice(trained=str(trained), frozen=frozen, why=why, candidates=rows)


def _row(name: str, model: nn.Module, task: Task) -> dict[str, Any]:
    assert task.validate is not None
    found = evaluate(model, task.validate, task.device)
    if "accuracy" not in found:
        raise TrainingError(f"no accuracy on the validation data: its labels do not fit the model. Known: {NAMES}")
    return {"trained": name, **found}


def _size(batches: Iterable[Any]) -> int:
    from secateur.tuning.parts import size_of

    return sum(size_of(batch) for batch in batches)
