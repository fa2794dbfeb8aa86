"""All settings of ``secateur tune``."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from secateur.config.adversarial import AdversarialSettings, adversarial_problems
from secateur.config.base import CommandSettings, Settings
from secateur.config.common import EXAMPLE_MODEL, DataSettings, ModelSettings, RunSettings, data_problems
from secateur.config.robust import RobustSettings, robust_problems
from secateur.config.trained import TrainedSettings
from secateur.config.training import TuneOptions, training_problems
from secateur.tuning.recipes import FINE_TUNING


@dataclass(frozen=True, kw_only=True)
class DenseSettings(Settings):
    """The dense network that a saved one came from.

    Args:
        model: "package.module:callable" that builds the original network, for results that keep its class and do not
            say how to build it; and for a teacher.
        model_args: keyword arguments for that callable.
        weights: the dense network's trained weights: with them it is the teacher.
        trust: let the saved result import the code that its network was built with.
    """

    model: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict[str, Any])
    weights: Path | None = None
    trust: bool = False


@dataclass(frozen=True, kw_only=True)
class TuneRunSettings(RunSettings):
    """Where and with what; see `RunSettings`."""

    out: Path = Path("secateur-tuned")


@dataclass(frozen=True, kw_only=True)
class TuneSettings(
    TuneRunSettings, AdversarialSettings, RobustSettings, TuneOptions, DataSettings, DenseSettings, CommandSettings
):
    """All settings of ``secateur tune``; each is described at the class that it comes from.

    Args:
        result: directory of a saved result.

    Raises:
        ConfigError: settings that lie out of range; all of them at once.

    Example:
        >>> TuneSettings(result=Path("half"), epochs=20).resolved().to_command()
        'secateur tune half --epochs 20'
    """

    COMMAND = "tune"
    SECTIONS = (DenseSettings, DataSettings, TuneOptions, AdversarialSettings, RobustSettings, RunSettings)
    OPERAND = "result"

    result: Path = RunSettings.out

    def problems(self) -> Iterable[str]:
        """What contradicts each other or lies out of range."""
        yield from data_problems(self)
        yield from training_problems(self)
        attacked = self.adversarial != "none"
        yield from robust_problems(self, attacked=attacked)
        yield from adversarial_problems(self, self, attacked=attacked)
        if self.epochs == 0:
            yield "epochs=0 leaves nothing to do"
        if self.weights is not None and self.model is None:
            yield "weights are those of the dense network: name it with model"

    def resolved(self) -> Self:
        """The same settings with every default that depends on the others filled in: what a run really uses."""
        return replace(
            self,
            epochs=FINE_TUNING.epochs if self.epochs is None else self.epochs,
            lr=FINE_TUNING.lr if self.lr is None else self.lr,
        )

    def network(self) -> ModelSettings:
        """The dense network, as `secateur.models.build_model` takes it."""
        return ModelSettings(model=self.model or EXAMPLE_MODEL, model_args=self.model_args, weights=self.weights)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """What a run uses where nobody says, as plain data."""
        return cls().resolved().to_dict()


TrainingSettings = TrainedSettings | TuneSettings
"""Settings of any run that trains a network on data."""
