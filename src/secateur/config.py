"""Settings of a run: one definition for flags, YAML files and Python.

Every field is a flag (``--min-units 4``), a key in a YAML file (``min_units: 4``) and an argument
(``PruneSettings(min_units=4)``). The command line and the file only fill in these classes.
"""

import json
import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

from secateur.errors import ConfigError, PlanError
from secateur.plain import CHOICES, checked, parse_scalar, yaml_module
from secateur.planning import Budget
from secateur.training import SCRATCH, TUNE

EXAMPLE_MODEL = "simplenet"
THRESHOLD = 0.8
FINE_TUNING = replace(TUNE, epochs=5, lr=3e-4)
"""For trained networks of any kind: a low rate keeps what they know."""


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
            original), "params=10000" or "macs=2.1G" (absolute), "latency=5ms" on this device, several with commas.
        keep: fraction of the units of every axis that stays, in (0, 1].
        scope: with a budget, "global" ranks all units together, "local" makes every axis narrower alike; "isomorphic"
            ranks within each family of like axes, and makes every family narrower alike.
        min_units: units that every axis keeps at least.
        multiple_of: sizes of pruned axes are multiples of this; or of a number for each pattern: "hidden=64,heads=1";
            or "auto": of the step between the widths at which this device is fast, by timing.
        uniform: repeated blocks keep equal widths, and a model that is built from a config has them there.
        only: axes or modules to prune, by name or pattern; no others.
        ignore: axes or modules to leave alone, by name or pattern.
    """

    importance: str = "auto"
    threshold: float | None = None
    budget: str | None = None
    keep: float | None = None
    scope: Literal["global", "local", "isomorphic"] = "global"
    min_units: int = 1
    multiple_of: int | str = 1
    uniform: bool = False
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

    def multiples(self) -> int | dict[str, int] | Literal["auto"]:
        """``multiple_of`` as `plan` takes it."""
        if self.multiple_of == "auto":
            return "auto"
        return self.multiple_of if isinstance(self.multiple_of, int) else parse_multiples(self.multiple_of)

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the order in which the settings are documented; ``from_mapping`` reads it."""
        sections = (ModelSettings, DataSettings, PlanSettings, TrainSettings, RunSettings)
        return {item.name: _plain(getattr(self, item.name)) for section in sections for item in fields(section)}

    def to_yaml(self) -> str:
        """A YAML file that repeats the run."""
        header = (
            "# Settings of a run of secateur. Repeat it with: secateur prune --config THIS_FILE --out NEW_DIRECTORY\n"
        )
        return header + yaml_module().safe_dump(
            self.to_dict(), sort_keys=False, allow_unicode=True, default_flow_style=None
        )

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


def parse_budget(text: str) -> Budget:
    """A budget from text.

    Raises:
        ConfigError: it has another form, or an amount makes no sense.

    Example:
        >>> parse_budget("macs=50%,latency=5ms")
        Budget(params=None, macs=0.5, bytes=None, latency='5ms')
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


def parse_multiples(text: str) -> dict[str, int]:
    """What widths are to be multiples of, by pattern, from text.

    Raises:
        ConfigError: it has another form.

    Example:
        >>> parse_multiples("hidden=64, layer1.*=8")
        {'hidden': 64, 'layer1.*': 8}
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.rpartition("="))
        if not name or not equals or not number.isdecimal() or int(number) < 1:
            raise ConfigError(
                f"multiple_of {text!r}: {part.strip()!r} should be a pattern, = and a whole number from 1: hidden=64. "
                "Or give auto alone"
            )
        found[name] = int(number)
    return found


def _problems(settings: PruneSettings) -> Iterable[str]:
    given = [f"{name}={getattr(settings, name)}" for name in CHOICES if getattr(settings, name) is not None]
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
    if isinstance(settings.multiple_of, str) and settings.multiple_of != "auto":
        try:
            parse_multiples(settings.multiple_of)
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
        if isinstance(value, int) and value < least:
            yield f"{name}={value} must be at least {least}"
    for name in ("lr", "train_lr"):
        value = getattr(settings, name)
        if value is not None and not value > 0:
            yield f"{name}={value} must be above 0"
    if settings.threshold is not None and not 0 < settings.threshold < math.inf:
        yield f"threshold={settings.threshold} must be above 0"
    if settings.keep is not None and not 0 < settings.keep <= 1:
        yield f"keep={settings.keep} must be in (0, 1]"
    if not 0 <= settings.distill <= 1:
        yield f"distill={settings.distill} must be in [0, 1]"
    if settings.weight_decay < 0:
        yield f"weight_decay={settings.weight_decay} must be at least 0"


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
    if isinstance(value, bool):
        return [flag] if value else []
    return [] if value is None else [flag, str(value)]


def _spelled(value: Any) -> str:
    """Text that ``parse_scalar`` reads as the value."""
    return value if isinstance(value, str) and parse_scalar(value) == value else json.dumps(value)
