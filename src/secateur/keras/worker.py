"""The process in which Keras runs on torch: ``python -m secateur.keras.worker FOLDER`` does the job in a folder."""

import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import secateur as sc  # noqa: E402
from secateur.config import parse_budget  # noqa: E402
from secateur.errors import SecateurError  # noqa: E402
from secateur.keras import jobs  # noqa: E402
from secateur.keras.loading import load  # noqa: E402
from secateur.printing import as_text  # noqa: E402


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
    result = sc.prune(
        model,
        as_inputs(jobs.unpack(job["inputs"], tensors)),
        budget=budget_of(settings["budget"]),
        keep=settings["keep"],
        threshold=settings["threshold"],
        importance=settings["importance"],
        data=None if job["data"] is None else [as_batch(b) for b in jobs.unpack(job["data"], tensors)],
        compensate=settings["compensate"],
        seed=settings["seed"],
        **settings["planning"],
    )
    small: Any = result.model
    small.save(folder / jobs.SMALL)
    (folder / jobs.PLAN).write_text(json.dumps(result.plan.to_dict()))
    (folder / jobs.REPORT).write_text(json.dumps({"report": result.report.to_dict(), "text": as_text(result)}))


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
