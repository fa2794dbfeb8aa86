"""All settings of ``secateur shorten`` and ``secateur deepen``."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from secateur.config.amounts import budget_problems
from secateur.config.base import CommandSettings, Settings
from secateur.config.common import DataSettings, ModelSettings, ResultSettings
from secateur.config.prune import PruneSettings, like


@dataclass(frozen=True, kw_only=True)
class BlockSettings(Settings):
    """Which blocks go. Give exactly one of blocks, keep, budget and drop.

    Args:
        blocks: how many go.
        keep: share of the blocks that can go which stays, in (0, 1).
        budget: what the result may cost, blocks going until it is met: "params=0.8", "macs=2.1G", "latency=5ms".
        drop: names of the blocks that go: layer3.2 layer3.4.
        importance: influence, how far a block moves its input; loss, what the loss rises by without it; or random.
        rescore: score the blocks that are left anew after each one that goes.
        compensate: how the weights that stay make up for the blocks that went, on the same training samples as the
            scores: "lstsq" refits them by least squares, "mean" makes up for the mean, "none" leaves them; "auto" is
            lstsq.
        calibration: training samples that scores and compensation look at, at most.
    """

    blocks: int | None = None
    keep: float | None = None
    budget: str | None = None
    drop: tuple[str, ...] = ()
    importance: Literal["influence", "loss", "random"] = "influence"
    rescore: bool = False
    compensate: Literal["auto", "lstsq", "mean", "none"] = "auto"
    calibration: int = 1024


@dataclass(frozen=True, kw_only=True)
class ShorterSettings(ResultSettings):
    """Where and with what; see `ResultSettings`."""

    out: Path = Path("secateur-shorter")


@dataclass(frozen=True, kw_only=True)
class ShortenSettings(ShorterSettings, BlockSettings, DataSettings, ModelSettings, CommandSettings):
    """All settings of ``secateur shorten``; each is described at the class that it comes from.

    Raises:
        ConfigError: settings that contradict each other or lie out of range; all of them at once.

    Example:
        >>> ShortenSettings(model="package.module:Net", blocks=2).to_command()
        'secateur shorten --model package.module:Net --blocks 2'
    """

    COMMAND = "shorten"
    SECTIONS = (ModelSettings, DataSettings, BlockSettings, ShorterSettings)

    def problems(self) -> Iterable[str]:
        """What contradicts each other or lies out of range."""
        ways = ("blocks", "keep", "budget", "drop")
        given = [name for name in ways if getattr(self, name) not in (None, ())]
        if len(given) != 1:
            yield f"{' and '.join(given) or 'nothing'} given: say which blocks go by exactly one of {', '.join(ways)}"
        if self.blocks is not None and self.blocks < 1:
            yield f"blocks={self.blocks} must be at least 1"
        if self.keep is not None and not 0 < self.keep < 1:
            yield f"keep={self.keep} must be in (0, 1)"
        if self.calibration < 1:
            yield f"calibration={self.calibration} must be at least 1"
        yield from budget_problems(self.budget)

    def training(self) -> PruneSettings:
        """The settings of a run that gets its network and data in the same way."""
        return like(self, ModelSettings, DataSettings, train_epochs=0)


@dataclass(frozen=True, kw_only=True)
class InsertSettings(Settings):
    """What comes in.

    Args:
        after: names of the modules that something comes after: layer3.2.
        times: how many come after each.
    """

    after: tuple[str, ...] = ()
    times: int = 1


@dataclass(frozen=True, kw_only=True)
class DeeperSettings(ResultSettings):
    """Where and with what; see `ResultSettings`."""

    out: Path = Path("secateur-deeper")


@dataclass(frozen=True, kw_only=True)
class DeepenSettings(DeeperSettings, InsertSettings, DataSettings, ModelSettings, CommandSettings):
    """All settings of ``secateur deepen``; each is described at the class that it comes from.

    Args:
        input: shapes of example inputs; without them, they come from the data.

    Raises:
        ConfigError: nothing is to come in.

    Example:
        >>> DeepenSettings(after=("fc1",), times=2).to_command()
        'secateur deepen --after fc1 --times 2'
    """

    COMMAND = "deepen"
    SECTIONS = (ModelSettings, DataSettings, InsertSettings, DeeperSettings)
    OTHERS = ("input",)

    input: tuple[str, ...] = ()

    def problems(self) -> Iterable[str]:
        """What contradicts each other or lies out of range."""
        if not self.after:
            yield "after names no module: say what something is to come after, such as layer3.2"
        if self.times < 1:
            yield f"times={self.times} must be at least 1"
