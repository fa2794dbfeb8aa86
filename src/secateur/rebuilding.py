"""Models whose sizes stand in a config rather than in code, and which make their smaller selves: those of Keras."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

if TYPE_CHECKING:
    from secateur.planning.plan import Plan


@runtime_checkable
class Rebuilds(Protocol):
    """A module that is built anew when it is pruned. No size in its code keeps an axis whole: the proof tells whether
    what was built computes what it should.
    """

    def rebuilt(self, tensors: Mapping[str, Tensor], plan: "Plan") -> nn.Module:
        """The module with other tensors, those that the plan changes, by name. The one called stays as it is.

        Raises:
            SurgeryError: its config can't say these sizes.
        """
        ...

    def plain(self) -> Any:
        """What a user gets who gave a model of another kind: a Keras model with the module's present values."""
        ...


def is_keras(model: Any) -> bool:
    """Whether it is a model or layer of Keras 3, on whatever backend; Keras is not imported for that."""
    return any(kind.__module__.startswith("keras.") and kind.__name__ == "Layer" for kind in type(model).__mro__)


def as_module(model: Any) -> Any:
    """A model as the torch module that we work on: a Keras model as its `secateur.keras.KerasModule`, always the same.

    Raises:
        ModelError: a Keras model under another backend than torch, or one that was not built.
    """
    if not is_keras(model):
        return model
    from secateur.keras.adapter import KerasModule

    return KerasModule.of(model)


def handed_out(module: nn.Module) -> nn.Module:
    """What a user gets who gave a Keras model: a plain Keras model; other modules as they are."""
    return module.plain() if isinstance(module, Rebuilds) else module
