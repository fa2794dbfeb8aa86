"""The flags that commands share, and how flags and files become settings."""

from contextvars import ContextVar
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import App, Group, Parameter

from secateur.config import DataSettings, ModelSettings, PlanSettings, RobustSettings, RunSettings, Settings
from secateur.plain import merged, parse_scalar, read_yaml

Section = TypeVar("Section", bound=Settings)
_given: ContextVar[frozenset[str]] = ContextVar("_given", default=frozenset())
_words: ContextVar[tuple[str, ...]] = ContextVar("_words", default=())

MODEL_GROUP = Group("Model", sort_key=1)
DATA_GROUP = Group("Data", sort_key=2)
CHANGE_GROUP = Group("What to remove", sort_key=3)
TRAIN_GROUP = Group("Training and fine-tuning", sort_key=4)
ROBUST_GROUP = Group("Robustness", sort_key=4.5)
RUN_GROUP = Group("Run", sort_key=5)

Model = Annotated[ModelSettings, Parameter(name="*", group=MODEL_GROUP)]
Data = Annotated[DataSettings, Parameter(name="*", group=DATA_GROUP)]
Plan = Annotated[PlanSettings, Parameter(name="*", group=CHANGE_GROUP)]
Robust = Annotated[RobustSettings, Parameter(name="*", group=ROBUST_GROUP)]
MODEL, DATA, PLAN, RUN = ModelSettings(), DataSettings(), PlanSettings(), RunSettings()
ROBUST = RobustSettings()

ModelPath = Annotated[Path, Parameter(group=MODEL_GROUP)]
Shapes = Annotated[tuple[str, ...], Parameter(group=DATA_GROUP)]
OF_RUN = Parameter(group=RUN_GROUP)
File = Annotated[Path | None, OF_RUN]
Switch = Annotated[bool, OF_RUN]


def every(group: Group) -> Parameter:
    """How the fields of a dataclass become flags of a group, without the dataclass's own name."""
    return Parameter(name="*", group=group)


def remember_given(app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Note which settings were given as flags: those win over a file."""
    _given.set(frozenset(argument.field_info.name for argument in arguments if argument.tokens))


def remember_words(words: list[str]) -> None:
    """Note the command line."""
    _words.set(tuple(words))


def words() -> tuple[str, ...]:
    """The command line, without ``secateur``."""
    return _words.get()


def named(model: ModelSettings) -> ModelSettings | None:
    """The network that ``--model`` names; None without that flag."""
    return settings_of(ModelSettings, model) if "model" in _given.get() else None


def settings_of(section: type[Section], flags: Section) -> Section:
    """The flags of one section, with their keyword arguments as the values that they spell."""
    return merged(section, flag_values(flags), _given.get(), {}, "flags")


def all_settings(kind: type[Section], config: Path | None, *sections: Settings, **others: Any) -> Section:
    """All settings of a command: its flags and arguments win over the file that ``--config`` names.

    Args:
        kind: which settings.
        config: the file, if there is one.
        sections: the flags.
        others: what is no field of a section, by name.
    """
    file = read_yaml(config) if config is not None else {}
    return merged(kind, {**flag_values(*sections), **others}, _given.get(), file, str(config or "flags"))


def flag_values(*sections: Settings) -> dict[str, Any]:
    """The fields of sections as they were given, keyword arguments as the values that they spell."""
    values = {item.name: getattr(section, item.name) for section in sections for item in fields(section)}
    return {
        name: {key.replace("-", "_"): parse_scalar(item) for key, item in value.items()}
        if isinstance(value, dict)
        else value
        for name, value in values.items()
    }
