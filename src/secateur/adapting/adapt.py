"""``sc.adapt``: a new task for a trained model: another head, training, pruning by what the new data needs, tuning."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import nn

from secateur.adapting.choosing import Choice, Fitted, Task, fit
from secateur.adapting.finding import find_head, with_head
from secateur.adapting.head import Head
from secateur.adapting.known import known_by
from secateur.adapting.passes import same_pass
from secateur.adapting.stages import describe, example, task_of, teaches, unpruned
from secateur.data import Data
from secateur.errors import DataError
from secateur.importance import Criterion
from secateur.objectives import Loss
from secateur.plain import CHOICES
from secateur.planning import Budget
from secateur.provenance import remember
from secateur.pruning import Result, prune
from secateur.reporting import Report
from secateur.tuning import ADAPTING, History, tune
from secateur.tuning.choosing import Rate
from secateur.tuning.recipes import ADAPTED_IMPORTANCE as IMPORTANCE
from secateur.tuning.trainable import What

COMMAND = "sc.adapt(...)"
EPOCHS = ADAPTING.epochs
RATE = ADAPTING.lr
CALIBRATION_BATCHES = 32  # of training data that scores and compensation look at


@dataclass(frozen=True, kw_only=True)
class Adapted(Result):
    """What adapting gave: what pruning gives, and more.

    Attributes:
        head: the new head, as a change that `secateur.save` stores with the model.
        dense: the adapted model before pruning.
        choices: what was trained and what stayed as it was, and why: of the model before pruning as "dense", of the
            pruned one as "tuned"; empty without data.
        histories: the trainings: "adapted-head", "adapted", "tuned-head", "tuned".
    """

    head: Head
    dense: nn.Module = field(repr=False)
    choices: Mapping[str, Choice] = field(default_factory=dict[str, Choice])
    histories: Mapping[str, History] = field(default_factory=dict[str, History], repr=False)


def adapt(
    model: nn.Module,
    args: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    classes: int | None = None,
    data: Data | Iterable[Any] | None = None,
    validate: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    labels: Sequence[str] = (),
    train_only: What = "auto",
    importance: str | Criterion = "auto",
    budget: Budget | None = None,
    threshold: float | None = None,
    keep: float | None = None,
    compensate: str | None = "auto",
    epochs: int = EPOCHS,
    head_epochs: int | None = None,
    lr: Rate = RATE,
    optimizer: str = "adamw",
    teacher: Literal["auto"] | bool = "auto",
    loss: Loss | None = None,
    seed: int = 0,
    **planning: Any,
) -> Adapted:
    """Teach a trained model a new task, and remove what the new data does not need.

    The head is found through the graph and replaced by a fresh one for the new classes. It is trained; then, if that
    pays, more is. What was learnt is pruned by its importance for the new data, proved, refitted on the new data, and
    tuned with the adapted model before pruning as its teacher. The model given is untouched.

    Args:
        model: a classifier of any kind: the last layer that its class scores come from is a linear or convolutional
            one, whatever follows it.
        args, kwargs: example inputs; by default the first sample of ``data``.
        classes: of the new task, at least 2; by default as many as the labels of ``data`` name.
        data: training batches with labels, iterable again and again; or a `secateur.data.Data`, which has the other
            two as well. Without any, the model gets its new head and is neither trained nor, unless it is asked for,
            pruned.
        validate: batches that choices are made by: what to train, which epoch to keep, whether a teacher pays.
        test: batches that no choice looks at, for the accuracies in the report; those of ``validate`` if there are
            none.
        labels: names of the classes, for configs of Hugging Face's (``id2label``).
        train_only: what trains after the head: "auto" decides between nothing more ("head") and everything ("all") by
            validation accuracy, or without ``validate`` by the amount of data (everything from 50 samples a class on);
            or "head", "all", or anything else that `secateur.tuning.trainable` takes. Once for the adapted model, and
            once more for the pruned one.
        importance, compensate: as for `prune`, on the first 32 batches of ``data``; importance "auto" is "fisher" then,
            which asks what the new labels need, unless there is a threshold.
        budget, threshold, keep: what to remove, as for `prune`; without any, half of the MACs. ``keep=1.0`` prunes
            nothing.
        epochs: of training more than the head, before pruning and again after it; 0 trains the head alone.
        head_epochs: of training the head, 10 if not given, where it is not the last layer, or the loss is your own.
            Else it is logistic regression, on features that are computed once, from one pass over ``data``, and on the
            scores of the old classes that are akin to the new ones, where ``validate`` says that this is better.
        lr, optimizer: as for `tune`, where more than the head trains.
        teacher: whether the pruned model imitates the adapted one while it is tuned; "auto" where the latter is at
            least as accurate on ``validate``, or there is none.
        loss: ``(output, target) -> scalar``; by default the model's own, else cross-entropy.
        seed: of everything random, the new head's weights among it.
        planning: further settings of `prune`: max_drop, uniform, scope, only, ...

    Returns:
        A `Result`, its model in evaluation mode, with ``head``, ``dense`` (the adapted model before pruning),
        ``choices`` and ``histories``. Its report holds the accuracies as "dense", "pruned" and "tuned", and what was
        frozen and why as "adapted".

    Raises:
        ModelError: the model's output has no class axis, or its code holds the old number of classes.
        DataError: no data and no example inputs; labels that are none, lie out of range, name more classes than
            ``classes`` or one class only; inputs that the model does not take.
        TraceError, PlanError, UnreachableBudget, NothingToPrune, ProofFailed, TrainingError: as `prune` and `tune`.
        KeyboardInterrupt: Ctrl-C before there was a pruned model.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
        >>> x = torch.randn(64, 2)
        >>> batch = x, (x[:, 0] > 0).long()
        >>> result = sc.adapt(net, data=[batch], validate=[batch], epochs=20, lr=0.01)
        >>> result.head.layers, result.model(x).shape, result.choices["tuned"].trained in ("head", "all")
        (('2',), torch.Size([64, 2]), True)
    """
    if isinstance(data, Data):
        validate, test, data = validate or data.validation, test or data.test, data.train
    train, validate, test = (list(b) if isinstance(b, Iterator) else b for b in (data, validate, test))
    device = str(next((p.device for p in model.parameters()), torch.device("cpu")))
    inputs = example(model, args, kwargs, train, device)
    task = None if train is None else task_of(train, validate, classes, seed=seed, device=device, loss=loss)
    count = classes if task is None else len(task.counts)
    if count is None or count < 2:
        unknown = "is not known: give classes=, or data with labels"
        said = unknown if count is None else f"is {count}: a classifier needs at least 2 classes"
        raise DataError(f"how many classes the new task has {said}")
    head = find_head(model, *inputs, classes=count, labels=_names(labels, count), seed=seed)
    start = with_head(model, head, *inputs)
    reach: dict[str, Any] = {"budget": budget, "threshold": threshold, "keep": keep, **planning}
    bounds = ("max_drop", "max_loss_increase", "max_robust_drop")
    if validate is not None and any(reach.get(name) is not None for name in bounds):
        reach["validate"] = validate
    reach |= {"importance": importance, "seed": seed, "loss": loss}
    if task is None:
        asked = any(reach.get(name) is not None for name in CHOICES) and keep != 1.0
        result = prune(start, *inputs, compensate=None, **reach) if asked else unpruned(start, *inputs, seed)
        report = result.report.replace(command=COMMAND, adapted=describe(head, None, {}))
        return _adapted(result, result.model, report, head, start)

    def trainer(model: nn.Module, train: Any, validate: Any, *, stage: str, rate: bool, **how: Any) -> History:
        rates: dict[str, Any] = {"lr": lr, "optimizer": optimizer} if rate else {"lr": "auto", "optimizer": "adamw"}
        return tune(model, train, validate, device=device, seed=seed, loss=loss, **rates, **how)

    how: dict[str, Any] = {"train_only": train_only, "epochs": epochs, "head_epochs": head_epochs}
    dense = fit(start, head, task, trainer, stage="adapted", known=known_by(model, head.layers), **how)
    if dense.interrupted:
        raise KeyboardInterrupt
    whole = dense.model.eval()
    if keep == 1.0:
        result, tuned, taught = unpruned(whole, *inputs, seed), None, None
    else:
        batches = list(same_pass(task.train, seed, device, CALIBRATION_BATCHES))
        reach["importance"] = IMPORTANCE if importance == "auto" and threshold is None else importance
        result = prune(whole, *inputs, data=batches, compensate=compensate, **reach)
        taught = teaches(whole, result.model, task) if teacher == "auto" else (bool(teacher), "as asked for")
        how |= {"teacher": whole if taught[0] else None, "known": known_by(result.model, head.layers)}
        tuned = fit(result.model, head, task, trainer, stage="tuned", **how)
    return _finished(result, head, task, dense, tuned, taught, inputs, test)


def _finished(
    result: Result,
    head: Head,
    task: Task,
    dense: Fitted,
    tuned: Fitted | None,
    taught: tuple[bool, str] | None,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    test: Iterable[Any] | None,
) -> Adapted:
    """The result with its report: results on the test data, or what there is in its place."""
    places = {"test": test, "validation": task.validate, "training": task.train}
    measured, batches = next((name, given) for name, given in places.items() if given is not None)
    fitted = {"dense": dense, **({} if tuned is None else {"tuned": tuned})}
    models = {"dense": dense.model, "pruned": result.model, **({} if tuned is None else {"tuned": tuned.model})}
    costs = {"dense": result.report["dense"], "pruned": result.report["pruned"], "tuned": result.report["pruned"]}
    choices = {name: one.choice for name, one in fitted.items()}
    report = result.report.replace(
        command=COMMAND,
        adapted=describe(head, task, choices, taught=taught, measured=measured),
        **{name: {**costs[name], "metrics": task.judge(model, batches)} for name, model in models.items()},
        **({"environment": {"interrupted": "the tuning was stopped"}} if tuned and tuned.interrupted else {}),
    )
    model = result.model if tuned is None else tuned.model
    remember(model, "inputs", inputs)
    histories = {stage: history for one in fitted.values() for stage, history in one.histories.items()}
    return _adapted(result, model.eval(), report, head, dense.model, choices, histories)


def _adapted(result: Result, model: nn.Module, report: Report, head: Head, dense: nn.Module, *more: Any) -> Adapted:
    """A result of pruning with what adapting adds to it: its choices and histories are the last two."""
    kept = {item.name: getattr(result, item.name) for item in fields(Result)}
    kept |= {"model": model, "report": report}
    return Adapted(**kept, head=head, dense=dense, **dict(zip(("choices", "histories"), more, strict=False)))


def _names(labels: Sequence[str], classes: int) -> Sequence[str]:
    if labels and len(set(labels)) != classes:
        raise DataError(f"labels has {len(set(labels))} different names for {classes} classes: give one for each")
    return labels
