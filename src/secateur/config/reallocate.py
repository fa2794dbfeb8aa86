"""All settings of ``secateur reallocate``."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.config.amounts import budget_problems, limit, limit_problems, parse_budget
from secateur.config.base import Settings
from secateur.config.common import DataSettings, ModelSettings, RunSettings
from secateur.config.trained import TrainedSettings
from secateur.config.training import TrainSettings
from secateur.errors import ConfigError
from secateur.planning import Budget

LIMITS = ("max_share", "min_units")
KINDS = ("macs", "params", "bytes")


@dataclass(frozen=True, kw_only=True)
class SavedSettings(Settings):
    """A saved result, where the network is one.

    Args:
        trust: let a saved result import the code that its network was built with.
    """

    trust: bool = False


@dataclass(frozen=True, kw_only=True)
class MoveSettings(Settings):
    """What moves.

    Args:
        importance: criterion that scores each unit on 32 batches of the training data, in one unit on all axes:
            reconstruction, which "auto" is, says what is lost when the other units make up for a unit; fisher and
            taylor say how the loss changes.
        budget: what the result may cost, of one kind, met within 1 % from below: "macs=1.0" (as much as before),
            "params=0.8" (a fraction of the original) or "macs=2.1G" (absolute).
        max_share: largest share of the units of an axis that may go, in (0, 1]; or a share for each pattern:
            "hidden=0.75,heads=0.5".
        max_growth: largest width of an axis, as a multiple of its own, from 1.
        min_units: units that every axis keeps at least; or a number for each pattern: "hidden=64,heads=2".
        only: axes or modules whose widths may change, by name or pattern; no others.
        ignore: axes or modules to leave alone, by name or pattern.
        noise: how far copies of a unit differ at first, as a share of the size of the weights that sum over them, from
            0 to 1. With 0, copies train alike for ever. The function stays what it is.
    """

    importance: str = "auto"
    budget: str = "macs=1.0"
    max_share: float | str = 0.75
    max_growth: float = 4.0
    min_units: int | str = 1
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    noise: float = 0.5


@dataclass(frozen=True, kw_only=True)
class ReallocateRunSettings(RunSettings):
    """Where and with what; see `RunSettings`."""

    out: Path = Path("secateur-reallocated")


@dataclass(frozen=True, kw_only=True)
class ReallocateSettings(ReallocateRunSettings, MoveSettings, SavedSettings, TrainedSettings):
    """All settings of ``secateur reallocate``; each is described at the class that it comes from.

    Args:
        result: directory of a saved result to reallocate, in place of the network that ``model`` names.

    Raises:
        ConfigError: settings that contradict each other or lie out of range; all of them at once.

    Example:
        >>> ReallocateSettings(result=Path("half"), data="imagefolder:photos", budget="params=1.0").to_command()
        'secateur reallocate half --data imagefolder:photos --budget params=1.0'
    """

    COMMAND = "reallocate"
    SECTIONS = (ModelSettings, SavedSettings, DataSettings, MoveSettings, TrainSettings, RunSettings)
    OPERAND = "result"

    result: Path | None = None

    def problems(self) -> Iterable[str]:
        """What contradicts each other or lies out of range."""
        yield from _budget_problems(self.budget)
        yield from limit_problems({name: getattr(self, name) for name in LIMITS})
        if not 1 <= self.max_growth < float("inf"):
            yield f"max_growth={self.max_growth} must be at least 1"
        if not 0 <= self.noise <= 1:
            yield f"noise={self.noise} must be in [0, 1]"
        yield from super().problems()
        if self.result is not None and self.weights is not None:
            yield "a saved result has its own weights: leave out either weights or the result"

    @property
    def embedded(self) -> bool:
        """Whether the network is the embedded example."""
        return super().embedded and self.result is None

    def cost(self) -> Budget:
        """The budget as `reallocate` takes it."""
        return parse_budget(self.budget)

    def limits(self) -> dict[str, Any]:
        """``max_share`` and ``min_units`` as `reallocate` takes them."""
        return {name: limit(name, getattr(self, name)) for name in LIMITS}


def _budget_problems(text: str) -> Iterable[str]:
    """What is wrong with the one cost that is held."""
    yield from budget_problems(text)
    try:
        given = parse_budget(text).given
    except ConfigError:
        return
    if len(given) != 1 or not given.keys() <= set(KINDS):
        yield f"budget {text!r}: width is moved at one cost, so give one of {', '.join(KINDS)}: macs=1.0"
