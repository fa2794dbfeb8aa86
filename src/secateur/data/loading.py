"""Data by name: the embedded digits, a folder of images, or whatever a function of the user's returns."""

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from secateur.errors import DataError
from secateur.inputs import split_batch

SPECS = "'digits', 'imagefolder:PATH', or 'package.module:function' that returns loaders"
ALIASES = {"val": "validation", "valid": "validation", "eval": "validation"}


@dataclass(frozen=True, kw_only=True)
class Data:
    """Batches to train on, to choose by, and to test on once all choices are made.

    Args:
        train: batches, iterable again and again.
        validation: batches that choices are made by, such as which epoch to keep; None where there are none.
        test: batches that no choice has seen.
        classes: how many classes the labels name, None where unknown.
        description: one line for people.
    """

    train: Iterable[Any]
    validation: Iterable[Any] | None
    test: Iterable[Any]
    classes: int | None = None
    description: str = ""

    def example(self, batch: int = 1) -> tuple[Any, ...] | dict[str, Any]:
        """Inputs of the first samples, as arguments for a model: a tuple, or a dict of keyword inputs.

        Args:
            batch: how many samples, at least 1.

        Raises:
            DataError: there is no batch, or none as large.
        """
        first = next(iter(self.validation if self.validation is not None else self.train), None)
        if first is None:
            raise DataError(f"no example input: the data ({self.description or 'no description'}) holds no batch")
        args, kwargs, _ = split_batch(first)
        sizes = [value.shape[0] for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()]
        if not sizes or sizes[0] < batch:
            raise DataError(f"asked for {batch} example samples, but the first batch holds {sizes[0] if sizes else 0}")
        if kwargs:
            return {name: _head(value, sizes[0], batch) for name, value in kwargs.items()}
        return tuple(_head(value, sizes[0], batch) for value in args)


def _head(value: Any, size: int, batch: int) -> Any:
    """The first samples of a tensor that has one entry a sample; anything else as it is."""
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == size:
        return value[:batch]
    return value


def load_data(spec: str, *, batch_size: int = 64, seed: int = 0, image_size: int | None = None, **kwargs: Any) -> Data:
    """Data by name.

    Args:
        spec: ``"digits"``; ``"imagefolder:PATH"``, a folder with ``train`` and ``val`` (and ``test``), or with one
            folder a class; or ``"package.module:function"``, which returns a `Data`, a mapping with ``train``,
            ``test`` and maybe ``validation``, or a tuple ``(train, test)`` or ``(train, validation, test)``.
        batch_size: samples in a batch; a function of the user's gets it if it has such a parameter.
        seed: of the order of training batches; passed on in the same way.
        image_size: side of the square images in pixels, for image folders; passed on in the same way. None is 224.
        **kwargs: passed to a function of the user's.

    Returns:
        Batches to train on, to choose by and to test on.

    Raises:
        DataError: the data can't be found, or is not what its kind asks for.
        MissingExtra: reading it needs a package that is not installed.

    Example:
        >>> data = load_data("digits", batch_size=32)
        >>> data.example()[0].shape
        torch.Size([1, 1, 10, 10])
    """
    if batch_size < 1:
        raise DataError(f"batch_size={batch_size}: a batch needs at least 1 sample")
    kind, _, rest = spec.partition(":")
    if kind in ("digits", "imagefolder") and kwargs:
        raise DataError(f"the data {kind!r} takes no option {', '.join(map(repr, kwargs))}")
    if spec == "digits":
        from secateur.data.digits import digits

        return digits(batch_size=batch_size, seed=seed)
    if kind == "imagefolder" and rest:
        from secateur.data.imagefolder import image_folder

        return image_folder(Path(rest), batch_size=batch_size, seed=seed, image_size=image_size or 224)
    if re.fullmatch(r"[\w.]+:[\w.]+", spec):
        offered = {"batch_size": batch_size, "seed": seed, "image_size": image_size}
        return _as_data(_call(spec, offered, kwargs), spec)
    raise DataError(f"unknown data {spec!r}: it is one of {SPECS}")


def _call(spec: str, offered: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    """What the user's function returns, given those of our settings that it has parameters for."""
    function = _import(spec)
    parameters = inspect.signature(function).parameters
    offered = {name: value for name, value in offered.items() if name in parameters and value is not None}
    try:
        inspect.signature(function).bind(**{**offered, **kwargs})
    except TypeError as error:
        raise DataError(f"{spec}{inspect.signature(function)} can't be called with {kwargs}: {error}") from error
    return function(**{**offered, **kwargs})


def _import(spec: str) -> Callable[..., Any]:
    module_name, _, path = spec.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    except ModuleNotFoundError as error:
        raise DataError(
            f"data {spec!r}: no module {error.name!r} can be imported from here. The data is one of {SPECS}"
        ) from error
    except AttributeError as error:
        raise DataError(f"data {spec!r}: {error}") from error
    if not callable(found):
        raise DataError(f"data {spec!r} names a {type(found).__name__}, but must name a function that returns loaders")
    return cast("Callable[..., Any]", found)


def _as_data(returned: Any, spec: str) -> Data:
    """The loaders that a user's function returned."""
    if isinstance(returned, Data):
        return returned
    loaders: dict[str, Any] = {}
    if isinstance(returned, Mapping):
        named = cast("Mapping[Any, Any]", returned)
        loaders = {ALIASES.get(str(name), str(name)): loader for name, loader in named.items()}
    elif isinstance(returned, tuple | list):
        items = cast("tuple[Any, ...] | list[Any]", returned)
        names = {2: ("train", "test"), 3: ("train", "validation", "test")}.get(len(items), ())
        loaders = dict(zip(names, items, strict=False))
    missing = [name for name in ("train", "test") if loaders.get(name) is None]
    if missing:
        raise DataError(
            f"{spec} returned a {type(returned).__name__}{_named(returned)}: "
            f"there is no {' and no '.join(missing)} loader in it. "
            "Return a mapping with 'train', 'test' and maybe 'validation', or a tuple (train, test) or "
            "(train, validation, test). The test loader must be one that no choice has seen, so not the validation one."
        )
    for name in ("train", "validation", "test"):
        _check_loader(loaders.get(name), name, spec)
    return Data(
        train=loaders["train"],
        validation=loaders.get("validation"),
        test=loaders["test"],
        classes=loaders.get("classes"),
        description=loaders.get("description", spec),
    )


def _named(returned: Any) -> str:
    """How long a sequence is, or which names a mapping has."""
    if isinstance(returned, Mapping):
        return f" with {', '.join(map(repr, cast('Mapping[Any, Any]', returned))) or 'nothing'}"
    return f" of {len(returned)}" if isinstance(returned, tuple | list) else ""


def _check_loader(loader: Any, name: str, spec: str) -> None:
    if loader is None:
        return
    if not isinstance(loader, Iterable):
        raise DataError(f"the {name} loader of {spec} is a {type(loader).__name__}: it must be an iterable of batches")
    if iter(cast("Iterable[Any]", loader)) is loader:
        raise DataError(
            f"the {name} loader of {spec} is a {type(loader).__name__}, which can be iterated only once: "
            "return a list or a DataLoader"
        )
    if isinstance(loader, Sized) and len(loader) == 0:
        raise DataError(f"the {name} loader of {spec} holds no batch")
