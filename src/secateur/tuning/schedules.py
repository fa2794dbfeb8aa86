"""Learning rates over a run: what share of the highest rate holds at each step."""

import difflib
import math
from collections.abc import Callable

from secateur.errors import TrainingError

Fraction = Callable[[float], float]
"""From the share of the run that is done, in [0, 1), to the share of the highest learning rate."""


def cosine(done: float) -> float:
    """Half a cosine, from 1 down to 0 (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts)."""
    return (1 + math.cos(math.pi * done)) / 2


def linear(done: float) -> float:
    """A straight line from 1 down to 0."""
    return 1 - done


def constant(done: float) -> float:
    """1 throughout."""
    return 1.0


def steps(done: float) -> float:
    """A tenth after one half, a hundredth after three quarters (as in He et al. 2016, arXiv:1512.03385)."""
    return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01


NAMED: dict[str, Fraction] = {"cosine": cosine, "linear": linear, "constant": constant, "steps": steps}


def fractions(choice: str | Fraction, total: int, warmup: float) -> Callable[[int], float]:
    """The share of the highest learning rate at each step: a linear rise, then what was chosen.

    Args:
        choice: "cosine", "linear", "constant", "steps", or a function of the share of the run after the rise.
        total: steps of the run.
        warmup: share of them in which the rate rises, in [0, 1).

    Raises:
        TrainingError: nobody knows the name.

    Example:
        >>> [round(fractions("linear", 4, 0.25)(step), 3) for step in range(4)]
        [0.5, 1.0, 0.667, 0.333]
    """
    if not callable(choice) and choice not in NAMED:
        near = difflib.get_close_matches(str(choice), NAMED, 1)
        raise TrainingError(
            f"no learning-rate schedule is called {choice!r}; known are {', '.join(NAMED)}, or a function from the "
            f"share of the run to the share of the highest rate." + (f" Did you mean {near[0]!r}?" if near else "")
        )
    follow = choice if callable(choice) else NAMED[choice]
    rising = math.ceil(warmup * total)

    def fraction(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return follow(min((step - rising) / max(1, total - rising), 1.0))

    return fraction
