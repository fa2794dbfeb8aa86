"""``sc.tune``: train a pruned model on until its accuracy is back."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data.distributed import DistributedSampler

from secateur.errors import TrainingError
from secateur.modules import kept_modes
from secateur.objectives import Loss, Totals, forward, loss_of
from secateur.tuning import metrics, randomness, states
from secateur.tuning.averaging import Average
from secateur.tuning.best import Best
from secateur.tuning.callbacks import Callback
from secateur.tuning.checkpoints import EVERY, Checkpoints, read
from secateur.tuning.choosing import Asked, Coming, Rate, chosen
from secateur.tuning.distilling import Distillation, Lesson, is_causal
from secateur.tuning.evaluating import Survey
from secateur.tuning.history import Epoch, History
from secateur.tuning.interrupts import Interrupts
from secateur.tuning.loop import DataFailed, Objective, Pace, Run
from secateur.tuning.metrics import Metric
from secateur.tuning.optimizers import MakeOptimizer, make_optimizer
from secateur.tuning.parts import labels_of, size_of
from secateur.tuning.processes import Processes, processes
from secateur.tuning.recipes import EPOCHS, Recipe
from secateur.tuning.schedules import Fraction, fractions
from secateur.tuning.searching import Search
from secateur.tuning.trainable import What, trainable


class _Stop(Exception):
    """The run ends between two steps."""


def tune(
    model: nn.Module,
    train: Iterable[Any],
    validate: Iterable[Any] | None = None,
    *,
    epochs: int | None = None,
    lr: Rate = "auto",
    optimizer: str | MakeOptimizer = "auto",
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
    larger: bool | None = None,
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
    """Train a model in place, and leave it in its best state.

    It runs on what ``accelerate launch`` or ``torchrun`` start, too: several processes share every batch, and give the
    result of one.

    The best state is the latest one whose validation accuracy lies at most one standard error below the highest: a few
    hundred samples can't tell such states apart, and the later one was trained at a lower rate. Where targets are no
    classes it is the one of lowest validation loss, with a metric the one of its best value. The state that the model
    came with is one of the candidates. Without ``validate``, or with ``keep="last"``, the last
    state stays.

    Args:
        model: trained in place; the modes of its modules are left as they were.
        train: training batches, iterable again and again. One with ``set_epoch`` is told the epoch, counted from 0.
        validate: batches to choose the best state by.
        epochs: passes over ``train``, at least 1; 10 if not given.
        lr: the highest learning rate, above 0; "auto" finds it by a range test on training batches; or a `Search`.
        optimizer: "adamw", "adam", "sgd" (Nesterov momentum 0.9), or a callable ``(parameters, lr=, weight_decay=)``;
            "auto" takes the better of AdamW and SGD by range tests.
        weight_decay: decoupled for "adamw", an L2 penalty for "adam" and "sgd".
        schedule: how the rate falls after the warm-up: "cosine", "linear", "constant", "steps", or a function from the
            share of the run to the share of the highest rate.
        warmup: fraction of all steps during which the rate rises, in [0, 1).
        teacher: a model whose class scores are imitated besides the labels (Hinton et al. 2015, arXiv:1503.02531), or a
            `Distillation`, which takes features too.
        distill: weight of the teacher against the labels, in [0, 1].
        temperature: softens the scores of teacher and model, above 0.
        train_only: what trains, as for `trainable`: "all", "norms", "biases", "head", "low-rank", names, patterns.
        freeze_statistics: whether batch norms keep their running statistics.
        loss: ``(output, target) -> scalar``; by default the model's own ``output.loss`` where it has one, else
            cross-entropy.
        metric: what validation goes by: a name such as "f1", a metric of torchmetrics, or ``(model, batches) ->
            number``.
        larger: whether a larger metric is better; None asks the metric.
        patience: end after so many epochs without a better validation.
        keep: "best", or "last" for the last state whatever validation says.
        clip: largest norm of the gradient, above 0.
        accumulate: batches of a step of the optimizer, at least 1.
        ema: decay in (0, 1) of an average of the weights that is validated and kept in their stead.
        halve: whether a batch that does not fit in memory is done in halves, with the gradient of the whole.
        precision: "no", "fp16" or "bf16"; None is what ``accelerate launch`` says, else "no".
        device: where to train; None is Accelerate's choice, a GPU where there is one.
        seed: of everything random. The global random states are left as they were.
        callbacks: told of every step; see `Callback`.
        checkpoints: a folder for what takes the run up again. With one that holds a run of the same settings, training
            goes on from there: on a CPU, with one process, to the same bits as if it had not been disturbed.
        every: how often a checkpoint is written: a number of steps, or a time such as "30s".
        on_epoch: called after each epoch with its row.
        progress: called after each step with the steps done and the steps in all.

    Returns:
        The run, epoch by epoch. After Ctrl-C it ends with ``interrupted=True``, the model in its best state so far.

    Raises:
        TrainingError: the loss is not finite, there is no batch, the loader raises, memory does not suffice, or a
            setting is out of its range. The model is then in its best state so far.
        OutputError: no checkpoint can be written to the folder.
        MissingExtra: Accelerate, Optuna or torchmetrics is not installed, and is needed.

    Example:
        >>> net = torch.nn.Linear(2, 2)
        >>> batch = (torch.eye(2).repeat(8, 1), torch.arange(2).repeat(8))
        >>> history = tune(net, [batch], [batch], epochs=20, lr=0.1, device="cpu")
        >>> history.epochs[-1].validation_accuracy
        1.0
    """
    epochs = EPOCHS if epochs is None else epochs
    check(
        epochs=epochs,
        **({} if isinstance(lr, str | Search) else {"lr": lr}),
        weight_decay=weight_decay,
        warmup=warmup,
        distill=distill,
        temperature=temperature,
        accumulate=accumulate,
        **({} if clip is None else {"clip": clip}),
        **({} if patience is None else {"patience": patience}),
    )
    if metric is not None:
        metrics.check(metric)
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
            per_epoch = steps_per_epoch(train, accumulate, several=these.count > 1)
        pace = Pace(
            total=epochs * per_epoch,
            accumulate=accumulate,
            clip=clip,
            fraction=fractions(schedule, epochs * per_epoch, warmup),
            halve=halve,
            per_epoch=per_epoch,
        )
        taught: Distillation | None = None
        if teacher is not None and (isinstance(teacher, Distillation) or distill):
            taught = (
                teacher
                if isinstance(teacher, Distillation)
                else Distillation(teacher, weight=distill, temperature=temperature)
            )
            taught.teacher.to(these.device)
        keeper = Checkpoints(checkpoints, every=every) if checkpoints is not None else None
        options = {
            "weight_decay": weight_decay,
            "schedule": schedule,
            "warmup": warmup,
            "loss": loss,
            "metric": metric,
            "larger": larger,
            "clip": clip,
            "accumulate": accumulate,
            "halve": halve,
            "precision": precision,
            "device": device,
            "seed": seed,
        }
        coming = Coming(
            tune=tune,
            train=train,
            validate=validate,
            teacher=taught,
            objective=lambda these, lesson: objective(these, loss, lesson),
            steps=pace.total,
            options=options,
        )
        rate, maker, choice = chosen(Asked(lr=lr, optimizer=optimizer, model=model), coming, these, keeper)
        wrapped, stepper = these.prepare(
            model, lambda trained: make_optimizer(maker, trained, lr=rate, weight_decay=weight_decay)
        )
        lesson = None if taught is None else stack.enter_context(taught.on(these.unwrap(wrapped)))
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
            weigh=size_of if loss is not None else partial(labels_of, shifted=is_causal(these.unwrap(wrapped))),
        )
        randomness.seed_all(seed, these.rank)
        judge = None if validate is None else Judge(validate, run, loss, metric, seed)
        best = Best(validated=validate is not None and keep == "best", larger=metrics.larger_is_better(metric, larger))
        settings = {"seed": seed, "accumulate": accumulate}
        session = Session(run, model, keeper, judge, best, settings, started)
        session.history.choice = choice
        with session.interrupts.listening(SIGINT, *([SIGTERM] if keeper is not None else [])):
            return session.train(epochs, patience, on_epoch if these.main else None)


class Judge:
    """Validates a run's model: the averaged weights where there are such."""

    def __init__(self, batches: Iterable[Any], run: Run, loss: Loss | None, metric: Metric | None, seed: int) -> None:
        these = run.processes
        model = run.wrapped if these.sharded else run.model
        self.survey = Survey(model, run.device, loss, metric, processes=these, memory=run.memory)
        self.batches, self.run, self.seed = batches, run, seed

    def __call__(self) -> tuple[Totals, float | None]:
        """The sums over all samples, and the metric if there is one."""
        with randomness.as_found(self.run.device):
            randomness.seed_all(self.seed, 0)
            totals, value = self.survey(self.batches)
        # A function may differ in the last digit from process to process, and none may stop alone.
        return totals, self.run.processes.mains(value)


class Session:
    """A run with what goes on around it: validation, the best state, checkpoints, interruption."""

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        keeper: Checkpoints | None,
        judge: Judge | None,
        best: Best,
        settings: dict[str, int],
        started: float,
    ) -> None:
        self.run, self.model, self.keeper, self.judge, self.best = run, model, keeper, judge, best
        self.settings, self.started = settings, started
        self.history = History()
        self.interrupts = Interrupts()
        self.before = 0.0  # seconds of a run that this one takes up

    def train(self, epochs: int, patience: int | None, on_epoch: Callable[[Epoch], None] | None) -> History:
        """All epochs, or as many as there are until something ends the run."""
        resumed = self._resume()
        run, history = self.run, self.history
        with ExitStack() as ends:  # each of them, whatever the others raise
            ends.callback(self._end)
            for callback in reversed(run.callbacks):
                ends.callback(callback.on_end, run)
            try:
                if not resumed:
                    self._consider(0)
                for callback in run.callbacks:
                    callback.on_start(run)
                if not history.stopped:
                    self._epochs(epochs, patience, on_epoch)
            except DataFailed:
                self._save_if_due(force=self.keeper is not None)
                if not self._asked():  # Ctrl-C ends a loader's workers too
                    raise
                history.interrupted = True
            except (KeyboardInterrupt, _Stop):
                history.interrupted = True
        return self.history

    def _epochs(self, epochs: int, patience: int | None, on_epoch: Callable[[Epoch], None] | None) -> None:
        run = self.run
        for row in run.epochs(epochs, self._stepped):
            self._finish(row, patience, on_epoch)
            if self.history.stopped:
                return
            if run.epoch <= epochs and self._asked():
                self._save_if_due(force=self.keeper is not None)
                raise _Stop

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
        run.check_finite()
        with run.average.swapped(run.model) if run.average is not None else nullcontext():
            run.processes.share_buffers(run.wrapped)
            scores, metric = (None, None) if self.judge is None else self.judge()
            self.best.consider(epoch, run.processes.model_state(run.wrapped), scores, metric)
        return scores, metric

    def _asked(self) -> bool:
        """Whether somebody asked the run to stop, in any process."""
        return bool(self.run.processes.total(float(bool(self.interrupts.asked)))[0])

    def _stepped(self) -> None:
        """Between two steps: save if it is time, stop if somebody asked."""
        stop = self._asked()
        self._save_if_due(force=stop and self.keeper is not None)
        if stop:
            raise _Stop

    def _save_if_due(self, *, force: bool = False) -> None:
        keeper, run = self.keeper, self.run
        if keeper is None:
            return
        due = keeper.due(run.step)
        if force or (run.processes.agreed(due) if keeper.timed else due):
            run.check_finite()
            state = self.state_dict()
            if run.processes.main:
                keeper.save(run.step, state)

    def _end(self) -> None:
        """Leave the model in its best state, and finish the history."""
        run, history = self.run, self.history
        if self.best.state:
            states.load(self.model, self.best.state)
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
            "settings": self.settings,
            "run": self.run.state_dict(),
            "best": self.best.state_dict(),
            "history": {**self.history.to_dict(), "seconds": seconds},
        }

    def _resume(self) -> bool:
        """Go on from the newest checkpoint, if there is one: the one that the main process reads."""
        keeper, these = self.keeper, self.run.processes
        if keeper is None:
            return False
        found = keeper.newest() if these.main else None
        name = these.mains(None if found is None else found[0])
        if name is None:
            return False
        self.load_state_dict(read(keeper.folder / name) if found is None else found[1])
        return True

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            TrainingError: it is of another model or other settings; the model is as it was.
        """
        before = copy.deepcopy(self.run.processes.model_state(self.run.wrapped))
        try:
            _same(self.settings, state["settings"])
            self.run.load_state_dict(state["run"])
            self.best.load_state_dict(state["best"])
            self.history = History.from_dict(state["history"])
        except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
            self.run.processes.load_model(self.run.wrapped, before)
            raise TrainingError(
                f"the checkpoints in {self.keeper.folder if self.keeper else ''} are of another model or other "
                f"settings ({' '.join(str(error).split())[:300]}): give the same ones, or another folder"
            ) from error
        self.history.resumed, self.before = self.run.step, self.history.seconds
        self.history.interrupted = False


def _same(own: dict[str, int], saved: dict[str, int]) -> None:
    """Settings that say which batches come next must be what they were."""
    other = [f"{name}={saved.get(name)}, now {value}" for name, value in own.items() if saved.get(name) != value]
    if other:
        raise ValueError("; ".join(other))


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


def steps_per_epoch(loader: Iterable[Any], accumulate: int = 1, *, several: bool = False) -> int:
    """How many steps one pass over the batches makes.

    Args:
        several: whether several processes share each batch.

    Raises:
        TrainingError: there is no batch, or the loader can't be read so.
    """
    if isinstance(loader, Iterator):
        raise TrainingError(
            f"the loader is a {type(loader).__name__}, which can be read only once: give one that starts again with "
            f"each epoch, such as a list or a DataLoader"
        )
    if several and isinstance(getattr(loader, "sampler", None), DistributedSampler):
        raise TrainingError(
            "the loader's DistributedSampler gives each process samples of its own, but here every batch is split "
            "among the processes: give an ordinary sampler, and batches as large as all processes together take"
        )
    count = len(loader) if isinstance(loader, Sized) else sum(1 for _ in loader)
    if not count:
        raise TrainingError("nothing to train on: the loader holds no batch")
    return -(-count // accumulate)
