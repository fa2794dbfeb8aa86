"""What all settings have in common, and what those of a whole command add: words that repeat it."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Self

from secateur.config.spelling import command_line, plain, yaml_file
from secateur.errors import ConfigError
from secateur.plain import checked


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all settings have in common.

    Raises:
        ConfigError: settings that contradict each other or lie out of range; all of them at once.
    """

    def __post_init__(self) -> None:
        if found := list(self.problems()):
            raise ConfigError("; ".join(found))

    def problems(self) -> Iterable[str]:
        """What contradicts each other or lies out of range."""
        return ()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "settings") -> Self:
        """Settings from plain data, such as a YAML file holds. A dash in a name counts as an underscore.

        Raises:
            ConfigError: an unknown name (with the nearest known one) or a value of the wrong type; all of them at once.

        Example:
            >>> from secateur.config import PlanSettings
            >>> PlanSettings.from_mapping({"keep": 0.5, "min-units": 4}).min_units
            4
        """
        return cls(**checked(cls, values, source))


@dataclass(frozen=True, kw_only=True)
class CommandSettings(Settings):
    """All settings of one command. Its file and its command line hold them in the order in which they are documented.

    Attributes:
        COMMAND: its name.
        SECTIONS: the groups of its settings.
        OPERAND: a setting beside them that stands before all flags, without one of its own; "" for none.
        OTHERS: further settings beside them.
    """

    COMMAND: ClassVar[str]
    SECTIONS: ClassVar[tuple[type[Settings], ...]]
    OPERAND: ClassVar[str] = ""
    OTHERS: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the order in which the settings are documented; ``from_mapping`` reads it."""
        first = (self.OPERAND,) if self.OPERAND else ()
        names = (*first, *(item.name for section in self.SECTIONS for item in fields(section)), *self.OTHERS)
        return {name: plain(getattr(self, name)) for name in names}

    def to_yaml(self) -> str:
        """A YAML file that repeats the run."""
        return yaml_file(self.COMMAND, self.to_dict())

    def to_command(self) -> str:
        """The command line that repeats the run: a flag for each setting that is not its default.

        >>> from secateur.config import PruneSettings, ShortenSettings
        >>> PruneSettings(budget="macs=0.5", model_args={"width": 2}).to_command()
        'secateur prune --model-args.width 2 --budget macs=0.5'
        >>> ShortenSettings(model="package.module:Net", blocks=2).to_command()
        'secateur shorten --model package.module:Net --blocks 2'
        """
        return command_line(self.COMMAND, self.to_dict(), self.defaults(), operand=self.OPERAND)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """What a run uses where nobody says, as plain data."""
        return {
            item.name: plain(item.default if item.default_factory is MISSING else item.default_factory())
            for item in fields(cls)
        }
