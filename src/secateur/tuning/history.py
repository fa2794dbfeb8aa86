"""What a training run did, epoch by epoch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one pass over the training batches gave.

    Attributes:
        epoch: from 1.
        train_loss, validation_loss: mean loss of a sample.
        train_accuracy, validation_accuracy: in [0, 1]; None where targets are no classes. In adversarial training
            ``train_accuracy`` is that at attacked inputs.
        metric: of the validation batches, where a metric was asked for.
        robust_loss, robust_accuracy, robust_metric: the same of the validation batches under attack, in adversarial
            training; None otherwise.
        lr: the learning rate at its end.
        steps: steps of the optimizer.
        seconds: wall-clock time of the training steps.
    """

    epoch: int
    train_loss: float
    train_accuracy: float | None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    metric: float | None = None
    robust_loss: float | None = None
    robust_accuracy: float | None = None
    robust_metric: float | None = None
    lr: float
    steps: int = 0
    seconds: float

    @property
    def steps_per_second(self) -> float:
        """Training speed."""
        return self.steps / self.seconds if self.seconds else 0.0


@dataclass(kw_only=True)
class History:
    """A training run, epoch by epoch.

    Attributes:
        epochs: finished epochs, counted from 1.
        best_epoch: the epoch whose state the model was left in; 0 is the state that it came with.
        interrupted: whether there was a Ctrl-C: it ended the run, in most cases before its last epoch.
        stopped: why it ended early of itself, in words; empty if it did not.
        failed: the error that ended it, where the loss or the weights became NaN; empty if none did.
        seconds: wall-clock time of the whole run, with what came before it was resumed.
        steps: steps of the optimizer.
        resumed: steps that had been done when the run was last resumed; 0 if it was not.
        peak_memory_bytes: most memory that tensors took on a GPU; None on a CPU.
        choice: how the optimizer and the learning rate were chosen, where that was left to evidence.
        notes: what happened on the way that a person should know, in words.
    """

    epochs: list[Epoch] = field(default_factory=list[Epoch])
    best_epoch: int = 0
    interrupted: bool = False
    stopped: str = ""
    failed: str = ""
    seconds: float = 0.0
    steps: int = 0
    resumed: int = 0
    peak_memory_bytes: int | None = None
    choice: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list[str])

    @property
    def steps_per_second(self) -> float:
        """Training speed over all epochs, without validation and checkpoints."""
        seconds = sum(row.seconds for row in self.epochs)
        return sum(row.steps for row in self.epochs) / seconds if seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The run as plain data, for JSON."""
        return asdict(self) | {"steps_per_second": self.steps_per_second}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "History":
        """Read what `to_dict` wrote."""
        known: dict[str, Any] = {name: value for name, value in data.items() if name != "steps_per_second"}
        rows: Any = [Epoch(**row) for row in data["epochs"]]
        return History(**{**known, "epochs": rows})

    def __str__(self) -> str:
        state = "interrupted" if self.interrupted else "stopped early" if self.stopped else "finished"
        state = f"failed ({self.failed})" if self.failed else state
        lines = [f"{state} after {len(self.epochs)} epochs in {self.seconds:.1f} s, kept epoch {self.best_epoch}"]
        for row in self.epochs[-1:] if self.best_epoch == 0 else [self.epochs[self.best_epoch - 1]]:
            lines += [f"{name}: {value}" for name, value in asdict(row).items() if value is not None]
        return "\n".join([*lines, *([describe(self.choice)] if self.choice else []), *self.notes])


def describe(record: Mapping[str, Any]) -> str:
    """A choice in one line.

    Args:
        record: what `History.choice` holds.
    """
    what = f"chose {record['optimizer']} with lr={record['lr']:.2g}"
    if "trials" in record:
        why = f"the best {record['objective']}, {abs(record['score']):.4g}, of {len(record['trials'])} short runs"
    else:
        rows = {row["optimizer"]: row for row in record["candidates"]}
        own = rows.pop(record["optimizer"])
        why = f"the loss stays low up to {own['stable']:.2g}"
        read, seen = own.get("read", own["lr"]), dict(own.get("tried", ()))
        if own["lr"] != read:
            why += (
                f", but held, {read:.2g} ends with {_shown(seen[read])}, and this rate with {_shown(seen[own['lr']])}"
            )
        for name, row in rows.items():
            why += (
                f"; after {record['steps']} steps {_shown(own['final_loss'])} against {_shown(row['final_loss'])} of "
                f"{name} with lr={row['lr']:.2g}"
                if "lr" in row
                else f"; {name} has no rate that will do"
            )
    return f"{what}: {why}; {record['seconds']:.1f} s"


def _shown(loss: float | None) -> str:
    return "a loss that exploded" if loss is None else f"a loss of {loss:.3g}"
