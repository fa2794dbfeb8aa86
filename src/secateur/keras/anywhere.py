"""``secateur.keras.prune``: under whatever backend Keras runs in this process. No torch in here."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur import errors
from secateur.errors import DataError, ModelError, SecateurError
from secateur.keras import jobs


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What pruning a Keras model gave.

    Attributes:
        model: the smaller Keras model, plain Keras, under the backend of this process; compiled if the original was.
        report: the figures, in the form of report.json.
        plan: which units stayed, in the form of a plan's JSON: ``secateur.Plan.from_dict(plan)``.
        text: the report as a table.
    """

    model: Any
    report: Mapping[str, Any]
    plan: Mapping[str, Any]
    text: str

    def __str__(self) -> str:
        return self.text


def prune(
    model: Any,
    x: Any,
    *,
    budget: Any = None,
    keep: float | None = None,
    threshold: float | None = None,
    importance: str = "auto",
    data: Iterable[Any] | None = None,
    compensate: str | None = "auto",
    seed: int = 0,
    imports: Sequence[str] = (),
    **planning: Any,
) -> Pruned:
    """A genuinely smaller Keras model that computes what the original computes without the removed units, proved.

    The work is done on the torch backend, under other backends in a process of its own: the model goes there and comes
    back as a ``.keras`` file.

    Args:
        model: a functional or sequential model, or a subclassed one whose ``get_config`` says its sizes; built.
        x: example inputs, as ``model(x)`` takes them: arrays of the shapes that count (MACs, and what is proved).
        budget, keep, threshold: what to reach, at most one; ``budget`` is a `secateur.Budget`, or in words
            ``"macs=0.5"``, ``"params=10000,macs=0.7"``. Half of the MACs where none is given.
        importance: a criterion by name, as for `secateur.prune`.
        data: batches for calibration: inputs, or pairs ``(inputs, targets)``. Inputs are arrays, lists of them for
            several inputs, or mappings by the inputs' names. They must not come from data that will test the result.
        compensate: how weights that stay make up for those that go, as for `secateur.prune`.
        seed: of what is drawn.
        imports: modules that register the model's own layers, and say their `rule`, for the other process.
        planning: further settings of `secateur.plan`: scope, min_units, multiple_of, max_share, only, ignore.

    Raises:
        ModelError: it is no Keras model, was not built, or can't be saved and loaded as a ``.keras`` file.
        SecateurError: as for `secateur.prune`.

    Example:
        >>> small = secateur.keras.prune(model, x[:2], budget="macs=0.5").model  # doctest: +SKIP
        >>> small.save("small.keras")  # doctest: +SKIP
    """
    settings = {
        "budget": _budget(budget),
        "keep": keep,
        "threshold": threshold,
        "importance": importance,
        "compensate": compensate,
        "seed": seed,
        "planning": planning,
        "imports": list(imports),
    }
    with tempfile.TemporaryDirectory(prefix="secateur-") as place:
        folder = Path(place)
        work(folder, model, x, data, settings)
        return finished(folder, model)


def _budget(budget: Any) -> Any:
    if budget is None or isinstance(budget, str | Mapping):
        return budget
    given = getattr(budget, "given", None)
    if not isinstance(given, Mapping):
        raise errors.PlanError(f'budget={budget!r}: write budget="macs=0.5", or give a secateur.Budget')
    return dict(given)


def work(folder: Path, model: Any, x: Any, data: Iterable[Any] | None, settings: Mapping[str, Any]) -> None:
    """Do a job in a process on the torch backend.

    Raises:
        ModelError: the model can't be saved.
        SecateurError: what went wrong there.
    """
    if not hasattr(model, "save") or not getattr(model, "built", False):
        raise ModelError(f"{type(model).__name__} is no Keras model that was built: call it once on an example")
    try:
        model.save(folder / jobs.MODEL)
        jobs.write_job(folder, inputs=x, data=None if data is None else list(data), settings=settings)
    except SecateurError:
        raise
    except (TypeError, ValueError) as error:
        raise DataError(f"the model, its inputs or the settings can't be handed to another process: {error}") from error
    call = [sys.executable, "-m", "secateur.keras.worker", str(folder)]
    paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
    environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": paths}
    with subprocess.Popen(call, env=environment) as process:
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            raise
    failed = folder / jobs.ERROR
    if failed.exists():
        told = json.loads(failed.read_text())
        kind = getattr(errors, str(told["kind"]), SecateurError)
        raise kind(told["message"])
    if status:
        raise SecateurError(f"the process that prunes ended with status {status}; what it said is above")


def finished(folder: Path, model: Any) -> Pruned:
    """What the other process left, under the backend of this one."""
    report = json.loads((folder / jobs.REPORT).read_text())
    keras = importlib.import_module("keras")
    own = {kind.__name__: kind for kind in {type(layer) for layer in [model, *model._flatten_layers()]}}
    small = keras.models.load_model(folder / jobs.SMALL, custom_objects=own, safe_mode=True)
    return Pruned(
        model=small,
        report=report["report"],
        plan=json.loads((folder / jobs.PLAN).read_text()),
        text=report["text"],
    )
