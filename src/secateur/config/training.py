"""Settings of training, and their ranges."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

from secateur.config.base import Settings
from secateur.tuning import ranges
from secateur.tuning.recipes import SCRATCH, TUNE


@dataclass(frozen=True, kw_only=True)
class TuneOptions(Settings):
    """How a network is trained on.

    Args:
        epochs: epochs of fine-tuning, 0 for none; by default 5, more for the embedded example.
        lr: highest learning rate of the fine-tuning; by default 0.0003, more for the embedded example. "auto" finds it
            by a range test on training batches, "search" by short trainings that are judged on the validation split
            (between the steps of a schedule, by a range test).
        optimizer: "adamw", "adam" or "sgd"; "auto" takes the better of AdamW and SGD by range tests.
        search_seconds: how long a search may take.
        weight_decay: of the optimiser.
        distill: share of the fine-tuning's loss that follows the dense network's answers instead of the labels, in
            [0, 1].
        features: modules whose outputs follow the dense network's, too: names, patterns, or auto.
        lr_schedule: how the learning rate falls after the warm-up: cosine, linear, constant, steps.
        warmup: fraction of all steps during which it rises, in [0, 1).
        clip: largest norm of the gradient; without it, gradients are not clipped.
        accumulate: batches of a step of the optimiser.
        ema: decay of an average of the weights that is validated and kept in their stead, such as 0.999.
        patience: end the training after so many epochs without a better validation.
        train_only: what trains: all, norms, biases, norms+biases, head, low-rank, or a pattern of parameter names.
        precision: no, fp16 or bf16.
        halve_batch: a batch that does not fit in memory is done in halves.
    """

    epochs: int | None = None
    lr: float | Literal["auto", "search"] | None = None
    optimizer: Literal["auto", "adamw", "adam", "sgd"] = cast('Literal["adamw", "adam", "sgd"]', TUNE.optimizer)
    search_seconds: float = 120
    weight_decay: float = TUNE.weight_decay
    distill: float = TUNE.distill
    features: tuple[str, ...] = ()
    lr_schedule: Literal["cosine", "linear", "constant", "steps"] = "cosine"
    warmup: float = TUNE.warmup
    clip: float | None = None
    accumulate: int = 1
    ema: float | None = None
    patience: int | None = None
    train_only: str = "all"
    precision: Literal["no", "fp16", "bf16"] | None = None
    halve_batch: bool = False

    def options(self) -> dict[str, Any]:
        """What `secateur.tuning.tune` takes beside epochs, rate, optimizer and teacher."""
        names = ("warmup", "clip", "accumulate", "ema", "patience", "train_only", "precision")
        named = {name: getattr(self, name) for name in names}
        return {**named, "schedule": self.lr_schedule, "halve": self.halve_batch}


@dataclass(frozen=True, kw_only=True)
class TrainSettings(TuneOptions):
    """How it is trained before pruning and tuned after it.

    Args:
        train_epochs: epochs of training before pruning; by default the embedded example is trained, your own network
            not.
        train_lr: highest learning rate of that training.
    """

    train_epochs: int | None = None
    train_lr: float = SCRATCH.lr


def training_problems(settings: TuneOptions) -> Iterable[str]:
    """What is wrong with the numbers of a training; a word for a rate is none."""
    known = {item.name for item in fields(settings)}
    given = {name: getattr(settings, name) for name in ranges.OF_RUNS if name in known}
    yield from ranges.problems({n: None if isinstance(v, str) else v for n, v in given.items()}, ranges.OF_RUNS)
