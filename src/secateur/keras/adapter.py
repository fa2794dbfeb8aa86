"""A Keras model as a plain torch module, so that all that secateur does to torch modules can be done to it.

The adapter holds the model's variables as parameters and buffers under their Keras paths, and runs the model
statelessly on whatever tensors it holds. So copies of it are cheap: they share the Keras model, which is never changed.
"""

import copy
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.keras.backend import keras
from secateur.keras.layers import OPAQUE, called
from secateur.keras.rebuilding import rebuild
from secateur.keras.walking import INPUT_SHAPE, input_shapes, is_model, named_variables, operations, place_name
from secateur.origins import SourcedInt

if TYPE_CHECKING:
    from secateur.planning.plan import Plan


KEY = "_secateur_module"  # of a Keras model: its adapter
SHARED = ("keras_model", "variables")  # by all copies of an adapter


class Called(nn.Module):
    """Sizes that a layer without weights uses when it is called, where tracing looks for them: as attributes."""


def channels_last(images: Tensor, wanted: Any) -> Tensor:
    """Images (B, C, H, W) as (B, H, W, C), where these are the sizes that a model wants; others as they are."""
    if images.dim() != 4 or not isinstance(wanted, tuple) or len(wanted) != 4:
        return images
    turned = images.shape[2], images.shape[3], images.shape[1]
    fits = all(want in (None, size) for want, size in zip(wanted[1:], turned, strict=True))
    own = all(want in (None, size) for want, size in zip(wanted[1:], images.shape[1:], strict=True))
    return images.permute(0, 2, 3, 1) if fits and not own else images


def ends_in_softmax(model: Any) -> bool:
    """Whether the last layer gives probabilities."""
    last = model.layers[-1]
    activation = getattr(last, "activation", None)
    return type(last).__name__ == "Softmax" or getattr(activation, "__name__", "") == "softmax"


def as_logits(out: Any) -> Any:
    """Logarithms of probabilities: what cross-entropy takes."""
    return out.clamp_min(1e-12).log() if isinstance(out, Tensor) else out


def _remembers(value: Any) -> bool:
    return any(isinstance(size, SourcedInt) for size in (value if isinstance(value, tuple | list) else (value,)))


@contextmanager
def _replaced(thing: Any, name: str, value: Any) -> Generator[None]:
    """An attribute of a Keras object for a while; Keras is not told."""
    own = name in vars(thing)
    before = vars(thing).get(name)
    object.__setattr__(thing, name, value)
    try:
        yield
    finally:
        if own:
            object.__setattr__(thing, name, before)
        else:
            object.__delattr__(thing, name)


def _call_sized(call: Any, shapes: Sequence[Any], inputs: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a model on inputs that are said to have the sizes of its config."""
    tree = keras().tree
    parts = [x.reshape(x.shape[0], *shape) for x, shape in zip(tree.flatten(inputs), shapes, strict=True)]
    return call(tree.pack_sequence_as(inputs, parts), *args, **kwargs)


class KerasModule(nn.Module):
    """A Keras model that runs on parameters and buffers of the module's own.

    Args:
        model: a model that was built, under the torch backend. Its variables hold the parameters' memory.

    Attributes:
        keras_model: the model.
        variables: its variables, by the names of the module's tensors.
        as_torch: whether the module takes and gives what torch's training does: images (B, C, H, W) where the model
            wants them (B, H, W, C), and logarithms of the probabilities that a softmax at its end gives. It is set
            where the data come from our own loaders.

    Raises:
        ModelError: Keras runs on another backend, or the model was not built.
    """

    keras_model: Any
    variables: Mapping[str, Any]

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
        for _, operation in operations(model):
            if held := OPAQUE.get(type(operation).__name__):
                raise ModelError(
                    f"the Keras model {model.name!r} has a {type(operation).__name__} ({operation.name!r}): it holds "
                    f"{held}, whose code no config describes. Prune what is in it by itself, and put it in anew"
                )
        self.as_torch = False
        object.__setattr__(self, "keras_model", model)  # no submodule: its variables are registered here
        object.__setattr__(self, "variables", named_variables(model))
        trained = {id(v) for v in model.trainable_variables}
        for name, variable in self.variables.items():
            value = variable.value
            if isinstance(value, nn.Parameter) and id(variable) in trained:
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value.detach())
        self.sizes = nn.ModuleDict()
        for path, operation in operations(model):
            if attribute := called(operation):
                self._hold(path, attribute, getattr(operation, attribute))
            for name, shape in input_shapes(operation) if is_model(operation) else ():
                self._hold(f"{path}/{name}", INPUT_SHAPE, shape)

    def _hold(self, path: str, attribute: str, value: Any) -> None:
        self.sizes[place_name(path)] = held = Called()
        setattr(held, attribute, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""
        model = self.keras_model
        inputs = args[0] if len(args) == 1 else list(args) if args else kwargs
        if self.as_torch and isinstance(inputs, Tensor):
            inputs = channels_last(inputs, getattr(model, "input_shape", None))
        scope = keras().StatelessScope()
        for name, variable in self.variables.items():
            scope.state_mapping[id(variable)] = self._tensor(name)
        with scope, self._sizes_said():
            out = model(inputs, training=self.training)
        if self.training:
            self._write(scope)
        return as_logits(out) if self.as_torch and ends_in_softmax(model) else out

    def _tensor(self, name: str) -> Tensor:
        found = self._parameters.get(name)
        return cast(Tensor, self._buffers[name] if found is None else found)

    def _write(self, scope: Any) -> None:
        """What running in training mode changed, such as moving averages, into the buffers."""
        for name, variable in self.variables.items():
            buffer, now = self._buffers.get(name), scope.get_current_value(variable)
            if buffer is not None and now is not None and now is not buffer:
                buffer.copy_(now.detach())

    @contextmanager
    def _sizes_said(self) -> Generator[None]:
        """While the module is traced, layers use sizes that remember where they stand, and models within the model say
        what sizes they take.
        """
        said = {name: vars(held) for name, held in self.sizes.items()}
        traced = any(_remembers(value) for values in said.values() for value in values.values())
        with ExitStack() as stack:
            for path, operation in operations(self.keras_model) if traced else ():
                if attribute := called(operation):
                    value = said[place_name(path)][attribute]
                    stack.enter_context(_replaced(operation, attribute, value))
                if is_model(operation):
                    shapes = [said[place_name(f"{path}/{name}")][INPUT_SHAPE] for name, _ in input_shapes(operation)]
                    stack.enter_context(_replaced(operation, "call", partial(_call_sized, operation.call, shapes)))
            yield

    def rebuilt(self, tensors: Mapping[str, Tensor], plan: "Plan") -> "KerasModule":
        """The module of a model that was built anew from its config, with the smaller sizes in it."""
        new = KerasModule.of(rebuild(self.keras_model, tensors, plan))
        new.as_torch = self.as_torch
        return new.train(self.training)

    def plain(self) -> Any:
        """The Keras model with the module's present values: its own model, or a new one where the module is a copy."""
        own = vars(self.keras_model).get(KEY) is self
        tensors = {name: self._tensor(name) for name in self.variables}
        if not own:
            return rebuild(self.keras_model, tensors, None)
        for name, variable in self.variables.items():
            if tensors[name].data_ptr() != variable.value.data_ptr():
                variable.assign(tensors[name].detach())
        return self.keras_model

    def __deepcopy__(self, memo: dict[int, Any]) -> "KerasModule":
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        for name, value in vars(self).items():
            object.__setattr__(new, name, value if name in SHARED else copy.deepcopy(value, memo))
        return new
