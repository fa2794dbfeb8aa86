"""What to train on a new task, and what stays as it is: the choice, and the training that it rests on."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from secateur.adapting.features import Features
from secateur.adapting.head import Head
from secateur.adapting.known import Known
from secateur.adapting.regression import Samples, Way, fit_head
from secateur.errors import TrainingError
from secateur.modules import named_tensors
from secateur.objectives import Loss
from secateur.tuning import History, evaluate
from secateur.tuning.parts import size_of

FEW = 50  # samples of a class; with fewer, a head alone is trained where no validation data can tell
HEAD_EPOCHS = 10  # of a head for which the whole network has to run


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
        loss: the user's own, ``(output, target) -> scalar``; None is the model's, else cross-entropy.
    """

    train: Iterable[Any]
    validate: Iterable[Any] | None
    counts: Tensor
    seed: int
    device: str
    loss: Loss | None = None

    def judge(self, model: nn.Module, batches: Iterable[Any] | None = None) -> dict[str, float]:
        """Loss, and accuracy in [0, 1] where there is one; on the validation data, if no other is given."""
        given = batches if batches is not None else self.validate
        assert given is not None
        return evaluate(model, given, self.device, loss=self.loss)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was trained, and why.

    Attributes:
        trained: "head", "all", or what the user named.
        frozen: what stayed as it was, in words.
        why: in a sentence.
        candidates: results of what was tried on the validation data: "trained", "loss", and "accuracy" in [0, 1].
        head: how the head was fitted, in words; empty where it was trained step by step, or kept.
    """

    trained: str
    frozen: str
    why: str
    candidates: tuple[Mapping[str, Any], ...] = ()
    head: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {**asdict(self), "candidates": [dict(row) for row in self.candidates]}


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A model after training on the task.

    Attributes:
        model: the one to go on with.
        choice: what was trained, and why.
        tried: all that were trained, by what trained.
        histories: the trainings, by stage.
    """

    model: nn.Module
    choice: Choice
    tried: dict[str, nn.Module]
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
    known: Known | None = None,
) -> Fitted:
    """Train the head, and then more if that is asked for, or pays.

    Args:
        model: left as it is.
        head: the change that gave it its head.
        train_only: "head"; "auto", which decides between "head" and "all" by validation, or without validation data by
            the amount of data; else what `secateur.tuning.trainable` takes.
        epochs: of the training of more than the head; 0 leaves that out.
        head_epochs: of the head's training where the whole network has to run for it; None is 10.
        teacher: for the training of more than the head.
        known: what another head knows, from which the new one may start; see `fit_head`.
    """
    model = copy.deepcopy(model)
    alone = train_head(model, head, task, trainer, stage=f"{stage}-head", epochs=head_epochs, known=known)
    way, alone = (None, alone) if isinstance(alone, History) else (alone, None)
    histories = {} if alone is None else {f"{stage}-head": alone}
    what, why = _asked(train_only, task, epochs)
    tried = {"head": model}
    if what != "head" and not (alone is not None and alone.interrupted):
        name = "all" if what == "auto" else str(what)
        tried[name] = whole = copy.deepcopy(model)
        histories[stage] = trainer(
            whole,
            task.train,
            task.validate,
            stage=stage,
            epochs=epochs,
            rate=True,
            train_only="all" if what == "auto" else what,
            teacher=teacher,
            freeze_statistics=False,
        )
    rows = () if task.validate is None else tuple(_row(name, tried[name], task) for name in tried)
    last = list(tried)[-1]
    if what == "auto" and len(rows) == 2 and task.validate is not None and not histories[stage].interrupted:
        last, why = better(rows[0], rows[1], _size(task.validate))
    return Fitted(model=tried[last], choice=_choice(last, why, rows, way), tried=tried, histories=histories)


def train_head(
    model: nn.Module,
    head: Head,
    task: Task,
    trainer: Trainer,
    *,
    stage: str,
    epochs: int | None = None,
    known: Known | None = None,
) -> History | Way | None:
    """Train the head alone, in place.

    Where it is the model's last layer, and linear, by logistic regression on features that are computed once, from one
    pass in evaluation mode: `fit_head` says in which way, if any. Else the whole network runs in every step.
    """
    samples = None if task.loss is not None else _features(model, head, task)
    if samples is not None:
        layer: Any = model.get_submodule(head.layers[0])
        return fit_head(layer, *samples, seed=task.seed, known=known)
    names = [name for name in head.names if isinstance(named_tensors(model)[name], nn.Parameter)]
    return trainer(
        model,
        task.train,
        task.validate,
        stage=stage,
        epochs=HEAD_EPOCHS if epochs is None else epochs,
        rate=False,
        train_only=names,
        teacher=None,
        freeze_statistics=True,
    )


def _features(model: nn.Module, head: Head, task: Task) -> tuple[Samples, Samples | None] | None:
    """Features of the training and the validation data; None where the head can't be trained by itself."""
    if len(head.layers) != 1 or not isinstance(model.get_submodule(head.layers[0]), nn.Linear):
        return None
    features = Features(model, head.layers[0])
    train = features.of(task.train, seed=task.seed, device=task.device)
    if train is None or task.validate is None:
        return None if train is None else (train, None)
    validate = features.of(task.validate, seed=task.seed, device=task.device)
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
    likely = (top * samples + 2) / (samples + 4)  # as Agresti and Coull (1998) advise; see `tuning.best`
    error = (likely * (1 - likely) / samples) ** 0.5
    said = f"validation accuracy {first:.1%} with the head alone, {second:.1%} with {whole['trained']}"
    if abs(first - second) > error:
        return ("head" if first > second else whole["trained"]), said
    lower = "head" if head["loss"] <= whole["loss"] else whole["trained"]
    return lower, (
        f"{said}, the same within one standard error of {samples} samples; validation loss {head['loss']:.3g} against "
        f"{whole['loss']:.3g}"
    )


def _choice(trained: str, why: str, rows: tuple[Mapping[str, Any], ...], way: Way | None) -> Choice:
    frozen = {"head": "everything but the head", "all": "nothing"}.get(trained, f"everything but {trained}")
    return Choice(trained=trained, frozen=frozen, why=why, candidates=rows, head=str(way or ""))


def _row(name: str, model: nn.Module, task: Task) -> dict[str, Any]:
    found = task.judge(model)
    if "accuracy" not in found:
        raise TrainingError(
            "the accuracy on the validation data can't be told: its labels are not one class for each of the scores"
        )
    return {"trained": name, **found}


def _size(batches: Iterable[Any]) -> int:
    return sum(size_of(batch) for batch in batches)
