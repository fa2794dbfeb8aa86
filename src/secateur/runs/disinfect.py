"""The run behind ``secateur disinfect``: find a trigger, remove units, prove, tune, test, save, report."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from secateur import artifacts
from secateur.adapting.passes import same_pass
from secateur.config import EXAMPLE_MODEL, DataSettings, DisinfectSettings, ModelSettings, PruneSettings
from secateur.config.prune import like
from secateur.data import Data
from secateur.disinfecting.clean import Clean, gather
from secateur.disinfecting.disinfect import Disinfected, disinfect
from secateur.disinfecting.inversion import Inversion
from secateur.disinfecting.mending import Mending
from secateur.errors import ConfigError, ModelError
from secateur.files import RunDirectory, write_json, write_text
from secateur.fit import check_device, check_fit, example
from secateur.measuring import measure_all
from secateur.models import import_callable
from secateur.reporting import Report, render_page
from secateur.runs import gradual, several
from secateur.runs.origins import Origin, origin
from secateur.runs.prune import Outcome, load_code, named_data
from secateur.runs.steps import Watch, silent


def disinfect_run(settings: DisinfectSettings, *, overwrite: bool = False, watch: Watch = silent) -> Outcome:
    """Do everything that ``secateur disinfect`` does.

    Args:
        settings: what to do; see `DisinfectSettings`.
        overwrite: replace an earlier run in the same place.
        watch: is told of every step.

    Returns:
        What was done. After Ctrl-C during the tuning the network is the best so far, and ``interrupted`` says so.

    Raises:
        SecateurError: anything that can't be done, as one of its kinds. Nothing is left behind then.
        KeyboardInterrupt: Ctrl-C before there was anything worth keeping. Nothing is left behind.
    """
    several.check_alone("secateur disinfect")
    real = None if settings.trigger is None else _trigger(settings.trigger)
    with RunDirectory(settings.out, overwrite=overwrite) as directory:
        common = like(settings, ModelSettings, DataSettings)
        model, start, data = _prepare(settings, common, watch)
        clean = _clean(data, settings, common)
        with watch("Searching for a trigger, removing, proving, tuning") as step:
            done = disinfect(
                model,
                data=[(clean.x, clean.y)],
                method=settings.method,
                heldout=settings.heldout,
                max_drop=settings.max_drop,
                inversion=Inversion(steps=settings.search_steps),
                tune=Mending(epochs=settings.tune_epochs, lr=settings.tune_lr),
                trigger=real,
                target=settings.target,
                test=same_pass(data.test, settings.seed, settings.device, None),
                seed=settings.seed,
                only=settings.only,
                ignore=settings.ignore,
            )
            step.note(str(done.report["disinfected"]["said"]))
        report = _report(model, done, data, settings, common, watch)
        with watch("Saving") as step:
            _save(done, report, settings, start, directory)
            path = directory.publish()
            step.note(str(settings.out))
    interrupted = str(report["environment"].get("interrupted", ""))
    return Outcome(
        path=path,
        model=done.model,
        report=report,
        interrupted=interrupted,
        resumable=False,
        advice=" ".join(data.warnings),
    )


def _trigger(spec: str) -> Callable[[Tensor], Tensor]:
    """The real trigger that the settings name."""
    try:
        return import_callable(spec)
    except ModelError as error:
        raise ConfigError(f"trigger: {str(error).replace('model', 'trigger', 1)}") from error


def _prepare(settings: DisinfectSettings, common: PruneSettings, watch: Watch) -> tuple[nn.Module, Origin, Data]:
    """The network, where its changes begin, and its data, checked to fit each other."""
    with watch("Loading model and data") as step:
        check_device(settings.device)
        model, start = origin(common, settings.result, trust=settings.trust, seed=settings.seed, device=settings.device)
        data = named_data(common)
        data = replace(data, warnings=(*data.warnings, *check_fit(model.eval(), data, common)))
        step.note(". ".join([data.description or settings.data, *data.warnings]))
    return model, start, data


def _clean(data: Data, settings: DisinfectSettings, common: PruneSettings) -> Clean:
    """The first samples of a shuffled pass over the training split, not augmented."""
    batches = -(-settings.samples // common.batch_size)
    found = gather(same_pass(data.calibration, settings.seed, settings.device, batches), settings.device)
    return Clean(x=found.x[: settings.samples], y=found.y[: settings.samples])


def _report(
    model: nn.Module, done: Disinfected, data: Data, settings: DisinfectSettings, common: PruneSettings, watch: Watch
) -> Report:
    """The report of the run: what ``sc.disinfect`` reported, with costs measured side by side."""
    models = {"dense": model, "pruned": done.pruned, **({} if done.history is None else {"tuned": done.model})}
    with watch("Measuring"):
        measured = measure_all({name: m.eval() for name, m in models.items()}, example(data, settings.device))
    figures = {n: {**measured[n].to_dict(), "metrics": done.report[n]["metrics"]} for n in models}
    saved = settings.result is not None and settings.model == EXAMPLE_MODEL
    stopped = done.history is not None and done.history.interrupted
    built = Report.build(
        model=done.report["model"] if saved else settings.model,
        dense=figures["dense"],
        pruned=figures["pruned"],
        tuned=figures.get("tuned"),
        proof=done.report["proof"],
        axes=done.report["axes"],
        plan=done.report["plan"],
        command=f"{settings.to_command()} --overwrite",
        seed=settings.seed,
        device=settings.device,
        interrupted="the tuning was stopped; kept is its best state so far" if stopped else "",
    )
    return built.replace(disinfected=done.report["disinfected"])


def _save(
    done: Disinfected, report: Report, settings: DisinfectSettings, start: Origin, directory: RunDirectory
) -> None:
    """Write everything into the run's directory."""
    folder, figures = directory.work, {name: report[name] for name in ("dense", "pruned", "tuned") if report[name]}
    artifacts.save(done.model, folder, build=start.build, figures=figures, overwrite=True)
    history: Any = {} if done.history is None else {"tuned": done.history.to_dict()}
    if history:
        write_json(folder / "training.json", history)
    report.save(folder / "report.json")
    write_text(folder / "config.yaml", settings.to_yaml())
    code = load_code(settings.out, start.build, rewritten=bool(done.rewritten))
    write_text(
        folder / "report.html",
        render_page(report, histories=gradual.shown(history), load=code, settings=settings.to_yaml()),
    )
