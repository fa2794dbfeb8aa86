"""A compiled model stays compiled when it gets smaller, and its optimizer goes on from where it was."""

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from secateur.keras.walking import named_variables
from secateur.surgery.reindex import take

if TYPE_CHECKING:
    from secateur.planning.plan import Plan


def carry_compilation(old: Any, new: Any, plan: "Plan") -> None:
    """Compile the smaller model as the original was, with the state of its optimizer re-indexed. Nothing where the
    original was not compiled.
    """
    config = old.get_compile_config() if getattr(old, "compiled", False) else None
    if not config:
        return
    new.compile_from_config(config)
    object.__setattr__(new, "get_compile_config", lambda: _public(type(new).get_compile_config(new)))
    before, after = getattr(old, "optimizer", None), getattr(new, "optimizer", None)
    if before is None or after is None or not before.built:
        return
    if not after.built:
        after.build(new.trainable_variables)
    names = {id(variable): name for name, variable in named_variables(old).items()}
    for source, target in zip(before.variables, after.variables, strict=True):
        value: Tensor = source.value
        owner = _owner(before, source)
        if owner is not None and tuple(value.shape) == tuple(owner.shape):
            value = take(value, plan.kept.get(names[id(owner)], {}))
        if tuple(value.shape) == tuple(target.shape):  # others, such as factored moments, begin anew
            target.assign(value.detach())


def _public(config: dict[str, Any]) -> dict[str, Any]:
    """A compile config that other backends can read: Keras names its optimizers by their classes on the backend."""
    optimizer = config.get("optimizer")
    if isinstance(optimizer, dict) and str(optimizer.get("module")).startswith("keras.src.backend."):
        named = {"module": "keras.optimizers", "registered_name": None}
        config = {**config, "optimizer": {**cast("dict[str, Any]", optimizer), **named}}
    return config


def _owner(optimizer: Any, variable: Any) -> Any:
    """The weight that a variable of an optimizer belongs to: its lists run along its weights."""
    weights = optimizer._trainable_variables
    for held in vars(optimizer).values():
        if isinstance(held, list) and held is not weights and len(held) == len(weights):
            for weight, own in zip(weights, held, strict=True):
                if own is variable:
                    return weight
    return None
