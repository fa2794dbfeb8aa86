"""The loop: steps of the optimizer over batches, and the whole state that takes them up again."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import Diverged, TrainingError
from secateur.objectives import Totals
from secateur.tuning import randomness
from secateur.tuning.averaging import Average
from secateur.tuning.callbacks import Callback
from secateur.tuning.gradients import Gradients, NotFinite, Objective, merged, summed
from secateur.tuning.history import Epoch
from secateur.tuning.memory import Pieces
from secateur.tuning.parts import size_of
from secateur.tuning.processes import Processes, parameters
from secateur.tuning.reading import Reader


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How steps are made.

    Args:
        total: steps of the whole run.
        accumulate: batches of a step.
        clip: largest norm of the gradient; None does not clip it.
        fraction: from a step to the share of the highest learning rate.
        halve: whether a batch that does not fit in memory is done in halves.
        per_epoch: steps that the loader says it has batches for; 0 where it doesn't say.
    """

    total: int
    accumulate: int
    clip: float | None
    fraction: Callable[[int], float]
    halve: bool = False
    per_epoch: int = 0


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
        reader: of its batches.
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
        weigh: Callable[[Any], int] = size_of,
    ) -> None:
        self.wrapped, self.optimizer = wrapped, optimizer
        self.processes, self.pace, self.average = processes, pace, average
        self.model = processes.unwrap(wrapped)
        self.callbacks, self.progress = callbacks, progress
        self.device = processes.device
        self.reader = Reader(loader, processes, accumulate=pace.accumulate, seed=seed)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(getattr(optimizer, "optimizer", optimizer), pace.fraction)
        self.at = Position()
        self.notes: list[str] = []
        self.memory = Pieces(pace.halve, processes.count > 1, processes.device, self.notes)
        self.gradients = Gradients(
            wrapped=wrapped,
            optimizer=optimizer,
            objective=objective,
            processes=processes,
            memory=self.memory,
            weigh=weigh,
        )

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
        self.at = Position(epoch=at.epoch + 1, step=at.step, split=at.split, loader=self.reader.states())

    def _epoch(self, stepped: Callable[[], None]) -> Epoch:
        at, number = self.at, self.at.epoch
        self.wrapped.train()
        at.loader = self.reader.start(number, at.group, at.loader)
        while (group := self.reader.next(self._where())) is not None:
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
        self._compare(at.group)
        totals = summed(at.totals, self.processes)
        if not totals.samples:
            raise TrainingError(f"nothing to learn from: no sample of epoch {number} has a label that counts")
        return Epoch(
            epoch=number,
            train_loss=totals.loss,
            train_accuracy=totals.accuracy,
            lr=self.lr,
            steps=at.group,
            seconds=at.seconds,
        )

    def _compare(self, steps: int) -> None:
        """Say so where the loader gave more or less than it had said: the learning rate was laid out for that."""
        said = self.pace.per_epoch
        if said in (0, steps):
            return
        what = "is 0 where the schedule ends there, too early" if steps > said else "does not come down to its end"
        self._note(
            f"the loader said that it has batches for {said} steps an epoch (its len), and gave {steps}: the learning "
            f"rate {what}. Mend its __len__, or leave it out"
        )

    def _note(self, text: str) -> None:
        """Tell the user once, and in the history."""
        if text not in self.notes:
            self.notes.append(text)
            if self.processes.main:
                warnings.warn(text, stacklevel=2)

    def _where(self) -> str:
        return f"at step {self.at.step + 1} of {self.pace.total} (epoch {self.at.epoch})"

    # ------------------------------------------------------------------ one step

    def _step(self, group: Sequence[Any]) -> None:
        """One step of the optimizer, with the gradient of the mean loss over all samples of its batches."""
        try:
            totals, self.at.split = self.gradients(group, self.at.split, f"at step {self.at.step + 1}")
        except NotFinite as error:
            raise self._useless(f"the loss became {error} {self._where()}") from error
        self.at.totals = merged((self.at.totals, totals))
        if self.pace.clip is not None:  # all parameters: Accelerate knows a sharded model by them
            self.processes.accelerator.clip_grad_norm_(list(self.wrapped.parameters()), self.pace.clip)
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

    def check_finite(self) -> None:
        """See whether the weights are still numbers: a loss can be finite where its gradient is not.

        Raises:
            TrainingError: they are not.
        """
        if not self.at.step:
            return
        local = [getattr(p, "_local_tensor", p).detach() for p in parameters(self.wrapped)]
        fine = all(bool(torch.isfinite(value).all()) for value in local)
        if self.processes.total(not fine)[0]:
            raise self._useless(f"the weights became NaN or infinite by step {self.at.step} of {self.pace.total}")

    def _useless(self, what: str) -> Diverged:
        return Diverged(
            f"{what}, with lr={self.lr:.3g}. The model keeps the best state so far. Lower the learning rate, clip the "
            f"gradient (clip=1.0, --clip 1.0), or look for NaN in the data."
        )

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
        given = self.scheduler.base_lrs
        processes.load_optimizer(self.wrapped, self.optimizer, state["optimizer"])
        self.scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": [None]})
        if state["scaler"] is not None and processes.accelerator.scaler is not None:
            processes.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        self.at = Position(**state["position"])
        self.notes[:] = state["notes"]
        if given != self.scheduler.base_lrs:
            self._note(
                f"the run goes on from its checkpoint with lr={self.scheduler.base_lrs[0]:g}, not {given[0]:g}: for "
                f"another rate, give another folder"
            )
        if len(state["processes"]) == processes.count:
            own = state["processes"][processes.rank]
            self.at.totals = Totals(**own["totals"])
            randomness.put(own["draws"], self.device)
        elif processes.main:
            self.at.totals = merged(Totals(**each["totals"]) for each in state["processes"])
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(saved)
