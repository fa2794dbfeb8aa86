"""``prune_gradually``: pruning and training in turns, by a schedule."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from secateur import digests
from secateur.carrying import Ancestry
from secateur.compensation import How, method
from secateur.errors import PlanError, TrainingError
from secateur.graph import Graph
from secateur.importance import Criterion
from secateur.importance.keeping import KeptScores
from secateur.objectives import Loss
from secateur.planning import Budget
from secateur.planning.schedules import Schedule, budgets
from secateur.progress import progress_bar
from secateur.provenance import note_step, recall, remember
from secateur.pruning import Result, in_words
from secateur.timing.whole import whole_seconds
from secateur.tuning import randomness
from secateur.tuning.checkpoints import EVERY
from secateur.tuning.choosing import Rate
from secateur.tuning.course import Course, Way
from secateur.tuning.cutting import Surgeon
from secateur.tuning.distilling import Distillation
from secateur.tuning.history import Epoch, History
from secateur.tuning.rewinding import Rewind
from secateur.tuning.steps import PruningStep, Stages
from secateur.tuning.tune import tune

MODES = ("cut", "soft", "regularised")
REWINDS = (None, "weights", "rates")
PLANNING = ("scope", "min_units", "multiple_of", "max_share", "only", "ignore")
OTHERS = ("threshold", "keep", "max_drop", "max_loss_increase", "max_robust_drop")
OWN = (
    *("model", "train", "validate", "epochs", "lr", "schedule", "teacher", "loss", "seed", "checkpoints", "every"),
    *("on_epoch", "progress", "keep"),
)
"""Settings of `tune` that are ours, or not to be chosen."""


@dataclass(frozen=True, kw_only=True)
class Gradual(Result):
    """What gradual pruning gave. The plan says what stays of the original's axes, and is replayed like any other.

    Attributes:
        steps: each surgery, with its proof and the training after it; ``proof`` is the last one's.
        masked: the training under masks or a penalty before the one surgery; None with ``mode="cut"``.
        interrupted: what Ctrl-C cut short, in words; empty if nothing.
    """

    steps: tuple[PruningStep, ...] = ()
    masked: History | None = None
    interrupted: str = ""


def prune_gradually(
    model: nn.Module,
    args: Any,
    train: Iterable[Any],
    validate: Iterable[Any] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    budget: Budget,
    schedule: str | Schedule = "cubic",
    steps: int = 8,
    epochs: int = 1,
    final_epochs: int | None = None,
    lr: Rate,
    lr_schedule: str | Callable[[float], float] = "cosine",
    mode: Literal["cut", "soft", "regularised"] = "cut",
    strength: float = 5.0,
    rewind: Literal["weights", "rates"] | None = None,
    ticket: Rewind | None = None,
    teacher: Literal["dense"] | nn.Module | Distillation | None = None,
    importance: str | Criterion = "auto",
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    compensate: str | None = "auto",
    keep_class: bool = False,
    uniform: bool = False,
    seed: int = 0,
    checkpoints: str | Path | None = None,
    every: int | str = EVERY,
    on_step: Callable[[PruningStep], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Gradual:
    """Prune bit by bit, and train in between. The model given is untouched.

    With ``mode="cut"``, each step scores the network as it is, plans from the original's graph what goes further,
    cuts, proves, and trains for some epochs. With "soft", what the schedule would remove fades out during one training
    run over all steps (`SoftMasks`), and is cut at its end; with "regularised", a growing penalty draws it to zero
    instead (`GroupProximal`). Each surgery is proved against the network right before it with the removed units
    silenced. After the last one comes the final training.

    Args:
        model: any module, trained.
        args, kwargs: example inputs, as for `secateur.prune`.
        train, validate: batches, as for `tune`. With ``validate`` each training leaves the network in its best state.
        budget: what is reached in the end.
        schedule: how the budgets of the steps lead there: "linear", "cubic", "geometric", or any callable; see
            `secateur.planning.schedules`.
        steps: how many, at least 1.
        epochs: of training between two steps, at least 1.
        final_epochs: of training after the last one; as many as the steps had together where None.
        lr, lr_schedule: the highest learning rate of every training, and how it falls; ``schedule`` of `tune`.
        strength: with "regularised": at the last step a unit that no gradient holds falls to exp(-strength) of what it
            was.
        rewind: with "cut", "weights" begins again after every step with the weights that the dense network had early
            in its training, those in ``ticket``; without it with those of the model given. "rates" keeps the weights
            and repeats the learning rates of ``ticket``, stretched over each training. "weights" repeats them, too.
        ticket: a `Rewind` that the dense network's training took along.
        teacher: "dense" is the model given; or as for `tune`. Features are compared by the plan of each step.
        importance, data, loss, keep_class, uniform, seed: as for `secateur.prune`; the loss is that of training, too.
        compensate: as for `secateur.prune`, after each surgery. "soft" and rewound weights leave nothing to make up
            for.
        checkpoints: a folder, from which a run that was killed or stopped goes on: with the same arguments and on one
            process of a CPU it ends with the same bits. Remove it when the run is over.
        every: how often training writes a checkpoint.
        on_step: called after each surgery and its training.
        on_epoch, progress: as for `tune`, the steps of the optimizer being those of all trainings.
        settings: further settings of `secateur.plan` (scope, min_units, multiple_of, max_share, only, ignore) and of
            `tune` (optimizer, weight_decay, distill, patience, ...). Early stopping and averages of the weights don't
            count for the training under masks or a penalty.

    Returns:
        A `Result` with the steps. After Ctrl-C it is that of the last step whose training was complete; in the final
        training the best state so far; under masks or a penalty what is going is cut at once.

    Raises:
        PlanError, TrainingError: settings that contradict each other or are out of range.
        SecateurError: as for `secateur.prune` and `tune`.
        KeyboardInterrupt: Ctrl-C before there was anything worth keeping.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> batches = [(torch.randn(16, 4), torch.randint(2, (16,)))]
        >>> result = prune_gradually(
        ...     net, torch.randn(1, 4), batches, budget=sc.Budget(params=0.5), steps=2, final_epochs=1, lr=0.01
        ... )
        >>> [step.number for step in result.steps], result.proof.status, result.model[0]
        ([1, 2], 'proved', Linear(in_features=4, out_features=3, bias=True))
    """
    final = steps * epochs if final_epochs is None else final_epochs
    _check(steps=steps, epochs=epochs, final=final, strength=strength, budget=budget, settings=settings)
    how = _compensation(compensate, data, mode, rewind, ticket)
    planning = {name: settings.pop(name) for name in PLANNING if name in settings}
    with randomness.seeded(seed):  # of data that are shuffled anew
        surgeon = Surgeon(
            model,
            args,
            kwargs,
            importance=importance,
            data=data,
            loss=loss,
            how=how,
            seed=seed,
            uniform=uniform,
            planning={"keep_class": keep_class, **planning},
        )
    way = Way(
        mode=mode,
        budgets=tuple(_path(model, args, kwargs, surgeon.graph, budget, schedule, steps)),
        epochs=epochs,
        final_epochs=final,
        lr=lr,
        lr_schedule=lr_schedule,
        strength=strength,
        rewind=rewind,
        ticket=ticket,
        teacher=model if teacher == "dense" else teacher,
        loss=loss,
        seed=seed,
        tuning=settings,
    )
    asked = {
        "model": type(model).__name__,
        "budget": {kind: str(amount) for kind, amount in budget.given.items()},
        "schedule": schedule if isinstance(schedule, str) else type(schedule).__name__,
        "steps": steps,
        "epochs": epochs,
        "mode": mode,
        "rewind": rewind,
        "seed": seed,
    }
    surgeon.start_clock(budget)
    course = Course(surgeon, train, validate, way, Stages(checkpoints, asked, every))
    with progress_bar("Pruning gradually") as bar:
        course.go(on_step=on_step, on_epoch=on_epoch, progress=progress or bar)
    result = replace(_result(course, asked), ancestry=Ancestry.of(model))
    if recall(model, "plans") is None:
        name = in_words(importance, with_data=data is not None)
        remember(result.model, "scores", KeptScores(importance=name, axes=dict(result.scores)))
    note_step(
        result.model,
        "prune",
        figures=result.report["pruned"],
        before=result.report["dense"],
        importance=in_words(importance, with_data=data is not None),
        seed=seed,
        parent=digests.of_model(model),
        steps=len(result.steps),
        mode=mode,
    )
    return result


def _result(course: Course, asked: Mapping[str, Any]) -> Gradual:
    """What a course came to.

    Raises:
        KeyboardInterrupt: Ctrl-C before it came to anything.
    """
    state, surgeon = course.final(), course.surgeon
    assert state.plan is not None
    graph = surgeon.graph
    found = {
        **{name: asked[name] for name in ("mode", "schedule", "rewind")},
        "steps": [step.to_dict() for step in state.steps],
        "masked": None if state.masked is None else state.masked.to_dict(),
        "interrupted": course.interrupted,
    }
    return Gradual(
        model=state.model,
        plan=state.plan,
        proof=state.steps[-1].proof,
        graph=graph,
        scores={axis: surgeon.scores[axis] for axis in graph.axes},
        report=surgeon.report(state.plan, state.steps[-1].proof, state.model).replace(
            command="secateur.tuning.prune_gradually(...)", gradual=found
        ),
        steps=state.steps,
        masked=state.masked,
        interrupted=course.interrupted,
    )


def _path(
    model: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any] | None,
    graph: Graph,
    budget: Budget,
    schedule: str | Schedule,
    steps: int,
) -> list[Budget]:
    """The budgets of the steps."""
    if all(isinstance(amount, float) for amount in budget.given.values()):
        return budgets(budget, schedule, steps=steps)
    dense = graph.cost()
    if budget.latency is not None:
        dense["latency"] = round(whole_seconds({"dense": model}, args, kwargs)["dense"] * 1e9)
    return budgets(budget, schedule, steps=steps, dense=dense)


def _compensation(
    compensate: str | None, data: object, mode: str, rewind: str | None, ticket: Rewind | None
) -> How | None:
    """How to compensate; None for not at all.

    Raises:
        TrainingError: ways that don't go together.
    """
    wrong: list[str] = []
    if mode not in MODES:
        wrong.append(f"mode={mode!r}: give one of {', '.join(map(repr, MODES))}")
    if rewind not in REWINDS:
        wrong.append(f'rewind={rewind!r}: give None, "weights" or "rates"')
    if rewind is not None and mode != "cut":
        wrong.append(f'rewind={rewind!r} begins again after each surgery, so it goes with mode="cut"')
    if rewind == "rates" and ticket is None:
        wrong.append('rewind="rates" repeats the dense training\'s learning rates: pass its Rewind as ticket=')
    if ticket is not None and rewind is None:
        wrong.append('ticket= is for rewind="weights" or "rates": give one of them')
    nothing_left = mode == "soft" or rewind == "weights"
    if nothing_left and compensate not in ("auto", None):
        which = 'mode="soft"' if mode == "soft" else 'rewind="weights"'
        wrong.append(f"compensate={compensate!r} has nothing to make up for with {which}: leave it out")
    if wrong:
        raise TrainingError("; ".join(wrong))
    return None if nothing_left else method(compensate, data)


def _check(*, steps: int, epochs: int, final: int, strength: float, budget: Any, settings: Mapping[str, Any]) -> None:
    """Report all settings that are out of their range.

    Raises:
        PlanError, TrainingError: for these.
        TypeError: nobody knows the name of a setting.
    """
    reach = [name for name in OTHERS if name in settings]
    if reach:
        raise PlanError(
            f"{' and '.join(reach)}: a schedule leads to a budget, step by step; give budget=sc.Budget(macs=0.5) or "
            "another cost, or use sc.prune"
        )
    known = [*PLANNING, *(name for name in inspect.signature(tune).parameters if name not in OWN)]
    if unknown := [name for name in settings if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TypeError(f"prune_gradually has no setting {', '.join(map(repr, unknown))}.{hint}")
    if not isinstance(budget, Budget):
        raise PlanError(f"budget={budget!r} is no Budget: write budget=sc.Budget(macs=0.5)")
    ranges = [
        (type(steps) is int and steps >= 1, f"steps={steps!r} must be at least 1"),
        (epochs >= 1, f"epochs={epochs} between steps must be at least 1"),
        (final >= 0, f"final_epochs={final} must be at least 0"),
        (0 < strength < float("inf"), f"strength={strength} must be above 0"),
    ]
    if wrong := [text for fits, text in ranges if not fits]:
        raise TrainingError("; ".join(wrong))
