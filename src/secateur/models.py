"""Networks by name: a callable anywhere that can be imported, and the weights to load into it."""

import difflib
import importlib
import inspect
import os
import pickle
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.config import EXAMPLE_MODEL, ModelSettings
from secateur.errors import ModelError

EXAMPLE_BUILD = "secateur.examples:SimpleNet"


def build_model(settings: ModelSettings) -> nn.Module:
    """Build the network that the settings name, load its weights, put it in eval mode.

    Raises:
        ModelError: it can't be imported, doesn't accept the arguments, is no torch module, or the weights don't fit it.
    """
    if is_keras_file(settings.model):
        return _keras_model(settings)
    spec = build_spec(settings)
    factory = import_callable(spec)
    _check_arguments(factory, settings.model_args, spec)
    try:
        model: Any = factory(**settings.model_args)
    except Exception as error:
        raise ModelError(
            f"building the model {_called(spec, settings.model_args)} failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{_called(spec, settings.model_args)} gave a {type(model).__name__}; it must give a torch.nn.Module"
        )
    if settings.weights is not None:
        load_weights(model, settings.weights)
    return model.eval()


def is_keras_file(model: str) -> bool:
    """Whether the name of a network is that of a Keras model's file."""
    return model.endswith(".keras")


def _keras_model(settings: ModelSettings) -> nn.Module:
    """The Keras model in a file, as a module that takes and gives what torch's training does.

    Raises:
        ModelError: there is no such file, it can't be loaded, or weights or arguments are given for it.
    """
    if "keras" not in sys.modules:  # whatever the user's own code runs on, here it is torch
        os.environ["KERAS_BACKEND"] = "torch"
    if settings.weights is not None or settings.model_args:
        raise ModelError(f"{settings.model} holds its own weights and sizes: leave out --weights and --model-args")
    path = Path(settings.model)
    if not path.is_file():
        raise ModelError(f"there is no Keras model {settings.model!r}")
    from secateur.keras.adapter import KerasModule
    from secateur.keras.loading import load

    module = KerasModule.of(load(path))
    module.as_torch = True
    return module.eval()


def build_record(settings: ModelSettings) -> dict[str, Any] | None:
    """How a saved result builds its network again; None for a Keras model, which lies beside the result."""
    if is_keras_file(settings.model):
        return None
    return {"callable": build_spec(settings), "args": settings.model_args}


def build_spec(settings: ModelSettings) -> str:
    """The ``package.module:callable`` that builds the network."""
    return EXAMPLE_BUILD if settings.model == EXAMPLE_MODEL else settings.model


def import_callable(spec: str) -> Callable[..., Any]:
    """What ``package.module:callable`` names."""
    if not re.fullmatch(r"[\w.]+:[\w.]+", spec):
        raise ModelError(
            f"unknown model {spec!r}: it is {EXAMPLE_MODEL!r} or 'package.module:callable', such as "
            f"'torchvision.models:resnet18'"
        )
    module_name, _, path = spec.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"model {spec!r}: no module {error.name!r} can be imported from here. Is it installed, or in this "
            f"directory?"
        ) from error
    except Exception as error:
        raise ModelError(
            f"model {spec!r}: importing {module_name!r} failed: {type(error).__name__}: {error}"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, [n for n in dir(found) if callable(getattr(found, n, None))], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ModelError(f"model {spec!r}: {module_name!r} has no {name!r}{hint}")
        found = getattr(found, name)
    if not callable(found):
        raise ModelError(
            f"model {spec!r} names a {type(found).__name__}; it must name a class or function that returns a "
            f"torch.nn.Module"
        )
    return cast("Callable[..., Any]", found)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict from a safetensors file or a checkpoint; nothing is unpickled but tensors and plain data.

    Raises:
        ModelError: the file can't be read, or its tensors are not those of the model.
    """
    state = _unwrapped(_read(path))
    own = cast("dict[str, Tensor]", model.state_dict())
    problems = [
        *_listed("the file lacks", [name for name in own if name not in state]),
        *_listed("the model has no", [name for name in state if name not in own]),
        *_listed(
            "other shapes:",
            [
                f"{n} is {tuple(state[n].shape)} in the file, {tuple(own[n].shape)} in the model"
                for n in own
                if n in state and state[n].shape != own[n].shape
            ],
        ),
    ]
    if problems:
        raise ModelError(
            f"the weights in {str(path)!r} don't fit the model {type(model).__name__}: {'; '.join(problems)}. "
            f"Check --model-args"
        )
    model.load_state_dict(state)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"there is no weights file {str(path)!r}")
    try:
        if path.suffix == ".safetensors":
            from secateur.packed import read_tensors

            return read_tensors(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{str(path)!r} is no checkpoint of tensors and plain data, so it is not opened: loading it could run "
            f"code. "
            "Save model.state_dict() alone and give that"
        ) from error
    except Exception as error:
        raise ModelError(
            f"can't read the weights in {str(path)!r}: {error}. The file may be truncated or of another kind"
        ) from error


def _unwrapped(found: Any) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without the prefix that data-parallel training adds to names."""
    for key in ("state_dict", "model_state_dict", "model", "weights"):
        if isinstance(found, Mapping) and isinstance(cast("Mapping[Any, Any]", found).get(key), Mapping):
            found = cast("Mapping[Any, Any]", found)[key]
            break
    if not isinstance(found, Mapping) or not all(
        isinstance(value, Tensor) for value in cast("Mapping[Any, Any]", found).values()
    ):
        raise ModelError("the checkpoint holds no state dict (names with tensors), alone or as 'state_dict' or 'model'")
    named = cast("Mapping[str, Tensor]", found)
    prefix = "module." if named and all(name.startswith("module.") for name in named) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in named.items()}


def _check_arguments(factory: Callable[..., Any], arguments: Mapping[str, Any], spec: str) -> None:
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise ModelError(
            f"{spec} can't be called with {dict(arguments) or 'no arguments'}: {error}. Give its arguments with "
            f"--model-args.NAME VALUE"
        ) from error
    except ValueError:
        return  # a callable in C without a signature


def _called(spec: str, arguments: Mapping[str, Any]) -> str:
    return f"{spec}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


def _listed(what: str, names: list[str]) -> list[str]:
    return [f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"] if names else []
