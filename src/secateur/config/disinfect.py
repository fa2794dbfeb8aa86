"""All settings of ``secateur disinfect``."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from secateur.config.base import CommandSettings, Settings
from secateur.config.common import DataSettings, ModelSettings, ResultSettings, data_problems
from secateur.config.reallocate import SavedSettings


@dataclass(frozen=True, kw_only=True)
class BackdoorSettings(Settings):
    """What is removed, and by which clean samples.

    Args:
        method: "auto" searches for a trigger, removes nothing where there is none, and else takes the method after
            which the trigger does least; "clp" removes channels that can amplify more than the others of their layer,
            "anp" units that an adversary could use against clean inputs, "fine-pruning" units that are dormant on
            clean inputs; "random" and "none" are controls.
        samples: how many samples of the training split the defence uses; they must be clean.
        heldout: fraction of these that nothing is learnt from, by which is chosen, in (0, 1).
        max_drop: accuracy that removal may cost on all clean samples before tuning, in percentage points.
        search_steps: of gradient descent on triggers; less is faster, and finds larger ones.
        tune_epochs: epochs of tuning on the samples after removal, 0 for none.
        tune_lr: highest learning rate of that.
        trigger: the real trigger, where it is known, for the report alone: "package.module:function" of a batch of
            inputs.
        target: the class that it leads to, from 0.
        only: axes or modules from which units may go, by name or pattern; no others.
        ignore: axes or modules to leave alone, by name or pattern.
    """

    method: Literal["auto", "clp", "anp", "fine-pruning", "random", "none"] = "auto"
    samples: int = 500
    heldout: float = 0.3
    max_drop: float = 1.0
    search_steps: int = 200
    tune_epochs: int = 10
    tune_lr: float = 0.01
    trigger: str | None = None
    target: int | None = None
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DisinfectRunSettings(ResultSettings):
    """Where and with what; see `ResultSettings`."""

    out: Path = Path("secateur-disinfected")


@dataclass(frozen=True, kw_only=True)
class DisinfectSettings(
    DisinfectRunSettings, BackdoorSettings, SavedSettings, DataSettings, ModelSettings, CommandSettings
):
    """All settings of ``secateur disinfect``; each is described at the class that it comes from.

    Args:
        result: directory of a saved result to disinfect, in place of the network that ``model`` names.

    Raises:
        ConfigError: settings that contradict each other or lie out of range; all of them at once.

    Example:
        >>> DisinfectSettings(model="package.module:Net", method="clp").to_command()
        'secateur disinfect --model package.module:Net --method clp'
    """

    COMMAND = "disinfect"
    SECTIONS = (ModelSettings, SavedSettings, DataSettings, BackdoorSettings, ResultSettings)
    OPERAND = "result"

    result: Path | None = None

    def problems(self) -> Iterable[str]:
        """What contradicts each other or lies out of range."""
        yield from data_problems(self)
        if self.samples < 2:
            yield f"samples={self.samples} must be at least 2"
        if not 0 < self.heldout < 1:
            yield f"heldout={self.heldout} must be in (0, 1)"
        if not 0 <= self.max_drop <= 100:
            yield f"max_drop={self.max_drop} must be in percentage points, from 0 to 100"
        if self.search_steps < 1:
            yield f"search_steps={self.search_steps} must be at least 1"
        if self.tune_epochs < 0:
            yield f"tune_epochs={self.tune_epochs} must be from 0"
        if not 0 < self.tune_lr < float("inf"):
            yield f"tune_lr={self.tune_lr} must be above 0"
        if (self.trigger is None) != (self.target is None):
            yield "trigger and target go together: give both, or neither"
        if self.target is not None and self.target < 0:
            yield f"target={self.target} must be a class, a whole number from 0"
        if self.result is not None and self.weights is not None:
            yield "a saved result has its own weights: leave out either weights or the result"
