"""The run behind ``secateur replay``: an earlier plan on new weights, proved, refitted, judged, tested and saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur import artifacts
from secateur.artifacts.build import Build
from secateur.config import PruneSettings, ReplaySettings
from secateur.data import Data
from secateur.errors import ArtifactError, ConfigError
from secateur.files import RunDirectory, write_text
from secateur.fit import Moved, check_device, example, moved
from secateur.measuring import measure_all
from secateur.models import build_model, build_spec, load_weights
from secateur.plain import read_yaml
from secateur.provenance import complete_step
from secateur.replaying import Replay, replay
from secateur.replaying.sources import Source, source
from secateur.reporting import Report, render_page
from secateur.runs.prune import (
    CALIBRATION_BATCHES,
    Outcome,
    calibration_batches,
    compare,
    described,
    fitting_data,
    load_code,
)
from secateur.runs.steps import Watch, silent


@dataclass(frozen=True, kw_only=True)
class Replayed(Outcome):
    """What a run left; see `Outcome`.

    Attributes:
        replay: what `secateur.replay` gave.
    """

    replay: Replay


def replay_run(settings: ReplaySettings, *, overwrite: bool = False, watch: Watch = silent) -> Replayed:
    """Do everything that ``secateur replay`` does.

    Args:
        settings: what to do; see `ReplaySettings`.
        overwrite: replace an earlier run in the same place.
        watch: is told of every step.

    Raises:
        SurgeryError: the network is of another architecture; the message lists what differs.
        SecateurError: anything else that can't be done, as one of its kinds. Nothing is left behind then.
        KeyboardInterrupt: Ctrl-C. Nothing is left behind.
    """
    with RunDirectory(settings.out, overwrite=overwrite) as directory:
        write_text(directory.work / "config.yaml", settings.to_yaml())
        with watch("Loading plan, network and data") as step:
            check_device(settings.device)
            given = source(settings.plan)
            dense = dense_network(settings, given)
            old = dense_network(settings, given, old=True) if settings.old_weights is not None else None
            data = None if settings.data == "none" else fitting_data(dense, settings.training())
            step.note("no data" if data is None else ". ".join([data.description, *data.warnings]))
        done = replayed(dense, given, old, data, settings, watch)
        report = make_report(done, dense, data, settings, watch)
        complete_step(
            done.model,
            figures=report["pruned"],
            before=report["dense"],
            data=None if data is None else described(data, settings.training()),
        )
        with watch("Saving") as step:
            save(done, dense, report, given, settings, directory.work)
            path = directory.publish()
            step.note(str(settings.out))
    return Replayed(path=path, model=done.model, report=report, replay=done)


def dense_network(settings: ReplaySettings, given: Source, *, old: bool = False) -> nn.Module:
    """The dense network with its new weights, or with its old ones.

    Raises:
        ConfigError: neither the settings nor the saved result say how to build it.
        ArtifactError: building it would import code without ``--trust``.
        ModelError: it can't be built, or the weights don't fit it.
    """
    if settings.model is None and given.build is None:
        raise ConfigError(
            f"{given.name} does not say how its network is built: name it with --model (and --model-args)"
        )
    named = settings.network(given.build, old=old)
    if settings.model is not None or given.build is None:
        return build_model(named).to(settings.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        try:
            spec, known = given.build["callable"], given.build["args"]
            model = Build.of({"callable": spec, "args": {**known, **settings.model_args}})(trust=settings.trust)
        except ArtifactError as error:
            raise ArtifactError(f"{error} On the command line: --trust, or --model (and --model-args)") from error
    assert named.weights is not None
    load_weights(model, named.weights)
    return model.eval().to(settings.device)


def replayed(
    dense: nn.Module, given: Source, old: nn.Module | None, data: Data | None, settings: ReplaySettings, watch: Watch
) -> Replay:
    """Carry out the plan, prove it, refit the weights, and compare with a fresh plan."""
    inputs: Any = None if data is None else example(data, settings.device)
    if data is None and given.inputs is not None:
        inputs = moved(given.inputs, settings.device)
    positional, keywords = inputs if data is None and inputs is not None else (inputs, None)
    labelled = None if data is None or data.validation is None else Moved(data.validation, settings.device)
    with watch("Replaying, proving, comparing with a fresh plan") as step:
        done = replay(
            dense,
            given,
            positional,
            keywords,
            importance=settings.importance,
            data=None if data is None else calibration_batches(data, settings.training(), CALIBRATION_BATCHES),
            compensate=None if settings.compensate == "none" else settings.compensate,
            validate=labelled,
            old=old,
            seed=settings.seed,
            **planning_of(settings.plan),
        )
        done.model.eval()
        step.note(f"{done.proof.status if done.proof is not None else 'nothing was removed'}, {done.verdict.status}")
    return done


def planning_of(result: Path) -> dict[str, Any]:
    """The settings that a saved result was planned with; nothing where its directory does not hold them.

    Raises:
        ConfigError: the file of its settings can't be read.
    """
    file = result / "config.yaml"
    values = read_yaml(file) if file.is_file() else {}
    if not values or not {"scope", "min_units"} <= values.keys():  # of another command than prune
        return {}
    settings = PruneSettings.from_mapping(values, str(file))
    names = ("scope", "uniform", "only", "ignore")
    return {**settings.limits(), **{name: getattr(settings, name) for name in names}}


def make_report(done: Replay, dense: nn.Module, data: Data | None, settings: ReplaySettings, watch: Watch) -> Report:
    """The report of a run: what ``sc.replay`` reported, with the figures of both networks measured side by side."""
    models = {"dense": dense, "pruned": done.model}
    figures: Mapping[str, Mapping[str, Any]]
    if data is None:
        with watch("Measuring"):
            args, kwargs = done.inputs
            measured = measure_all({name: model.eval() for name, model in models.items()}, args, kwargs)
            figures = {name: found.to_dict() for name, found in measured.items()}
    else:
        figures = compare(models, data, settings.training(), watch)
    bare = done.report
    return Report.build(
        model=settings.model or bare["model"],
        dense=figures["dense"],
        pruned=figures["pruned"],
        proof=bare["proof"],
        axes=bare["axes"],
        plan=bare["plan"],
        command=f"{settings.to_command()} --overwrite",
        seed=settings.seed,
        device=settings.device,
        compensation=bare.get("compensation"),
    ).replace(replay=bare["replay"])


def save(done: Replay, dense: nn.Module, report: Report, given: Source, settings: ReplaySettings, folder: Path) -> None:
    """Write everything but config.yaml into a run's directory."""
    named = settings.network(given.build)
    build = {"callable": build_spec(named), "args": named.model_args}
    figures = {name: report[name] for name in ("dense", "pruned")}
    artifacts.save(done.model, folder, build=build, figures=figures, keep_removed=settings.keep_removed, dense=dense)
    report.save(folder / "report.json")
    rewritten = any(change.rewrites for change in done.changes)
    page = render_page(report, load=load_code(settings.out, build, rewritten=rewritten), settings=settings.to_yaml())
    write_text(folder / "report.html", page)
