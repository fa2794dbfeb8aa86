"""Pruning in steps, as a part of the run behind ``secateur prune``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from secateur.config import PruneSettings, attack_of
from secateur.data import Data
from secateur.fit import example
from secateur.reporting import Report
from secateur.runs.steps import Watch
from secateur.tuning import Gradual, History, Rewind, prune_gradually
from secateur.tuning.counting import steps_per_epoch


def ticket(data: Data, settings: PruneSettings) -> Rewind | None:
    """What the dense network's training takes along where steps of pruning go back to it; else None."""
    settings = settings.resolved()
    if settings.rewind == "none":
        return None
    total = steps_per_epoch(data.train, settings.accumulate) * settings.dense_epochs
    return Rewind(int(settings.rewind_at * total))


def prune(
    model: nn.Module,
    data: Data,
    settings: PruneSettings,
    watch: Watch,
    given: Mapping[str, Any],
    checkpoints: Path | None,
    ticket: Rewind | None,
) -> Gradual:
    """All steps but the training after the last one, which is the run's fine-tuning.

    Args:
        model: the dense network, in evaluation mode.
        given: settings of scoring, planning and compensation.
        checkpoints: a folder for what takes it up again.
        ticket: early weights and learning rates, where the steps go back to them.
    """
    options = settings.options()
    if settings.adversarial != "none":
        options["adversarial"] = attack_of(settings, settings, data.scaled)
    others = {name: value for name, value in given.items() if name not in ("threshold", "keep")}
    with watch(f"Pruning and training in {settings.steps} steps") as step:
        result = prune_gradually(
            model,
            example(data, settings.device),
            data.train,
            data.validation,
            schedule=settings.schedule,
            steps=settings.steps,
            epochs=settings.step_epochs,
            final_epochs=0,
            lr="auto" if isinstance(settings.lr, str) else settings.lr or 0.0,
            lr_schedule=options.pop("schedule"),
            mode=settings.gradual,
            rewind=None if settings.rewind == "none" else settings.rewind,
            ticket=ticket,
            teacher="dense",
            checkpoints=checkpoints,
            every=settings.checkpoint_every,
            on_step=lambda done: step.note(done.describe()),
            progress=step.advance,
            optimizer=settings.optimizer,
            weight_decay=settings.weight_decay,
            distill=settings.distill,
            device=settings.device,
            **options,
            **others,
        )
        narrower = sum(row["after"] < row["before"] for row in result.axes)
        times = "in every step" if len(result.steps) > 1 else "in one surgery"
        step.note(f"{narrower} of {len(result.axes)} axes, {result.proof.status} {times}")
    return result


def interrupted(report: Mapping[str, Any]) -> str:
    """What Ctrl-C cut short in the steps, in words; empty if nothing."""
    words = (report.get("gradual") or {}).get("interrupted")
    return f"{words}, not tuned" if words else ""


def histories(report: Report) -> dict[str, History]:
    """The training of each step, as "step-1" and so on, or "masked"; nothing where pruning was one step."""
    found: Mapping[str, Any] = report.get("gradual") or {}
    curves = {f"step-{step['step']}": step["training"] for step in found.get("steps", ())}
    curves = {"masked": found.get("masked"), **curves}
    return {name: History.from_dict(curve) for name, curve in curves.items() if curve}


def shown(curves: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Training curves as a page shows them: those of all steps as one."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for name, curve in curves.items():
        place = "gradual" if name.startswith("step-") else name
        found[place] = [*found.get(place, []), *curve["epochs"]]
    return found
