"""The run behind ``secateur tune``: load a saved result, train it on, test it, save it with its report."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from secateur import artifacts, digests
from secateur.adapting.head import Head
from secateur.artifacts.removed import Keep, Removed
from secateur.config import TuneSettings
from secateur.data import Data
from secateur.errors import ArtifactError, ConfigError
from secateur.files import RunDirectory, write_json, write_text
from secateur.fit import check_device
from secateur.models import build_model
from secateur.provenance import note_step, recall
from secateur.reporting import Report, render_page
from secateur.runs import several
from secateur.runs.prune import compare, described, fitting_data, load_code
from secateur.runs.robust import with_robustness
from secateur.runs.steps import Watch, silent
from secateur.runs.training import cut_short, train
from secateur.runs.unfinished import Unfinished, carried_through
from secateur.tuning import FINE_TUNING, History
from secateur.zeros import sparsity_of


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What a run left.

    Attributes:
        path: the directory of the result.
        model: the network, in eval mode.
        report: the figures: before as "pruned", after as "tuned".
        history: the training.
        interrupted: what Ctrl-C, or a loss that exploded, cut short, in words; empty if nothing.
        failed: the error that ended the training where the loss exploded; empty if it did not.
    """

    path: Path
    model: nn.Module
    report: Report
    history: History
    interrupted: str = ""
    failed: str = ""


def tune_run(
    settings: TuneSettings, *, overwrite: bool = False, resume: bool = False, watch: Watch = silent
) -> Tuned | None:
    """Do everything that ``secateur tune`` does.

    In several processes all of them train, and the first one does the rest.

    Args:
        settings: what to do; see `TuneSettings`.
        overwrite: replace an earlier run in the same place, finished or not.
        resume: go on with a run that was not finished, from its last checkpoint.
        watch: is told of every step.

    Returns:
        What was done; None in processes but the first.

    Raises:
        SecateurError: anything that can't be done, as one of its kinds. Nothing is left behind then but checkpoints.
        KeyboardInterrupt: Ctrl-C before training began.
    """
    settings = settings.resolved()
    if several.rank() > 0:
        several.meet(settings.device)  # the first one has made its place
        model, teacher, data = prepare(settings)
        _trained(model, teacher, data, settings, Unfinished(settings.out), silent)
        return None
    work = partial(_tune_run, settings, watch)
    return carried_through(settings.out, settings.to_yaml(), work, overwrite=overwrite, resume=resume)


def _tune_run(settings: TuneSettings, watch: Watch, directory: RunDirectory, unfinished: Unfinished) -> Tuned:
    several.meet(settings.device)
    model, teacher, data = prepare(settings, watch)
    before = copy.deepcopy(model)
    history = _trained(model, teacher, data, settings, unfinished, watch)
    dense = {} if teacher is None else {"dense": teacher}
    networks = {**dense, "pruned": before, "tuned": model}
    figures = compare(networks, data, settings, watch)
    interrupted = cut_short({"tuned": history}, settings)
    report = _with_zeros(make_report(settings, figures, interrupted), before, model)
    report = with_robustness(report, networks, data, settings, settings.seed, watch)
    with watch("Saving") as step:
        note_step(
            model,
            "tune",
            figures=report["tuned"],
            seed=settings.seed,
            data=described(data, settings),
            epochs=settings.epochs or FINE_TUNING.epochs,
            parent=digests.of_model(before),
        )
        save(model, report, history, settings, directory.work)
        path = directory.publish()
        step.note(str(settings.out))
    return Tuned(path=path, model=model, report=report, history=history, interrupted=interrupted, failed=history.failed)


def _trained(
    model: nn.Module,
    teacher: nn.Module | None,
    data: Data,
    settings: TuneSettings,
    unfinished: Unfinished,
    watch: Watch,
) -> History:
    return train(
        model,
        data,
        settings,
        watch,
        "Fine-tuning",
        epochs=settings.epochs or FINE_TUNING.epochs,
        lr=settings.lr,
        teacher=teacher,
        checkpoints=unfinished.checkpoints("tuned"),
        keep=True,
    )


def prepare(settings: TuneSettings, watch: Watch = silent) -> tuple[nn.Module, nn.Module | None, Data]:
    """The saved network, the dense one as its teacher where its weights are named, and the data.

    Raises:
        ArtifactError: there is no saved result, or it needs ``--model`` or ``--trust``.
        DataError: the network does not run on the data's inputs, or has fewer outputs than there are classes.
    """
    with watch("Loading network and data") as step:
        check_device(settings.device)
        named = settings.model is not None
        original = build_model(settings.network()) if named else None
        record = artifacts.read_record(settings.result)
        if original is None and record["graph"] is None and record["build"] is None:
            raise ArtifactError(
                f"{settings.result} keeps the network's own class, {record['class']}, and loading it needs it: name "
                f"the original network with --model (and --model-args)"
            )
        model = artifacts.load(settings.result, model=original, trust=settings.trust).to(settings.device)
        teacher = original.to(settings.device) if original is not None and settings.weights is not None else None
        if teacher is not None and any(isinstance(change, Head) for change in recall(model, "plans")):
            raise ConfigError(
                f"weights are those of a teacher, and {settings.result} was adapted to other classes than that network "
                "tells apart: leave them out"
            )
        data = fitting_data(model, settings)
        step.note(". ".join([data.description or settings.data, *data.warnings]))
    return model, teacher, data


def make_report(settings: TuneSettings, figures: Mapping[str, Mapping[str, Any]], interrupted: str) -> Report:
    """The report of a run: what was known of the network, with what was measured now."""
    known: Mapping[str, Any] = Report.load(settings.result) if (settings.result / "report.json").exists() else {}
    report = Report.build(
        model=str(known.get("model") or settings.model or settings.result),
        dense=figures.get("dense") or _timeless(known.get("dense")),
        pruned=figures["pruned"],
        tuned=figures["tuned"],
        proof=known.get("proof"),
        axes=known.get("axes") or (),
        plan=known.get("plan"),
        command=f"{settings.to_command()} --overwrite",
        seed=settings.seed,
        device=settings.device,
        interrupted=interrupted,
        held_out=known.get("held_out"),
        compensation=known.get("compensation"),
        dead_units=known.get("dead_units"),
        gradual=known.get("gradual"),
        adapted=known.get("adapted"),
    )
    if known.get("depth"):  # a change of depth has no axes
        report = report.replace(axes=None, depth=known["depth"])
    if known.get("sparsity"):
        report = report.replace(axes=known.get("axes"), sparsity=known["sparsity"])
    return report


def _with_zeros(report: Report, before: nn.Module, after: nn.Module) -> Report:
    """The report, with what training left of a sparse network's zeros."""
    shares = {"before": sparsity_of(before), "after": sparsity_of(after)}
    return report if None in shares.values() else report.replace(kept_zeros=shares)


def _timeless(figures: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Figures of another day: times and memory can't be compared with those of now."""
    if figures is None:
        return None
    kept = ("params", "macs", "size_bytes", "metrics")
    return {name: value if name in kept else None for name, value in figures.items()}


def save(model: nn.Module, report: Report, history: History, settings: TuneSettings, folder: Path) -> None:
    """Write everything but config.yaml into a run's directory."""
    record = artifacts.read_record(settings.result)
    figures = {name: report[name] for name in ("dense", "pruned", "tuned") if report[name]}
    artifacts.save(model, folder, build=record["build"], figures=figures, keep_removed=_kept(model))
    write_json(folder / "training.json", {"tuned": history.to_dict()})
    report.save(folder / "report.json")
    page = render_page(
        report,
        histories={"tuned": history.to_dict()["epochs"]},
        load=load_code(settings.out, record["build"], rewritten=record["graph"] is not None),
        settings=settings.to_yaml(),
    )
    write_text(folder / "report.html", page)


def _kept(model: nn.Module) -> Keep:
    """Whether the result keeps what was removed: as the one that was trained on did."""
    removed: Removed | None = recall(model, "removed")
    return False if removed is None else True if removed.complete else "slices"
