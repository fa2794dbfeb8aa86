"""What the settings of a training run may be, in one place for `tune`, the command line and files."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from secateur.errors import TrainingError

WHOLE = ("epochs", "train_epochs", "accumulate", "patience", "steps")
Ranges = Mapping[str, tuple[str, Callable[[Any], bool]]]
RANGES: Ranges = {
    "epochs": ("at least 1", lambda value: value >= 1),
    "lr": ("above 0", lambda value: 0 < value < math.inf),
    "distill": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "temperature": ("above 0", lambda value: 0 < value < math.inf),
    "weight_decay": ("at least 0", lambda value: 0 <= value < math.inf),
    "warmup": ("in [0, 1)", lambda value: 0 <= value < 1),
    "accumulate": ("at least 1", lambda value: value >= 1),
    "clip": ("above 0", lambda value: value > 0),
    "patience": ("at least 1", lambda value: value >= 1),
    "ema": ("in (0, 1)", lambda value: 0 < value < 1),
}
"""By the name of a setting: its range in words, and as a condition."""

OF_RUNS: Ranges = {
    **RANGES,
    "epochs": ("at least 0", lambda value: value >= 0),
    "lr": ("above 0, auto or search", RANGES["lr"][1]),
    "search_seconds": ("above 0", lambda value: value > 0),
    "train_epochs": ("at least 0", lambda value: value >= 0),
    "train_lr": RANGES["lr"],
}
"""The same for the settings of a command, which may train before pruning, and not at all."""


def problems(settings: Mapping[str, Any], ranges: Ranges = RANGES) -> Iterable[str]:
    """What is wrong with numbers by their names; None is none.

    Example:
        >>> list(problems({"warmup": 1.0, "patience": None, "epochs": 1.5}))
        ['warmup=1.0 must be in [0, 1)', 'epochs=1.5 must be a whole number']
    """
    for name, value in settings.items():
        wanted, fits = ranges[name]
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield f"{name}={value!r} must be a number {wanted}"
        elif not fits(value):
            yield f"{name}={value} must be {wanted}"
        elif name in WHOLE and value != int(value):
            yield f"{name}={value} must be a whole number"


def check(settings: Mapping[str, Any], *others: str) -> None:
    """Report all settings that are out of their range, and other things that are wrong.

    Raises:
        TrainingError: there are any.
    """
    wrong = [*problems(settings), *others]
    if wrong:
        raise TrainingError("; ".join(wrong))
