"""The steps of adapting that ``sc.adapt`` and the command line share, besides those with a file of their own."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from secateur.adapting.choosing import Choice, Task
from secateur.adapting.classes import count_classes, unlabelled
from secateur.adapting.head import Head
from secateur.adapting.passes import same_pass
from secateur.errors import DataError
from secateur.inputs import as_call, run
from secateur.misfits import advice
from secateur.modules import kept_modes
from secateur.objectives import Loss
from secateur.planning import Plan
from secateur.proof import prove
from secateur.provenance import remember
from secateur.pruning import Result, bare_report
from secateur.tracing import trace


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
    loss: Loss | None = None,
) -> Task:
    """The task that data sets, once its labels are checked.

    Raises:
        DataError: as `count_classes`, of either split.
    """
    counts = count_classes(train, classes)
    if validate is not None:
        count_classes(validate, len(counts), split="validation")
    return Task(train=train, validate=validate, counts=counts, seed=seed, device=device, loss=loss)


def teaches(dense: nn.Module, pruned: nn.Module, task: Task) -> tuple[bool, str]:
    """Whether the dense model is worth imitating: on the validation data it is at least as accurate. And why."""
    if task.validate is None:
        return True, "there is no validation data to tell"
    own, other = (task.judge(m).get("accuracy", 0.0) for m in (dense, pruned))
    return own >= other, f"validation accuracy {own:.1%} before pruning, {other:.1%} after it"


def unpruned(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int) -> Result:
    """The result of removing nothing."""
    graph, plan = trace(model, args, kwargs), Plan(axes={}, tensors={}, model=type(model).__name__)
    proof = prove(model, model, graph, plan, args, kwargs)
    remember(model, "inputs", (args, dict(kwargs)))
    report = bare_report(model, graph, plan, proof, seed=seed)
    return Result(model=model, plan=plan, proof=proof, graph=graph, scores={}, report=report)


def describe(
    head: Head,
    task: Task | None,
    choices: Mapping[str, Choice],
    *,
    taught: tuple[bool, str] | None = None,
    measured: str = "",
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
