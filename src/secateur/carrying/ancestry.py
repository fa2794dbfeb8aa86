"""The dense model and its parameters, by name, without keeping them alive."""

import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from secateur.modules import named_parameters


class Ancestry:
    """Weak references to parameters: an optimizer that holds them keeps them alive, a result does not.

    A copy of a result in another process has none: what was carried to a file belongs to no optimizer.

    Args:
        parameters: by qualified name.
        model: that has them.
    """

    def __init__(self, parameters: Mapping[str, Tensor] | None = None, model: nn.Module | None = None) -> None:
        self._held = {name: weakref.ref(tensor) for name, tensor in (parameters or {}).items()}
        self._model = None if model is None else weakref.ref(model)

    @staticmethod
    def of(model: nn.Module) -> "Ancestry":
        """The parameters of a model, tied ones under each of their names."""
        return Ancestry(named_parameters(model), model)

    @property
    def model(self) -> nn.Module | None:
        """The dense model, if it is still alive."""
        return None if self._model is None else self._model()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Those that are still alive."""
        return {name: tensor for name, held in self._held.items() if (tensor := held()) is not None}

    def __reduce__(self) -> Any:
        return Ancestry, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Ancestry":
        return self
