"""``sc.adapt``: a new task for a trained model: another head, training, pruning by what the new data needs, tuning."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import nn

from secateur.adapting.choosing import Choice, Fitted, Task, fit
from secateur.adapting.classes import count_classes, unlabelled
from secateur.adapting.finding import find_head, with_head
from secateur.adapting.head import Head
from secateur.adapting.passes import same_pass
from secateur.calibration.batches import Forward
from secateur.data import Data
from secateur.errors import DataError
from secateur.importance import Criterion
from secateur.inputs import as_call, run
from secateur.misfits import advice
from secateur.modules import kept_modes
from secateur.objectives import Loss
from secateur.planning import Budget, Plan
from secateur.proof import prove
from secateur.provenance import remember
from secateur.pruning import Result, bare_report, prune
from secateur.reporting import Report
from secateur.tracing import trace
from secateur.tuning import History, evaluate, tune
from secateur.tuning.choosing import Rate
from secateur.tuning.trainable import What

EPOCHS = 5
RATE = 3e-4  # keeps what a trained network knows
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
    forward: Forward | None = None,
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
        importance, compensate: as for `prune`, on the first 32 batches of ``data``.
        budget, threshold, keep: what to remove, as for `prune`; without any, half of the MACs. ``keep=1.0`` prunes
            nothing.
        epochs: of training more than the head, before pruning and again after it; 0 trains the head alone.
        head_epochs: of training the head, 10 if not given, where it is not the last layer, or the loss is your own.
            Else it is logistic regression on features that are computed once, from one pass over ``data``.
        lr, optimizer: as for `tune`, where more than the head trains.
        teacher: whether the pruned model imitates the adapted one while it is tuned; "auto" where the latter is at
            least as accurate on ``validate``, or there is none.
        loss, forward: as for `prune`; scores go by them.
        seed: of everything random, the new head's weights among it.
        planning: further settings of `prune`: max_drop, uniform, scope, only, ...

    Returns:
        A `Result` with ``head``, ``dense`` (the adapted model before pruning), ``choices`` and ``histories``. Its
        report holds the accuracies as "dense", "pruned" and "tuned", and what was frozen and why as "adapted".

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
    device = str(next((p.device for p in model.parameters()), torch.device("cpu")))
    positional, keywords = example(model, args, kwargs, data, device)
    task = None if data is None else task_of(data, validate, classes, seed=seed, device=device, custom=loss is not None)
    count = classes if classes is not None else None if task is None else len(task.counts)
    if count is None:
        raise DataError("how many classes the new task has is not known: give classes=, or data with labels")
    if count < 2:
        raise DataError(f"classes={count}: a classifier needs at least 2 classes to tell apart")
    head = find_head(model, positional, keywords, classes=count, labels=_names(labels, count), seed=seed)
    start = with_head(model, head, positional, keywords)
    reach = {"budget": budget, "threshold": threshold, "keep": keep}
    bounded = {name: planning[name] for name in ("max_drop", "max_loss_increase") if planning.get(name) is not None}
    if bounded and validate is not None:
        planning["validate"] = validate
    asked = bounded or any(value is not None for value in reach.values())
    chosen: dict[str, Any] = {"importance": importance, "seed": seed, "loss": loss, "forward": forward, **planning}
    if task is None:
        whole = not asked or keep == 1.0
        result = (
            unpruned(start, positional, keywords, seed)
            if whole
            else prune(start, positional, keywords, compensate=None, **reach, **chosen)
        )
        record = describe(head, None, {}, taught=None, measured="")
        report = result.report.replace(command="sc.adapt(...)", adapted=record)
        return _adapted(result, result.model, report, head, start, {}, {})

    def trainer(model: nn.Module, train: Any, validate: Any, *, stage: str, rate: bool, **how: Any) -> History:
        rates: dict[str, Any] = {"lr": lr, "optimizer": optimizer} if rate else {"lr": "auto", "optimizer": "adamw"}
        return tune(model, train, validate, device=device, seed=seed, loss=loss, **rates, **how)

    how: dict[str, Any] = {"train_only": train_only, "epochs": epochs, "head_epochs": head_epochs}
    dense = _done(fit(start, head, task, trainer, stage="adapted", **how))
    choices, taught, tuned = {"dense": dense.choice}, None, dense
    if keep == 1.0:
        result = unpruned(dense.model.eval(), positional, keywords, seed)
    else:
        batches = list(same_pass(task.train, seed, device, CALIBRATION_BATCHES))
        result = prune(dense.model.eval(), positional, keywords, data=batches, compensate=compensate, **reach, **chosen)
        taught = teaches(dense.model, result.model, task) if teacher == "auto" else (bool(teacher), "as asked for")
        tuned = fit(result.model, head, task, trainer, stage="tuned", teacher=dense.model if taught[0] else None, **how)
        choices["tuned"] = tuned.choice
    record = describe(head, task, choices, taught=taught, measured=_split(test, validate))
    columns = {"dense": dense.model, "pruned": result.model, **({} if tuned is dense else {"tuned": tuned.model})}
    batches = next(b for b in (test, validate, task.train) if b is not None)
    report = result.report.replace(
        command="sc.adapt(...)",
        adapted=record,
        **{name: with_metrics(result.report, name, m, batches, device) for name, m in columns.items()},
        **({"environment": {"interrupted": "tuning was stopped"}} if tuned.interrupted else {}),
    )
    remember(tuned.model, "inputs", (positional, keywords))
    histories = {**dense.histories, **tuned.histories}
    return _adapted(result, tuned.model.eval(), report, head, dense.model, choices, histories)


def with_metrics(report: Report, name: str, model: nn.Module, batches: Iterable[Any], device: str) -> dict[str, Any]:
    """A column of a bare report, with the results on some batches; tuning changes no cost."""
    costs = report["pruned" if name == "tuned" else name] or {}
    return {**costs, "metrics": evaluate(model, batches, device)}


def _split(test: Any, validate: Any) -> str:
    return "test" if test is not None else "validation" if validate is not None else "training"


def example(
    model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None, data: Iterable[Any] | None, device: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs, positional and by name: those given, else the first sample of the data.

    Raises:
        DataError: there are none, or the model does not run on the data's.
    """
    if args is not None or kwargs:
        return as_call(args, kwargs)
    if data is None:
        raise DataError("no example inputs: give args=, or data= with batches whose first sample is taken")
    first = next(same_pass(data, 0, device, 1), None)
    if first is None:
        raise DataError("the training data holds no batch: give it samples")
    try:
        positional, keywords = unlabelled(first)
    except TypeError as error:
        raise DataError(f"{error}. Let the loader give pairs, with inputs that are several as a tuple") from error
    try:
        with kept_modes(model), torch.no_grad():
            run(model.eval(), positional, keywords)
    except Exception as error:
        said = advice(model, positional or keywords)
        raise DataError(
            f"{type(model).__name__} does not run on the first sample of the data: {type(error).__name__}: "
            f"{' '.join(str(error).split())}. {said + '. ' if said else ''}Bring the data into the form that it takes"
        ) from error
    return positional, keywords


def task_of(
    train: Iterable[Any],
    validate: Iterable[Any] | None,
    classes: int | None,
    *,
    seed: int,
    device: str,
    custom: bool = False,
) -> Task:
    """The task that data sets, once its labels are checked.

    Raises:
        DataError: as `count_classes`, of either split.
    """
    counts = count_classes(train, classes)
    if validate is not None:
        count_classes(validate, len(counts), split="validation")
    return Task(train=train, validate=validate, counts=counts, seed=seed, device=device, custom=custom)


def teaches(dense: nn.Module, pruned: nn.Module, task: Task) -> tuple[bool, str]:
    """Whether the dense model is worth imitating: on the validation data it is at least as accurate. And why."""
    if task.validate is None:
        return True, "there is no validation data to tell"
    own, other = (evaluate(m, task.validate, task.device).get("accuracy", 0.0) for m in (dense, pruned))
    return own >= other, f"validation accuracy {own:.1%} before pruning, {other:.1%} after it"


def unpruned(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int) -> Result:
    """The result of removing nothing."""
    graph, plan = trace(model, args, kwargs), Plan(axes={}, tensors={}, model=type(model).__name__)
    proof = prove(model, model, graph, plan, args, kwargs)
    remember(model, "inputs", (args, dict(kwargs)))
    report = bare_report(model, graph, plan, proof, seed=seed, compensation=None, held_out=None, clock=None, dead=0)
    return Result(model=model, plan=plan, proof=proof, graph=graph, scores={}, report=report)


def describe(
    head: Head,
    task: Task | None,
    choices: Mapping[str, Choice],
    *,
    taught: tuple[bool, str] | None,
    measured: str,
) -> dict[str, Any]:
    """What a report says of an adaptation, as plain data.

    Args:
        taught: whether the pruned model had the dense one as its teacher, and why; None where it was not tuned.
        measured: which split the accuracies are of.
    """
    return {
        "layers": list(head.layers),
        "before": head.before,
        "after": head.after,
        "samples": None if task is None else task.counts.tolist(),
        "choices": {name: choice.to_dict() for name, choice in choices.items()},
        "teacher": None if taught is None else {"used": taught[0], "why": taught[1]},
        "measured_on": measured or None,
    }


def _adapted(
    result: Result,
    model: nn.Module,
    report: Report,
    head: Head,
    dense: nn.Module,
    choices: Mapping[str, Choice],
    histories: Mapping[str, History],
) -> Adapted:
    kept = {item.name: getattr(result, item.name) for item in fields(Result)}
    kept |= {"model": model, "report": report}
    return Adapted(**kept, head=head, dense=dense, choices=choices, histories=histories)


def _names(labels: Sequence[str], classes: int) -> Sequence[str]:
    if labels and len(set(labels)) != classes:
        raise DataError(f"labels has {len(set(labels))} different names for {classes} classes: give one for each")
    return labels


def _done(fitted: Fitted) -> Fitted:
    if fitted.interrupted:
        raise KeyboardInterrupt
    return fitted
