"""Keras models from files."""

from pathlib import Path
from typing import Any

from secateur.errors import ModelError
from secateur.keras.backend import keras


def load(path: Path) -> Any:
    """The model in a ``.keras`` file; nothing in it is run but Keras' own code and layers that are registered.

    Raises:
        ModelError: it can't be read, or has layers that nobody registered.
    """
    try:
        return keras().models.load_model(path, safe_mode=True)
    except Exception as error:
        raise ModelError(
            f"{path.name} can't be loaded: {type(error).__name__}: {' '.join(str(error).split())[:500]}. Layers of "
            "your own must be registered (@keras.saving.register_keras_serializable()) in a module that is imported "
            "first"
        ) from error
