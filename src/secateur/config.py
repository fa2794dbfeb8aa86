"""Settings of a run: one definition for flags, YAML files and Python.

Every field is a flag (``--min-units 4``), a key in a YAML file (``min_units: 4``) and an argument
(``PruneSettings(min_units=4)``). The command line and the file only fill in these classes.
"""

import difflib
import json
import shlex
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Union, cast, get_args, get_origin

from secateur.errors import ConfigError, MissingExtra, PlanError
from secateur.planning import Budget
from secateur.training import SCRATCH, TUNE

EXAMPLE_MODEL = "simplenet"
THRESHOLD = 0.8
FINE_TUNING = replace(TUNE, epochs=5, lr=3e-4)
"""For trained networks of any kind: a low rate keeps what they know."""

SettingsClass = TypeVar("SettingsClass", bound="Settings")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all settings have in common."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "settings") -> Self:
        """Settings from plain data, such as a YAML file holds. A dash in a name counts as an underscore.

        Raises:
            ConfigError: an unknown name (with the nearest known one) or a value of the wrong type; all of them at once.

        Example:
            >>> PlanSettings.from_mapping({"keep": 0.5, "min-units": 4}).min_units
            4
        """
        return cls(**checked(cls, values, source))


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """Which network.

    Args:
        model: "simplenet", the embedded example, or "package.module:callable" that returns a torch module, such as
            "torchvision.models:resnet18". Modules in the current directory are found.
        model_args: keyword arguments for that callable: --model-args.num-classes 10, or --model-args '{"num_classes":
            10}'.
        weights: trained weights to load into it: a .safetensors file, or a checkpoint that torch.load reads with
            weights_only=True.
    """

    model: str = EXAMPLE_MODEL
    model_args: dict[str, Any] = field(default_factory=dict[str, Any])
    weights: Path | None = None


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Which data.

    Args:
        data: "digits", the embedded example; "imagefolder:PATH", folders train and val (and test) with a folder for
            each class; or "package.module:callable" that returns loaders.
        data_args: keyword arguments for that callable.
        batch_size: samples in a batch.
        image_size: side in pixels that images of a folder are brought to; 224 if not given.
    """

    data: str = "digits"
    data_args: dict[str, Any] = field(default_factory=dict[str, Any])
    batch_size: int = 64
    image_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class PlanSettings(Settings):
    """What goes. Give at most one of threshold, budget and keep; without any, the threshold is 0.8.

    Args:
        importance: criterion that scores each unit: auto, l1, l2, bn_scale, random.
        threshold: a unit goes when its score is below this many times the mean score of its axis.
        budget: what the result may cost, the least valuable units going first: "macs=0.5" (a fraction of the
            original), "params=10000" or "macs=2.1G" (absolute), several with commas.
        keep: fraction of the units of every axis that stays, in (0, 1].
        scope: "global" ranks all units together, "local" each axis by itself.
        min_units: units that every axis keeps at least.
        multiple_of: sizes of pruned axes are multiples of this.
        only: axes or modules to prune, by name or pattern; no others.
        ignore: axes or modules to leave alone, by name or pattern.
    """

    importance: str = "auto"
    threshold: float | None = None
    budget: str | None = None
    keep: float | None = None
    scope: Literal["global", "local"] = "global"
    min_units: int = 1
    multiple_of: int = 1
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings):
    """How it is trained before pruning and tuned after it.

    Args:
        train_epochs: epochs of training before pruning; by default the embedded example is trained, your own network
            not.
        train_lr: highest learning rate of that training.
        epochs: epochs of fine-tuning after pruning, 0 for none; by default 5, more for the embedded example.
        lr: highest learning rate of the fine-tuning; by default 0.0003, more for the embedded example.
        optimizer: "adamw" or "sgd".
        weight_decay: of the optimiser.
        distill: share of the fine-tuning's loss that follows the dense network's answers instead of the labels, in
            [0, 1].
    """

    train_epochs: int | None = None
    train_lr: float = SCRATCH.lr
    epochs: int | None = None
    lr: float | None = None
    optimizer: Literal["adamw", "sgd"] = cast('Literal["adamw", "sgd"]', TUNE.optimizer)
    weight_decay: float = TUNE.weight_decay
    distill: float = TUNE.distill


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """Where and with what.

    Args:
        out: directory for the result; it must not hold anything yet.
        seed: of everything that is random.
        device: where the network runs: cpu, cuda, cuda:1, mps.
    """

    out: Path = Path("secateur-run")
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class PruneSettings(RunSettings, TrainSettings, PlanSettings, DataSettings, ModelSettings):
    """All settings of ``secateur prune``; each is described at the class that it comes from.

    Raises:
        ConfigError: settings that contradict each other or lie out of range; all of them at once.

    Example:
        >>> PruneSettings(model="package.module:Net", budget="params=0.1").resolved().epochs
        5
    """

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def embedded(self) -> bool:
        """Whether the network is the embedded example."""
        return self.model == EXAMPLE_MODEL

    def resolved(self) -> "PruneSettings":
        """The same settings with every default that depends on the others filled in: what a run really uses."""
        tune = TUNE if self.embedded else FINE_TUNING
        from_scratch = self.embedded and self.weights is None
        chosen = self.threshold if (self.budget, self.keep) != (None, None) or self.threshold is not None else THRESHOLD
        return replace(
            self,
            threshold=chosen,
            train_epochs=(SCRATCH.epochs if from_scratch else 0) if self.train_epochs is None else self.train_epochs,
            epochs=tune.epochs if self.epochs is None else self.epochs,
            lr=tune.lr if self.lr is None else self.lr,
        )

    def cost(self) -> Budget | None:
        """The budget as `plan` takes it; None where there is none."""
        return None if self.budget is None else parse_budget(self.budget)

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the order in which the settings are documented; ``from_mapping`` reads it."""
        sections = (ModelSettings, DataSettings, PlanSettings, TrainSettings, RunSettings)
        return {item.name: _plain(getattr(self, item.name)) for section in sections for item in fields(section)}

    def to_yaml(self) -> str:
        """A YAML file that repeats the run."""
        header = (
            "# Settings of a run of secateur. Repeat it with: secateur prune --config THIS_FILE --out NEW_DIRECTORY\n"
        )
        return header + _yaml().safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, default_flow_style=None)

    def to_command(self) -> str:
        """The command line that repeats the run: a flag for each setting that is not its default.

        >>> PruneSettings(budget="macs=0.5", model_args={"width": 2}).to_command()
        'secateur prune --model-args.width 2 --budget macs=0.5'
        """
        default = PruneSettings().resolved().to_dict() | {"threshold": None}
        words = ["secateur", "prune"]
        for name, value in self.to_dict().items():
            if value != default[name] and not (name == "threshold" and value == THRESHOLD):
                words += _flags(f"--{name.replace('_', '-')}", value)
        return shlex.join(words)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ``Settings.from_mapping`` checks what is in it.

    Raises:
        ConfigError: the file is missing, isn't YAML, or doesn't hold a mapping of names to values.
        MissingExtra: PyYAML is not installed.
    """
    yaml = _yaml()
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no settings file {str(path)!r}. A run writes one as config.yaml") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"can't read the settings in {str(path)!r}: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{str(path)!r} holds a {type(values).__name__}: write a line for each setting, such as 'threshold: 0.8'"
        )
    return {str(name).replace("-", "_"): value for name, value in cast("dict[Any, Any]", values).items()}


def parse_budget(text: str) -> Budget:
    """A budget from text.

    Raises:
        ConfigError: it has another form, or an amount makes no sense.

    Example:
        >>> parse_budget("macs=0.5,params=10000"), parse_budget("macs=50%")
        (Budget(params=10000, macs=0.5, bytes=None), Budget(params=None, macs=0.5, bytes=None))
    """
    known = [item.name for item in fields(Budget)]
    parts: dict[str, float | int | str] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in known or not equals or not value or name in parts:
            raise ConfigError(
                f"budget {text!r}: {part.strip()!r} should be one of {', '.join(known)}, once each, then = "
                f"and an amount: "
                f"macs=0.5"
            )
        parts[name] = _amount(value)
    try:
        return Budget(**parts)
    except PlanError as error:
        raise ConfigError(str(error)) from error


def checked(cls: type[Settings], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Values brought to the types of the fields of a settings class; see ``Settings.from_mapping``."""
    hints = typing.get_type_hints(cls)
    known = [item.name for item in fields(cls)]
    good: dict[str, Any] = {}
    problems: list[str] = []
    for given, value in values.items():
        name = str(given).replace("-", "_")
        if name not in known:
            problems.append(f"unknown setting {given!r}{_nearest(name, known)}")
            continue
        try:
            good[name] = _typed(value, hints[name], name)
        except (TypeError, ValueError):
            problems.append(f"{name} is {value!r}, but must be {_described(hints[name])}")
    if problems:
        raise ConfigError(f"{source}: {'; '.join(problems)}")
    return good


def merged(
    cls: type[SettingsClass], flags: Mapping[str, Any], given: Iterable[str], file: Mapping[str, Any], source: str
) -> SettingsClass:
    """Settings in which flags that were given win over a file, and the file over the defaults.

    threshold, budget and keep exclude each other: one of them as a flag puts aside those in the file.

    Args:
        cls: which settings.
        flags: the value of every flag, given or not.
        given: names of the flags that were given.
        file: what the file holds.
        source: name of the file, for errors.
    """
    names = set(given)
    if names & set(_CHOICES):
        names |= set(_CHOICES)
    return cls(**{**flags, **{name: value for name, value in checked(cls, file, source).items() if name not in names}})


_CHOICES = ("threshold", "budget", "keep")


def _problems(settings: PruneSettings) -> Iterable[str]:
    given = [f"{name}={getattr(settings, name)}" for name in _CHOICES if getattr(settings, name) is not None]
    if len(given) > 1:
        yield (
            f"{' and '.join(given)} given together: each says by itself what goes; give one of threshold, "
            f"budget and keep"
        )
    if settings.budget is not None:
        try:
            parse_budget(settings.budget)
        except ConfigError as error:
            yield str(error)
    for name, least in (
        ("batch_size", 1),
        ("image_size", 1),
        ("min_units", 1),
        ("multiple_of", 1),
        ("epochs", 0),
        ("train_epochs", 0),
    ):
        value = getattr(settings, name)
        if value is not None and value < least:
            yield f"{name}={value} must be at least {least}"
    for name in ("lr", "train_lr"):
        value = getattr(settings, name)
        if value is not None and not value > 0:
            yield f"{name}={value} must be above 0"
    if settings.threshold is not None and not settings.threshold >= 0:
        yield f"threshold={settings.threshold} must be at least 0"
    if settings.keep is not None and not 0 < settings.keep <= 1:
        yield f"keep={settings.keep} must be in (0, 1]"
    if not 0 <= settings.distill <= 1:
        yield f"distill={settings.distill} must be in [0, 1]"
    if settings.weight_decay < 0:
        yield f"weight_decay={settings.weight_decay} must be at least 0"


def _typed(value: Any, hint: Any, name: str) -> Any:
    """A value from a file or a flag as its field's type; raises TypeError or ValueError where it can't be."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        if value is None:
            return None
        return _typed(value, next(part for part in parts if part is not type(None)), name)
    if origin is Literal:
        if value not in parts:
            raise ValueError
        return value
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in cast("list[Any]", items)):
            raise TypeError
        return tuple(cast("list[str]", items))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise TypeError
        return {str(key).replace("-", "_"): item for key, item in cast("Mapping[Any, Any]", value).items()}
    if name == "budget" and isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in cast("Mapping[Any, Any]", value).items())
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return float(value)  # YAML 1.1 reads 3e-4 as text
    if isinstance(value, bool) is not (hint is bool) or not isinstance(value, hint):
        raise TypeError
    return value


def parse_scalar(value: Any) -> Any:
    """Text as the JSON value that it spells, else as it is: "2" is 2, "true" is True, "resnet" is "resnet"."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(value, value)


def _amount(value: str) -> float | int | str:
    if value.endswith("%"):
        try:
            return float(value[:-1]) / 100
        except ValueError:
            return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _described(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        return " or ".join("nothing" if part is type(None) else _described(part) for part in parts)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    words = {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        Path: "a path",
        tuple: "a list of texts",
    }
    return words.get(origin or hint, "names with values")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else f" (known are {', '.join(known)})"


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value


def _flags(flag: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return [word for key, item in items for word in (f"{flag}.{key.replace('_', '-')}", _spelled(item))]
    if isinstance(value, list):
        return [word for item in cast("list[str]", value) for word in (flag, item)]
    return [] if value is None else [flag, str(value)]


def _spelled(value: Any) -> str:
    """Text that ``parse_scalar`` reads as the value."""
    return value if isinstance(value, str) and parse_scalar(value) == value else json.dumps(value)


def _yaml() -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingExtra("PyYAML", "cli", "reading and writing YAML") from error
    return yaml
