"""The parts of a Keras model."""

from collections.abc import Iterator
from typing import Any


def variables(model: Any) -> list[Any]:
    """All variables but the states of random layers, each once."""
    return list({id(v): v for v in model.variables if not _is_seed(v)}.values())


def _is_seed(variable: Any) -> bool:
    return "seed_generator" in variable.path


def operations(model: Any) -> Iterator[tuple[str, Any]]:
    """Layers and other operations of a model and of the models in it, with their paths."""
    for operation in getattr(model, "operations", None) or model.layers:
        yield operation.name, operation
        if hasattr(operation, "layers") and hasattr(operation, "get_layer"):
            for path, inner in operations(operation):
                yield f"{operation.name}/{path}", inner


def tensor_name(path: str) -> str:
    """The name of a variable's tensor, of a Keras path: names of tensors hold no dots.

    >>> tensor_name("block1/dense.1/kernel")
    'block1/dense_1/kernel'
    """
    return path.replace(".", "_")
