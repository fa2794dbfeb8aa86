"""Data by name: embedded digits, images, arrays and tokens on the disk, or whatever a user's function returns."""

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from secateur.data.augmenting import checked_augmentation
from secateur.data.batches import Batches, Source
from secateur.data.splitting import Part, split_name
from secateur.errors import DataError
from secateur.inputs import known_length, split_batch

SPECS = "'digits', 'imagefolder:PATH', 'npz:PATH', 'hf:PATH', or 'package.module:function' that returns loaders"
OPTIONS = {"digits": (), "imagefolder": (), "npz": (), "hf": ("image_column", "label_column")}
"""Keyword arguments that our own kinds of data take."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Batches to train on, to choose by, and to test on once all choices are made.

    Args:
        train: batches, iterable again and again.
        validation: batches that choices are made by, such as which epoch to keep; None where there are none.
        test: batches that no choice has seen.
        classes: how many classes the labels name, None where unknown.
        description: one line for people.
        scaled: mean and deviation, a number each or one for each channel, that pixels in [0, 1] were scaled with; None
            where inputs are pixels, or nobody knows.
        warnings: what is odd about the data, though it can be used, and what to do about it; a sentence each.
    """

    train: Iterable[Any]
    validation: Iterable[Any] | None
    test: Iterable[Any]
    classes: int | None = None
    description: str = ""
    warnings: tuple[str, ...] = ()
    scaled: tuple[Any, Any] | None = None

    @property
    def calibration(self) -> Iterable[Any]:
        """Training samples to look at: without augmentation, as far as they are read by batches of our own."""
        return self.train.plain() if isinstance(self.train, Batches) else self.train

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
        return head(first, batch)


def head(batch: Any, count: int) -> tuple[Any, ...] | dict[str, Any]:
    """Inputs of the first samples of a batch, as arguments for a model: a tuple, or a dict of keyword inputs.

    Raises:
        DataError: the batch is smaller, or no batch at all.
    """
    try:
        args, kwargs, _ = split_batch(batch)
    except TypeError as error:
        raise DataError(
            f"{error}. Let the loader give pairs, with inputs that are several as a tuple or mapping"
        ) from error
    sizes = [value.shape[0] for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()]
    if not sizes or sizes[0] < count:
        raise DataError(f"asked for {count} example samples, but the first batch holds {sizes[0] if sizes else 0}")
    if kwargs:
        return {name: _head(value, sizes[0], count) for name, value in kwargs.items()}
    return tuple(_head(value, sizes[0], count) for value in args)


def of_parts(
    parts: Mapping[str, Part],
    source: Callable[[str, bool], Source],
    *,
    batch_size: int,
    seed: int,
    classes: int | None,
    description: str,
    scaled: tuple[Any, Any] | None = None,
) -> Data:
    """Data from what `hold_out` gave.

    Args:
        parts: which samples train, validation and test are.
        source: from the name of a split that the data comes with, and whether it is to train on, to its samples.
        batch_size: samples in a batch.
        seed: of the order and the augmentation of training samples.
        classes: how many classes the labels name, None where unknown.
        description: a few words; the sizes of the parts are added.
        scaled: as for `Data`.
    """

    def batches(name: str) -> Batches:
        part, training = parts[name], name == "train"
        made = source(part.split, training)
        return Batches(made, part.positions, batch_size=batch_size, shuffle=training, seed=seed)

    counts = ", ".join(f"{len(part.positions)} {name}" for name, part in parts.items())
    return Data(
        train=batches("train"),
        validation=batches("validation"),
        test=batches("test"),
        classes=classes,
        description=f"{description}: {counts}",
        scaled=scaled,
    )


def _head(value: Any, size: int, batch: int) -> Any:
    """The first samples of a tensor that has one entry a sample; anything else as it is."""
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == size:
        return value[:batch]
    return value


def load_data(
    spec: str,
    *,
    batch_size: int = 64,
    seed: int = 0,
    image_size: int | None = None,
    augment: str | None = None,
    **kwargs: Any,
) -> Data:
    """Data by name.

    Args:
        spec: ``"digits"``; ``"imagefolder:PATH"``, a folder with ``train`` and ``val`` (and ``test``), or with one
            folder a class; ``"npz:PATH"``, a file with arrays x_train, y_train, x_test, y_test; ``"hf:PATH"``, a data
            set of Hugging Face's ``datasets`` on the disk; or ``"package.module:function"``, which returns a `Data`, a
            mapping with ``train``, ``test`` and maybe ``validation``, or a tuple ``(train, test)`` or
            ``(train, validation, test)``.
        batch_size: samples in a batch; a function of the user's gets it if it has such a parameter.
        seed: of the order of training batches and their augmentation; passed on in the same way.
        image_size: side of the square images in pixels, for images in files; passed on in the same way. None is 224.
        augment: how training images are changed at random: "standard" (a random part of the image, mirrored half of the
            time), "flip" (mirrored only) or "none"; passed on in the same way. None is "flip" for images in files,
            "none" for arrays; digits are shifted by up to a pixel, which "none" stops.
        **kwargs: passed to a function of the user's. ``hf:`` takes ``image_column`` and ``label_column``.

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
    if spec == "digits" or (rest and kind in OPTIONS and kind != "digits"):
        strange = [name for name in kwargs if name not in OPTIONS[kind]]
        if strange:
            raise DataError(f"the data {kind!r} takes no option {', '.join(map(repr, strange))}")
        return _ours(kind, Path(rest), batch_size, seed, image_size, augment, kwargs)
    if re.fullmatch(r"[\w.]+:[\w.]+", spec):
        offered = {"batch_size": batch_size, "seed": seed, "image_size": image_size, "augment": augment}
        return _as_data(_call(spec, offered, kwargs), spec)
    raise DataError(f"unknown data {spec!r}: it is one of {SPECS}")


def _ours(
    kind: str,
    path: Path,
    batch_size: int,
    seed: int,
    image_size: int | None,
    augment: str | None,
    columns: Mapping[str, Any],
) -> Data:
    """Data of one of our own kinds, whose module is imported here."""
    if kind in ("digits", "npz") and image_size is not None:
        raise DataError(
            f"image_size={image_size} is for images in files; those of {kind!r} keep the size that they have"
        )
    if kind == "digits":
        from secateur.data.digits import digits

        return digits(batch_size=batch_size, seed=seed, augment=checked_augmentation(augment, "standard"))
    if kind == "imagefolder":
        from secateur.data.imagefolder import image_folder

        how = checked_augmentation(augment, "flip")
        size = 224 if image_size is None else image_size
        return image_folder(path, batch_size=batch_size, seed=seed, image_size=size, augment=how)
    if kind == "npz":
        from secateur.data.npz import npz

        return npz(path, batch_size=batch_size, seed=seed, augment=checked_augmentation(augment, "none"))
    from secateur.data.huggingface import Options, hugging_face

    how = None if augment is None else checked_augmentation(augment, "flip")
    return hugging_face(path, Options(batch_size=batch_size, seed=seed, image_size=image_size, augment=how), **columns)


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
        loaders = {split_name(str(name)) or str(name): loader for name, loader in named.items()}
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
    if known_length(loader) == 0:
        raise DataError(f"the {name} loader of {spec} holds no batch")
