"""The run behind ``secateur prune``: train, measure, score, plan, prune, prove, tune, test, save, report.

Each step is a function of its own; ``prune_run`` is all of them in order, in a directory that appears at the end.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from secateur import artifacts
from secateur.config import PruneSettings
from secateur.data import Data, load_data
from secateur.errors import DataError
from secateur.files import RunDirectory, write_json, write_text
from secateur.fit import Moved, check_device, check_fit, example, moved
from secateur.importance import criterion, score
from secateur.importance.protocols import needs
from secateur.importance.scoring import AUTO
from secateur.measuring import measure_all
from secateur.models import build_model, build_spec
from secateur.planning import plan
from secateur.pruning import Result, prune
from secateur.reporting import Report, render_page
from secateur.timing.settling import Clock
from secateur.tracing import trace
from secateur.training import Epoch, History, evaluate, train

CALIBRATION_BATCHES = 32  # of training data, that criteria look at
PREDICTED = ("dense", "pruned")  # networks of which the pruning knows a latency


class Step(Protocol):
    """What a step of a run tells whoever watches it."""

    def advance(self, done: int, total: int) -> None:
        """So much of the step is done."""
        ...

    def note(self, text: str) -> None:
        """What the step found, in a few words; the last note stays."""
        ...


Watch = Callable[[str], AbstractContextManager[Step]]
"""Given a step's title, a context that lasts as long as the step."""


class _Silent:
    def advance(self, done: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...


@contextmanager
def silent(title: str) -> Any:
    """Watch a run without a word."""
    yield _Silent()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run left.

    Attributes:
        path: the directory of the result.
        model: the final network, in eval mode.
        result: what ``sc.prune`` returned; its model is the final network.
        report: the figures.
        histories: training curves, "dense" and "tuned", where there was training.
        interrupted: what Ctrl-C cut short, in words; empty if nothing.
        advice: what makes the result worth little, and what to do about it, in words; empty if nothing.
    """

    path: Path
    model: nn.Module
    result: Result
    report: Report
    histories: Mapping[str, History] = field(default_factory=dict[str, History])
    interrupted: str = ""
    advice: str = ""


def prune_run(settings: PruneSettings, *, overwrite: bool = False, watch: Watch = silent) -> Outcome:
    """Do everything that ``secateur prune`` does.

    Args:
        settings: what to do; see `PruneSettings`.
        overwrite: replace an earlier run in the same place.
        watch: is told of every step.

    Returns:
        What was done. After Ctrl-C during the fine-tuning the network is the best so far, and ``interrupted`` says so.

    Raises:
        SecateurError: anything that can't be done, as one of its kinds. Nothing is left behind then.
        KeyboardInterrupt: Ctrl-C before there was anything worth keeping. Nothing is left behind.
    """
    settings = settings.resolved()
    with RunDirectory(settings.out, overwrite=overwrite) as directory:
        write_text(directory.work / "config.yaml", settings.to_yaml())
        dense, data = prepare(settings, watch)
        histories = train_dense(dense, data, settings, watch)
        result = prune_model(dense, data, settings, watch)
        pruned = copy.deepcopy(result.model)
        if not _stopped(result):
            histories |= tune(result.model, dense, data, settings, watch)
        models = {"dense": dense, "pruned": pruned, **({"tuned": result.model} if "tuned" in histories else {})}
        interrupted = _stopped(result) or _cut_short(histories, settings)
        report = make_report(result, compare(models, data, settings, watch), settings, interrupted)
        with watch("Saving") as step:
            save(result, report, histories, settings, directory.work)
            path = directory.publish()
            step.note(str(settings.out))
    return Outcome(
        path=path,
        model=result.model,
        result=result,
        report=report,
        histories=histories,
        interrupted=interrupted,
        advice=" ".join([*filter(None, [_advice(report, data)]), *data.warnings]),
    )


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
        given: dict[str, Any] = {
            "batch_size": settings.batch_size,
            "seed": settings.seed,
            "image_size": settings.image_size,
            "augment": settings.augment,
            **settings.data_args,  # whoever names one of these for their own callable means it
        }
        data = load_data(settings.data, **given)
        data = replace(data, warnings=(*data.warnings, *check_fit(model, data, settings)))
        if settings.bounded and data.validation is None:
            raise DataError(
                f"{settings.bounded} is kept to on a validation split, never on the test split, and {settings.data} "
                f"has none. Let it return one, or give a budget or a threshold"
            )
        if settings.train_epochs:
            check_plan(model, data, settings)
        step.note(". ".join([data.description or settings.data, *data.warnings]))
    return model, data


def check_plan(model: nn.Module, data: Data, settings: PruneSettings) -> None:
    """Raise, before time goes into training, what planning would raise after it; that hangs on no weights."""
    inputs = example(data, settings.device)
    graph = trace(model, inputs)
    scores = score(model, graph, _importance(settings), _calibration(data, settings, 1), seed=settings.seed)
    chosen = _choice(settings)
    if settings.bounded:
        chosen["keep"] = 1.0
    clock = Clock.where_asked(model, graph, inputs, None, chosen["budget"], chosen["multiple_of"])
    plan(graph, scores, **chosen, latency=clock.table if clock is not None else None)


def _importance(settings: PruneSettings) -> str:
    """The default threshold, a share of the mean score, was chosen for magnitudes, so "auto" stands for these there."""
    if settings.importance != "auto":
        return settings.importance
    return AUTO["without data" if settings.threshold is not None else "with data"]


def _calibration(data: Data, settings: PruneSettings, batches: int) -> Iterable[Any] | None:
    """The first batches of the training data, for a criterion that looks at data."""
    if not needs(criterion(_importance(settings))):
        return None
    return _first(data, settings, batches)


def _first(data: Data, settings: PruneSettings, batches: int) -> list[Any]:
    """The first batches of the training data, as they are this time."""
    return [moved(batch, settings.device) for batch in islice(data.train, batches)]


def train_dense(model: nn.Module, data: Data, settings: PruneSettings, watch: Watch = silent) -> dict[str, History]:
    """Train the network before pruning, in place, if the settings ask for it; its history as "dense"."""
    settings = settings.resolved()
    if not settings.train_epochs:
        return {}
    history = _train(
        model, data, settings, watch, "Training the dense network", epochs=settings.train_epochs, lr=settings.train_lr
    )
    if history.interrupted:
        raise KeyboardInterrupt
    return {"dense": history}


def prune_model(model: nn.Module, data: Data, settings: PruneSettings, watch: Watch = silent) -> Result:
    """Score, plan, prune and prove; the result of ``sc.prune``. The network given stays as it is."""
    settings = settings.resolved()
    with watch("Tracing, scoring, pruning, proving") as step:
        how = None if settings.compensate == "none" else settings.compensate
        looked_at = how is not None or needs(criterion(_importance(settings)))
        result = prune(
            model.eval(),
            example(data, settings.device),
            importance=_importance(settings),
            data=_first(data, settings, CALIBRATION_BATCHES if looked_at else 1),
            compensate=how,
            seed=settings.seed,
            **_choice(settings),
            **_bound(settings, data, step),
        )
        step.note(
            f"{sum(row['after'] < row['before'] for row in result.axes)} of {len(result.axes)} axes, "
            f"{result.proof.status}"
        )
    return result


def _choice(settings: PruneSettings) -> dict[str, Any]:
    """The settings of planning, as ``sc.plan`` takes them."""
    names = ("threshold", "keep", "scope", "uniform", "only", "ignore")
    chosen = {name: getattr(settings, name) for name in names}
    return {"budget": settings.cost(), **settings.limits(), **chosen}


def _bound(settings: PruneSettings, data: Data, step: Step) -> dict[str, Any]:
    """A bound on the validation split, as ``sc.prune`` takes it; nothing where none was given."""
    if settings.bounded is None:
        return {}
    assert data.validation is not None  # `prepare` saw to that
    amount = getattr(settings, settings.bounded)
    return {
        settings.bounded: amount,
        "validate": Moved(data.validation, settings.device),
        "reduce": settings.reduce,
        "on_round": lambda done: step.note(done.describe()),
    }


def tune(
    model: nn.Module, teacher: nn.Module, data: Data, settings: PruneSettings, watch: Watch = silent
) -> dict[str, History]:
    """Train the pruned network on, in place, the dense one as its teacher; its history as "tuned"."""
    settings = settings.resolved()
    if not settings.epochs:
        return {}
    history = _train(
        model,
        data,
        settings,
        watch,
        "Fine-tuning the pruned network",
        epochs=settings.epochs,
        lr=settings.lr,
        teacher=teacher,
    )
    return {"tuned": history}


def compare(
    models: Mapping[str, nn.Module], data: Data, settings: PruneSettings, watch: Watch = silent
) -> dict[str, dict[str, Any]]:
    """The figures of each network, as ``report.json`` has them: costs, and results on the test split."""
    with watch("Testing") as step:
        metrics: dict[str, dict[str, float]] = {}
        for done, (name, model) in enumerate(models.items()):
            step.advance(done, len(models))
            metrics[name] = evaluate(model, data.test, settings.device)
        step.note(", ".join(f"{name} {_accuracy(found)}" for name, found in metrics.items()))
    with watch("Measuring"):
        measured = measure_all({name: model.eval() for name, model in models.items()}, example(data, settings.device))
    return {name: {**measured[name].to_dict(), "metrics": metrics[name]} for name in models}


def make_report(
    result: Result, figures: Mapping[str, Mapping[str, Any]], settings: PruneSettings, interrupted: str = ""
) -> Report:
    """The report of a run: what ``sc.prune`` reported, with all figures measured side by side."""
    known = {name: {**figures[name], **_predicted(result, name, figures)} for name in PREDICTED if name in figures}
    return Report.build(
        model=settings.model,
        dense=known.get("dense"),
        pruned=known.get("pruned"),
        tuned=figures.get("tuned"),
        proof=result.report["proof"],
        axes=result.report["axes"],
        plan=result.report["plan"],
        command=f"{settings.to_command()} --overwrite",
        seed=settings.seed,
        device=settings.device,
        interrupted=interrupted,
        held_out=result.report.get("held_out"),
        compensation=result.report.get("compensation"),
        dead_units=result.report.get("dead_units"),
    )


def _predicted(result: Result, name: str, figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The latency that timed operations predicted of a network, if they did: as a share of the dense one's."""
    dense, found = (result.report[column].get("predicted_latency_ms") for column in ("dense", name))
    return {"predicted_latency_ms": figures["dense"]["latency_ms"] * found / dense} if dense and found else {}


def save(
    result: Result, report: Report, histories: Mapping[str, History], settings: PruneSettings, folder: Path
) -> None:
    """Write everything but config.yaml into a run's directory."""
    artifacts.save(result, folder, build={"callable": build_spec(settings), "args": settings.model_args})
    curves = {name: history.to_dict() for name, history in histories.items()}
    if curves:
        write_json(folder / "training.json", curves)
    report.save(folder / "report.json")
    page = render_page(
        report,
        histories={name: curve["epochs"] for name, curve in curves.items()},
        load=load_code(settings, rewritten=bool(result.rewritten)),
        settings=settings.to_yaml(),
    )
    write_text(folder / "report.html", page)


def load_code(settings: PruneSettings, *, rewritten: bool) -> str:
    """Python that loads the result of a run."""
    if rewritten:
        return f"import secateur as sc\n\nmodel = sc.load({str(settings.out)!r})"
    module, _, name = build_spec(settings).partition(":")
    arguments = ", ".join(f"{key}={value!r}" for key, value in settings.model_args.items())
    top = name.split(".")[0]
    return (
        f"import secateur as sc\nfrom {module} import {top}\n\nmodel = sc.load({str(settings.out)!r}, "
        f"model={name}({arguments}))"
    )


def _train(
    model: nn.Module,
    data: Data,
    settings: PruneSettings,
    watch: Watch,
    title: str,
    *,
    epochs: int,
    lr: float | None,
    teacher: nn.Module | None = None,
) -> History:
    with watch(title) as step:

        def show(row: Epoch) -> None:
            seen = row.validation_accuracy if row.validation_accuracy is not None else row.train_accuracy
            what = "validation accuracy" if row.validation_accuracy is not None else "training accuracy"
            step.note(
                f"epoch {row.epoch} of {epochs}, loss {row.train_loss:.3g}"
                + (f", {what} {100 * seen:.1f} %" if seen is not None else "")
            )

        history = train(
            model,
            data.train,
            validate=data.validation,
            epochs=epochs,
            lr=lr or 0.0,
            optimizer=settings.optimizer,
            weight_decay=settings.weight_decay,
            distill=settings.distill,
            teacher=teacher,
            device=settings.device,
            seed=settings.seed,
            on_epoch=show,
            progress=step.advance,
        )
        if data.validation is not None and history.epochs:
            step.note(_kept(history, epochs))
    model.eval()
    return history


def _kept(history: History, epochs: int) -> str:
    """Which epoch's state a network was left in."""
    if not history.best_epoch:
        return f"none of {len(history.epochs)} epochs was better than the state before"
    best = history.epochs[history.best_epoch - 1]
    score = "" if best.validation_accuracy is None else f", validation accuracy {100 * best.validation_accuracy:.1f} %"
    return f"kept epoch {best.epoch} of {epochs}{score}"


def _stopped(result: Result) -> str:
    """Words on a search that Ctrl-C ended."""
    found: Mapping[str, Any] = result.report.get("held_out") or {}
    if not found.get("interrupted"):
        return ""
    return (
        f"the search within {found['setting']}={found['bound']:g} was stopped after {found['rounds']} rounds; kept is "
        f"the smallest network so far that keeps to it, not tuned"
    )


def _cut_short(histories: Mapping[str, History], settings: PruneSettings) -> str:
    tuned = histories.get("tuned")
    if tuned is None or not tuned.interrupted:
        return ""
    kept = f"its state after epoch {tuned.best_epoch}" if tuned.best_epoch else "the pruned network before tuning"
    return f"the fine-tuning was stopped after {len(tuned.epochs)} of {settings.epochs} epochs; kept is {kept}"


def _advice(report: Report, data: Data) -> str:
    """Words on a dense network that hardly does better than guessing."""
    accuracy = report["dense"]["metrics"].get("accuracy")
    if accuracy is None or not data.classes or accuracy > 1 / data.classes + 0.1 * (1 - 1 / data.classes):
        return ""
    return (
        f"The dense network is hardly better than guessing among {data.classes} classes, so this says little about "
        f"pruning. Give it trained weights with --weights, or train it first with --train-epochs."
    )


def _accuracy(metrics: Mapping[str, float]) -> str:
    return f"{100 * metrics['accuracy']:.1f} %" if "accuracy" in metrics else f"loss {metrics['loss']:.3g}"
