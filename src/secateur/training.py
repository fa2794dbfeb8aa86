"""Training and fine-tuning: a plain loop that is deterministic under a seed and keeps the best state."""

import math
import time
from collections.abc import Callable, Generator, Iterable, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import TrainingError
from secateur.objectives import Loss, Totals, forward, imitation, loss_of


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a training run that go together: ``train(model, loader, **asdict(recipe))``.

    Args:
        epochs: passes over the training batches, at least 1.
        lr: the highest learning rate, reached after the warm-up.
        weight_decay: decoupled weight decay of AdamW, L2 penalty of SGD.
        optimizer: "adamw" or "sgd" (with Nesterov momentum 0.9).
        warmup: fraction of all steps during which the learning rate rises, in [0, 1).
        distill: weight of the teacher's answers against the labels, in [0, 1]; without a teacher it does nothing.
        temperature: softens both sides of the distillation, above 0.
    """

    epochs: int
    lr: float
    weight_decay: float = 1e-2
    optimizer: str = "adamw"
    warmup: float = 0.1
    distill: float = 0.7
    temperature: float = 3.0


# For small networks on small images: chosen on held-out parts of the digits' training data, never on their test split.
# A network pruned to a tenth of its parameters has much to learn again, so it is tuned at a high rate.
# Large networks, above all pretrained ones, want rates ten to a hundred times lower.
SCRATCH = Recipe(epochs=60, lr=5e-3)
TUNE = Recipe(epochs=100, lr=1e-2)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one pass over the training batches gave. Accuracies are in [0, 1], None where targets are no classes."""

    epoch: int
    train_loss: float
    train_accuracy: float | None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    lr: float
    seconds: float


@dataclass(kw_only=True)
class History:
    """A training run, epoch by epoch.

    Args:
        epochs: finished epochs, counted from 1.
        best_epoch: the epoch whose state the model was left in; 0 is the state that it came with.
        interrupted: whether Ctrl-C ended the run before its last epoch.
        seconds: wall-clock time of the whole run.
    """

    epochs: list[Epoch] = field(default_factory=list[Epoch])
    best_epoch: int = 0
    interrupted: bool = False
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The run as plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        state = "interrupted" if self.interrupted else "finished"
        lines = [f"{state} after {len(self.epochs)} epochs in {self.seconds:.1f} s, kept epoch {self.best_epoch}"]
        for row in self.epochs[-1:] if self.best_epoch == 0 else [self.epochs[self.best_epoch - 1]]:
            lines += [f"{name}: {value}" for name, value in asdict(row).items() if value is not None]
        return "\n".join(lines)


def train(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    validate: Iterable[Any] | None = None,
    epochs: int,
    lr: float,
    optimizer: str | Callable[..., torch.optim.Optimizer] = Recipe.optimizer,
    weight_decay: float = Recipe.weight_decay,
    warmup: float = Recipe.warmup,
    teacher: nn.Module | None = None,
    distill: float = Recipe.distill,
    temperature: float = Recipe.temperature,
    loss: Loss | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> History:
    """Train a model in place, and leave it in its best state.

    The learning rate rises linearly, then falls along a cosine to zero. The best state is the latest one whose
    validation accuracy lies at most one standard error below the highest: a few hundred samples can't tell such states
    apart, and the later one was trained at a lower rate. (Breiman et al. 1984, "Classification and Regression Trees",
    choose among trees in this way.) Where targets are no classes it is the one of lowest validation loss. The state
    that the model came with is one of the candidates. Without ``validate`` the last state stays.

    Args:
        model: moved to ``device`` and trained; the modes of its modules are left as they were.
        loader: training batches. One with ``set_epoch`` is told the epoch, counted from 0.
        validate: batches to choose the best state by.
        epochs: passes over ``loader``, at least 1; `SCRATCH` and `TUNE` hold settings that go together.
        lr: the highest learning rate, above 0.
        optimizer: "adamw", "sgd" (Nesterov momentum 0.9), or a callable ``(parameters, lr=, weight_decay=)``.
        weight_decay: decoupled for "adamw", an L2 penalty for "sgd".
        warmup: fraction of all steps during which the learning rate rises, in [0, 1).
        teacher: a model whose class scores are imitated besides the labels (Hinton et al. 2015, arXiv:1503.02531).
        distill: weight of the teacher against the labels, in [0, 1].
        temperature: softens the scores of teacher and model in the distillation, above 0.
        loss: ``(output, target) -> scalar``; by default the model's own ``output.loss`` where it has one, else
            cross-entropy.
        device: where to train.
        seed: of everything random in the model, such as dropout. The global random state is left as it was.
        on_epoch: called after each epoch with its row.
        progress: called after each step with the steps done and the steps in all.

    Returns:
        The run, epoch by epoch. After Ctrl-C it ends with ``interrupted=True``, the model in its best state so far.

    Raises:
        TrainingError: the loss is not finite, there is no batch, or a setting is out of its range. The model is then
            in its best state so far.

    Example:
        >>> net = torch.nn.Linear(2, 2)
        >>> batch = (torch.eye(2).repeat(8, 1), torch.arange(2).repeat(8))
        >>> history = train(net, [batch], validate=[batch], epochs=20, lr=0.1)
        >>> history.epochs[-1].validation_accuracy
        1.0
    """
    _check(epochs=epochs, lr=lr, weight_decay=weight_decay, warmup=warmup, distill=distill, temperature=temperature)
    steps = epochs * _count(loader)
    model.to(device)
    stepper = _optimizer(optimizer, model, lr, weight_decay)
    objective = _objective(model, loss, teacher, distill, temperature, device)
    run = _Run(model, stepper, objective, steps, warmup, progress)
    history, started = History(), time.perf_counter()
    score = None if validate is None else partial(_totals, model, validate, device, loss)
    with kept_modes(model, teacher), _seeded(seed, device):
        if teacher is not None:
            teacher.eval()
        best = _Best(model, score)
        try:
            for number in range(1, epochs + 1):
                row = run.epoch(loader, number)
                scores = best.consider(number)
                if scores is not None:
                    row = replace(row, validation_loss=scores.loss, validation_accuracy=scores.accuracy)
                history.epochs.append(row)
                if on_epoch is not None:
                    on_epoch(row)
        except KeyboardInterrupt:
            history.interrupted = True
        finally:
            history.best_epoch = best.restore()
            history.seconds = time.perf_counter() - started
            model.zero_grad(set_to_none=True)
    return history


def evaluate(
    model: nn.Module, loader: Iterable[Any], device: str | torch.device = "cpu", *, loss: Loss | None = None
) -> dict[str, float]:
    """Mean loss, and accuracy in [0, 1] where targets are classes, over all samples of all batches.

    Args:
        model: moved to ``device``; the modes of its modules are left as they were.
        loader: batches with targets.
        device: where to compute.
        loss: as for `train`.

    Returns:
        ``{"loss": ..., "accuracy": ...}``, without accuracy where targets are no classes.

    Raises:
        TrainingError: there is no batch.
    """
    totals = _totals(model, loader, device, loss)
    accuracy = totals.accuracy
    return {"loss": totals.loss} | ({} if accuracy is None else {"accuracy": accuracy})


def _totals(model: nn.Module, loader: Iterable[Any], device: str | torch.device, loss: Loss | None) -> Totals:
    """Losses and hits over all batches."""
    model.to(device)
    totals = Totals()
    with kept_modes(model), torch.no_grad():
        model.eval()
        for batch in loader:
            output, target = forward(model, batch, device)
            totals.add(loss_of(output, target, loss).item(), output, target)
    if not totals.samples:
        raise TrainingError("nothing to evaluate on: the loader holds no batch")
    return totals


class _Run:
    """One training run: what stays the same from step to step."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Callable[[Any], tuple[Tensor, Any, Any]],
        steps: int,
        warmup: float,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.model, self.optimizer, self.objective = model, optimizer, objective
        self.steps, self.done, self.progress = steps, 0, progress
        self.pace = torch.optim.lr_scheduler.LambdaLR(optimizer, _pace(steps, warmup))

    def epoch(self, loader: Iterable[Any], number: int) -> Epoch:
        """One pass over the training batches."""
        started, totals, lr = time.perf_counter(), Totals(), float(self.pace.get_last_lr()[0])
        self.model.train()
        if callable(set_epoch := getattr(loader, "set_epoch", None)):
            set_epoch(number - 1)
        for batch in loader:
            totals.add(*self.step(batch, number))
        if not totals.samples:
            raise TrainingError(f"nothing to train on: the loader held no batch in epoch {number}")
        seconds = time.perf_counter() - started
        return Epoch(epoch=number, train_loss=totals.loss, train_accuracy=totals.accuracy, lr=lr, seconds=seconds)

    def step(self, batch: Any, number: int) -> tuple[float, Any, Any]:
        """One step of the optimiser; the loss, the output and the target."""
        loss, output, target = self.objective(batch)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value} at step {self.done + 1} of {self.steps} (epoch {number}), with "
                f"lr={self.pace.get_last_lr()[0]:.3g}. Lower the learning rate, or look for NaN in the data."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.pace.step()
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.steps)
        return value, output, target


class _Best:
    """The latest state that validation can't tell from the best; the last one where there is no validation."""

    def __init__(self, model: nn.Module, score: Callable[[], Totals] | None) -> None:
        self.model, self.score = model, score
        self.highest, self.lowest = 0.0, math.inf  # accuracy, loss
        self.consider(0)

    def consider(self, epoch: int) -> Totals | None:
        """Keep the present state if it is as good as the best one; what validation gave."""
        scores = self.score() if self.score else None
        if scores is None or self._as_good(scores):
            self.epoch = epoch
            self.state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        return scores

    def _as_good(self, scores: Totals) -> bool:
        """Whether the accuracy is at most one standard error below the highest; without classes, the loss lowest."""
        if scores.accuracy is None:
            self.lowest = min(self.lowest, scores.loss)
            return scores.loss <= self.lowest or not math.isfinite(self.lowest)
        self.highest = max(self.highest, scores.accuracy)
        # Two hits and two misses more, as Agresti and Coull (1998) advise: one sample never decides, not even at 100 %.
        likely = (self.highest * scores.labelled + 2) / (scores.labelled + 4)
        return scores.accuracy >= self.highest - math.sqrt(likely * (1 - likely) / scores.labelled)

    def restore(self) -> int:
        """Put the state back that was kept; its epoch."""
        self.model.load_state_dict(self.state)
        return self.epoch


def _objective(
    model: nn.Module, loss: Loss | None, teacher: nn.Module | None, distill: float, temperature: float, device: Any
) -> Callable[[Any], tuple[Tensor, Any, Any]]:
    """From a batch to its loss, with or without a teacher, the model's output and the target."""

    def labels_only(batch: Any) -> tuple[Tensor, Any, Any]:
        output, target = forward(model, batch, device)
        return loss_of(output, target, loss), output, target

    if teacher is None or distill == 0:
        return labels_only
    teacher.to(device)

    def with_teacher(batch: Any) -> tuple[Tensor, Any, Any]:
        own, output, target = labels_only(batch)
        with torch.no_grad():
            taught, _ = forward(teacher, batch, device)
        return (1 - distill) * own + distill * imitation(output, taught, temperature, target), output, target

    return with_teacher


def _optimizer(
    choice: str | Callable[..., torch.optim.Optimizer], model: nn.Module, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise TrainingError("nothing to train: no parameter of the model has requires_grad=True")
    if callable(choice):
        return choice(parameters, lr=lr, weight_decay=weight_decay)
    if choice == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    if choice == "sgd":
        return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=0.9, nesterov=True)
    raise TrainingError(f"unknown optimizer {choice!r}: it is 'adamw', 'sgd' or a callable")


def _pace(steps: int, warmup: float) -> Callable[[int], float]:
    """The learning rate at each step as a fraction of the highest: a linear rise, then a cosine down to 0."""
    rising = math.ceil(warmup * steps)

    def fraction(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2

    return fraction


def _check(**settings: float) -> None:
    """Report all settings that are out of their range."""
    ranges = {
        "epochs": ("at least 1", lambda value: value >= 1),
        "lr": ("above 0", lambda value: 0 < value < math.inf),
        "weight_decay": ("at least 0", lambda value: 0 <= value < math.inf),
        "warmup": ("in [0, 1)", lambda value: 0 <= value < 1),
        "distill": ("in [0, 1]", lambda value: 0 <= value <= 1),
        "temperature": ("above 0", lambda value: 0 < value < math.inf),
    }
    wrong = [
        f"{name}={value} must be {ranges[name][0]}" for name, value in settings.items() if not ranges[name][1](value)
    ]
    if wrong:
        raise TrainingError("; ".join(wrong))


def _count(loader: Iterable[Any]) -> int:
    """How many batches one pass gives."""
    count = len(loader) if isinstance(loader, Sized) else sum(1 for _ in loader)
    if not count:
        raise TrainingError("nothing to train on: the loader holds no batch")
    return count


@contextmanager
def kept_modes(*models: nn.Module | None) -> Generator[None]:
    """Put every module back into the mode, training or not, that it was in."""
    modes = [(module, module.training) for model in models if model is not None for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _seeded(seed: int, device: str | torch.device) -> Generator[None]:
    """Seed the random state inside, and put it back afterwards."""
    place = torch.device(device)
    devices = [place.index or 0] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
