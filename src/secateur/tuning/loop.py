"""The loop: steps of the optimizer over batches, and the whole state that takes them up again."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import Diverged, SecateurError, TrainingError
from secateur.objectives import Totals
from secateur.tuning import randomness
from secateur.tuning.averaging import Average
from secateur.tuning.callbacks import Callback
from secateur.tuning.history import Epoch
from secateur.tuning.parts import Part, groups, pieces, share, size_of
from secateur.tuning.processes import Processes, parameters

Objective = Callable[[nn.Module, Any], tuple[Tensor, Any, Any]]
"""From a model and a batch to the loss, the output and the target."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How steps are made.

    Args:
        total: steps of the whole run.
        accumulate: batches of a step.
        clip: largest norm of the gradient; None does not clip it.
        fraction: from a step to the share of the highest learning rate.
        halve: whether a batch that does not fit in memory is done in halves.
    """

    total: int
    accumulate: int
    clip: float | None
    fraction: Callable[[int], float]
    halve: bool = False


@dataclass
class Position:
    """Where a run stands.

    Attributes:
        epoch: the one that is going on, from 1.
        group: steps done in it.
        step: steps done in all.
        seconds: spent in the epoch.
        split: pieces that a batch is done in.
        loader: states of the loader's own generators at the start of the epoch.
        totals: sums over the epoch's samples, of this process.
    """

    epoch: int = 1
    group: int = 0
    step: int = 0
    seconds: float = 0.0
    split: int = 1
    loader: list[Tensor] = field(default_factory=list[Tensor])
    totals: Totals = field(default_factory=Totals)


class Run:
    """A training run.

    Attributes:
        model: the model that is trained; not wrapped.
        wrapped: the same, as the processes run it.
        optimizer: of the parameters that train.
        at: where the run stands.
    """

    def __init__(
        self,
        wrapped: nn.Module,
        optimizer: Any,
        loader: Iterable[Any],
        objective: Objective,
        processes: Processes,
        pace: Pace,
        *,
        seed: int,
        average: Average | None = None,
        callbacks: Sequence[Callback] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.wrapped, self.optimizer, self.loader, self.objective = wrapped, optimizer, loader, objective
        self.processes, self.pace, self.average = processes, pace, average
        self.model = processes.unwrap(wrapped)
        self.callbacks, self.progress = callbacks, progress
        self.device = processes.device
        self.data = randomness.DataDraws(seed)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(getattr(optimizer, "optimizer", optimizer), pace.fraction)
        self.at = Position()
        self.notes: list[str] = []

    @property
    def step(self) -> int:
        """Steps done, of the whole run."""
        return self.at.step

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.pace.total

    @property
    def epoch(self) -> int:
        """The epoch that is going on, from 1."""
        return self.at.epoch

    @property
    def lr(self) -> float:
        """The learning rate of the next step, of the first group of parameters."""
        return float(self.scheduler.get_last_lr()[0])

    def epochs(self, count: int, stepped: Callable[[], None]) -> Iterator[Epoch]:
        """Train epoch after epoch, and give the row of each.

        Args:
            count: how many there are in all.
            stepped: called between steps, where the state may be saved; what it raises ends the run.
        """
        while self.at.epoch <= count:
            yield self._epoch(stepped)

    def next_epoch(self) -> None:
        """Say that all that belongs to an epoch is done, so that a checkpoint goes on with the next one."""
        at = self.at
        states = randomness.states_of(self.loader)
        self.at = Position(epoch=at.epoch + 1, step=at.step, split=at.split, loader=states)

    def _epoch(self, stepped: Callable[[], None]) -> Epoch:
        at, number = self.at, self.at.epoch
        self.wrapped.train()
        batches = self._batches()
        while (group := self._next(batches)) is not None:
            started = time.perf_counter()
            self._step(group)
            at.seconds += time.perf_counter() - started
            for callback in self.callbacks:
                callback.after_step(self)
            if self.progress is not None:
                self.progress(at.step, self.pace.total)
            stepped()
        if not at.group:
            raise TrainingError(f"nothing to train on: the loader held no batch in epoch {number}")
        totals = summed(at.totals, self.processes)
        return Epoch(
            epoch=number,
            train_loss=totals.loss,
            train_accuracy=totals.accuracy,
            lr=self.lr,
            steps=at.group,
            seconds=at.seconds,
        )

    def _batches(self) -> Iterator[Sequence[Any]]:
        """The epoch's batches, those that are done already passed over."""
        at, loader = self.at, self.loader
        randomness.put_states(loader, at.loader)  # of a run that is taken up again
        at.loader = at.loader or randomness.states_of(loader)
        self.data.start(at.epoch)
        with self.data():
            if callable(set_epoch := getattr(loader, "set_epoch", None)):
                set_epoch(at.epoch - 1)
            done = at.group * self.pace.accumulate
            skip: Callable[[int], Iterable[Any]] | None = getattr(loader, "skip", None)
            rest = islice(loader, done, None) if skip is None else skip(done)
            return groups(rest, self.pace.accumulate)

    def _next(self, batches: Iterator[Sequence[Any]]) -> Sequence[Any] | None:
        """The batches of the next step; None at the end of the epoch.

        Raises:
            TrainingError: the loader raised.
        """
        with self.data():
            try:
                return next(batches, None)
            except SecateurError:
                raise
            except Exception as error:
                raise TrainingError(
                    f"the data loader raised at step {self.at.step + 1} of {self.pace.total} (epoch {self.at.epoch}): "
                    f"{type(error).__name__}: {error}. The model keeps the best state so far; repair the data, and "
                    f"resume from the last checkpoint if there is one"
                ) from error

    # ------------------------------------------------------------------ one step

    def _step(self, group: Sequence[Any]) -> None:
        """One step of the optimizer, with the gradient of the mean loss over all samples of its batches."""
        samples = sum(map(size_of, group))
        shares = [share(batch, self.processes.rank, self.processes.count) for batch in group]
        before = randomness.drawn(self.device) if self.pace.halve else {}
        while True:
            try:
                found = self._gradients([piece for part in shares for piece in pieces(part, self.at.split)], samples)
                break
            except (RuntimeError, MemoryError) as error:
                self._halve(error, max(part.samples for part in shares), before)
        for loss, output, target in found:
            self.at.totals.add(loss, output, target)
        if self.pace.clip is not None:
            self.processes.accelerator.clip_grad_norm_(list(parameters(self.wrapped)), self.pace.clip)
        for callback in self.callbacks:
            callback.before_step(self)
        self.optimizer.step()
        if not self.processes.accelerator.optimizer_step_was_skipped:  # a half-precision step that overflowed is none
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.at.step += 1
        self.at.group += 1
        if self.average is not None:
            self.average.update(self.model)

    def _gradients(self, parts: Sequence[Part], samples: int) -> list[tuple[float, Any, Any]]:
        """Gradients of all parts; their losses, outputs and targets."""
        found: list[tuple[float, Any, Any]] = []
        bad = 0.0
        for number, part in enumerate(parts):
            with self.processes.alone(self.wrapped, last=number == len(parts) - 1):
                loss, output, target = self.objective(self.wrapped, part.batch)
                value = float(loss.detach())
                # DDP averages over processes, each of which has its share of the samples.
                weight = part.samples * self.processes.count / samples if part.counts else 0.0
                bad += not math.isfinite(value)
                self.processes.accelerator.backward(loss * weight)
            if part.counts:
                found.append((value, detached(output), target))
        if self.processes.total(bad)[0]:
            self.optimizer.zero_grad(set_to_none=True)
            values = ", ".join(f"{value:g}" for value, _, _ in found)
            raise Diverged(
                f"the loss became {values} at step {self.at.step + 1} of {self.pace.total} (epoch {self.at.epoch}), "
                f"with lr={self.lr:.3g}. The model keeps the best state so far. Lower the learning rate, clip the "
                f"gradient (clip=1.0), or look for NaN in the data."
            )
        return found

    def _halve(self, error: BaseException, largest: int, before: randomness.State) -> None:
        """Do batches in twice as many pieces from now on, if that is what memory lacked.

        Raises:
            TrainingError: it is allowed or possible no longer.
            BaseException: it was something else.
        """
        if not out_of_memory(error):
            raise error
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        where = f"out of memory at step {self.at.step + 1} with {largest} samples in a batch of this process"
        if self.processes.count > 1 or not self.pace.halve:
            raise TrainingError(
                f"{where}: give smaller batches"
                + (", or allow batches to be done in halves with halve=True" if self.processes.count == 1 else "")
            ) from error
        if self.at.split >= largest:
            raise TrainingError(f"{where}, done one by one already: nothing smaller is possible") from error
        self.at.split *= 2
        randomness.put(before, self.device)
        note = (
            f"{where}: batches are done in {self.at.split} pieces from here on, with the gradient of the whole batch "
            f"(batch norms see the pieces)"
        )
        self.notes.append(note)
        warnings.warn(note, stacklevel=2)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Everything that takes the run up again, the same on every process."""
        at, processes = self.at, self.processes
        own = {"draws": randomness.drawn(self.device), "totals": vars(at.totals)}
        return {
            "model": processes.model_state(self.wrapped),
            "optimizer": processes.optimizer_state(self.wrapped, self.optimizer),
            "scheduler": {n: v for n, v in self.scheduler.state_dict().items() if n != "lr_lambdas"},
            "scaler": scaler.state_dict() if (scaler := processes.accelerator.scaler) is not None else None,
            "average": None if self.average is None else self.average.state_dict(),
            "position": {n: v for n, v in vars(at).items() if n != "totals"},
            "processes": processes.each(own),
            "callbacks": [callback.state_dict() for callback in self.callbacks],
            "notes": list(self.notes),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        processes = self.processes
        processes.load_model(self.wrapped, state["model"])
        processes.load_optimizer(self.wrapped, self.optimizer, state["optimizer"])
        self.scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": [None]})
        if state["scaler"] is not None and processes.accelerator.scaler is not None:
            processes.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        self.at = Position(**state["position"])
        self.notes = list(state["notes"])
        if len(state["processes"]) == processes.count:
            own = state["processes"][processes.rank]
            self.at.totals = Totals(**own["totals"])
            randomness.put(own["draws"], self.device)
        elif processes.main:
            self.at.totals = merged(Totals(**each["totals"]) for each in state["processes"])
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(saved)


def summed(totals: Totals, processes: Processes) -> Totals:
    """Over all processes."""
    if processes.count == 1:
        return totals
    loss, *counts = processes.total(totals.loss_sum, totals.samples, totals.hits, totals.labelled)
    return Totals(loss, *map(int, counts))


def merged(parts: Iterable[Totals]) -> Totals:
    """Sums of sums."""
    whole = Totals()
    for part in parts:
        for name, value in vars(part).items():
            setattr(whole, name, getattr(whole, name) + value)
    return whole


def detached(output: Any) -> Any:
    """The output without its history of gradients, which would hold memory."""
    from torch.utils._pytree import tree_map_only

    return tree_map_only(Tensor, Tensor.detach, output)


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
