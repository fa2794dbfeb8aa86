"""A run with what goes on around it: validation, the best state, checkpoints, interruption."""

import copy
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from secateur.errors import Diverged, TrainingError
from secateur.objectives import Loss, Totals
from secateur.tuning import randomness, states
from secateur.tuning.best import Best
from secateur.tuning.checkpoints import Checkpoints, read
from secateur.tuning.evaluating import Survey
from secateur.tuning.history import Epoch, History
from secateur.tuning.interrupts import Interrupts
from secateur.tuning.loop import Run
from secateur.tuning.metrics import Metric
from secateur.tuning.reading import DataFailed


class _Stop(Exception):
    """The run ends between two steps."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a validation gave.

    Attributes:
        totals, metric: the sums over all samples, and the metric if there is one.
        robust: the same under attack; None where nothing was attacked.
    """

    totals: Totals
    metric: float | None
    robust: tuple[Totals, float | None] | None = None

    @property
    def deciding(self) -> tuple[Totals, float | None]:
        """What the best state is chosen by: what holds under attack, where something was attacked."""
        return self.robust or (self.totals, self.metric)

    def noted(self, row: Epoch) -> Epoch:
        """The row of an epoch with what validation gave."""
        row = replace(
            row, validation_loss=self.totals.loss, validation_accuracy=self.totals.accuracy, metric=self.metric
        )
        if self.robust is None:
            return row
        totals, metric = self.robust
        return replace(row, robust_loss=totals.loss, robust_accuracy=totals.accuracy, robust_metric=metric)


class Judge:
    """Validates a run's model: the averaged weights where there are such.

    Args:
        attack: where validation is under attack, too.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        run: Run,
        loss: Loss | None,
        metric: Metric | None,
        seed: int,
        attack: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        these = run.processes
        model = run.wrapped if these.sharded else run.model
        survey = partial(Survey, model, run.device, loss, metric, processes=these, memory=run.memory)
        self.survey = survey(what="validation")
        self.robust = None if attack is None else survey(what="validation under attack", attack=attack)
        self.batches, self.run, self.seed = batches, run, seed

    def __call__(self) -> Verdict:
        """What the model is worth now."""
        totals, metric = self._of(self.survey)
        return Verdict(totals=totals, metric=metric, robust=None if self.robust is None else self._of(self.robust))

    def _of(self, survey: Survey) -> tuple[Totals, float | None]:
        """The sums over all samples, and the metric if there is one."""
        with randomness.as_found(self.run.device):
            randomness.seed_all(self.seed, 0)
            try:
                totals, value = survey(self.batches)
            except DataFailed as error:
                raise self._failed(error) from error
        # A function may differ in the last digit from process to process, and none may stop alone.
        return totals, self.run.processes.mains(value)

    def _failed(self, error: DataFailed) -> TrainingError:
        """The error with where it happened; among several processes none that a state can be saved after."""
        run = self.run
        kind = DataFailed if run.processes.count == 1 else TrainingError
        return kind(
            f"{error}. It was after step {run.step} of {run.steps} (epoch {run.epoch}). The model keeps "
            f"the best state so far; repair the data, and resume from the last checkpoint if there is one"
        )


class Session:
    """A run with what goes on around it: validation, the best state, checkpoints, interruption."""

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        keeper: Checkpoints | None,
        judge: Judge | None,
        best: Best,
        settings: dict[str, Any],
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
                history.interrupted = self._asked()  # in the last moments, for whoever goes on after the training
            except DataFailed:
                judged = self.best.state or self.judge is None or self.run.step  # else the run has yet to begin
                self._save_if_due(force=self.keeper is not None and bool(judged))
                if not self._asked():  # Ctrl-C ends a loader's workers too
                    raise
                history.interrupted = True
            except Diverged as error:
                history.failed, error.history = str(error), history
                raise
            except (KeyboardInterrupt, _Stop):
                history.interrupted = True
        return self.history

    def _epochs(self, epochs: int, patience: int | None, on_epoch: Callable[[Epoch], None] | None) -> None:
        run = self.run
        for row in run.epochs(epochs, self._stepped):
            self._finish(row, epochs, patience, on_epoch)
            if self.history.stopped:
                return
            if run.epoch <= epochs and self._asked():
                self._save_if_due(force=self.keeper is not None)
                raise _Stop

    def _finish(self, row: Epoch, epochs: int, patience: int | None, on_epoch: Callable[[Epoch], None] | None) -> None:
        """Validate after an epoch, and count it as done."""
        run = self.run
        verdict = self._consider(row.epoch)
        if verdict is not None:
            row = verdict.noted(row)
        self.history.epochs.append(row)
        for callback in run.callbacks:
            callback.on_epoch(run, row)
        if on_epoch is not None:
            on_epoch(row)
        if patience is not None and self.best.since >= patience:
            self.history.stopped = f"no better validation for {patience} epochs"
        run.next_epoch()
        ended = bool(self.history.stopped) or run.epoch > epochs  # what comes after the run may be killed, too
        self._save_if_due(force=self.keeper is not None and ended)

    def _consider(self, epoch: int) -> Verdict | None:
        run = self.run
        run.check_finite()
        with run.average.swapped(run.model) if run.average is not None else nullcontext():
            run.processes.share_buffers(run.wrapped)
            for callback in run.callbacks:
                callback.before_validation(run)
            verdict = None if self.judge is None else self.judge()
            deciding = (None, None) if verdict is None else verdict.deciding
            if all(callback.settled(run) for callback in run.callbacks):
                self.best.consider(epoch, run.processes.model_state(run.wrapped), *deciding)
        return verdict

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
        found: dict[str, dict[str, Any]] = {}

        def newest() -> str | None:
            found.update([kept] if (kept := keeper.newest()) is not None else [])
            return next(iter(found), None)

        name = these.of_main(newest)
        if name is None:
            return False
        self.load_state_dict(found[name] if found else read(keeper.folder / name))
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


def _same(own: dict[str, Any], saved: dict[str, Any]) -> None:
    """Settings that say which batches come next must be what they were."""
    other = [f"{name}={saved.get(name)}, now {value}" for name, value in own.items() if saved.get(name) != value]
    if other:
        raise ValueError("; ".join(other))
