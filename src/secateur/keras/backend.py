"""Keras, imported where it is used, and on the backend that secateur works with."""

import importlib
from typing import Any

from secateur.errors import MissingExtra, ModelError


def keras() -> Any:
    """The package.

    Raises:
        MissingExtra: it is not installed.
        ModelError: it runs on another backend than torch.
    """
    try:
        found = importlib.import_module("keras")
    except ModuleNotFoundError as error:
        raise MissingExtra("keras", "keras", "a Keras model") from error
    if found.config.backend() != "torch":
        raise ModelError(
            f"Keras runs on the {found.config.backend()} backend in this process, and secateur looks at models on "
            "torch. Start Python with the environment variable KERAS_BACKEND=torch, or use secateur.keras.prune, which "
            "works in a process of its own"
        )
    return found
