"""The run behind ``secateur reallocate``: train, move width, prove, train on, test, save, report.

All but the moving is what ``secateur prune`` does, by the same functions.
"""

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from secateur.config import ReallocateSettings
from secateur.data import Data
from secateur.files import RunDirectory
from secateur.fit import check_device, check_fit, example
from secateur.reallocating import Reallocation, moving, reallocate
from secateur.runs import several
from secateur.runs.origins import Origin, origin
from secateur.runs.prune import (
    CALIBRATION_BATCHES,
    Outcome,
    calibration_batches,
    changed_once,
    finish,
    named_data,
    train_dense,
    tune,
)
from secateur.runs.steps import Watch, silent
from secateur.runs.unfinished import Unfinished, carried_through
from secateur.tracing import trace


def reallocate_run(
    settings: ReallocateSettings, *, overwrite: bool = False, resume: bool = False, watch: Watch = silent
) -> Outcome:
    """Do everything that ``secateur reallocate`` does.

    Killed at any moment and resumed, a run on a CPU ends with the same bits as one that was not disturbed.

    Args:
        settings: what to do; see `ReallocateSettings`.
        overwrite: replace an earlier run in the same place, finished or not.
        resume: go on with a run that was not finished, from its last checkpoint.
        watch: is told of every step.

    Returns:
        What was done. After Ctrl-C during the training that comes last the network is the best so far, and
        ``interrupted`` says so; resuming goes on with that training.

    Raises:
        SecateurError: anything that can't be done, as one of its kinds. Nothing is left behind then but checkpoints.
        KeyboardInterrupt: Ctrl-C before there was anything worth keeping. Nothing is left behind but checkpoints.
    """
    several.check_alone("secateur reallocate")
    settings = settings.resolved()
    work = partial(_reallocate_run, settings, watch)
    return carried_through(settings.out, settings.to_yaml(), work, overwrite=overwrite, resume=resume)


def _reallocate_run(
    settings: ReallocateSettings, watch: Watch, directory: RunDirectory, unfinished: Unfinished
) -> Outcome:
    dense, start, data = prepare(settings, watch)
    histories = train_dense(dense, data, settings, watch, unfinished.checkpoints("dense"))
    moved = changed_once(partial(move, dense, data, settings, watch), unfinished, start, settings.device)
    untuned = copy.deepcopy(moved.model)
    title = "Training the reallocated network"
    histories |= tune(moved.model, dense, data, settings, watch, unfinished.checkpoints("tuned"), title=title)
    models = {"dense": dense, "pruned": untuned, **({"tuned": moved.model} if "tuned" in histories else {})}
    return finish(models, moved, histories, data, settings, directory, watch)


def prepare(settings: ReallocateSettings, watch: Watch = silent) -> tuple[nn.Module, Origin, Data]:
    """The network, where its changes begin, and its data, checked to fit each other.

    Raises:
        ArtifactError: there is no saved result, or it needs ``--model`` or ``--trust``.
        DataError: the network does not run on the data's inputs, or has fewer outputs than there are classes.
        PlanError: no training could make the budget one that the limits allow.
    """
    with watch("Loading model and data") as step:
        check_device(settings.device)
        model, start = origin(
            settings, settings.result, trust=settings.trust, seed=settings.seed, device=settings.device
        )
        data = named_data(settings)
        data = replace(data, warnings=(*data.warnings, *check_fit(model.eval(), data, settings)))
        if settings.train_epochs:
            graph = trace(model, example(data, settings.device))
            alike = {name: torch.ones(info.size) for name, info in graph.axes.items()}
            moving(graph, alike, settings.cost(), **_limits(settings))
        step.note(". ".join([data.description or settings.data, *data.warnings]))
    return model, start, data


def move(model: nn.Module, data: Data, settings: ReallocateSettings, watch: Watch = silent) -> Reallocation:
    """Score, move width and prove; the result of ``sc.reallocate``. The network given stays as it is."""
    with watch("Tracing, scoring, moving width, proving") as step:
        result = reallocate(
            model.eval(),
            example(data, settings.device),
            data=calibration_batches(data, settings, CALIBRATION_BATCHES),
            importance=settings.importance,
            budget=settings.cost(),
            noise=settings.noise,
            seed=settings.seed,
            **_limits(settings),
        )
        wider, narrower = (sum(sign * (row["after"] - row["before"]) > 0 for row in result.axes) for sign in (1, -1))
        step.note(f"{wider} of {len(result.axes)} axes wider, {narrower} narrower, {result.proof.status}")
    return result


def _limits(settings: ReallocateSettings) -> dict[str, Any]:
    """The settings of planning, as ``sc.reallocate`` takes them."""
    return {
        **settings.limits(),
        "max_growth": settings.max_growth,
        "only": settings.only,
        "ignore": settings.ignore,
    }
