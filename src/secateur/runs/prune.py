"""The run behind ``secateur prune``: train, measure, score, plan, prune, prove, tune, test, save, report.

Each step is a function of its own; ``prune_run`` is all of them in order, in a directory that appears at the end. What
lets it be taken up again lies beside that place until then.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur import artifacts, digests
from secateur.adapting.passes import same_pass
from secateur.config import PruneSettings, TrainedSettings, TrainingSettings, attack_of
from secateur.data import Data, load_data
from secateur.errors import DataError, SecateurError
from secateur.files import RunDirectory, write_json, write_text
from secateur.fit import Moved, check_device, check_fit, example
from secateur.importance import criterion, score
from secateur.importance.protocols import needs
from secateur.importance.scoring import AUTO
from secateur.measuring import measure_all
from secateur.models import build_model, build_record
from secateur.planning import plan
from secateur.provenance import complete_step, note_step, recall
from secateur.pruning import Result, prune
from secateur.rebuilding import Rebuilds
from secateur.reporting import Report, render_page
from secateur.runs import gradual, protecting, several
from secateur.runs.origins import Origin
from secateur.runs.robust import with_robustness
from secateur.runs.steps import Step, Watch, silent
from secateur.runs.training import cut_short, train
from secateur.runs.unfinished import Unfinished, carried_through
from secateur.safety.batches import alternating, attacked
from secateur.timing.settling import Clock
from secateur.tracing import trace
from secateur.tuning import History, Rewind, evaluate

CALIBRATION_BATCHES = 32  # of training data, that criteria look at
KERAS_FILE = "model.keras"  # in the directory of a run on a Keras model: the result, plain Keras
PREDICTED = ("dense", "pruned")  # networks of which the pruning knows a latency


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run left.

    Attributes:
        path: the directory of the result.
        model: the final network, in eval mode.
        report: the figures.
        histories: training curves, "dense", those of the steps of pruning, and "tuned", where there was training.
        interrupted: what Ctrl-C, or a loss that exploded, cut short, in words; empty if nothing.
        failed: the error that ended the fine-tuning where the loss exploded; empty if it did not.
        advice: what makes the result worth little, and what to do about it, in words; empty if nothing.
        resumable: whether ``secateur resume`` goes on with a run that was cut short.
    """

    path: Path
    model: nn.Module
    report: Report
    histories: Mapping[str, History] = field(default_factory=dict[str, History])
    interrupted: str = ""
    failed: str = ""
    advice: str = ""
    resumable: bool = True


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """The network after pruning, as a run goes on with it.

    Attributes:
        model: which fine-tuning changes.
        report: what ``sc.prune`` reported.
        rewritten: whether the class was replaced by its graph.
        build: how the architecture that its changes begin with is built; None is as the settings say.
    """

    model: nn.Module
    report: Report
    rewritten: bool
    build: Mapping[str, Any] | None = None


def prune_run(
    settings: PruneSettings, *, overwrite: bool = False, resume: bool = False, watch: Watch = silent
) -> Outcome:
    """Do everything that ``secateur prune`` does.

    Killed at any moment and resumed, a run on a CPU ends with the same bits as one that was not disturbed.

    Args:
        settings: what to do; see `PruneSettings`.
        overwrite: replace an earlier run in the same place, finished or not.
        resume: go on with a run that was not finished, from its last checkpoint.
        watch: is told of every step.

    Returns:
        What was done. After Ctrl-C during the fine-tuning, or where its loss explodes, the network is the best so far,
        and ``interrupted`` says so; resuming goes on with the fine-tuning.

    Raises:
        SecateurError: anything that can't be done, as one of its kinds. Nothing is left behind then but checkpoints.
        KeyboardInterrupt: Ctrl-C before there was anything worth keeping. Nothing is left behind but checkpoints.
    """
    several.check_alone("secateur prune")
    settings = settings.resolved()
    work = partial(_prune_run, settings, watch)
    return carried_through(settings.out, settings.to_yaml(), work, overwrite=overwrite, resume=resume)


def _prune_run(settings: PruneSettings, watch: Watch, directory: RunDirectory, unfinished: Unfinished) -> Outcome:
    dense, data = prepare(settings, watch)
    ticket = gradual.ticket(data, settings)
    histories = train_dense(dense, data, settings, watch, unfinished.checkpoints("dense"), ticket)
    pruned = pruned_once(dense, data, settings, watch, unfinished, ticket)
    histories |= gradual.histories(pruned.report)
    untuned = copy.deepcopy(pruned.model)
    if not stopped(pruned.report):
        histories |= tune(pruned.model, dense, data, settings, watch, unfinished.checkpoints("tuned"), ticket)
    if "tuned" in histories:
        pruned = replace(pruned, report=protecting.with_tuned(pruned.report, dense, pruned.model, data, settings))
    models = {"dense": dense, "pruned": untuned, **({"tuned": pruned.model} if "tuned" in histories else {})}
    return finish(models, pruned, histories, data, settings, directory, watch)


def finish(
    models: Mapping[str, nn.Module],
    pruned: Pruned,
    histories: Mapping[str, History],
    data: Data,
    settings: TrainedSettings,
    directory: RunDirectory,
    watch: Watch,
    **more: Any,
) -> Outcome:
    """Test, report and save; the end of a run.

    Args:
        models: the networks that are compared, as "dense", "pruned" and "tuned".
        pruned: the final one.
        histories: the trainings.
        more: further arguments of `make_report`.
    """
    interrupted = stopped(pruned.report) or cut_short(histories, settings)
    report = make_report(pruned.report, compare(models, data, settings, watch), settings, interrupted, **more)
    if isinstance(settings, PruneSettings):
        report = with_robustness(report, models, data, settings, settings.seed, watch)
    with watch("Saving") as step:
        note_steps(pruned.model, models["pruned"], report, data, settings)
        save(pruned, models["dense"], report, histories, settings, directory.work)
        path = directory.publish()
        step.note(str(settings.out))
    return Outcome(
        path=path,
        model=pruned.model,
        report=report,
        histories=histories,
        interrupted=interrupted,
        failed=histories["tuned"].failed if "tuned" in histories else "",
        advice=" ".join([*filter(None, [_advice(report, data)]), *data.warnings]),
    )


def pruned_once(
    dense: nn.Module,
    data: Data,
    settings: PruneSettings,
    watch: Watch,
    unfinished: Unfinished,
    ticket: Rewind | None = None,
    origin: Origin | None = None,
) -> Pruned:
    """The pruned network: what an interrupted run kept of it, or else pruned now, and kept.

    Args:
        unfinished: where it is kept. It is read back in any case, so that both ways give the same bits.
        ticket: early weights and learning rates, where steps of pruning go back to them.
        origin: where the dense network's own changes begin; None where it has none.
    """
    origin = Origin(model=dense) if origin is None else origin

    def make() -> Result:
        return prune_model(dense, data, settings, watch, unfinished.checkpoints("gradual"), ticket)

    return changed_once(make, unfinished, origin, settings.device)


def changed_once(make: Callable[[], Result], unfinished: Unfinished, origin: Origin, device: str) -> Pruned:
    """The changed network: what an interrupted run kept of it, or else made now, and kept.

    Args:
        make: changes it.
        unfinished: where it is kept. It is read back in any case, so that both ways give the same bits.
        origin: where the network's changes begin.
    """
    keep = unfinished.checkpoints("pruned")
    found = _pruned_before(keep, origin, device)
    if found is None:
        result = make()
        if stopped(result.report):  # the rest of the steps, or of the search, is still to be done
            rewritten = bool(result.rewritten)
            return Pruned(model=result.model.eval(), report=result.report, rewritten=rewritten, build=origin.build)
        keep.mkdir(parents=True, exist_ok=True)
        result.report.save(keep / "report.json")
        artifacts.save(result, keep, build=origin.build, overwrite=True)
        found = origin.load(keep, device), Report.load(keep)
    model, report = found
    rewritten = any(change.rewrites for change in recall(model, "plans"))
    return Pruned(model=model, report=report, rewritten=rewritten, build=origin.build)


def _pruned_before(folder: Path, origin: Origin, device: str) -> tuple[nn.Module, Report] | None:
    """The pruned network that was kept, and its report; None where there is none, or a damaged one, which is told."""
    if not (folder / "artifact.json").exists():
        return None
    try:
        return origin.load(folder, device), Report.load(folder)
    except SecateurError as error:
        warnings.warn(f"the pruned network that was kept can't be used ({error}): it is made again", stacklevel=2)
        return None


def prepare(settings: PruneSettings, watch: Watch = silent) -> tuple[nn.Module, Data]:
    """The network and its data, checked to fit each other.

    Raises:
        DataError: the network does not run on the data's inputs, or has fewer outputs than there are classes.
    """
    settings = settings.resolved()
    with watch("Loading model and data") as step:
        check_device(settings.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model = build_model(settings).to(settings.device)
        data = fitting_data(model, settings)
        if settings.bounded and data.validation is None:
            raise DataError(
                f"{' and '.join(settings.bounded)} is kept to on a validation split, never on the test split, and "
                f"{settings.data} has none. Let it return one, or give a budget or a threshold"
            )
        protecting.check(model, data, settings)
        if settings.train_epochs:
            check_plan(model, data, settings)
        step.note(". ".join([data.description or settings.data, *data.warnings]))
    return model, data


def fitting_data(model: nn.Module, settings: TrainingSettings) -> Data:
    """The data that the settings name, checked to fit the network; what is odd about it is among its warnings."""
    data = named_data(settings)
    return replace(data, warnings=(*data.warnings, *check_fit(model, data, settings)))


def named_data(settings: TrainingSettings) -> Data:
    """The data that the settings name."""
    given: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "image_size": settings.image_size,
        "augment": settings.augment,
        **settings.data_args,  # whoever names one of these for their own callable means it
    }
    return load_data(settings.data, **given)


def check_plan(model: nn.Module, data: Data, settings: PruneSettings) -> None:
    """Raise, before time goes into training, what planning would raise after it; that hangs on no weights."""
    inputs = example(data, settings.device)
    graph = trace(model, inputs)
    scores = score(model, graph, _importance(settings), _calibration(data, settings, 1), seed=settings.seed)
    chosen = _choice(settings)
    if settings.bounded and settings.budget is None:
        chosen["keep"] = 1.0
    clock = Clock.where_asked(model, graph, inputs, None, chosen["budget"], chosen["multiple_of"])
    plan(graph, scores, **chosen, latency=clock.table if clock is not None else None)


def _importance(settings: TrainedSettings) -> str:
    """The default threshold, a share of the mean score, was chosen for magnitudes, so "auto" stands for these there."""
    if settings.importance != "auto":
        return settings.importance
    by_threshold = isinstance(settings, PruneSettings) and settings.threshold is not None
    return AUTO["without data" if by_threshold else "with data"]


def _calibration(data: Data, settings: PruneSettings, batches: int) -> Iterable[Any] | None:
    """The first batches of the training data, for a criterion that looks at data."""
    if not needs(criterion(_importance(settings))):
        return None
    return calibration_batches(data, settings, batches)


def calibration_batches(data: Data, settings: TrainingSettings, batches: int) -> list[Any]:
    """The first batches of the training data, not augmented, the same whatever was drawn before."""
    return list(same_pass(data.calibration, settings.seed, settings.device, batches))


def train_dense(
    model: nn.Module,
    data: Data,
    settings: TrainedSettings,
    watch: Watch = silent,
    checkpoints: Path | None = None,
    ticket: Rewind | None = None,
) -> dict[str, History]:
    """Train the network before pruning, in place, if the settings ask for it; its history as "dense"."""
    settings = settings.resolved()
    if not settings.train_epochs:
        return {}
    history = train(
        model,
        data,
        settings,
        watch,
        "Training the dense network",
        epochs=settings.train_epochs,
        lr=settings.train_lr,
        checkpoints=checkpoints,
        callbacks=() if ticket is None else (ticket,),
    )
    if history.interrupted:
        raise KeyboardInterrupt
    return {"dense": history}


def prune_model(
    model: nn.Module,
    data: Data,
    settings: PruneSettings,
    watch: Watch = silent,
    checkpoints: Path | None = None,
    ticket: Rewind | None = None,
) -> Result:
    """Score, plan, prune and prove; the result of ``sc.prune``. The network given stays as it is.

    Args:
        checkpoints: a folder for what takes a pruning in steps up again.
        ticket: early weights and learning rates, where these steps go back to them.
    """
    settings = settings.resolved()
    how = None if settings.compensate == "none" else settings.compensate
    looked_at = how is not None or needs(criterion(_importance(settings)))
    given: dict[str, Any] = {
        "importance": _importance(settings),
        "data": calibration_batches(data, settings, CALIBRATION_BATCHES if looked_at else 1),
        "compensate": how,
        "seed": settings.seed,
        **_choice(settings),
        **({} if settings.protect is None else {"protect": protecting.guard(data, settings)}),
    }
    if settings.importance == "auto" and settings.threshold is None and settings.schedule == "none":
        given["importance"] = "auto"  # which tries several
    if settings.schedule != "none":
        if settings.attacked:
            given["data"] = _under_attack(model, data, settings, given["data"])
        return gradual.prune(model.eval(), data, settings, watch, given, checkpoints, ticket)
    if settings.attacked:
        given["adversarial"] = attack_of(settings, settings, data.scaled)
    with watch("Tracing, scoring, pruning, proving") as step:
        result = prune(model.eval(), example(data, settings.device), **given, **_bound(settings, data, step))
        step.note(
            f"{sum(row['after'] < row['before'] for row in result.axes)} of {len(result.axes)} axes, "
            f"{result.proof.status}"
        )
    return result


def _under_attack(model: nn.Module, data: Data, settings: PruneSettings, batches: list[Any]) -> list[Any]:
    """The batches and the same under attack, in turns; steps look at all of them, attacked as the dense network is."""
    attack = attack_of(settings, settings, data.scaled)
    return alternating(batches, attacked(model, batches, attack, seed=settings.seed))


def _choice(settings: PruneSettings) -> dict[str, Any]:
    """The settings of planning, as ``sc.plan`` takes them."""
    names = ("threshold", "keep", "scope", "uniform", "only", "ignore")
    chosen = {name: getattr(settings, name) for name in names}
    return {"budget": settings.cost(), **settings.limits(), **chosen}


def _bound(settings: PruneSettings, data: Data, step: Step) -> dict[str, Any]:
    """Bounds on the validation split, as ``sc.prune`` takes them; nothing where none was given."""
    if not settings.bounded:
        return {}
    assert data.validation is not None  # `prepare` saw to that
    return {
        **settings.bounded,
        "validate": Moved(data.validation, settings.device),
        "reduce": settings.reduce,
        "on_round": lambda done: step.note(done.describe()),
    }


def tune(
    model: nn.Module,
    teacher: nn.Module,
    data: Data,
    settings: TrainedSettings,
    watch: Watch = silent,
    checkpoints: Path | None = None,
    ticket: Rewind | None = None,
    title: str = "Fine-tuning the pruned network",
) -> dict[str, History]:
    """Train the changed network on, in place, the dense one as its teacher; its history as "tuned"."""
    settings = settings.resolved()
    if not settings.epochs:
        return {}
    rates: dict[str, Any] = {"lr": settings.lr} if ticket is None else ticket.repeated()
    history = train(
        model,
        data,
        settings,
        watch,
        title,
        epochs=settings.epochs,
        teacher=teacher,
        checkpoints=checkpoints,
        keep=True,
        **rates,
    )
    return {"tuned": history}


def compare(
    models: Mapping[str, nn.Module], data: Data, settings: TrainingSettings, watch: Watch = silent
) -> dict[str, dict[str, Any]]:
    """The figures of each network, as ``report.json`` has them: costs, and results on the test split."""
    with watch("Testing") as step:
        metrics: dict[str, dict[str, float]] = {}
        for done, (name, model) in enumerate(models.items()):
            step.advance(done, len(models))
            metrics[name] = evaluate(model, data.test, settings.device, halve=settings.halve_batch)
        step.note(", ".join(f"{name} {_accuracy(found)}" for name, found in metrics.items()))
    with watch("Measuring"):
        measured = measure_all({name: model.eval() for name, model in models.items()}, example(data, settings.device))
    return {name: {**measured[name].to_dict(), "metrics": metrics[name]} for name in models}


def make_report(
    bare: Report,
    figures: Mapping[str, Mapping[str, Any]],
    settings: TrainedSettings,
    interrupted: str = "",
    adapted: Mapping[str, Any] | None = None,
) -> Report:
    """The report of a run: what ``sc.prune`` reported, with all figures measured side by side.

    Args:
        adapted: how the network was adapted to a new task, where it was.
    """
    known = {name: {**figures[name], **_predicted(bare, name, figures)} for name in PREDICTED if name in figures}
    return Report.build(
        model=settings.model,
        dense=known.get("dense"),
        pruned=known.get("pruned"),
        tuned=figures.get("tuned"),
        proof=bare["proof"],
        axes=bare["axes"],
        plan=bare["plan"],
        command=f"{settings.to_command()} --overwrite",
        seed=settings.seed,
        device=settings.device,
        interrupted=interrupted,
        held_out=bare.get("held_out"),
        compensation=bare.get("compensation"),
        dead_units=bare.get("dead_units"),
        trial=bare.get("trial"),
        protected=bare.get("protected"),
        gradual=bare.get("gradual"),
        adapted=adapted,
    )


def _predicted(bare: Report, name: str, figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The latency that timed operations predicted of a network, if they did: as a share of the dense one's."""
    dense, found = (bare[column].get("predicted_latency_ms") for column in ("dense", name))
    return {"predicted_latency_ms": figures["dense"]["latency_ms"] * found / dense} if dense and found else {}


def note_steps(model: nn.Module, untuned: nn.Module, report: Report, data: Data, settings: TrainedSettings) -> None:
    """Write into the network's history what the run knows of its change and fine-tuning.

    Args:
        model: the final network.
        untuned: it before the fine-tuning.
    """
    about = {"seed": settings.seed, "data": described(data, settings)}
    importance = (report.get("trial") or {}).get("chosen") or _importance(settings)
    complete_step(model, figures=report["pruned"], before=report["dense"], importance=importance, **about)
    if report["tuned"]:
        parent = digests.of_model(untuned)
        note_step(model, "tune", figures=report["tuned"], epochs=settings.epochs, parent=parent, **about)


def described(data: Data, settings: TrainingSettings) -> str:
    """The data in words, without the place where they lie on this machine."""
    _, _, place = settings.data.partition(":")
    words = data.description or settings.data
    return words.replace(place, Path(place).name) if place else words


def save(
    pruned: Pruned,
    dense: nn.Module,
    report: Report,
    histories: Mapping[str, History],
    settings: TrainedSettings,
    folder: Path,
) -> None:
    """Write everything but config.yaml into a run's directory."""
    build = pruned.build or build_record(settings)
    figures = {name: report[name] for name in ("dense", "pruned", "tuned") if report[name]}
    whole = isinstance(settings, PruneSettings) and settings.keep_removed
    kept: dict[str, Any] = {"keep_removed": True, "dense": dense} if whole else {}
    artifacts.save(pruned.model, folder, build=build, figures=figures, **kept)
    if isinstance(pruned.model, Rebuilds):
        pruned.model.plain().save(folder / KERAS_FILE)
    curves = {name: history.to_dict() for name, history in histories.items()}
    if curves:
        write_json(folder / "training.json", curves)
    report.save(folder / "report.json")
    page = render_page(
        report,
        histories=gradual.shown(curves),
        load=keras_code(settings.out)
        if isinstance(pruned.model, Rebuilds)
        else load_code(settings.out, build, rewritten=pruned.rewritten),
        settings=settings.to_yaml(),
    )
    write_text(folder / "report.html", page)


def keras_code(out: Path) -> str:
    """Python that loads a result that is a Keras model, on any backend."""
    return f"import keras\n\nmodel = keras.models.load_model({str(out / KERAS_FILE)!r})"


def load_code(out: Path, build: Mapping[str, Any] | None, *, rewritten: bool) -> str:
    """Python that loads a result.

    Args:
        build: the callable that builds the dense network, and its arguments; None where nobody said.
        rewritten: whether the result needs no class.
    """
    if rewritten or build is None:
        given = "" if rewritten else ", model=..."
        return f"import secateur as sc\n\nmodel = sc.load({str(out)!r}{given})"
    module, _, name = build["callable"].partition(":")
    arguments = ", ".join(f"{key}={value!r}" for key, value in build["args"].items())
    top = name.split(".")[0]
    return (
        f"import secateur as sc\nfrom {module} import {top}\n\nmodel = sc.load({str(out)!r}, model={name}({arguments}))"
    )


def stopped(report: Report) -> str:
    """Words on a search, or on a pruning in steps, that Ctrl-C ended."""
    if steps := gradual.interrupted(report):
        return steps
    found: Mapping[str, Any] = report.get("held_out") or {}
    if not found.get("interrupted"):
        return ""
    return (
        f"the search within {found['setting']}={found['bound']:g} was stopped after {found['rounds']} rounds; kept is "
        f"the smallest network so far that keeps to it, not tuned; resuming begins this search anew"
    )


def _advice(report: Report, data: Data) -> str:
    """Words on a dense network that hardly does better than guessing."""
    accuracy = report["dense"]["metrics"].get("accuracy")
    if accuracy is None or not data.classes or accuracy > 1 / data.classes + 0.1 * (1 - 1 / data.classes):
        return ""
    return (
        f"The dense network is hardly better than guessing among {data.classes} classes, so this says little about "
        f"what was changed. Give it trained weights with --weights, or train it first with --train-epochs."
    )


def _accuracy(metrics: Mapping[str, float]) -> str:
    return f"{100 * metrics['accuracy']:.1f} %" if "accuracy" in metrics else f"loss {metrics['loss']:.3g}"
