"""The run behind ``secateur adapt``: a new head, training, pruning, proof, tuning, test, report.

What comes after the training of the adapted network is what ``secateur prune`` does, by the same functions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from secateur import artifacts
from secateur.adapting.choosing import Choice, Fitted, Task, Trainer, fit
from secateur.adapting.finding import find_head, with_head
from secateur.adapting.head import Head
from secateur.adapting.known import Known, known_by
from secateur.adapting.stages import describe, example, task_of, teaches
from secateur.config import AdaptSettings
from secateur.data import Data
from secateur.files import RunDirectory, write_json
from secateur.fit import check_device, check_fit
from secateur.runs import several
from secateur.runs.origins import Origin, origin
from secateur.runs.prune import Outcome, finish, named_data, pruned_once, stopped
from secateur.runs.steps import Watch, silent
from secateur.runs.training import train as run_training
from secateur.runs.unfinished import Unfinished, carried_through
from secateur.strict import read_json
from secateur.tuning import History

TITLES = {
    "adapted-head": "Training the new head",
    "adapted": "Training the adapted network",
    "tuned-head": "Training the pruned network's head",
    "tuned": "Fine-tuning the pruned network",
}


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run begins with.

    Attributes:
        model: the network with its new head, not trained yet.
        head: the change that gave it the head.
        known: what the head before knew; None where it was no single linear layer.
        origin: where its changes begin.
        task: the data, with labels that were checked.
        data: the same, with the test split.
    """

    model: nn.Module
    head: Head
    known: Known | None
    origin: Origin
    task: Task
    data: Data


def adapt_run(
    settings: AdaptSettings, *, overwrite: bool = False, resume: bool = False, watch: Watch = silent
) -> Outcome:
    """Do everything that ``secateur adapt`` does.

    Args:
        settings: what to do; see `AdaptSettings`.
        overwrite: replace an earlier run in the same place, finished or not.
        resume: go on with a run that was not finished, from its last checkpoint.
        watch: is told of every step.

    Returns:
        What was done. After Ctrl-C during the fine-tuning the network is the best so far, and ``interrupted`` says so;
        resuming goes on with the fine-tuning.

    Raises:
        SecateurError: anything that can't be done, as one of its kinds. Nothing is left behind then but checkpoints.
        KeyboardInterrupt: Ctrl-C before there was anything worth keeping. Nothing is left behind but checkpoints.
    """
    several.check_alone("secateur adapt")
    settings = settings.resolved()
    work = partial(_adapt_run, settings, watch)
    return carried_through(settings.out, settings.to_yaml(), work, overwrite=overwrite, resume=resume)


def _adapt_run(settings: AdaptSettings, watch: Watch, directory: RunDirectory, unfinished: Unfinished) -> Outcome:
    start = prepare(settings, watch)
    trainer = _trainer(start.data, settings, unfinished, watch)
    how: dict[str, Any] = {
        "train_only": settings.train_only,
        "epochs": settings.epochs,
        "head_epochs": settings.head_epochs,
    }
    dense, choice, histories = _adapted_once(start, settings, trainer, unfinished, watch, how)
    choices, taught, models = {"dense": choice}, None, {"dense": dense}
    pruned = pruned_once(dense, start.data, settings, watch, unfinished, origin=start.origin)
    models["pruned"] = pruned.model
    if not stopped(pruned.report) and settings.keep != 1.0:
        taught = teaches(dense, pruned.model, start.task)
        teacher = dense if taught[0] else None
        how |= {"teacher": teacher, "known": known_by(pruned.model, start.head.layers)}
        tuned = fit(pruned.model, start.head, start.task, trainer, stage="tuned", **how)
        _say(tuned, watch)
        choices["tuned"], models["tuned"] = tuned.choice, tuned.model
        histories |= tuned.histories
        pruned = replace(pruned, model=tuned.model.eval())
    record = describe(start.head, start.task, choices, taught=taught, measured="test")
    return finish(models, pruned, histories, start.data, settings, directory, watch, adapted=record)


def prepare(settings: AdaptSettings, watch: Watch = silent) -> Start:
    """The network with its new head, and the data, checked to fit each other.

    Raises:
        ModelError: the network's output has no class axis.
        DataError: the network does not run on the data's inputs, or the labels will not do.
        ArtifactError: there is no saved result, or it needs ``--model`` or ``--trust``.
    """
    with watch("Loading model and data") as step:
        check_device(settings.device)
        model, start = origin(
            settings, settings.result, trust=settings.trust, seed=settings.seed, device=settings.device
        )
        data = named_data(settings)
        positional, keywords = example(model, None, None, data.train, settings.device)
        classes = data.classes if settings.classes is None else settings.classes
        task = task_of(data.train, data.validation, classes, seed=settings.seed, device=settings.device)
        head = find_head(model, positional, keywords, classes=len(task.counts), seed=settings.seed)
        fresh = with_head(model, head, positional, keywords).to(settings.device)
        data = replace(data, warnings=(*data.warnings, *check_fit(fresh.eval(), data, settings)))
        layers = " and ".join(path or "the model itself" for path in head.layers)
        step.note(". ".join([f"{layers}: {head.before} classes become {head.after}", data.description, *data.warnings]))
    return Start(model=fresh, head=head, known=known_by(model, head.layers), origin=start, task=task, data=data)


def _trainer(data: Data, settings: AdaptSettings, unfinished: Unfinished, watch: Watch) -> Trainer:
    """Training as the settings say, with checkpoints for each stage."""

    def one(
        model: nn.Module,
        train: Any,
        validate: Any,
        *,
        stage: str,
        epochs: int,
        rate: bool,
        **how: Any,
    ) -> History:
        return run_training(
            model,
            replace(data, train=train, validation=validate),
            settings,
            watch,
            TITLES[stage],
            epochs=epochs,
            lr=settings.lr if rate else "auto",
            checkpoints=unfinished.checkpoints(stage),
            **how,
        )

    return one


def _adapted_once(
    start: Start, settings: AdaptSettings, trainer: Trainer, unfinished: Unfinished, watch: Watch, how: dict[str, Any]
) -> tuple[nn.Module, Choice, dict[str, History]]:
    """The adapted network before pruning: what an interrupted run kept of it, or else trained now, and kept.

    Raises:
        KeyboardInterrupt: its training was stopped.
    """
    keep = unfinished.checkpoints("dense")
    if not (keep / "artifact.json").exists():
        fitted = fit(start.model, start.head, start.task, trainer, stage="adapted", known=start.known, **how)
        if fitted.interrupted:
            raise KeyboardInterrupt
        _say(fitted, watch)
        keep.mkdir(parents=True, exist_ok=True)
        _keep(fitted, keep / "fitted.json")
        args, kwargs = example(fitted.model, None, None, start.data.train, settings.device)
        artifacts.save(fitted.model.eval(), keep, build=start.origin.build, args=args, kwargs=kwargs, overwrite=True)
    kept = read_json(keep / "fitted.json")
    histories = {name: History.from_dict(history) for name, history in kept["histories"].items()}
    return start.origin.load(keep, settings.device), Choice(**kept["choice"]), histories


def _say(fitted: Fitted, watch: Watch) -> None:
    with watch("Choosing what to train") as step:
        step.note(f"{fitted.choice.trained}: {fitted.choice.why}")


def _keep(fitted: Fitted, file: Any) -> None:
    histories: Mapping[str, Any] = {name: history.to_dict() for name, history in fitted.histories.items()}
    write_json(file, {"choice": fitted.choice.to_dict(), "histories": histories})
