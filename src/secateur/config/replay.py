"""All settings of ``secateur replay``."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from secateur.config.base import CommandSettings, Settings
from secateur.config.common import (
    EXAMPLE_MODEL,
    DataSettings,
    ModelSettings,
    ResultSettings,
    RunSettings,
    data_problems,
)
from secateur.config.prune import PruneSettings, like


@dataclass(frozen=True, kw_only=True)
class RetrainedSettings(Settings):
    """The network with its new weights.

    Args:
        model: the network that the plan was made for: "simplenet", or "package.module:callable". A saved result that
            says how to build its network needs none.
        model_args: keyword arguments for that callable.
        weights: the new weights of the dense network: a .safetensors file, or a checkpoint that torch.load reads with
            weights_only=True.
        old_weights: the weights that the plan was made on: their units are scored where the result holds no scores.
        trust: let the saved result import the code that its network was built with.
    """

    model: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict[str, Any])
    weights: Path | None = None
    old_weights: Path | None = None
    trust: bool = False


@dataclass(frozen=True, kw_only=True)
class ReplayDataSettings(DataSettings):
    """Which data; see `DataSettings`.

    Args:
        data: "none", so that nothing is refitted and results are not compared; "digits", the embedded example;
            "imagefolder:PATH", "npz:PATH", "hf:PATH", or "package.module:callable" that returns loaders.
    """

    data: str = "none"


@dataclass(frozen=True, kw_only=True)
class ReplayOptions(Settings):
    """How the plan is carried out and judged.

    Args:
        importance: criterion that scores each unit, as for `secateur prune`; "auto" is the one of the saved scores.
        compensate: how the weights that stay make up for those that went, on 32 batches of the training data; "auto" is
            lstsq where there is data.
        keep_removed: keep what goes, and the old values of the rest, so that `secateur undo` gives the dense network.
    """

    importance: str = "auto"
    compensate: Literal["auto", "lstsq", "merge", "mean", "none"] = "auto"
    keep_removed: bool = False


@dataclass(frozen=True, kw_only=True)
class ReplayRunSettings(ResultSettings):
    """Where and with what; see `ResultSettings`."""

    out: Path = Path("secateur-replayed")


@dataclass(frozen=True, kw_only=True)
class ReplaySettings(ReplayRunSettings, ReplayOptions, ReplayDataSettings, RetrainedSettings, CommandSettings):
    """All settings of ``secateur replay``; each is described at the class that it comes from.

    Args:
        plan: a plan.json, or a saved result.

    Raises:
        ConfigError: settings that contradict each other or lie out of range; all of them at once.

    Example:
        >>> ReplaySettings(plan=Path("half"), weights=Path("new.pt"), data="digits").to_command()
        'secateur replay half --weights new.pt --data digits'
    """

    COMMAND = "replay"
    SECTIONS = (RetrainedSettings, ReplayDataSettings, ReplayOptions, ReplayRunSettings)
    OPERAND = "plan"

    plan: Path = RunSettings.out

    def problems(self) -> Iterable[str]:
        """What contradicts each other or lies out of range."""
        yield from data_problems(self)
        if self.weights is None:
            yield "give the new weights of the dense network: --weights new.safetensors"
        if self.data == "none" and self.compensate not in ("auto", "none"):
            yield f"compensate={self.compensate} needs data: name it with --data"

    def network(self, build: Mapping[str, Any] | None, *, old: bool = False) -> ModelSettings:
        """The dense network, as `secateur.models.build_model` takes it.

        Args:
            build: what the saved result says of it, for where no model was named.
            old: with the weights that the plan was made on.
        """
        weights = self.old_weights if old else self.weights
        if self.model is not None or build is None:
            return ModelSettings(model=self.model or EXAMPLE_MODEL, model_args=self.model_args, weights=weights)
        return ModelSettings(model=build["callable"], model_args={**build["args"], **self.model_args}, weights=weights)

    def training(self) -> PruneSettings:
        """The settings of a run that reads the same data."""
        return like(self, DataSettings, model=self.model or EXAMPLE_MODEL)
