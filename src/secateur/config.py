"""Settings of a run: one definition for flags, YAML files and Python.

Every field is a flag (``--min-units 4``), a key in a YAML file (``min_units: 4``) and an argument
(``PruneSettings(min_units=4)``). The command line and the file only fill in these classes.
"""

import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

from secateur.errors import ConfigError, PlanError
from secateur.plain import CHOICES, checked, parse_scalar, yaml_module
from secateur.planning import Budget
from secateur.tuning.recipes import SCRATCH, TUNE

EXAMPLE_MODEL = "simplenet"
THRESHOLD = 0.8
ADAPTED = "macs=0.5"  # the budget of an adapted network where nobody says
ADAPTED_IMPORTANCE = "fisher"  # the same: labels of the new task say what it needs
LIMITS = {
    "min_units": ("a whole number from 1", "hidden=64"),
    "multiple_of": ("a whole number from 1", "hidden=64"),
    "max_share": ("a share in (0, 1]", "hidden=0.75"),
}
"""Settings that may differ from axis to axis: what they are, and an example."""
FINE_TUNING = replace(TUNE, epochs=5, lr=3e-4)
"""For trained networks of any kind: a low rate keeps what they know."""

ADAPTING = replace(TUNE, epochs=5, lr=1e-4)
"""For all weights of a trained network behind a head that fits already: there is little to learn, and much to lose."""


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
            each class; "npz:PATH", a file with x_train, y_train, x_test, y_test (and x_val, y_val); "hf:PATH", a data
            set of Hugging Face's datasets on the disk; or "package.module:callable" that returns loaders.
        data_args: keyword arguments for that callable; hf: takes image_column and label_column.
        batch_size: samples in a batch.
        image_size: side in pixels that images in files are brought to; 224 if not given.
        augment: how training images are changed at random: "standard" takes a part of 8 to 100 % of the area and
            mirrors half of them, "flip" only mirrors, "none" leaves them. By default "flip" for images in files, "none"
            for arrays; digits are shifted by up to a pixel, unless it is "none".
    """

    data: str = "digits"
    data_args: dict[str, Any] = field(default_factory=dict[str, Any])
    batch_size: int = 64
    image_size: int | None = None
    augment: Literal["standard", "flip", "none"] | None = None


@dataclass(frozen=True, kw_only=True)
class PlanSettings(Settings):
    """What goes. Give at most one of threshold, budget, keep, max_drop and max_loss_increase; without any, the
    threshold is 0.8.

    Args:
        importance: criterion that scores each unit: l1, l2, lamp, fpgm, bn_scale, random; on 32 batches of the training
            data taylor, taylor_gate, fisher, activation, flap, apoz, softmax, wanda, reconstruction. "auto" is l2 for a
            threshold, else reconstruction, and of secateur adapt fisher.
        compensate: how the weights that stay make up for those that went, on 32 batches of the training data, before
            fine-tuning: "lstsq" refits them by least squares, "merge" folds units that go into those that are most like
            them, "mean" makes up for their mean, "none" leaves them; "auto" is lstsq.
        threshold: a unit goes when its score is below this many times the mean score of its axis.
        budget: what the result may cost, the least valuable units going first: "macs=0.5" (a fraction of the
            original), "params=10000" or "macs=2.1G" (absolute), "latency=5ms" on this device, several with commas.
        keep: fraction of the units of every axis that stays, in (0, 1].
        max_drop: remove as much as can go while the accuracy on the validation split falls by at most so many
            percentage points, before fine-tuning: 0.5.
        max_loss_increase: the same for the loss on the validation split, which may rise by so much: 0.02.
        reduce: which cost max_drop and max_loss_increase bring down: macs, params or bytes.
        scope: with a budget, "global" ranks all units together, "local" makes every axis narrower alike; "isomorphic"
            ranks within each family of like axes, and makes every family narrower alike.
        min_units: units that every axis keeps at least; or a number for each pattern: "hidden=64,heads=2".
        multiple_of: sizes of pruned axes are multiples of this; or of a number for each pattern: "hidden=64,heads=1";
            or "auto": of the step between the widths at which this device is fast, by timing.
        max_share: largest share of the units of an axis that may go, in (0, 1]; or a share for each pattern:
            "hidden=0.75,heads=0.5".
        uniform: repeated blocks keep equal widths, and a model that is built from a config has them there.
        only: axes or modules to prune, by name or pattern; no others.
        ignore: axes or modules to leave alone, by name or pattern.
        keep_removed: keep what goes, and the old values of the rest, so that `secateur undo` gives the dense network.
    """

    importance: str = "auto"
    compensate: Literal["auto", "lstsq", "merge", "mean", "none"] = "auto"
    threshold: float | None = None
    budget: str | None = None
    keep: float | None = None
    max_drop: float | None = None
    max_loss_increase: float | None = None
    reduce: Literal["macs", "params", "bytes"] = "macs"
    scope: Literal["global", "local", "isomorphic"] = "global"
    min_units: int | str = 1
    multiple_of: int | str = 1
    max_share: float | str = 1.0
    uniform: bool = False
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    keep_removed: bool = False


@dataclass(frozen=True, kw_only=True)
class GradualSettings(Settings):
    """Pruning bit by bit, with training in between. It leads to a budget.

    Args:
        schedule: how the budgets of the steps lead to the last one: linear, cubic (much at first), geometric (the same
            share of what is left each time); "none" prunes at once.
        steps: how many.
        step_epochs: epochs of training between two steps; epochs are those after the last one.
        gradual: "cut" removes units in each step; "soft" fades them out during one training over all steps, and
            "regularised" draws them to zero by a growing penalty: both cut once, at its end.
        rewind: with "cut": "weights" begins again after each step with the weights that the dense network had early in
            its training in this run, "rates" repeats its learning rates from there on with the weights as they are;
            "none" does neither.
        rewind_at: how early: a share of the dense network's training, in [0, 1).
    """

    schedule: Literal["none", "linear", "cubic", "geometric"] = "none"
    steps: int = 8
    step_epochs: int = 1
    gradual: Literal["cut", "soft", "regularised"] = "cut"
    rewind: Literal["none", "weights", "rates"] = "none"
    rewind_at: float = 0.05


@dataclass(frozen=True, kw_only=True)
class TuneOptions(Settings):
    """How a network is trained on.

    Args:
        epochs: epochs of fine-tuning, 0 for none; by default 5, more for the embedded example.
        lr: highest learning rate of the fine-tuning; by default 0.0003, more for the embedded example. "auto" finds it
            by a range test on training batches, "search" by short trainings that are judged on the validation split
            (between the steps of a schedule, by a range test).
        optimizer: "adamw", "adam" or "sgd"; "auto" takes the better of AdamW and SGD by range tests.
        search_seconds: how long a search may take.
        weight_decay: of the optimiser.
        distill: share of the fine-tuning's loss that follows the dense network's answers instead of the labels, in
            [0, 1].
        features: modules whose outputs follow the dense network's, too: names, patterns, or auto.
        lr_schedule: how the learning rate falls after the warm-up: cosine, linear, constant, steps.
        warmup: fraction of all steps during which it rises, in [0, 1).
        clip: largest norm of the gradient; without it, gradients are not clipped.
        accumulate: batches of a step of the optimiser.
        ema: decay of an average of the weights that is validated and kept in their stead, such as 0.999.
        patience: end the training after so many epochs without a better validation.
        train_only: what trains: all, norms, biases, norms+biases, head, low-rank, or a pattern of parameter names.
        precision: no, fp16 or bf16.
        halve_batch: a batch that does not fit in memory is done in halves.
    """

    epochs: int | None = None
    lr: float | Literal["auto", "search"] | None = None
    optimizer: Literal["auto", "adamw", "adam", "sgd"] = cast('Literal["adamw", "adam", "sgd"]', TUNE.optimizer)
    search_seconds: float = 120
    weight_decay: float = TUNE.weight_decay
    distill: float = TUNE.distill
    features: tuple[str, ...] = ()
    lr_schedule: Literal["cosine", "linear", "constant", "steps"] = "cosine"
    warmup: float = TUNE.warmup
    clip: float | None = None
    accumulate: int = 1
    ema: float | None = None
    patience: int | None = None
    train_only: str = "all"
    precision: Literal["no", "fp16", "bf16"] | None = None
    halve_batch: bool = False

    def options(self) -> dict[str, Any]:
        """What `secateur.tuning.tune` takes beside epochs, rate, optimizer and teacher."""
        names = ("warmup", "clip", "accumulate", "ema", "patience", "train_only", "precision")
        named = {name: getattr(self, name) for name in names}
        return {**named, "schedule": self.lr_schedule, "halve": self.halve_batch}


@dataclass(frozen=True, kw_only=True)
class TrainSettings(TuneOptions):
    """How it is trained before pruning and tuned after it.

    Args:
        train_epochs: epochs of training before pruning; by default the embedded example is trained, your own network
            not.
        train_lr: highest learning rate of that training.
    """

    train_epochs: int | None = None
    train_lr: float = SCRATCH.lr


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """Where and with what.

    Args:
        out: directory for the result; it must not hold anything yet.
        seed: of everything that is random.
        device: where the network runs: cpu, cuda, cuda:1, mps.
        checkpoint_every: how often training writes a checkpoint beside ``out``: a number of steps, or 30s, 5min.
    """

    out: Path = Path("secateur-run")
    seed: int = 0
    device: str = "cpu"
    checkpoint_every: str = "30s"


@dataclass(frozen=True, kw_only=True)
class PruneSettings(RunSettings, TrainSettings, GradualSettings, PlanSettings, DataSettings, ModelSettings):
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
        none = all(getattr(self, name) is None for name in CHOICES)
        return replace(
            self,
            threshold=THRESHOLD if none else self.threshold,
            train_epochs=self.dense_epochs,
            epochs=tune.epochs if self.epochs is None else self.epochs,
            lr=tune.lr if self.lr is None else self.lr,
        )

    @property
    def dense_epochs(self) -> int:
        """Epochs of training before pruning: those asked for, else many for the embedded example without weights."""
        if self.train_epochs is not None:
            return self.train_epochs
        return SCRATCH.epochs if self.embedded and self.weights is None else 0

    @property
    def bounded(self) -> str | None:
        """The bound on held-out data that was given: max_drop or max_loss_increase."""
        return next((name for name in ("max_drop", "max_loss_increase") if getattr(self, name) is not None), None)

    def cost(self) -> Budget | None:
        """The budget as `plan` takes it; None where there is none."""
        return None if self.budget is None else parse_budget(self.budget)

    def limits(self) -> dict[str, Any]:
        """``min_units``, ``multiple_of`` and ``max_share`` as `plan` takes them."""
        return {name: _limit(name, getattr(self, name)) for name in LIMITS}

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the order in which the settings are documented; ``from_mapping`` reads it."""
        return _sections(self, (ModelSettings, DataSettings, PlanSettings, GradualSettings, TrainSettings, RunSettings))

    def to_yaml(self) -> str:
        """A YAML file that repeats the run."""
        return _yaml("prune", self.to_dict())

    def to_command(self) -> str:
        """The command line that repeats the run: a flag for each setting that is not its default.

        >>> PruneSettings(budget="macs=0.5", model_args={"width": 2}).to_command()
        'secateur prune --model-args.width 2 --budget macs=0.5'
        """
        default = PruneSettings().resolved().to_dict() | {"threshold": None}
        values = {n: v for n, v in self.to_dict().items() if not (n == "threshold" and v == THRESHOLD)}
        return _command("prune", values, default)


@dataclass(frozen=True, kw_only=True)
class DenseSettings(Settings):
    """The dense network that a saved one came from.

    Args:
        model: "package.module:callable" that builds the original network, for results that keep its class and do not
            say how to build it; and for a teacher.
        model_args: keyword arguments for that callable.
        weights: the dense network's trained weights: with them it is the teacher.
        trust: let the saved result import the code that its network was built with.
    """

    model: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict[str, Any])
    weights: Path | None = None
    trust: bool = False


@dataclass(frozen=True, kw_only=True)
class TuneRunSettings(RunSettings):
    """Where and with what; see `RunSettings`."""

    out: Path = Path("secateur-tuned")


@dataclass(frozen=True, kw_only=True)
class TuneSettings(TuneRunSettings, TuneOptions, DataSettings, DenseSettings):
    """All settings of ``secateur tune``; each is described at the class that it comes from.

    Args:
        result: directory of a saved result.

    Raises:
        ConfigError: settings that lie out of range; all of them at once.
    """

    result: Path = RunSettings.out

    def __post_init__(self) -> None:
        problems = list(_training_problems(self))
        if self.weights is not None and self.model is None:
            problems.append("weights are those of the dense network: name it with model")
        if problems:
            raise ConfigError("; ".join(problems))

    def resolved(self) -> "TuneSettings":
        """The same settings with every default that depends on the others filled in: what a run really uses."""
        return replace(
            self,
            epochs=FINE_TUNING.epochs if self.epochs is None else self.epochs,
            lr=FINE_TUNING.lr if self.lr is None else self.lr,
        )

    def network(self) -> ModelSettings:
        """The dense network, as `secateur.models.build_model` takes it."""
        return ModelSettings(model=self.model or EXAMPLE_MODEL, model_args=self.model_args, weights=self.weights)

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the order in which the settings are documented; ``from_mapping`` reads it."""
        sections = (DenseSettings, DataSettings, TuneOptions, RunSettings)
        return {"result": str(self.result), **_sections(self, sections)}

    def to_yaml(self) -> str:
        """A YAML file that repeats the run."""
        return _yaml("tune", self.to_dict())

    def to_command(self) -> str:
        """The command line that repeats the run: a flag for each setting that is not its default.

        >>> TuneSettings(result=Path("half"), epochs=20).to_command()
        'secateur tune half --epochs 20'
        """
        default = TuneSettings().resolved().to_dict()
        return _command("tune", self.to_dict(), default, operand="result")


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Settings):
    """The new task, and what it starts from.

    Args:
        classes: how many there are; by default as many as the data has.
        head_epochs: epochs of training the new head where it is not the network's last layer; else it is fitted to
            features that are computed once.
        trust: let a saved result import the code that its network was built with.
    """

    classes: int | None = None
    head_epochs: int = 10
    trust: bool = False


@dataclass(frozen=True, kw_only=True)
class AdaptOptions(TuneOptions):
    """How the adapted network is trained before pruning, and again after it; see `TuneOptions`.

    Args:
        train_only: what trains after the head: "auto" decides by validation accuracy between nothing more (head) and
            everything (all); or all, head, norms, biases, norms+biases, low-rank, or a pattern of parameter names.
        epochs: epochs of training more than the head, before pruning and again after it, 0 for none; 5 if not given.
        lr: highest learning rate of that; 0.0001 if not given. "auto" finds it by a range test on training batches,
            "search" by short trainings that are judged on the validation split.
    """

    train_only: str = "auto"
    epochs: int | None = None
    lr: float | Literal["auto", "search"] | None = None


@dataclass(frozen=True, kw_only=True)
class AdaptRunSettings(RunSettings):
    """Where and with what; see `RunSettings`."""

    out: Path = Path("secateur-adapted")


@dataclass(frozen=True, kw_only=True)
class AdaptSettings(AdaptRunSettings, AdaptOptions, TaskSettings, PruneSettings):
    """All settings of ``secateur adapt``; each is described at the class that it comes from.

    Args:
        result: directory of a saved result to adapt, in place of the network that ``model`` names.

    Raises:
        ConfigError: settings that contradict each other or lie out of range; all of them at once.

    Example:
        >>> AdaptSettings(model="package.module:Net", classes=2).resolved().budget
        'macs=0.5'
    """

    result: Path | None = None
    train_epochs: int | None = 0

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if self.schedule != "none":
            problems.append(f"schedule={self.schedule} is for secateur prune: adapting prunes at once")
        if self.train_epochs:
            problems.append(f"train_epochs={self.train_epochs} is for secateur prune: adapt takes a trained network")
        if self.classes is not None and self.classes < 2:
            problems.append(f"classes={self.classes} must be at least 2")
        if self.head_epochs < 1:
            problems.append(f"head_epochs={self.head_epochs} must be at least 1")
        if self.result is not None and self.weights is not None:
            problems.append("a saved result has its own weights: leave out either weights or the result")
        if problems:
            raise ConfigError("; ".join(problems))

    def resolved(self) -> "AdaptSettings":
        """The same settings with every default that depends on the others filled in: what a run really uses."""
        none = all(getattr(self, name) is None for name in CHOICES)
        labelled = self.importance == "auto" and self.threshold is None
        return replace(
            self,
            budget=ADAPTED if none else self.budget,
            importance=ADAPTED_IMPORTANCE if labelled else self.importance,
            epochs=ADAPTING.epochs if self.epochs is None else self.epochs,
            lr=ADAPTING.lr if self.lr is None else self.lr,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the order in which the settings are documented; ``from_mapping`` reads it."""
        sections = (TaskSettings, ModelSettings, DataSettings, PlanSettings, TuneOptions, RunSettings)
        return {"result": _plain(self.result), **_sections(self, sections)}

    def to_yaml(self) -> str:
        """A YAML file that repeats the run."""
        return _yaml("adapt", self.to_dict())

    def to_command(self) -> str:
        """The command line that repeats the run: a flag for each setting that is not its default.

        >>> AdaptSettings(result=Path("half"), data="imagefolder:photos").to_command()
        'secateur adapt half --data imagefolder:photos'
        """
        default = AdaptSettings().resolved().to_dict()
        return _command("adapt", self.resolved().to_dict(), default, operand="result")


TrainingSettings = PruneSettings | TuneSettings
"""Settings of any run that trains a network on data."""


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
class ReplayRunSettings(Settings):
    """Where and with what.

    Args:
        out: directory for the result; it must not hold anything yet.
        seed: of everything that is random.
        device: where the network runs: cpu, cuda, cuda:1, mps.
    """

    out: Path = Path("secateur-replayed")
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class ReplaySettings(ReplayRunSettings, ReplayOptions, ReplayDataSettings, RetrainedSettings):
    """All settings of ``secateur replay``; each is described at the class that it comes from.

    Args:
        plan: a plan.json, or a saved result.

    Raises:
        ConfigError: settings that contradict each other or lie out of range; all of them at once.
    """

    plan: Path = RunSettings.out

    def __post_init__(self) -> None:
        problems = list(_problems_of_data(self))
        if self.weights is None:
            problems.append("give the new weights of the dense network: --weights new.safetensors")
        if self.data == "none" and self.compensate not in ("auto", "none"):
            problems.append(f"compensate={self.compensate} needs data: name it with --data")
        if problems:
            raise ConfigError("; ".join(problems))

    def network(self, build: "Mapping[str, Any] | None", *, old: bool = False) -> ModelSettings:
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
        names = (*(item.name for item in fields(DataSettings)), "seed", "device")
        return PruneSettings(model=self.model or EXAMPLE_MODEL, **{name: getattr(self, name) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the order in which the settings are documented; ``from_mapping`` reads it."""
        sections = (RetrainedSettings, ReplayDataSettings, ReplayOptions, ReplayRunSettings)
        return {"plan": str(self.plan), **_sections(self, sections)}

    def to_yaml(self) -> str:
        """A YAML file that repeats the run."""
        return _yaml("replay", self.to_dict())

    def to_command(self) -> str:
        """The command line that repeats the run: a flag for each setting that is not its default.

        >>> ReplaySettings(plan=Path("half"), weights=Path("new.pt"), data="digits").to_command()
        'secateur replay half --weights new.pt --data digits'
        """
        default = ReplaySettings(weights=Path()).to_dict()
        return _command("replay", self.to_dict(), default, operand="plan")


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
class PlaceSettings(Settings):
    """Where and with what.

    Args:
        out: directory for hints.json and the pictures hints.svg and hints.html; without it, nothing is written.
        seed: of everything that is random.
        device: where the network runs: cpu, cuda, cuda:1, mps.
    """

    out: Path | None = None
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class HintSettings(PlaceSettings, CheckSettings, DataSettings, ModelSettings):
    """All settings of ``secateur hints``; each is described at the class that it comes from.

    Raises:
        ConfigError: settings that lie out of range; all of them at once.
    """

    def __post_init__(self) -> None:
        least = {"units_per_axis": 3, "samples": 1, "calibration": 1}
        problems = [
            f"{name}={getattr(self, name)} must be at least {number}"
            for name, number in least.items()
            if getattr(self, name) < number
        ]
        if self.budget is not None:
            try:
                parse_budget(self.budget)
            except ConfigError as error:
                problems.append(str(error))
        if problems:
            raise ConfigError("; ".join(problems))

    def training(self) -> PruneSettings:
        """The settings of a run that gets its network in the same way."""
        names = (*(item.name for item in fields(ModelSettings) + fields(DataSettings)), "seed", "device")
        return PruneSettings(train_epochs=self.train_epochs, **{name: getattr(self, name) for name in names})


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
        calibration: training samples that the scores look at, at most.
    """

    blocks: int | None = None
    keep: float | None = None
    budget: str | None = None
    drop: tuple[str, ...] = ()
    importance: Literal["influence", "loss", "random"] = "influence"
    rescore: bool = False
    calibration: int = 1024


@dataclass(frozen=True, kw_only=True)
class ShorterSettings(Settings):
    """Where and with what.

    Args:
        out: directory for the result; it must not hold anything yet.
        seed: of everything that is random.
        device: where the network runs: cpu, cuda, cuda:1, mps.
    """

    out: Path = Path("secateur-shorter")
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class ShortenSettings(ShorterSettings, BlockSettings, DataSettings, ModelSettings):
    """All settings of ``secateur shorten``; each is described at the class that it comes from.

    Raises:
        ConfigError: settings that contradict each other or lie out of range; all of them at once.

    Example:
        >>> ShortenSettings(model="package.module:Net", blocks=2).to_command()
        'secateur shorten --model package.module:Net --blocks 2'
    """

    def __post_init__(self) -> None:
        ways = ("blocks", "keep", "budget", "drop")
        given = [name for name in ways if getattr(self, name) not in (None, ())]
        problems: list[str] = []
        if len(given) != 1:
            problems.append(
                f"{' and '.join(given) or 'nothing'} given: say which blocks go by exactly one of {', '.join(ways)}"
            )
        if self.blocks is not None and self.blocks < 1:
            problems.append(f"blocks={self.blocks} must be at least 1")
        if self.keep is not None and not 0 < self.keep < 1:
            problems.append(f"keep={self.keep} must be in (0, 1)")
        if self.calibration < 1:
            problems.append(f"calibration={self.calibration} must be at least 1")
        if self.budget is not None:
            try:
                parse_budget(self.budget)
            except ConfigError as error:
                problems.append(str(error))
        if problems:
            raise ConfigError("; ".join(problems))

    def training(self) -> PruneSettings:
        """The settings of a run that gets its network and data in the same way."""
        names = (*(item.name for item in fields(ModelSettings) + fields(DataSettings)), "seed", "device")
        return PruneSettings(train_epochs=0, **{name: getattr(self, name) for name in names})

    def to_yaml(self) -> str:
        """A YAML file that repeats the run."""
        return _yaml("shorten", _sections(self, (ModelSettings, DataSettings, BlockSettings, ShorterSettings)))

    def to_command(self) -> str:
        """The command line that repeats the run: a flag for each setting that is not its default."""
        return _command(
            "shorten", *_beside_defaults(self, (ModelSettings, DataSettings, BlockSettings, ShorterSettings))
        )


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
class DeeperSettings(ShorterSettings):
    """Where and with what; see `ShorterSettings`."""

    out: Path = Path("secateur-deeper")


@dataclass(frozen=True, kw_only=True)
class DeepenSettings(DeeperSettings, InsertSettings, DataSettings, ModelSettings):
    """All settings of ``secateur deepen``; each is described at the class that it comes from.

    Args:
        input: shapes of example inputs; without them, they come from the data.

    Raises:
        ConfigError: nothing is to come in.
    """

    input: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.after:
            raise ConfigError("after names no module: say what something is to come after, such as layer3.2")
        if self.times < 1:
            raise ConfigError(f"times={self.times} must be at least 1")

    def to_yaml(self) -> str:
        """A YAML file that repeats the run."""
        values = _sections(self, (ModelSettings, DataSettings, InsertSettings, DeeperSettings))
        return _yaml("deepen", {**values, "input": list(self.input)})

    def to_command(self) -> str:
        """The command line that repeats the run: a flag for each setting that is not its default.

        >>> DeepenSettings(after=("fc1",), times=2).to_command()
        'secateur deepen --after fc1 --times 2'
        """
        values, default = _beside_defaults(self, (ModelSettings, DataSettings, InsertSettings, DeeperSettings))
        return _command("deepen", {**values, "input": list(self.input)}, {**default, "input": []})


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


def parse_limits(name: str, text: str) -> dict[str, Any]:
    """Numbers by pattern, from text: whole ones from 1, or for ``max_share`` shares in (0, 1].

    Raises:
        ConfigError: it has another form.

    Example:
        >>> parse_limits("multiple_of", "hidden=64, layer1.*=8"), parse_limits("max_share", "heads=0.5")
        ({'hidden': 64, 'layer1.*': 8}, {'heads': 0.5})
    """
    found: dict[str, Any] = {}
    for part in text.split(","):
        pattern, equals, number = (piece.strip() for piece in part.rpartition("="))
        value = parse_scalar(number)
        if not pattern or not equals or not _within(name, value):
            raise ConfigError(
                f"{name} {text!r}: {part.strip()!r} should be a pattern, = and {LIMITS[name][0]}: {LIMITS[name][1]}"
                f"{'. Or give auto alone' if name == 'multiple_of' else ''}"
            )
        found[pattern] = value
    return found


def _within(name: str, value: Any) -> bool:
    """Whether a value is one that this limit may have."""
    if name == "max_share":
        return type(value) in (int, float) and 0 < value <= 1
    return type(value) is int and value >= 1


def _limit(name: str, value: Any) -> Any:
    """A limit as `plan` takes it."""
    if not isinstance(value, str) or (name == "multiple_of" and value == "auto"):
        return value
    return parse_limits(name, value)


def _problems(settings: PruneSettings) -> Iterable[str]:
    given = [f"{name}={getattr(settings, name)}" for name in CHOICES if getattr(settings, name) is not None]
    if len(given) > 1:
        yield (f"{' and '.join(given)} given together: each says by itself what goes; give one of {', '.join(CHOICES)}")
    if settings.budget is not None:
        try:
            parse_budget(settings.budget)
        except ConfigError as error:
            yield str(error)
    for name, (wanted, _) in LIMITS.items():
        try:
            value = _limit(name, getattr(settings, name))
        except ConfigError as error:
            yield str(error)
            continue
        if not isinstance(value, Mapping | str) and not _within(name, value):
            yield f"{name}={value} must be {wanted}"
    if isinstance(settings.train_epochs, int) and settings.train_epochs < 0:
        yield f"train_epochs={settings.train_epochs} must be at least 0"
    if not settings.train_lr > 0:
        yield f"train_lr={settings.train_lr} must be above 0"
    yield from _training_problems(settings)
    yield from _gradual_problems(settings)
    if settings.threshold is not None and not 0 < settings.threshold < math.inf:
        yield f"threshold={settings.threshold} must be above 0"
    for name in ("max_drop", "max_loss_increase"):
        value = getattr(settings, name)
        if value is not None and not 0 <= value < math.inf:
            yield f"{name}={value} must be at least 0"
    if settings.keep is not None and not 0 < settings.keep <= 1:
        yield f"keep={settings.keep} must be in (0, 1]"


def _gradual_problems(settings: PruneSettings) -> Iterable[str]:
    if settings.schedule == "none":
        for name, nothing in (("gradual", "cut"), ("rewind", "none")):
            if getattr(settings, name) != nothing:
                yield f"{name}={getattr(settings, name)} is for pruning in steps: give schedule=cubic, too"
        return
    if settings.budget is None:
        given = [f"{name}={getattr(settings, name)}" for name in CHOICES if getattr(settings, name) is not None]
        instead = f" instead of {' and '.join(given)}" if given else ""
        others = [name for name in CHOICES if name != "budget"]
        yield (
            f"schedule={settings.schedule} leads to a budget, step by step: give budget=macs=0.5, say,{instead} with "
            f"it; {', '.join(others[:-1])} and {others[-1]} have no steps in between"
        )
    for name in ("steps", "step_epochs"):
        if getattr(settings, name) < 1:
            yield f"{name}={getattr(settings, name)} must be at least 1"
    if not 0 <= settings.rewind_at < 1:
        yield f"rewind_at={settings.rewind_at} must be in [0, 1)"
    if settings.rewind != "none" and settings.gradual != "cut":
        yield f"rewind={settings.rewind} begins again after each surgery, so it goes with gradual=cut"
    if settings.rewind != "none" and not settings.dense_epochs:
        yield (
            f"rewind={settings.rewind} goes back to the dense network's training in this run, which has none: give "
            "train_epochs"
        )
    if settings.compensate not in ("auto", "none") and (settings.gradual == "soft" or settings.rewind == "weights"):
        why = "gradual=soft" if settings.gradual == "soft" else "rewind=weights"
        yield f"compensate={settings.compensate} has nothing to make up for with {why}: leave it out"


def _problems_of_data(settings: DataSettings) -> Iterable[str]:
    for name in ("batch_size", "image_size"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            yield f"{name}={value} must be at least 1"


def _training_problems(settings: "TrainingSettings") -> Iterable[str]:
    yield from _problems_of_data(settings)
    ranges: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
        ("epochs", "at least 0", lambda value: value >= 0),
        ("lr", "above 0, auto or search", lambda value: value in ("auto", "search") or value > 0),
        ("search_seconds", "above 0", lambda value: value > 0),
        ("distill", "in [0, 1]", lambda value: 0 <= value <= 1),
        ("weight_decay", "at least 0", lambda value: value >= 0),
        ("warmup", "in [0, 1)", lambda value: 0 <= value < 1),
        ("clip", "above 0", lambda value: value > 0),
        ("accumulate", "at least 1", lambda value: value >= 1),
        ("ema", "in (0, 1)", lambda value: 0 < value < 1),
        ("patience", "at least 1", lambda value: value >= 1),
    )
    for name, wanted, fits in ranges:
        value = getattr(settings, name)
        if value is not None and not fits(value):
            yield f"{name}={value} must be {wanted}"
    if isinstance(settings, TuneSettings) and settings.epochs == 0:
        yield "epochs=0 leaves nothing to do"


def _command(name: str, values: Mapping[str, Any], default: Mapping[str, Any], *, operand: str = "") -> str:
    """The command line of a run: a flag for each setting that is not its default.

    Args:
        name: of the command.
        values, default: plain data, by the names of the settings.
        operand: the setting that stands before the flags, without one of its own; left out where it is None.
    """
    words = ["secateur", name, *([str(values[operand])] if operand and values[operand] is not None else [])]
    for key, value in values.items():
        if value != default[key] and key != operand:
            words += _flags(f"--{key.replace('_', '-')}", value)
    return shlex.join(words)


def _beside_defaults(settings: Settings, sections: Sequence[type[Settings]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings as plain data, section after section, and the defaults of these sections."""
    default = {item.name: _plain(getattr(d, item.name)) for d in (s() for s in sections) for item in fields(d)}
    return _sections(settings, sections), default


def _sections(settings: Settings, sections: Iterable[type[Settings]]) -> dict[str, Any]:
    """Settings as plain data, section after section."""
    return {item.name: _plain(getattr(settings, item.name)) for section in sections for item in fields(section)}


def _yaml(command: str, values: Mapping[str, Any]) -> str:
    header = (
        f"# Settings of a run of secateur. Repeat it with: secateur {command} --config THIS_FILE --out NEW_DIRECTORY\n"
    )
    return header + yaml_module().safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=None)


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
