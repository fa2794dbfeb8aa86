"""All settings of ``secateur adapt``."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from secateur.config.base import Settings
from secateur.config.common import DataSettings, ModelSettings, RunSettings
from secateur.config.prune import PruneSettings
from secateur.config.removal import PlanSettings
from secateur.config.spelling import command_line
from secateur.config.training import TuneOptions
from secateur.plain import CHOICES
from secateur.tuning.recipes import ADAPTED_IMPORTANCE, ADAPTING

ADAPTED = "macs=0.5"  # the budget of an adapted network where nobody says


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Settings):
    """The new task, and what it starts from.

    Args:
        classes: how many there are; by default as many as the data has.
        head_epochs: epochs of training the new head where it is not the network's last layer; else it is fitted to
            features that are computed once.
        trust: let a saved result import the code that its network was built with.
    """

    classes: int | None = None
    head_epochs: int = 10
    trust: bool = False


@dataclass(frozen=True, kw_only=True)
class AdaptOptions(TuneOptions):
    """How the adapted network is trained before pruning, and again after it; see `TuneOptions`.

    Args:
        train_only: what trains after the head: "auto" decides by validation accuracy between nothing more (head) and
            everything (all); or all, head, norms, biases, norms+biases, low-rank, or a pattern of parameter names.
        epochs: epochs of training more than the head, before pruning and again after it, 0 for none; 5 if not given.
        lr: highest learning rate of that; 0.0001 if not given. "auto" finds it by a range test on training batches,
            "search" by short trainings that are judged on the validation split.
    """

    train_only: str = "auto"
    epochs: int | None = None
    lr: float | Literal["auto", "search"] | None = None


@dataclass(frozen=True, kw_only=True)
class AdaptRunSettings(RunSettings):
    """Where and with what; see `RunSettings`."""

    out: Path = Path("secateur-adapted")


@dataclass(frozen=True, kw_only=True)
class AdaptSettings(AdaptRunSettings, AdaptOptions, TaskSettings, PruneSettings):
    """All settings of ``secateur adapt``; each is described at the class that it comes from.

    Args:
        result: directory of a saved result to adapt, in place of the network that ``model`` names.

    Raises:
        ConfigError: settings that contradict each other or lie out of range; all of them at once.

    Example:
        >>> AdaptSettings(model="package.module:Net", classes=2).resolved().budget
        'macs=0.5'
        >>> AdaptSettings(result=Path("half"), data="imagefolder:photos").to_command()
        'secateur adapt half --data imagefolder:photos'
    """

    COMMAND = "adapt"
    SECTIONS = (TaskSettings, ModelSettings, DataSettings, PlanSettings, TuneOptions, RunSettings)
    OPERAND = "result"

    result: Path | None = None
    train_epochs: int | None = 0

    def problems(self) -> Iterable[str]:
        """What contradicts each other or lies out of range."""
        yield from super().problems()
        if self.schedule != "none":
            yield f"schedule={self.schedule} is for secateur prune: adapting prunes at once"
        if self.train_epochs:
            yield f"train_epochs={self.train_epochs} is for secateur prune: adapt takes a trained network"
        if self.classes is not None and self.classes < 2:
            yield f"classes={self.classes} must be at least 2"
        if self.head_epochs < 1:
            yield f"head_epochs={self.head_epochs} must be at least 1"
        if self.result is not None and self.weights is not None:
            yield "a saved result has its own weights: leave out either weights or the result"

    def resolved(self) -> Self:
        """The same settings with every default that depends on the others filled in: what a run really uses."""
        none = all(getattr(self, name) is None for name in CHOICES)
        labelled = self.importance == "auto" and self.threshold is None
        return replace(
            self,
            budget=ADAPTED if none else self.budget,
            importance=ADAPTED_IMPORTANCE if labelled else self.importance,
            epochs=ADAPTING.epochs if self.epochs is None else self.epochs,
            lr=ADAPTING.lr if self.lr is None else self.lr,
        )

    def to_command(self) -> str:
        """The command line that repeats the run: a flag for each setting that is not what is filled in by itself."""
        default = AdaptSettings().resolved().to_dict()
        return command_line(self.COMMAND, self.resolved().to_dict(), default, operand=self.OPERAND)
