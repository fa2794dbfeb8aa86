"""The parts of a Keras model, and names for its variables. No torch in here."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

INPUT_SHAPE = "batch_shape"
"""The entry of an input layer's config that holds its shape; ours leave the batch's dim out."""


def variables(model: Any) -> list[Any]:
    """All variables of a model or layer but the states of random layers, each once."""
    found = {id(v): v for v in getattr(model, "variables", ())}
    return [v for v in found.values() if "seed_generator" not in v.path]


def named_variables(model: Any) -> dict[str, Any]:
    """All variables by names that are the same however the model came about: Keras' own paths begin with the model's
    name or not, as it was built or loaded. Names of tensors hold no dots, so neither do these.
    """
    places: dict[int, str] = {}
    for place, operation in operations(model):
        for number, variable in enumerate(() if is_model(operation) else variables(operation)):
            inside = _after(variable.path, place)
            if re.fullmatch(r"variable(_\d+)?", inside):  # it was given no name, and a number that counts the process's
                inside = f"variable{number}"
            places.setdefault(id(variable), f"{place}/{inside}")
    named: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    for variable in variables(model):
        name = str(places.get(id(variable)) or variable.path).replace(".", "_")
        counts[name] += 1
        named[name if counts[name] == 1 else f"{name}#{counts[name]}"] = variable
    return named


def _after(path: str, place: str) -> str:
    """What is left of a variable's path behind the layer that owns it.

    >>> _after("sequential/dense/kernel", "dense"), _after("inner/attention/query/kernel", "inner/attention")
    ('kernel', 'query/kernel')
    """
    segments, at = path.split("/"), 0
    for name in place.split("/"):
        if name in segments[at:-1]:
            at = segments.index(name, at) + 1
    return "/".join(segments[at:])


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


def place_name(path: str) -> str:
    """The name of a module that holds sizes of an operation.

    >>> place_name("block1/reshape.1")
    'block1/reshape_1'
    """
    return path.replace(".", "_")
