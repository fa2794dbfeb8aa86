"""Example inputs from a few words, and saved results as networks."""

import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.artifacts import load, read_inputs, read_record
from secateur.config import DataSettings, ModelSettings
from secateur.data import load_data
from secateur.errors import ArtifactError, ConfigError
from secateur.models import build_model

_SHAPE = re.compile(r"(\d+(?:[x,]\d+)*)(?::(\w+))?")


def example_inputs(shapes: tuple[str, ...], data: DataSettings) -> Any:
    """Inputs of the given shapes, filled at random from a fixed seed; without shapes, the first sample of the data."""
    if not shapes:
        how: dict[str, Any] = {"batch_size": data.batch_size, "image_size": data.image_size, "augment": data.augment}
        return load_data(data.data, **{**how, **data.data_args}).example()
    generator = torch.Generator().manual_seed(0)
    return tuple(random_input(shape, generator) for shape in shapes)


def random_input(text: str, generator: torch.Generator) -> Tensor:
    """A tensor of the shape and type that a text like ``1x3x224x224`` or ``1x128:int64`` names.

    Floating-point values are normal; whole numbers and truth values are 0 or 1, which any vocabulary has.

    >>> random_input("2x3:int64", torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3])
    """
    found = _SHAPE.fullmatch(text.strip())
    dtype: Any = getattr(torch, found.group(2) or "float32", None) if found else None
    if found is None or not isinstance(dtype, torch.dtype):
        raise ConfigError(
            f"input {text!r} is no shape: write 1x3x224x224, and for other types than float32 add one: 1x128:int64"
        )
    shape = [int(size) for size in re.split("[x,]", found.group(1))]
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def load_saved(path: Path, model: ModelSettings | None, *, trust: bool) -> nn.Module:
    """The network of a saved result; its class comes from ``model`` where that is given.

    Raises:
        ArtifactError: the result is damaged, or its code would have to be imported without ``trust``.
    """
    record = read_record(path)
    build: Any = record["build"]
    known = build is not None and build["callable"].partition(":")[0] in sys.modules
    if model is None and record["graph"] is None and not (trust or known):
        how = f"imports {build['callable']}: allow that with --trust, or" if build else "needs it:"
        raise ArtifactError(
            f"{path} keeps the network's own class, {record['class']}, and loading it {how} name the original "
            f"network with --model (and --model-args)"
        )
    return load(path, model=build_model(model) if model is not None else None, trust=trust)


def saved_inputs(path: Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example inputs that a result was saved with, positional and keyword."""
    return read_inputs(path)
