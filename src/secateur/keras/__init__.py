"""Keras 3: a model becomes a smaller model, plain Keras again, on any backend.

Where Keras runs on torch, all of secateur takes Keras models as they are: ``sc.prune(model, x)`` returns one. Under
TensorFlow or JAX `prune` does the work in a process of its own, so that this module imports neither torch nor Keras.
"""

from typing import TYPE_CHECKING, Any

from secateur.keras.anywhere import Pruned as Pruned
from secateur.keras.anywhere import prune as prune

if TYPE_CHECKING:
    from secateur.keras.adapter import KerasModule as KerasModule
    from secateur.keras.callback import Prune as Prune
    from secateur.keras.layers import Sizes as Sizes
    from secateur.keras.layers import rule as rule

LATER = {"KerasModule": "adapter", "Prune": "callback", "Sizes": "layers", "rule": "layers"}


def __getattr__(name: str) -> Any:
    """What needs torch or Keras is imported when it is asked for."""
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{LATER[name]}"), name)
