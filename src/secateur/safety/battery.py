"""The attacks by name, how much each may try, and which can't be made."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import ConfigError
from secateur.safety.apgd import FEWEST_CLASSES, apgd, apgd_dlr
from secateur.safety.hunt import Scores
from secateur.safety.pgd import fgsm, pgd
from secateur.safety.square import square
from secateur.safety.threat import Threat

Generator = torch.Generator | None


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much attacks may try.

    Args:
        steps: gradient steps of PGD.
        restarts: random starts of PGD.
        apgd_steps: gradient steps of Auto-PGD, for each of its targets.
        queries: how often the square attack may ask.

    Raises:
        ConfigError: a number below 1.
    """

    steps: int = 20
    restarts: int = 5
    apgd_steps: int = 100
    queries: int = 1000

    def __post_init__(self) -> None:
        wrong = [f"{name}={value}" for name, value in vars(self).items() if value < 1]
        if wrong:
            raise ConfigError(f"{', '.join(wrong)}: attacks need at least 1 of each")


Attack = Callable[[Scores, Tensor, Tensor, Threat, Effort, Generator], Tensor]


def _fgsm(scores: Scores, inputs: Tensor, labels: Tensor, threat: Threat, effort: Effort, chance: Generator) -> Tensor:
    return fgsm(scores, inputs, labels, threat)


def _pgd(scores: Scores, inputs: Tensor, labels: Tensor, threat: Threat, effort: Effort, chance: Generator) -> Tensor:
    return pgd(
        scores, inputs, labels, threat, steps=effort.steps, restarts=effort.restarts, generator=chance, stop=True
    )


def _apgd_ce(
    scores: Scores, inputs: Tensor, labels: Tensor, threat: Threat, effort: Effort, chance: Generator
) -> Tensor:
    return apgd(scores, inputs, labels, threat, steps=effort.apgd_steps, generator=chance, stop=True)


def _apgd_dlr(
    scores: Scores, inputs: Tensor, labels: Tensor, threat: Threat, effort: Effort, chance: Generator
) -> Tensor:
    return apgd_dlr(scores, inputs, labels, threat, steps=effort.apgd_steps, generator=chance)


def _square(
    scores: Scores, inputs: Tensor, labels: Tensor, threat: Threat, effort: Effort, chance: Generator
) -> Tensor:
    return square(scores, inputs, labels, threat, queries=effort.queries, generator=chance)


ATTACKS: dict[str, Attack] = {
    "fgsm": _fgsm,
    "pgd": _pgd,
    "apgd_ce": _apgd_ce,
    "apgd_dlr": _apgd_dlr,
    "square": _square,
}
ITERATIVE = ("pgd", "apgd_ce", "apgd_dlr")
"""Those that climb a gradient step by step."""


def checked_attacks(names: Iterable[str] | None) -> tuple[str, ...]:
    """The attacks that were asked for, all by default, in their own order.

    Raises:
        ConfigError: names that nobody knows, or none at all.
    """
    asked = tuple(ATTACKS) if names is None else (names,) if isinstance(names, str) else tuple(names)
    strange = [name for name in asked if name not in ATTACKS]
    if strange or not asked:
        raise ConfigError(f"attacks={', '.join(strange) or 'nothing'}: choose among {', '.join(ATTACKS)}")
    return tuple(name for name in ATTACKS if name in asked)


def impossible(name: str, inputs: Tensor, classes: int) -> str:
    """Why an attack can't be made, in words; empty where it can.

    >>> impossible("apgd_dlr", torch.zeros(1, 3, 8, 8), 2)
    'its loss compares the 4 highest scores, and there are 2 classes'
    """
    if name == "apgd_dlr" and classes < FEWEST_CLASSES:
        return f"its loss compares the {FEWEST_CLASSES} highest scores, and there are {classes} classes"
    if name == "square" and inputs.dim() != 4:
        shape = ", ".join(map(str, inputs.shape[1:]))
        return f"it changes squares of images (N, C, H, W), and inputs are (N, {shape})"
    return ""
