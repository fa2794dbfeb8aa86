"""The run behind ``secateur sparsify``: train if asked, make single weights zero, test, save, report."""

import copy
from typing import Any

import torch
from torch import nn

from secateur import artifacts
from secateur.config import SparsifySettings, parse_pattern
from secateur.data import Data
from secateur.files import RunDirectory, write_text
from secateur.fit import Moved, check_device
from secateur.hints.run import First
from secateur.models import build_model, build_spec
from secateur.reporting import Report, render_page
from secateur.reporting.numbers import percent
from secateur.runs.prune import Outcome, compare, fitting_data, load_code, train_dense
from secateur.runs.steps import Watch, silent
from secateur.runs.unfinished import SETTINGS
from secateur.sparsity import Sparsified, sparsify


def sparsify_run(settings: SparsifySettings, *, overwrite: bool = False, watch: Watch = silent) -> Outcome:
    """Do everything that ``secateur sparsify`` does. The test split is looked at once, at the end.

    Args:
        settings: what to do; see `SparsifySettings`.
        overwrite: replace an earlier run in the same place.
        watch: is told of every step.

    Raises:
        SecateurError: anything that can't be done, as one of its kinds. Nothing is left behind then.
        KeyboardInterrupt: Ctrl-C. Nothing is left behind.
    """
    with RunDirectory(settings.out, overwrite=overwrite) as directory:
        training = settings.training()
        model, data = _prepare(settings, watch)
        train_dense(model, data, training, watch)
        with watch("Choosing weights, making up for them") as step:
            result = sparsify(model.eval(), **_how(settings, data))
            step.note(f"{percent(result.sparsity)} of {result.report['sparsity']['weights']:,} weights are zero")
        models = {"dense": model, "pruned": copy.deepcopy(result.model)}
        figures = compare(models, data, training, watch)
        return _saved(result, _report(result, figures, settings), settings, directory, watch)


def _prepare(settings: SparsifySettings, watch: Watch) -> tuple[nn.Module, Data]:
    """The network and its data, checked to fit each other."""
    with watch("Loading model and data") as step:
        check_device(settings.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model = build_model(settings).to(settings.device)
        data = fitting_data(model, settings.training())
        step.note(". ".join([data.description or settings.data, *data.warnings]))
    return model, data


def _how(settings: SparsifySettings, data: Data) -> dict[str, Any]:
    """The settings as ``sc.sparsify`` takes them."""
    return {
        "pattern": parse_pattern(settings.pattern),
        "sparsity": settings.sparsity,
        "threshold": settings.threshold,
        "importance": settings.importance,
        "allocation": settings.allocation,
        "compensate": settings.compensation,
        "data": list(Moved(First(data.calibration, settings.calibration), settings.device)),
        "only": settings.only,
        "ignore": settings.ignore,
        "strict": settings.strict,
        "seed": settings.seed,
    }


def _report(result: Sparsified, figures: Any, settings: SparsifySettings) -> Report:
    """The report of a run: what the function reported, with all figures measured side by side."""
    report = Report.build(
        model=settings.model,
        dense=figures["dense"],
        pruned=figures["pruned"],
        command=f"{settings.to_command()} --overwrite",
        seed=settings.seed,
        device=settings.device,
    )
    return report.replace(axes=None, sparsity=result.report["sparsity"])


def _saved(
    result: Sparsified, report: Report, settings: SparsifySettings, directory: RunDirectory, watch: Watch
) -> Outcome:
    with watch("Saving") as step:
        build = {"callable": build_spec(settings), "args": settings.model_args}
        artifacts.save(result, directory.work, build=build, figures={k: report[k] for k in ("dense", "pruned")})
        report.save(directory.work / "report.json")
        load = load_code(settings.out, build, rewritten=False)
        page = render_page(report, load=load, settings=settings.to_yaml())
        write_text(directory.work / "report.html", page)
        write_text(directory.work / SETTINGS, settings.to_yaml())
        path = directory.publish()
        step.note(str(settings.out))
    return Outcome(path=path, model=result.model.eval(), report=report)
