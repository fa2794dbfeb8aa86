"""A Keras model as a plain torch module, so that all that secateur does to torch modules can be done to it.

The adapter holds the model's variables as parameters and buffers under their Keras paths, and runs the model statelessly
on whatever tensors it holds. So copies of it are cheap: they share the Keras model, which is never changed.
"""

import copy
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.keras.backend import keras
from secateur.keras.layers import CALLED
from secateur.keras.rebuilding import rebuild
from secateur.keras.walking import operations, tensor_name, variables
from secateur.origins import SourcedInt

if TYPE_CHECKING:
    from secateur.planning.plan import Plan


KEY = "_secateur_module"  # of a Keras model: its adapter


class Called(nn.Module):
    """Sizes that a layer without weights uses when it is called, where tracing looks for them: as attributes."""


class KerasModule(nn.Module):
    """A Keras model that runs on parameters and buffers of the module's own.

    Args:
        model: a model that was built, under the torch backend. Its variables hold the parameters' memory.

    Attributes:
        keras_model: the model.

    Raises:
        ModelError: Keras runs on another backend, or the model was not built.
    """

    keras_model: Any

    @staticmethod
    def of(model: Any) -> "KerasModule":
        """The module of a Keras model, always the same one.

        Raises:
            ModelError: as for `KerasModule`.
        """
        known = vars(model).get(KEY)
        if known is None:
            known = KerasModule(model)
            object.__setattr__(model, KEY, known)
        return known

    def __init__(self, model: Any) -> None:
        super().__init__()
        keras()
        if not model.built or not model.variables:
            raise ModelError(
                f"the Keras model {model.name!r} has no weights yet: call it once on an example, or model.build(shape)"
            )
        object.__setattr__(self, "keras_model", model)  # no submodule: its variables are registered here
        trained = {id(v) for v in model.trainable_variables}
        for variable in variables(model):
            value, name = variable.value, tensor_name(variable.path)
            if isinstance(value, nn.Parameter) and id(variable) in trained:
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value.detach())
        self.sizes = nn.ModuleDict()
        for path, operation in operations(model):
            if attribute := CALLED.get(type(operation).__name__):
                self.sizes[tensor_name(path)] = held = Called()
                setattr(held, attribute, getattr(operation, attribute))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""
        model = self.keras_model
        inputs = args[0] if len(args) == 1 else list(args) if args else kwargs
        scope = keras().StatelessScope()
        for variable in variables(model):
            scope.state_mapping[id(variable)] = self._tensor(variable.path)
        with scope, self._sizes_said():
            out = model(inputs, training=self.training)
        if self.training:
            self._write(scope)
        return out

    def _tensor(self, path: str) -> Tensor:
        name = tensor_name(path)
        found = self._parameters.get(name)
        return cast(Tensor, self._buffers[name] if found is None else found)

    def _write(self, scope: Any) -> None:
        """What running in training mode changed, such as moving averages, into the buffers."""
        for variable in variables(self.keras_model):
            name, now = tensor_name(variable.path), scope.get_current_value(variable)
            buffer = self._buffers.get(name)
            if buffer is not None and now is not None and now is not buffer:
                buffer.copy_(now.detach())

    @contextmanager
    def _sizes_said(self) -> Generator[None]:
        """While the module is traced, layers use sizes that remember where they stand."""
        changed: list[tuple[Any, str, Any]] = []
        for path, operation in operations(self.keras_model) if self.sizes else ():
            name = tensor_name(path)
            if name not in self.sizes:
                continue
            attribute = CALLED[type(operation).__name__]
            said = getattr(self.sizes[name], attribute)
            if any(isinstance(size, SourcedInt) for size in (said if isinstance(said, tuple | list) else (said,))):
                changed.append((operation, attribute, getattr(operation, attribute)))
                object.__setattr__(operation, attribute, said)
        try:
            yield
        finally:
            for operation, attribute, value in changed:
                object.__setattr__(operation, attribute, value)

    def rebuilt(self, tensors: Mapping[str, Tensor], plan: "Plan") -> "KerasModule":
        """The module of a model that was built anew from its config, with the smaller sizes in it."""
        found = {path: tensors[tensor_name(path)] for path in self.paths()}
        return KerasModule.of(rebuild(self.keras_model, found, plan)).train(self.training)

    def plain(self) -> Any:
        """The Keras model with the module's present values: its own model, or a new one where the module is a copy."""
        own = vars(self.keras_model).get(KEY) is self
        tensors = {path: self._tensor(path) for path in self.paths()}
        if not own:
            return rebuild(self.keras_model, tensors, None)
        for variable in variables(self.keras_model):
            now = tensors[variable.path]
            if now.data_ptr() != variable.value.data_ptr():
                variable.assign(now.detach())
        return self.keras_model

    def paths(self) -> list[str]:
        """Keras' paths of the variables, in its order."""
        return [variable.path for variable in variables(self.keras_model)]

    def __deepcopy__(self, memo: dict[int, Any]) -> "KerasModule":
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        for name, value in vars(self).items():
            object.__setattr__(new, name, value if name == "keras_model" else copy.deepcopy(value, memo))
        return new
