"""How a model is built again from its config: ``type(model)(config)``, with other values in it."""

import copy
import logging
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur import objects
from secateur.errors import SecateurError
from secateur.modules import named_tensors
from secateur.origins import Attribute
from secateur.surgery.apply import set_attributes

Shapes = dict[str, tuple[int, ...]]
FILLING = ("normal_", "uniform_", "trunc_normal_", "zero_", "zeros_", "ones_", "fill_", "constant_", "copy_")


class Unbuildable(SecateurError):
    """The constructor, or the config itself, refuses the values."""


@dataclass(frozen=True)
class Blueprint:
    """A model class, and the config that its constructor takes.

    Attributes:
        cls: the class.
        attribute: where the model keeps the config.
        config: a copy of it, as it was when the model was built.
        stored: whether the config is taken through its own ``to_dict`` and ``from_dict``, as loading does.
    """

    cls: type[nn.Module]
    attribute: str
    config: Any
    stored: bool = True

    @staticmethod
    def of(model: nn.Module) -> "Blueprint | None":
        """The blueprint of a model; None where nothing that hangs on it builds a model of the same shapes."""
        for name, value in vars(model).items():
            for stored in (True, False) if not name.startswith("_") and objects.is_plain(value) else ():
                found = Blueprint(type(model), name, value, stored)
                try:
                    if shapes(found.build({})) == shapes(model):
                        return replace(found, config=copy.deepcopy(value))
                except Unbuildable:
                    continue
        return None

    def build(self, values: Mapping[Attribute, int], watched: set[str] | None = None) -> nn.Module:
        """A model from the config with other values; no parameter of it has memory.

        Args:
            values: sizes by their site on the model.
            watched: gathers the names that are read from the config while nothing is set there.

        Raises:
            Unbuildable: the config or the constructor refuses them.
        """
        try:
            with silence(), torch.random.fork_rng(devices=[]), Unfilled():
                config = as_loaded(self.changed(values)) if self.stored else self.changed(values)
                if watched is not None:
                    watch(config, watched)
                built: Any = self.cls(config)
        except Exception as error:
            raise Unbuildable(f"{type(error).__name__}: {error}") from error
        return built

    def changed(self, values: Mapping[Attribute, int]) -> Any:
        """A copy of the config with other values."""
        holder = nn.Module()
        holder.__dict__[self.attribute] = copy.deepcopy(self.config)
        set_attributes(holder, list(values.items()))
        return holder.__dict__[self.attribute]

    def read(self, model: nn.Module) -> "Blueprint":
        """The blueprint with the config that a model has now."""
        return replace(self, config=copy.deepcopy(getattr(model, self.attribute)))

    def sites(self, least: int = 2) -> Iterator[Attribute]:
        """Every int of at least ``least`` on the config, also those in lists."""
        for path, held in objects.walk(self.config, self.attribute):
            for step, value in objects.items(held).items():
                if type(value) is int and value >= least:
                    yield Attribute("", f"{path}.{step}", None, value)
                elif isinstance(value, list | tuple) and all(type(v) is int for v in cast("list[Any]", value)):
                    many = cast("Sequence[int]", value)
                    yield from (Attribute("", f"{path}.{step}", k, v) for k, v in enumerate(many) if v >= least)


def shapes(model: nn.Module) -> Shapes:
    """Of every parameter and buffer."""
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}


def as_loaded(config: Any) -> Any:
    """The config as it comes back from its own saving: checked, and without what it doesn't store."""
    to_dict, from_dict = getattr(config, "to_dict", None), getattr(type(config), "from_dict", None)
    return from_dict(copy.deepcopy(to_dict())) if callable(to_dict) and callable(from_dict) else config


class Unfilled(TorchFunctionMode):
    """Memory that would be filled later is not taken: parameters have shapes only, while tables are computed."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            return func(*args, **{**kwargs, "device": "meta"})
        if getattr(func, "__name__", "") in FILLING:
            target = args[0] if args else kwargs.get("tensor")
            if isinstance(target, Tensor) and target.is_meta:
                return target
        return func(*args, **kwargs)


def watch(config: Any, names: set[str]) -> None:
    """Make a config note the names that are read from it while it has None, or nothing, under them."""
    cls: Any = type(config)

    def read(self: Any, name: str) -> Any:
        try:
            value = super(watching, self).__getattribute__(name)
        except AttributeError:
            names.add(name)
            raise
        if value is None:
            names.add(name)
        return value

    watching: Any = type(cls.__name__, (cls,), {"__getattribute__": read, "__module__": cls.__module__})
    object.__setattr__(config, "__class__", watching)


@contextmanager
def silence() -> Generator[None]:
    """Without warnings and messages of values that are only tried."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def quietly() -> Generator[None]:
    """Without gradients, and with the RNG as it was afterwards."""
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield
