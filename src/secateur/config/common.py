"""Settings that most commands share: which network, which data, where the result goes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from secateur.config.base import Settings

EXAMPLE_MODEL = "simplenet"


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """Which network.

    Args:
        model: "simplenet", the embedded example, a Keras model's file "net.keras" (the result holds "model.keras", for
            any backend), or "package.module:callable" that returns a torch module, such as
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
class PlaceSettings(Settings):
    """Where and with what.

    Args:
        out: directory for what the command writes; without it, nothing is written.
        seed: of everything that is random.
        device: where the network runs: cpu, cuda, cuda:1, mps.
    """

    out: Path | None = None
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class ResultSettings(PlaceSettings):
    """Where and with what.

    Args:
        out: directory for the result; it must not hold anything yet.
    """

    out: Path = Path("secateur-run")


@dataclass(frozen=True, kw_only=True)
class RunSettings(ResultSettings):
    """Where and with what.

    Args:
        checkpoint_every: how often training writes a checkpoint beside ``out``: a number of steps, or 30s, 5min.
    """

    checkpoint_every: str = "30s"


def data_problems(settings: DataSettings) -> Iterable[str]:
    """What is wrong with numbers of the data."""
    for name in ("batch_size", "image_size"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            yield f"{name}={value} must be at least 1"
