"""What the settings of commands have in common that train a network, change its widths, and train it on."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

from secateur.config.base import CommandSettings
from secateur.config.common import EXAMPLE_MODEL, DataSettings, ModelSettings, RunSettings, data_problems
from secateur.config.training import TrainSettings, training_problems
from secateur.tuning.recipes import FINE_TUNING, SCRATCH, TUNE


@dataclass(frozen=True, kw_only=True)
class TrainedSettings(RunSettings, TrainSettings, DataSettings, ModelSettings, CommandSettings):
    """Which network, which data, and how it is trained before the change and after it.

    Args:
        importance: criterion that scores each unit.
    """

    importance: str = "auto"

    def problems(self) -> Iterable[str]:
        """What contradicts each other or lies out of range."""
        yield from data_problems(self)
        yield from training_problems(self)

    @property
    def embedded(self) -> bool:
        """Whether the network is the embedded example."""
        return self.model == EXAMPLE_MODEL

    @property
    def dense_epochs(self) -> int:
        """Epochs of training before the change: those asked for, else many for the embedded example without weights."""
        if self.train_epochs is not None:
            return self.train_epochs
        return SCRATCH.epochs if self.embedded and self.weights is None else 0

    def resolved(self) -> Self:
        """The same settings with every default that depends on the others filled in: what a run really uses."""
        tune = TUNE if self.embedded else FINE_TUNING
        return replace(
            self,
            train_epochs=self.dense_epochs,
            epochs=tune.epochs if self.epochs is None else self.epochs,
            lr=tune.lr if self.lr is None else self.lr,
        )

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """What a run uses where nobody says, as plain data."""
        return cls().resolved().to_dict()
