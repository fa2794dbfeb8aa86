"""All settings of ``secateur sparsify``."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from secateur.config.base import CommandSettings, Settings
from secateur.config.common import DataSettings, ModelSettings, ResultSettings, data_problems
from secateur.config.prune import PruneSettings, like
from secateur.config.spelling import plain
from secateur.errors import ConfigError, PatternError
from secateur.sparsity.patterns import NM, Block, Pattern, Unstructured, agrees


@dataclass(frozen=True, kw_only=True)
class WeightSettings(Settings):
    """Which weights go. Give at most one of sparsity and threshold; without either, half of them go.

    Args:
        pattern: which may go together: "unstructured", any; "2:4", two of every four inputs of an output stay, or other
            such numbers; "16x16", blocks of so many outputs and inputs.
        sparsity: share of the weights that goes, in (0, 1); "2:4" and its like say it themselves.
        threshold: a weight goes when its score is below this many times the mean score of its layer.
        importance: criterion that scores each weight: magnitude, random; on training data wanda, ria, taylor, fisher.
            "auto" is wanda, and with sparsegpt its own.
        allocation: how much each layer loses: "uniform", all alike; "global", one ranking of all weights; "erk", less
            in small layers; "owl", less where wanda's scores have more outliers.
        compensate: how the weights that stay make up for those that went, on the same data: "sparsegpt" updates them
            column by column, "alps" refits them on their places, "sparsegpt+alps" does both, "none" leaves them. "auto"
            is alps; of a checkpoint none, which takes the least memory.
        calibration: training samples that scores and compensation look at, at most.
        only: weights or modules to prune, by name or pattern; no others.
        ignore: weights or modules to leave alone, by name or pattern.
        strict: stop where a weight can't be pruned as asked, such as one whose shape the pattern does not divide;
            otherwise it stays dense, and the report says why.
    """

    pattern: str = "unstructured"
    sparsity: float | None = None
    threshold: float | None = None
    importance: Literal["auto", "magnitude", "wanda", "ria", "taylor", "fisher", "random"] = "auto"
    allocation: Literal["uniform", "global", "erk", "owl"] = "uniform"
    compensate: Literal["auto", "none", "sparsegpt", "alps", "sparsegpt+alps"] = "auto"
    calibration: int = 1024
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings(Settings):
    """A checkpoint on disk in the place of a network: it need not fit in memory.

    Args:
        checkpoint: folder of a language model in the layout of transformers, with safetensors. It is pruned block by
            block to the output directory; a run that was stopped goes on when the same command is given again.
        tokens: calibration data of it: a .npy file of whole numbers, samples by tokens. Without it weights are scored
            by themselves.
        activations: where those between two blocks are kept meanwhile: "memory" or "disk".
    """

    checkpoint: Path | None = None
    tokens: Path | None = None
    activations: Literal["memory", "disk"] = "memory"


@dataclass(frozen=True, kw_only=True)
class SparsePlaceSettings(ResultSettings):
    """Where and with what; see `ResultSettings`.

    Args:
        train_epochs: epochs of training before; by default none, but of the embedded example as many as it needs.
    """

    out: Path = Path("secateur-sparse")
    train_epochs: int | None = None


@dataclass(frozen=True, kw_only=True)
class SparsifySettings(
    SparsePlaceSettings, WeightSettings, DataSettings, CheckpointSettings, ModelSettings, CommandSettings
):
    """All settings of ``secateur sparsify``; each is described at the class that it comes from.

    Raises:
        ConfigError: settings that contradict each other or lie out of range; all of them at once.

    Example:
        >>> SparsifySettings(pattern="2:4", compensate="sparsegpt").to_command()
        'secateur sparsify --pattern 2:4 --compensate sparsegpt'
    """

    COMMAND = "sparsify"
    SECTIONS = (ModelSettings, CheckpointSettings, DataSettings, WeightSettings, SparsePlaceSettings)

    def problems(self) -> Iterable[str]:
        """What contradicts each other or lies out of range."""
        yield from data_problems(self)
        yield from self._checkpoint_problems()
        try:
            pattern = parse_pattern(self.pattern)
        except ConfigError as error:
            yield str(error)
            pattern = Unstructured()
        if self.sparsity is not None and self.threshold is not None:
            yield f"sparsity={self.sparsity} and threshold={self.threshold} given together: give one of the two"
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            yield f"sparsity={self.sparsity} must be in (0, 1)"
        if self.threshold is not None and not self.threshold > 0:
            yield f"threshold={self.threshold} must be above 0"
        if pattern.fixed is not None and not agrees(pattern, self.sparsity):
            yield f"pattern={self.pattern} has a sparsity of {pattern.fixed:g}: leave sparsity={self.sparsity} out"
        if self.allocation != "uniform" and (pattern.fixed is not None or self.threshold is not None):
            yield f"allocation={self.allocation}: what each layer loses is said already; leave it out"
        for name in ("calibration", "train_epochs"):
            value = getattr(self, name)
            if value is not None and value < (name == "calibration"):
                yield f"{name}={value} must be at least {int(name == 'calibration')}"

    def _checkpoint_problems(self) -> Iterable[str]:
        """What does not go with a checkpoint, or not without one."""
        if self.checkpoint is None:
            if self.tokens is not None:
                yield f"tokens={self.tokens} are for a checkpoint: give checkpoint too"
            return
        defaults = self.defaults()
        alone = ("model", "weights", "data", "batch_size", "train_epochs", "device")
        if given := [name for name in alone if plain(getattr(self, name)) != defaults[name]]:
            yield (
                f"checkpoint={self.checkpoint} given together with {', '.join(given)}: it has weights of its own, "
                "samples of tokens for data, which pass one by one, and is pruned on the CPU"
            )

    @property
    def compensation(self) -> Literal["sparsegpt", "alps", "sparsegpt+alps"] | None:
        """As ``sc.sparsify`` takes it."""
        if self.compensate == "auto":
            return "alps" if self.checkpoint is None else None
        return None if self.compensate == "none" else self.compensate

    def training(self) -> PruneSettings:
        """The settings of a run that gets its network and data in the same way."""
        return like(self, ModelSettings, DataSettings, train_epochs=self.train_epochs).resolved()


def parse_pattern(text: str) -> Pattern:
    """A pattern from text.

    Raises:
        ConfigError: it has another form.

    Example:
        >>> parse_pattern("2:4"), parse_pattern("16x8")
        (NM(n=2, m=4), Block(rows=16, cols=8))
    """
    if text == "unstructured":
        return Unstructured()
    found = re.fullmatch(r"(\d+)([:x])(\d+)", text)
    try:
        if found is not None:
            kind = NM if found[2] == ":" else Block
            return kind(int(found[1]), int(found[3]))
    except PatternError as error:
        raise ConfigError(f"pattern {text!r}: {error}") from error
    raise ConfigError(f"pattern {text!r} should be unstructured, n of m as in 2:4, or rows x columns as in 16x16")
