"""All settings of ``secateur hints``."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from secateur.config.amounts import budget_problems
from secateur.config.base import Settings
from secateur.config.common import DataSettings, ModelSettings, PlaceSettings
from secateur.config.prune import PruneSettings, like


@dataclass(frozen=True, kw_only=True)
class CheckSettings(Settings):
    """What is checked.

    Args:
        hints: criteria to check; by default all that can be computed.
        truth: "loss", what the loss rises by without a unit; or "output", how far the outputs move (needs no labels).
        units_per_axis: units of each axis that are tried.
        samples: validation samples that the truth is measured on, at most.
        calibration: training samples for the hints that look at data, at most.
        budget: prune the whole network to it as each hint chooses, too, as cut and with its weights refitted: macs=0.5.
        only: axes or modules to check, by name or pattern; no others.
        ignore: axes or modules to leave out, by name or pattern.
        train_epochs: epochs of training beforehand; by default the embedded example is trained, your own network not.
    """

    hints: tuple[str, ...] = ()
    truth: Literal["loss", "output"] = "loss"
    units_per_axis: int = 8
    samples: int = 2048
    calibration: int = 1024
    budget: str | None = None
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    train_epochs: int | None = None


@dataclass(frozen=True, kw_only=True)
class HintPlaceSettings(PlaceSettings):
    """Where and with what.

    Args:
        out: directory for hints.json and the pictures hints.svg and hints.html; without it, nothing is written.
    """

    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class HintSettings(HintPlaceSettings, CheckSettings, DataSettings, ModelSettings):
    """All settings of ``secateur hints``; each is described at the class that it comes from.

    Raises:
        ConfigError: settings that lie out of range; all of them at once.
    """

    def problems(self) -> Iterable[str]:
        """What contradicts each other or lies out of range."""
        least = {"units_per_axis": 3, "samples": 1, "calibration": 1}
        for name, number in least.items():
            if getattr(self, name) < number:
                yield f"{name}={getattr(self, name)} must be at least {number}"
        yield from budget_problems(self.budget)

    def training(self) -> PruneSettings:
        """The settings of a run that gets its network in the same way."""
        return like(self, ModelSettings, DataSettings, train_epochs=self.train_epochs)
