"""A training in a run: what the settings ask `secateur.tune` for, and what is said of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from secateur.config import PruneSettings, TrainingSettings, TuneSettings, attack_of
from secateur.data import Data
from secateur.errors import ConfigError, Diverged
from secateur.planning import Plan
from secateur.provenance import recall
from secateur.runs.steps import Watch
from secateur.tuning import Callback, Distillation, Epoch, History, Search
from secateur.tuning import tune as fine_tune
from secateur.tuning.choosing import Rate


def train(
    model: nn.Module,
    data: Data,
    settings: TrainingSettings,
    watch: Watch,
    title: str,
    *,
    epochs: int,
    lr: float | Literal["auto", "search"] | None,
    teacher: nn.Module | None = None,
    checkpoints: Path | None = None,
    callbacks: Sequence[Callback] = (),
    keep: bool = False,
    **other: Any,
) -> History:
    """Train a network in place, as the settings say; it is left in eval mode.

    Args:
        keep: end with the best state where the loss explodes, and say so in the history's ``failed``.
        other: of `secateur.tuning.tune`, in place of what the settings say.
    """
    with watch(title) as step:

        def show(row: Epoch) -> None:
            seen = row.validation_accuracy if row.validation_accuracy is not None else row.train_accuracy
            what = "validation accuracy" if row.validation_accuracy is not None else "training accuracy"
            step.note(
                f"epoch {row.epoch} of {epochs}, loss {row.train_loss:.3g}"
                + (f", {what} {100 * seen:.1f} %" if seen is not None else "")
                + (f", under attack {100 * row.robust_accuracy:.1f} %" if row.robust_accuracy is not None else "")
            )

        try:
            history = fine_tune(
                model,
                data.train,
                data.validation,
                epochs=epochs,
                lr=_rate(lr, settings, checkpoints),
                optimizer=settings.optimizer,
                weight_decay=settings.weight_decay,
                teacher=_lessons(model, teacher, settings),
                device=settings.device,
                seed=settings.seed,
                checkpoints=checkpoints,
                callbacks=callbacks,
                **{**settings.options(), **_attacks(settings, data), **other},
                every=settings.checkpoint_every,
                on_epoch=show,
                progress=step.advance,
            )
        except Diverged as error:
            if not keep or error.history is None:
                raise
            history = error.history
        if data.validation is not None and history.epochs:
            step.note(_kept(history, epochs))
    model.eval()
    return history


def _attacks(settings: TrainingSettings, data: Data) -> dict[str, Any]:
    """The attack that a training withstands, as `tune` takes it; nothing where none was asked for."""
    if not isinstance(settings, PruneSettings | TuneSettings) or settings.adversarial == "none":
        return {}
    return {"adversarial": attack_of(settings, settings, data.scaled)}


def _rate(lr: float | str | None, settings: TrainingSettings, checkpoints: Path | None) -> Rate:
    """The learning rate as `tune` takes it; a search keeps its trials with the checkpoints."""
    if lr == "search":
        storage = None if checkpoints is None else checkpoints / "search.log"
        return Search(seconds=settings.search_seconds, storage=storage, seed=settings.seed)
    return "auto" if lr == "auto" else float(lr or 0.0)


def _lessons(model: nn.Module, teacher: nn.Module | None, settings: TrainingSettings) -> Distillation | None:
    """What the teacher is asked for; None where there is none, or nothing is asked.

    Raises:
        ConfigError: features of a network that was pruned more than once.
    """
    if teacher is None or not (settings.distill or settings.features):
        return None
    plans = [change for change in recall(model, "plans") or () if isinstance(change, Plan)]
    if settings.features and len(plans) > 1:
        raise ConfigError(
            "features can be compared with the dense network's after one pruning of widths only: leave them out"
        )
    plan = plans[0] if len(plans) == 1 else None
    return Distillation(teacher, plan, weight=settings.distill, features=settings.features)


def _kept(history: History, epochs: int) -> str:
    """Which epoch's state a network was left in."""
    if not history.best_epoch:
        return f"none of {len(history.epochs)} epochs was better than the state before"
    best = history.epochs[history.best_epoch - 1]
    score = "" if best.validation_accuracy is None else f", validation accuracy {100 * best.validation_accuracy:.1f} %"
    robust = "" if best.robust_accuracy is None else f", under attack {100 * best.robust_accuracy:.1f} %"
    return f"kept epoch {best.epoch} of {epochs}{score}{robust}"


def cut_short(histories: Mapping[str, History], settings: TrainingSettings) -> str:
    """Words on a fine-tuning that Ctrl-C, or a loss that exploded, ended; empty if nothing did."""
    tuned = histories.get("tuned")
    if tuned is None or not (tuned.interrupted or tuned.failed):
        return ""
    kept = f"its state after epoch {tuned.best_epoch}" if tuned.best_epoch else "the pruned network before tuning"
    how = "ended in an error" if tuned.failed else "was stopped"
    return f"the fine-tuning {how} after {len(tuned.epochs)} of {settings.epochs} epochs; kept is {kept}"
