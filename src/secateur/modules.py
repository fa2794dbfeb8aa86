"""The modules of a model in one pass: torch's own iterators nest one generator in another for each level of modules."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import cached_property

from torch import Tensor, nn

from secateur.errors import ModelError, SecateurError

ACCELERATED = "secateur.accelerating.kernels"  # where the layers of an accelerated model are defined


class Walk:
    """One walk through a model, for work that looks at its modules several times while they stay in their places.

    Attributes:
        model: where it began.
        places: every place of a module, what ``model.named_modules(remove_duplicate=False)`` gives, in the same order.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.places: list[tuple[str, nn.Module]] = []
        _visit(model, "", self.places)

    @cached_property
    def named(self) -> list[tuple[str, nn.Module]]:
        """Every module once, at its first place: what ``model.named_modules()`` gives."""
        first: dict[int, tuple[str, nn.Module]] = {}
        for place in self.places:
            first.setdefault(id(place[1]), place)
        return list(first.values())

    @cached_property
    def modules(self) -> list[nn.Module]:
        """What ``model.modules()`` gives."""
        return [module for _, module in self.named]

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters by qualified name; tied ones under each of their names."""
        return {
            f"{path}.{name}" if path else name: tensor
            for path, module in self.places
            if module._parameters
            for name, tensor in module._parameters.items()
            if tensor is not None
        }

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All parameters, then all buffers, by qualified name; tied ones under each of their names."""
        return self.parameters | {
            f"{path}.{name}" if path else name: tensor
            for path, module in self.places
            if module._buffers
            for name, tensor in module._buffers.items()
            if tensor is not None
        }


def _visit(module: nn.Module, path: str, places: list[tuple[str, nn.Module]]) -> None:
    places.append((path, module))
    if module._modules:
        start = f"{path}." if path else ""
        for name, part in module._modules.items():
            if part is not None:
                _visit(part, start + name, places)


def named_parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """What ``model.named_modules()`` gives, in the same order."""
    return Walk(model).named


def parts(model: nn.Module) -> list[nn.Module]:
    """What ``model.modules()`` gives, in the same order."""
    return Walk(model).modules


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by qualified name, in the model's own order; tied ones under each of their names."""
    return Walk(model).tensors


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by qualified name; tied ones under each of their names."""
    return Walk(model).parameters


def check_original(walk: Walk, error: type[SecateurError] = ModelError) -> None:
    """Refuse what `secateur.accelerate` made: its weights are in layouts of one machine, and are no parameters.

    Raises:
        SecateurError: the error given, with what to pass in its place.
    """
    for path, module in walk.named:
        if type(module).__module__ == ACCELERATED:
            raise error(
                f"{path or 'the model'} is a {type(module).__name__}, so this is the copy that sc.accelerate made for "
                "inference here: save, measure, export or prune the original instead."
            )


@contextmanager
def kept_modes(*models: nn.Module | None) -> Generator[None]:
    """Put every module back into the mode, training or not, that it was in."""
    modes = [(module, module.training) for model in models if model is not None for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
