"""``sc.tune``: train a pruned model on until its accuracy is back."""

import time
from collections.abc import Callable, Iterable, Sequence, Sized
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.errors import TrainingError
from secateur.modules import kept_modes
from secateur.objectives import Loss, Totals, forward, loss_of
from secateur.tuning import randomness
from secateur.tuning.averaging import Average
from secateur.tuning.best import Best
from secateur.tuning.callbacks import Callback
from secateur.tuning.checkpoints import EVERY, Checkpoints
from secateur.tuning.distilling import Distillation, Lesson
from secateur.tuning.evaluating import Metric, totals_of
from secateur.tuning.history import Epoch, History
from secateur.tuning.interrupts import Interrupts
from secateur.tuning.loop import Objective, Pace, Run
from secateur.tuning.optimizers import MakeOptimizer, make_optimizer
from secateur.tuning.processes import Processes, processes
from secateur.tuning.recipes import Recipe
from secateur.tuning.schedules import Fraction, fractions
from secateur.tuning.trainable import What, trainable


class _Stop(Exception):
    """The run ends between two steps."""


def tune(
    model: nn.Module,
    train: Iterable[Any],
    validate: Iterable[Any] | None = None,
    *,
    epochs: int,
    lr: float,
    optimizer: str | MakeOptimizer = Recipe.optimizer,
    weight_decay: float = Recipe.weight_decay,
    schedule: str | Fraction = "cosine",
    warmup: float = Recipe.warmup,
    teacher: nn.Module | Distillation | None = None,
    distill: float = Recipe.distill,
    temperature: float = Recipe.temperature,
    train_only: What = "all",
    freeze_statistics: bool = False,
    loss: Loss | None = None,
    metric: Metric | None = None,
    larger: bool = True,
    patience: int | None = None,
    keep: Literal["best", "last"] = "best",
    clip: float | None = None,
    accumulate: int = 1,
    ema: float | None = None,
    halve: bool = False,
    precision: str | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    checkpoints: str | Path | None = None,
    every: int | str = EVERY,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> History:
    """Train a model in place, and leave it in its best state; in its last one with ``keep="last"``."""
    check(
        epochs=epochs,
        lr=lr,
        weight_decay=weight_decay,
        warmup=warmup,
        distill=distill,
        temperature=temperature,
        accumulate=accumulate,
        **({} if clip is None else {"clip": clip}),
        **({} if patience is None else {"patience": patience}),
    )
    started = time.perf_counter()
    with ExitStack() as stack:
        these = stack.enter_context(processes(device, precision))
        if ema is not None and these.sharded:
            raise TrainingError("ema does not go with FSDP: train with DDP, or without ema")
        stack.enter_context(kept_modes(model))
        stack.enter_context(randomness.as_found(these.device))
        stack.enter_context(trainable(model, train_only, freeze_statistics=freeze_statistics))
        data = randomness.DataDraws(seed)
        data.start(0)
        with data():
            per_epoch = steps_per_epoch(train, accumulate)
        pace = Pace(
            total=epochs * per_epoch,
            accumulate=accumulate,
            clip=clip,
            fraction=fractions(schedule, epochs * per_epoch, warmup),
            halve=halve,
        )
        wrapped, stepper = these.prepare(
            model, lambda trained: make_optimizer(optimizer, trained, lr=lr, weight_decay=weight_decay)
        )
        lesson: Lesson | None = None
        if teacher is not None and (isinstance(teacher, Distillation) or distill):
            taught = (
                teacher
                if isinstance(teacher, Distillation)
                else Distillation(teacher, weight=distill, temperature=temperature)
            )
            taught.teacher.to(these.device)
            lesson = stack.enter_context(taught.on(these.unwrap(wrapped)))
        run = Run(
            wrapped,
            stepper,
            train,
            objective(these, loss, lesson),
            these,
            pace,
            seed=seed,
            average=None if ema is None else Average(these.unwrap(wrapped), ema),
            callbacks=callbacks,
            progress=progress if these.main else None,
        )
        randomness.seed_all(seed, these.rank)
        keeper = Checkpoints(checkpoints, every=every) if checkpoints is not None else None
        judge = None if validate is None else Judge(validate, run, loss, metric, seed)
        session = Session(
            run, model, keeper, judge, Best(validated=validate is not None and keep == "best", larger=larger), started
        )
        with session.interrupts.listening(SIGINT, *([SIGTERM] if keeper is not None else [])):
            return session.train(epochs, patience, on_epoch if these.main else None)


class Judge:
    """Validates a run's model: the averaged weights where there are such."""

    def __init__(self, batches: Iterable[Any], run: Run, loss: Loss | None, metric: Metric | None, seed: int) -> None:
        self.batches, self.run, self.loss, self.metric, self.seed = batches, run, loss, metric, seed

    def __call__(self) -> tuple[Totals, float | None]:
        """The sums over all samples, and the metric if there is one."""
        run = self.run
        with randomness.as_found(run.device):
            randomness.seed_all(self.seed, 0)
            totals = totals_of(run.wrapped, self.batches, run.processes, self.loss)
            value = None if self.metric is None else self.metric(run.model, self.batches)
        return totals, None if value is None else float(value)


class Session:
    """A run with what goes on around it: validation, the best state, checkpoints, interruption."""

    def __init__(
        self, run: Run, model: nn.Module, keeper: Checkpoints | None, judge: Judge | None, best: Best, started: float
    ) -> None:
        self.run, self.model, self.keeper, self.judge, self.best, self.started = (
            run,
            model,
            keeper,
            judge,
            best,
            started,
        )
        self.history = History()
        self.interrupts = Interrupts()
        self.before = 0.0  # seconds of a run that this one takes up

    def train(self, epochs: int, patience: int | None, on_epoch: Callable[[Epoch], None] | None) -> History:
        """All epochs, or as many as there are until something ends the run."""
        saved = None if self.keeper is None else self.keeper.latest()
        if saved is not None:
            self.load_state_dict(saved)
        run, history = self.run, self.history
        try:
            if saved is None:
                self._consider(0)
            for callback in run.callbacks:
                callback.on_start(run)
            if not history.stopped:
                for row in run.epochs(epochs, self._stepped):
                    self._finish(row, patience, on_epoch)
                    if history.stopped:
                        break
        except (KeyboardInterrupt, _Stop):
            history.interrupted = True
        finally:
            for callback in run.callbacks:
                callback.on_end(run)
            self._end()
        return history

    def _finish(self, row: Epoch, patience: int | None, on_epoch: Callable[[Epoch], None] | None) -> None:
        """Validate after an epoch, and count it as done."""
        run = self.run
        scores, metric = self._consider(row.epoch)
        if scores is not None:
            row = replace(row, validation_loss=scores.loss, validation_accuracy=scores.accuracy, metric=metric)
        self.history.epochs.append(row)
        for callback in run.callbacks:
            callback.on_epoch(run, row)
        if on_epoch is not None:
            on_epoch(row)
        if patience is not None and self.best.since >= patience:
            self.history.stopped = f"no better validation for {patience} epochs"
        run.next_epoch()
        self._save_if_due(force=self.keeper is not None and bool(self.history.stopped))

    def _consider(self, epoch: int) -> tuple[Totals | None, float | None]:
        run = self.run
        with run.average.swapped(run.model) if run.average is not None else nullcontext():
            scores, metric = (None, None) if self.judge is None else self.judge()
            self.best.consider(epoch, run.processes.model_state(run.wrapped), scores, metric)
        return scores, metric

    def _stepped(self) -> None:
        """Between two steps: save if it is time, stop if somebody asked."""
        stop = bool(self.interrupts.asked)
        if self.run.processes.count > 1:
            stop = bool(self.run.processes.total(float(stop))[0])
        self._save_if_due(force=stop and self.keeper is not None)
        if stop:
            raise _Stop

    def _save_if_due(self, *, force: bool = False) -> None:
        keeper, run = self.keeper, self.run
        if keeper is None:
            return
        due = keeper.due(run.step)
        if force or (run.processes.agreed(due) if keeper.timed else due):
            state = self.state_dict()
            if run.processes.main:
                keeper.save(run.step, state)

    def _end(self) -> None:
        """Leave the model in its best state, and finish the history."""
        run, history = self.run, self.history
        if self.best.state:
            self.model.load_state_dict(self.best.state)
        self.model.zero_grad(set_to_none=True)
        history.best_epoch, history.steps = self.best.epoch, run.step
        history.seconds = self.before + time.perf_counter() - self.started
        history.notes = list(run.notes)
        if run.device.type == "cuda":
            history.peak_memory_bytes = torch.cuda.max_memory_allocated(run.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a checkpoint holds."""
        seconds = self.before + time.perf_counter() - self.started
        return {
            "run": self.run.state_dict(),
            "best": self.best.state_dict(),
            "history": {**self.history.to_dict(), "seconds": seconds},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            TrainingError: it is of another model or other settings.
        """
        try:
            self.run.load_state_dict(state["run"])
            self.best.load_state_dict(state["best"])
            self.history = History.from_dict(state["history"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise TrainingError(
                f"the checkpoints in {self.keeper.folder if self.keeper else ''} are of another model or other "
                f"settings ({' '.join(str(error).split())[:300]}): give the same ones, or another folder"
            ) from error
        self.history.resumed, self.before = self.run.step, self.history.seconds
        self.history.interrupted = False


def objective(these: Processes, loss: Loss | None, lesson: Lesson | None) -> Objective:
    """From a batch to its loss, with or without a teacher, the model's output and the target."""

    def compute(model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
        with these.accelerator.autocast():
            output, target = forward(model, batch, these.device)
            own = loss_of(output, target, loss)
            return own if lesson is None else lesson(own, output, batch, target), output, target

    return compute


def check(**settings: float) -> None:
    """Report all settings that are out of their range."""
    ranges: dict[str, tuple[str, Callable[[float], bool]]] = {
        "epochs": ("at least 1", lambda value: value >= 1),
        "lr": ("above 0", lambda value: 0 < value < float("inf")),
        "weight_decay": ("at least 0", lambda value: 0 <= value < float("inf")),
        "warmup": ("in [0, 1)", lambda value: 0 <= value < 1),
        "distill": ("in [0, 1]", lambda value: 0 <= value <= 1),
        "temperature": ("above 0", lambda value: 0 < value < float("inf")),
        "accumulate": ("at least 1", lambda value: value >= 1),
        "clip": ("above 0", lambda value: value > 0),
        "patience": ("at least 1", lambda value: value >= 1),
    }
    wrong = [
        f"{name}={value} must be {ranges[name][0]}" for name, value in settings.items() if not ranges[name][1](value)
    ]
    if wrong:
        raise TrainingError("; ".join(wrong))


def steps_per_epoch(loader: Iterable[Any], accumulate: int = 1) -> int:
    """How many steps one pass over the batches makes.

    Raises:
        TrainingError: there is no batch.
    """
    count = len(loader) if isinstance(loader, Sized) else sum(1 for _ in loader)
    if not count:
        raise TrainingError("nothing to train on: the loader holds no batch")
    return -(-count // accumulate)
