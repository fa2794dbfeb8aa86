"""Settings of a test of robustness, and what their texts say."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from secateur.config.base import Settings
from secateur.safety.threat import unfit_scale

NORMS = ("linf", "l2")


@dataclass(frozen=True, kw_only=True)
class RobustSettings(Settings):
    """Whether and how networks are attacked.

    Args:
        robust: attack the network, and the dense one that it came from, on the test split, and say what that did.
        eps: how far an attack may change an input, in the unit of the pixels: 8/255 in L-inf; l2=0.5 in L2;
            linf=8/255,l2=0.5 in both.
        bounds: least and greatest value of a pixel.
        normalise: how the inputs were scaled: "auto" as the data say of themselves; "none" for pixels; MEAN:DEVIATION,
            numbers or one for each channel: 0.5:0.25, 0.485,0.456,0.406:0.229,0.224,0.225.
        samples: test samples that are attacked, at most.
    """

    robust: bool = False
    eps: str = "8/255"
    bounds: str = "0:1"
    normalise: str = "auto"
    samples: int = 500


def robust_problems(settings: RobustSettings, *, attacked: bool | None = None) -> Iterable[str]:
    """What is wrong with the texts and numbers, and which of them nobody asked for.

    Args:
        settings: of a command.
        attacked: whether it attacks anything while training or pruning; None where it can't.
    """
    if not settings.robust:
        yield from _idle(settings, attacked)
    if settings.samples < 1:
        yield f"samples={settings.samples} must be at least 1"
    for name, read in (("eps", radii), ("bounds", pair), ("normalise", scale)):
        try:
            read(getattr(settings, name))
        except ValueError as error:
            yield f"{name}={getattr(settings, name)}: {error}"


def _idle(settings: RobustSettings, attacked: bool | None) -> Iterable[str]:
    """Settings of attacks that are not made."""
    for name in ("samples", "eps", "bounds", "normalise"):
        if (value := getattr(settings, name)) == getattr(RobustSettings, name):
            continue
        if not attacked:
            ways = "robust" if attacked is None else "robust or adversarial"
            yield f"{name}={value} says how networks are attacked, and none is: give {ways}, too"
        elif name == "samples":
            yield f"samples={value} is for robust, which is not given"


def radii(text: str) -> dict[Any, float]:
    """The radius of each norm.

    >>> radii("8/255") == {"linf": 8 / 255}, radii("linf=0.1,l2=0.5")
    (True, {'linf': 0.1, 'l2': 0.5})
    """
    found: dict[Any, float] = {}
    for part in text.split(","):
        name, _, value = part.rpartition("=")
        name = name.strip() or "linf"
        if name not in NORMS or name in found:
            raise ValueError("write 8/255, l2=0.5 or linf=8/255,l2=0.5")
        found[name] = _number(value)
        if not found[name] > 0:
            raise ValueError("a radius must be above 0")
    return found


def pair(text: str) -> tuple[float, float]:
    """The bounds of pixels.

    >>> pair("0:255")
    (0.0, 255.0)
    """
    low, _, high = text.partition(":")
    found = _number(low), _number(high)
    if not found[0] < found[1]:
        raise ValueError("the first must be below the second, as in 0:1")
    return found


def scale(text: str) -> Any:
    """Mean and deviation, each a number or one for each channel; None for pixels, "auto" for what the data say.

    >>> scale("0.5:0.25"), scale("0,0.5:1,2"), scale("none")
    ((0.5, 0.25), ((0.0, 0.5), (1.0, 2.0)), None)
    """
    if text in ("auto", "none"):
        return None if text == "none" else text
    mean, found, std = text.partition(":")
    if not found:
        raise ValueError("write auto, none, or MEAN:DEVIATION such as 0.5:0.25")
    sides = [[_number(value) for value in side.split(",")] for side in (mean, std)]
    said = tuple(cast("Any", side[0] if len(side) == 1 else tuple(side)) for side in sides)
    if unfit := unfit_scale(said):
        raise ValueError(unfit)
    return said


def _number(text: str) -> float:
    """A number, or a fraction of two."""
    above, slash, below = text.strip().partition("/")
    try:
        found = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{text.strip()!r} is no number")
    return found
