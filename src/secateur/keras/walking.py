"""The parts of a Keras model."""

from collections.abc import Iterator
from typing import Any


def variables(model: Any) -> list[Any]:
    """All variables but the states of random layers, each once."""
    return list({id(v): v for v in getattr(model, "variables", ()) if not _is_seed(v)}.values())


def _is_seed(variable: Any) -> bool:
    return "seed_generator" in variable.path


INPUT_SHAPE = "batch_shape"
"""The entry of an input layer's config that holds its shape; ours leave the batch's dim out."""


def is_model(operation: Any) -> bool:
    """Whether it is a model of layers, whose config holds theirs."""
    return hasattr(operation, "layers") and hasattr(operation, "get_layer")


def input_shapes(model: Any) -> list[tuple[str, tuple[int, ...]]]:
    """The names and shapes, without the batch's dim, of the inputs of a model; none where a dim is not fixed, or the
    model says nothing of them.
    """
    inputs = getattr(model, "inputs", None) or ()
    found = [(x._keras_history.operation.name, tuple(x.shape[1:])) for x in inputs]
    return found if all(None not in shape for _, shape in found) else []


def operations(model: Any) -> Iterator[tuple[str, Any]]:
    """Layers and other operations of a model and of the models in it, with their paths."""
    for operation in getattr(model, "operations", None) or model.layers:
        yield operation.name, operation
        if is_model(operation):
            for path, inner in operations(operation):
                yield f"{operation.name}/{path}", inner


def tensor_name(path: str) -> str:
    """The name of a variable's tensor, of a Keras path: names of tensors hold no dots.

    >>> tensor_name("block1/dense.1/kernel")
    'block1/dense_1/kernel'
    """
    return path.replace(".", "_")
