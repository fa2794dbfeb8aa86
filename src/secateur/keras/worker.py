"""The process in which Keras runs on torch: ``python -m secateur.keras.worker FOLDER`` does the job in a folder."""

import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import numpy as np
import torch
from torch import Tensor

import secateur as sc
from secateur.compensation import method
from secateur.config import parse_budget
from secateur.errors import SecateurError
from secateur.inputs import as_call
from secateur.keras import jobs
from secateur.keras.loading import load
from secateur.keras.walking import named_variables
from secateur.printing import as_text
from secateur.pruning import bare_report
from secateur.rebuilding import as_module, handed_out
from secateur.replaying.carrying_out import carry_out


def main(folder: Path) -> int:
    """Do the job; what went wrong is written down for the process that asked."""
    try:
        _prune(folder)
    except SecateurError as error:
        (folder / jobs.ERROR).write_text(json.dumps({"kind": type(error).__name__, "message": str(error)}))
        return 1
    return 0


def _prune(folder: Path) -> None:
    job = json.loads((folder / jobs.JOB).read_text())
    settings: dict[str, Any] = job["settings"]
    for name in settings["imports"]:
        importlib.import_module(name)
    with np.load(folder / jobs.ARRAYS) as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    model = load(folder / jobs.MODEL)
    inputs = as_inputs(jobs.unpack(job["inputs"], tensors))
    data = None if job["data"] is None else [as_batch(b) for b in jobs.unpack(job["data"], tensors)]
    if settings.get("only_plan"):
        _write_plan(folder, _plan(model, inputs, data, settings), model)
        return
    small, plan, report = (_carried_out if "plan" in settings else _pruned)(model, inputs, data, settings)
    small.save(folder / jobs.SMALL)
    _write_plan(folder, plan, model)
    (folder / jobs.REPORT).write_text(json.dumps({"report": report.to_dict(), "text": as_text(report)}))


def _pruned(model: Any, inputs: Any, data: Any, settings: Mapping[str, Any]) -> tuple[Any, sc.Plan, sc.Report]:
    """Prune: the smaller Keras model, what stayed, and the figures."""
    given = {name: settings[name] for name in ("keep", "threshold", "importance", "compensate", "seed")}
    result = sc.prune(model, inputs, budget=budget_of(settings["budget"]), data=data, **given, **settings["planning"])
    return result.model, result.plan, result.report


def _carried_out(model: Any, inputs: Any, data: Any, settings: Mapping[str, Any]) -> tuple[Any, sc.Plan, sc.Report]:
    """The same for a plan that is there."""
    module, plan = as_module(model), sc.Plan.from_dict(settings["plan"])
    graph, how = sc.trace(module, inputs), None if data is None else method(settings["compensate"], data)
    done = carry_out(module, [plan], graph, as_call(inputs), how=how, data=data)
    assert done.proof is not None  # of a plan there is one
    report = bare_report(module, graph, plan, done.proof, seed=settings["seed"], compensation=done.compensation)
    return handed_out(done.model), plan, report


def _plan(model: Any, inputs: Any, data: Any, settings: Mapping[str, Any]) -> sc.Plan:
    """A plan alone: nothing is cut."""
    graph = sc.trace(model, inputs)
    scores = sc.score(model, graph, settings["importance"], data, seed=settings["seed"])
    return sc.plan(graph, scores, budget=budget_of(settings["budget"]), **settings["planning"])


def _write_plan(folder: Path, plan: sc.Plan, model: Any) -> None:
    """The plan, and for each variable that it changes the positions that stay, by dim."""
    kept = {
        name: {str(dim): at.tolist() for dim, at in plan.kept[name].items()}
        for name in named_variables(model)
        if name in plan.kept
    }
    (folder / jobs.PLAN).write_text(json.dumps(plan.to_dict()))
    (folder / jobs.KEPT).write_text(json.dumps(kept))


def as_inputs(x: Any) -> Any:
    """Inputs as ``sc.prune`` takes them: a tensor, a tuple for several inputs, or a mapping."""
    return tuple(x) if isinstance(x, list) else x


def as_batch(batch: Any) -> Any:
    """A batch as our calibration takes it."""
    if isinstance(batch, tuple) and len(batch) == 2:
        return as_inputs(batch[0]), batch[1]
    return batch if isinstance(batch, Tensor | Mapping) else (as_inputs(batch), None)


def budget_of(budget: Any) -> sc.Budget | None:
    """A budget in words, or as a mapping."""
    if budget is None:
        return None
    return sc.Budget(**budget) if isinstance(budget, Mapping) else parse_budget(str(budget))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
